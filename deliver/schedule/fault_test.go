package schedule

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
)

// faulty is what a receiver says of whom a fault of ours keeps us from.
func faulty(after time.Duration) answering { return always(ownFaulted, after) }

func TestFaults(t *testing.T) {
	t.Parallel()
	const outage = 10 * time.Minute
	outageOf := func(after time.Duration) answering {
		return until(time.Now().Add(outage), faulty(after), always(200, time.Millisecond))
	}
	tests := map[string]func(t *testing.T){
		"an outage costs no attempt, and all goes on within seconds": func(t *testing.T) {
			h := newHouse(t, usual)
			var endpoints []uuid.UUID
			for range 2 {
				endpoints = append(endpoints, h.open(outageOf(time.Millisecond)))
			}
			h.load(2, time.Minute, endpoints...)
			h.sleep(outage - time.Minute - time.Second)
			for _, id := range endpoints {
				if l := h.w.lanes[id]; l.breaker != (breaker{}) || l.state != unknown || l.unreported != nil {
					t.Errorf("breaker %+v, state %v: the endpoint pays", l.breaker, l.state)
				}
				h.is("tries", len(h.sent[id]), int(outage/faultMax)*8/10, int(outage/faultFirst)*6/10)
			}
			for _, r := range h.table {
				if r.Attempts != 0 || r.Status != webhook.Pending {
					t.Errorf("%s after %d attempts", r.Status, r.Attempts)
				}
			}
			h.is("in memory", h.w.held, 0, 2)
			h.sleep(time.Second + 2*faultMax)
			for _, id := range endpoints {
				h.is("delivered", h.statuses(id)[webhook.Success], 120, 120)
			}
			h.is("faults that go on", len(h.w.ongoing()), 0, 0)
			h.idle()
		},
		"thousands of endpoints do not storm a proxy that is away": func(t *testing.T) {
			h := newHouse(t, usual)
			var endpoints []uuid.UUID
			for range thousands {
				endpoints = append(endpoints, h.open(outageOf(10*time.Millisecond)))
			}
			h.event(endpoints...)
			tries := func() (n int) {
				for _, id := range endpoints {
					n += len(h.sent[id])
				}
				return n
			}
			h.sleep(time.Second)
			h.is("in the first second", tries(), heldFrom, usual.MaxInFlight+2)
			before := tries()
			h.sleep(outage - 2*time.Second)
			h.is("while it is away", tries()-before, int(outage/heldEvery)*8/10, int(outage/heldEvery))
			if _, stuck := h.stuck(); !stuck {
				t.Error("nothing tells")
			}
			h.sleep(2*heldEvery + 2*faultMax)
			for _, id := range endpoints {
				h.is("delivered", h.statuses(id)[webhook.Success], 1, 1)
			}
			if _, stuck := h.stuck(); stuck {
				t.Error("it does not end")
			}
			h.idle()
		},
		"endpoints whose hosts a proxy refuses hold nobody up": func(t *testing.T) {
			h := newHouse(t, usual)
			good := h.open(always(200, time.Millisecond))
			h.load(10, time.Second, good)
			var refused []uuid.UUID
			for range 10 {
				refused = append(refused, h.open(faulty(time.Millisecond)))
			}
			for range 60 {
				h.event(refused...)
				h.load(10, time.Second, good)
			}
			if _, stuck := h.stuck(); stuck {
				t.Error("nothing can be sent, so it says")
			}
			h.sleep(time.Second)
			h.is("delivered", h.statuses(good)[webhook.Success], 610, 610)
			if h.delay[good] > heldEvery {
				t.Errorf("one waited for %v", h.delay[good])
			}
			for _, id := range refused {
				h.is("tries", len(h.sent[id]), 8, 18)
			}
		},
		"attempts from before the end shut no lane again": func(t *testing.T) {
			h := newHouse(t, usual)
			end := time.Now().Add(1500 * time.Millisecond)
			slow := until(end, faulty(8*time.Second), always(200, time.Millisecond))
			fast := until(end, faulty(time.Millisecond), always(200, time.Millisecond))
			a, b := h.open(slow), h.open(fast)
			h.event(a, b)
			h.sleep(6 * time.Second)
			h.is("delivered", h.statuses(b)[webhook.Success], 1, 1)
			h.sleep(2100 * time.Millisecond)
			h.is("shut", len(h.w.ongoing()), 0, 0)
			h.sleep(usual.Timeout + leaseMargin) // its row has the lease of an attempt that hung
			h.is("delivered", h.statuses(a)[webhook.Success], 1, 1)
			h.idle()
		},
		"a retry keeps its count": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(until(time.Now().Add(20*time.Second), faulty(time.Millisecond), always(200, 0)))
			h.waiting(endpoint, 3, 4)
			h.sleep(19 * time.Second)
			for _, r := range h.table {
				if r.Attempts != 4 || r.Status != webhook.Retrying {
					t.Errorf("%s after %d attempts", r.Status, r.Attempts)
				}
			}
			h.sleep(10 * time.Second)
			for _, r := range h.table {
				if r.Attempts != 5 || r.Status != webhook.Success {
					t.Errorf("%s after %d attempts", r.Status, r.Attempts)
				}
			}
			h.idle()
		},
		"without descriptors, connections that are open go on": func(t *testing.T) {
			h := newHouse(t, usual)
			open := h.open(always(200, time.Millisecond))
			var without []uuid.UUID
			for range 20 {
				without = append(without, h.open(outageOf(time.Millisecond)))
			}
			h.load(10, time.Second, open)
			for range 30 {
				h.event(without...)
				h.load(10, time.Second, open)
			}
			h.is("delivered", h.statuses(open)[webhook.Success], 300, 310)
			if h.delay[open] > heldEvery {
				t.Errorf("one waited for %v", h.delay[open])
			}
		},
	}
	for name, run := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, run)
		})
	}
}
