package deliver

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/outbox"
)

func org(o string) func(*outbox.Endpoint) { return func(e *outbox.Endpoint) { e.OrganizationID = o } }

func zz(t *testing.T, f func(t *testing.T)) { synctest.Test(t, f) }

// T1: trusted endpoints that hang at once use up the guest room.
func TestZZGuests(t *testing.T) {
	for _, k := range []int{0, 1, 10, 17, 20} {
		t.Run(fmt.Sprint(k), func(t *testing.T) {
			zz(t, func(t *testing.T) {
				h := newHouse(t, usual)
				hangAt := time.Now().Add(2 * time.Second)
				var bad []uuid.UUID
				for range k {
					bad = append(bad, h.open(until(hangAt, always(200, 5*time.Millisecond), always(0, 10*time.Second)), org("org_bad")))
				}
				if k == 1 {
					bad = []uuid.UUID{h.open(until(hangAt, always(200, 5*time.Millisecond), always(0, 10*time.Second)), org("org_bad"), atOnce(1000))}
				}
				if k == 1 {
					h.load(500, 2*time.Second, bad...)
					for range 1000 {
						h.event(bad...)
					}
				} else {
					for range 20 {
						h.event(bad...)
						h.sleep(100 * time.Millisecond)
					}
					for range 40 {
						h.event(bad...)
					}
				}
				h.sleep(1100 * time.Millisecond)
				good := h.open(always(200, time.Millisecond), org("org_good"))
				begun := time.Now()
				h.event(good)
				for len(h.sent[good]) == 0 && time.Since(begun) < time.Minute {
					h.sleep(10 * time.Millisecond)
				}
				t.Logf("k=%d: newcomer sent after %v; guests %d running %d", k, time.Since(begun), h.w.guests, h.w.running)
			})
		})
	}
}

// T2: a rate that is large takes the window.
func TestZZRateWindow(t *testing.T) {
	for _, r := range []float64{0, 100000, 1e300} {
		zz(t, func(t *testing.T) {
			h := newHouse(t, usual)
			bad := h.open(always(0, 10*time.Second), perSecond(r))
			good := h.open(always(200, time.Millisecond))
			h.event(bad, good)
			h.sleep(10 * time.Millisecond)
			for range 7000 {
				h.event(bad)
			}
			l := h.w.lanes[bad]
			first := len(l.first)
			t.Logf("rate %v ahead %d spilled %v running %d held %d", l.rate, h.w.ahead(l, time.Now()), l.spilled, l.running, h.w.held)
			begun := time.Now()
			delete(h.delay, good)
			h.event(good)
			h.sleep(time.Second)
			t.Logf("rate %v: queue of the one that hangs %d, good event took %v (admitted %v) parked %v", r, first, h.delay[good], time.Since(begun), h.statuses(good))
		})
	}
}

// T3a: page under way while the breaker opens.
func TestZZPageUnderWay(t *testing.T) {
	zz(t, func(t *testing.T) {
		h := newHouse(t, usual)
		bad := h.open(always(503, time.Millisecond))
		l := h.w.lane(bad, time.Now())
		h.event(bad)
		h.sleep(10 * time.Millisecond)
		l.trusted = true
		l.rows = true
		l.stock = 512
		w := h.w
		// request by hand, as fetchPages does
		w.hungry, l.inHungry = append(w.hungry, l), true
		reqs := w.toAsk(32, time.Now())
		t.Logf("asked for %d", reqs[0].size)
		w.removed = map[uuid.UUID]bool{}
		for i := 0; i < 25; i++ { // meanwhile
			h.event(bad)
		}
		h.sleep(20 * time.Millisecond)
		t.Logf("open %v", l.breaker.open)
		for range reqs[0].size {
			r := outbox.Record{ID: uuid.New(), EventID: uuid.New(), EndpointID: bad, Status: outbox.Pending}
			h.store(&row{Record: r, due: time.Now()})
			reqs[0].got++
			w.admitDue(&outbox.Due{ID: r.ID, EndpointID: bad, Status: r.Status, Event: outbox.Event{ID: r.EventID, Payload: []byte(`{}`)}}, time.Now())
		}
		w.removed = nil
		w.paged(reqs[0], time.Now())
		h.sleep(10 * time.Minute)
		t.Logf("ten minutes later: held %d stocked %d fetched %d", l.held, l.stocked, w.fetched)
	})
}

// T3b: restart with open breakers.
func TestZZRestartOpen(t *testing.T) {
	for _, n := range []int{0, 3000, 6000} {
		zz(t, func(t *testing.T) {
			h := newHouse(t, usual)
			for range n {
				bad := h.open(always(503, time.Millisecond), func(e *outbox.Endpoint) { e.BreakerOpen = true; e.OrganizationID = uuid.NewString() })
				h.waiting(bad, 10, 0)
			}
			h.sleep(3 * time.Second)
			good := h.open(always(200, time.Millisecond), org("good"))
			h.waiting(good, 1000, 1)
			begun := time.Now()
			for len(h.sent[good]) < 1000 && time.Since(begun) < 20*time.Minute {
				h.sleep(100 * time.Millisecond)
			}
			t.Logf("n=%d: the good one's 1000 rows took %v; fetched %d", n, time.Since(begun), h.w.fetched)
		})
	}
}

