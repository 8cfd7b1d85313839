package deliver

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/outbox"
)

// gapped fetches like the retrier: the mutex is free while the database answers.
type gapped struct {
	h                  *house
	payload            []byte
	got, taken, pages  int
	latency            time.Duration
}

func (g *gapped) run(t *testing.T) {
	h := g.h
	w := h.w
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-t.Context().Done():
			return
		case <-tick.C:
		case <-w.toFetch:
		}
		for t.Context().Err() == nil {
			w.mu.Lock()
			reqs := w.toAsk(pagedLanes, time.Now())
			if len(reqs) == 0 {
				w.mu.Unlock()
				break
			}
			w.removed = map[uuid.UUID]bool{}
			type pg struct{ rows []*row }
			var pgs []pg
			now := time.Now()
			for _, p := range reqs {
				var rs []*row
				for _, r := range h.due[p.lane.id] {
					if len(rs) == p.size || r.due.After(now) {
						break
					}
					if w.deliveries[r.ID] != nil {
						continue
					}
					rs = append(rs, r)
				}
				pgs = append(pgs, pg{rs})
			}
			w.mu.Unlock()
			time.Sleep(g.latency)
			w.mu.Lock()
			for i, p := range reqs {
				g.pages++
				for _, r := range pgs[i].rows {
					p.got++
					g.got++
					before := w.counts.Fetched
					w.admitDue(&outbox.Due{ID: r.ID, EndpointID: r.EndpointID, Status: r.Status, Attempts: r.Attempts, SeriesStart: r.SeriesStart,
						Event: outbox.Event{ID: r.EventID, Type: r.EventType, Payload: g.payload}}, time.Now())
					g.taken += int(w.counts.Fetched - before)
				}
			}
			w.removed = nil
			for _, p := range reqs {
				w.paged(p, time.Now())
			}
			w.dispatch(time.Now())
			w.mu.Unlock()
		}
	}
}

func TestZZLarge(t *testing.T) {
	for _, size := range []int{100, 100_000, 250_000} {
		zz(t, func(t *testing.T) {
			h := newHouse(t, usual)
			h.w.toFetch = newSignal() // the house's own fetcher no longer hears
			g := &gapped{h: h, payload: []byte(`{"a":"` + strings.Repeat("x", size) + `"}`), latency: 2 * time.Millisecond}
			go g.run(t)
			e := h.open(always(200, 5*time.Millisecond))
			h.waiting(e, 3000, 0)
			begun := time.Now()
			for len(h.sent[e]) < 3000 && time.Since(begun) < time.Minute {
				h.sleep(5 * time.Millisecond)
			}
			t.Logf("payload %d: %d rows read in %d pages for %d taken, in %v", size, g.got, g.pages, g.taken, time.Since(begun))
		})
	}
}

func TestZZPinned(t *testing.T) {
	for _, n := range []int{40, 120, 300} {
		zz(t, func(t *testing.T) {
			h := newHouse(t, usual)
			h.w.toFetch = newSignal()
			g := &gapped{h: h, payload: []byte(`{}`), latency: 3 * time.Millisecond}
			go g.run(t)
			bad := time.Now().Add(300 * time.Millisecond)
			var es []uuid.UUID
			for range n {
				e := h.open(until(bad, always(200, 5*time.Millisecond), always(503, time.Millisecond)))
				es = append(es, e)
				h.waiting(e, 1000, 0)
			}
			h.sleep(10 * time.Second)
			open := 0
			for _, e := range es {
				if h.w.lanes[e].breaker.open {
					open++
				}
			}
			f := h.w.fetched
			good := h.open(always(200, time.Millisecond))
			h.waiting(good, 2000, 1)
			begun := time.Now()
			for len(h.sent[good]) < 2000 && time.Since(begun) < 10*time.Minute {
				h.sleep(10 * time.Millisecond)
			}
			t.Logf("%d endpoints, %d breakers open: %d rows in memory; 2000 rows of a good one took %v", n, open, f, time.Since(begun))
		})
	}
}