// T5: late starve with a small number of places.
func TestZZLateSmall(t *testing.T) {
	for _, m := range []int{1024, 64, 32, 8} {
		zz(t, func(t *testing.T) {
			l := usual
			l.MaxInFlight = m
			l.EndpointInFlight = min(32, m)
			h := newHouse(t, l)
			e := h.open(always(200, 100*time.Millisecond))
			h.event(e)
			h.sleep(time.Second)
			late := 0
			run := h.w.workers.run
			h.w.workers.run = func(d *delivery) {
				if d.late {
					late++
				}
				run(d)
			}
			h.waiting(e, 1000, 1)
			// first attempts at 90 % of capacity
			rate := min(32, m) * 10 * 95 / 100
			if m == 32 || m == 8 {
				rate = m * 10 * 85 / 100 // of 7/8
			}
			h.load(rate, 20*time.Second, e)
			t.Logf("places %d: %d late attempts in 20 s of %d, running %d, spilled %v, first %d late %d", m, late, len(h.sent[e]), h.w.running, h.w.lanes[e].spilled, len(h.w.lanes[e].first), len(h.w.lanes[e].late))
		})
	}
}

// T6
func TestZZTinyRate(t *testing.T) {
	zz(t, func(t *testing.T) {
		h := newHouse(t, usual)
		e := h.open(always(200, time.Millisecond), perSecond(1e-11))
		for range 100 {
			h.event(e)
		}
		h.sleep(10 * time.Second)
		t.Logf("sent at 1e-11/s: %d", len(h.sent[e]))
		e = h.open(always(200, time.Millisecond), perSecond(1e300))
		h.waiting(e, 1000, 0)
		h.sleep(time.Second)
		t.Logf("sent at 1e300/s in 1 s: %d", len(h.sent[e]))
	})
}

// T4
func TestZZDrop(t *testing.T) {
	zz(t, func(t *testing.T) {
		r := newRig(t, usual)
		w := r.w
		for range maxIdleLanes + 1 { // others with work
			w.lane(uuid.New(), time.Now()).spilled = true
		}
		e := r.endpoint()
		answer := func(status int) {
			for len(r.started) > 0 {
				r.answer(r.started[0], status)
			}
		}
		r.event(e)
		answer(200)
		r.commit()
		w.takeNews()
		r.lookUp(e, true)
		r.event(e)
		a := w.lanes[e]
		time.Sleep(1500 * time.Millisecond)
		answer(200) // ended, not recorded
		for range 10 {
			w.forget(time.Now())
		}
		t.Logf("%+v", a); t.Logf("A forgotten with %d outcomes unrecorded: %v", w.ended, w.lanes[e] == nil)
		r.event(e)
		b := w.lanes[e]
		taken, _ := w.takeNew()
		w.inserted(taken, true)
		t.Logf("B still in the map after A's outcome was recorded: %v; it holds %d (a==b %v)", w.lanes[e] == b, b.held, a == b)
		r.lookUp(e, true)
		c := w.lanes[e]
		w.lookedUp(b, &outbox.Endpoint{ID: e, Enabled: true}, r.target, time.Now(), time.Now())
		r.event(e)
		w.dispatch(time.Now())
		t.Logf("two lanes of one endpoint: running %d and %d", b.running, c.running)
		answer(503)
		news := w.takeNews()
		t.Logf("news of one mark: %+v", news)
	})
}

// aside holds late places
func TestZZAside(t *testing.T) {
	zz(t, func(t *testing.T) {
		l := usual
		l.MaxInFlight = 16
		l.EndpointInFlight = 16
		r := newRig(t, l)
		w := r.w
		var ds []*delivery
		w.workers.run = func(d *delivery) { ds = append(ds, d) }
		id := r.endpoint()
		w.lanes[id].trusted = true
		for range 12 {
			w.admitDue(&outbox.Due{ID: uuid.New(), EndpointID: id, Status: outbox.Retrying, Attempts: 1, Event: outbox.Event{ID: uuid.New(), Payload: []byte(`{}`)}}, time.Now())
		}
		w.guests, w.guestsOf = 0, map[string]int{}
		w.lanes[id].trusted = true
		for w.late < 12 {
			before := w.late
			w.limits.MaxInFlight = 1000 // let them start
			w.makeReady(w.lanes[id], time.Now())
			w.dispatch(time.Now())
			if w.late == before {
				break
			}
		}
		w.limits.MaxInFlight = 16
		t.Logf("running %d late %d", w.running, w.late)
		for _, d := range ds {
			w.finish(d, outbox.Attempt{StatusCode: 200, EndedAt: time.Now()}, time.Now())
		}
		n := len(ds)
		taken, _ := w.takeExisting()
		busy := map[uuid.UUID]bool{}
		for _, d := range taken {
			busy[d.id] = true
		}
		w.updated(taken, busy)
		other := r.endpoint()
		w.admitDue(&outbox.Due{ID: uuid.New(), EndpointID: other, Status: outbox.Retrying, Attempts: 1, Event: outbox.Event{ID: uuid.New(), Payload: []byte(`{}`)}}, time.Now())
		w.dispatch(time.Now())
		t.Logf("%d aside, late %d; other endpoint's retry started: %v", len(busy), w.late, len(ds) > n)
	})
}
