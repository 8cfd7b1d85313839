package schedule

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
)

func of(organization string) func(*webhook.Endpoint) {
	return func(e *webhook.Endpoint) { e.OrganizationID = organization }
}

func paused(is bool) func(*webhook.Endpoint) { return func(e *webhook.Endpoint) { e.Paused = is } }

func TestPausedLanes(t *testing.T) {
	t.Parallel()
	tests := map[string]func(t *testing.T, limits Limits){
		"what is owed waits in the table, and nothing else waits": func(t *testing.T, limits Limits) {
			h := newHouse(t, limits)
			endpoint, other := h.open(always(200, time.Millisecond), of("a")), h.open(always(200, time.Millisecond), of("a"))
			h.load(100, 2*time.Second, endpoint, other)
			h.change(endpoint, paused(true))
			at := time.Now()
			h.load(100, 5*time.Second, endpoint, other)
			h.sleep(time.Second)
			for _, sent := range h.sent[endpoint] {
				if after := sent.Sub(at); after > time.Second {
					t.Fatalf("sent %v after the pause", after)
				}
			}
			h.is("to the other", len(h.sent[other]), 700, 700)
			l := h.w.lanes[endpoint]
			h.is("in memory", l.held+l.ended+l.parking, 0, 0)
			h.is("waiting", h.statuses(endpoint)[webhook.Pending], 400, 500)
			h.is("not recorded", len(h.w.ledger.transactions), 0, 0)
			if !l.paused || h.w.lanes[other].paused {
				t.Errorf("paused: %t, and the other %t", l.paused, h.w.lanes[other].paused)
			}
			h.change(endpoint, paused(false))
			h.sleep(time.Second)
			h.is("a second after it went on", h.requests(endpoint, time.Second), 1, 700)
			h.sleep(time.Minute)
			h.is("in the end", len(h.sent[endpoint]), 700, 700)
			h.idle()
		},
		"ten thousand rows cost nothing while they wait, and come in due order": func(t *testing.T, limits Limits) {
			h := newHouse(t, limits)
			endpoint := h.open(always(200, time.Millisecond), of("a"), paused(true), atOnce(1))
			for range 10_000 {
				h.waiting(endpoint, 1, 0)
			}
			want := make([]uuid.UUID, 0, 10_000)
			for _, r := range h.due[endpoint] {
				want = append(want, r.ID)
			}
			h.sleep(2 * time.Second)
			h.pages, h.lookUps = 0, 0
			h.sleep(time.Minute)
			h.is("pages in a minute", h.pages, 0, 0)
			h.is("look-ups in a minute", h.lookUps, 50, int(time.Minute/refreshAfter))
			h.is("timers", len(h.w.timed), 1, 1)
			h.is("sent", len(h.sent[endpoint]), 0, 0)
			h.change(endpoint, paused(false))
			h.sleep(time.Minute)
			if !slices.Equal(h.order[endpoint], want) {
				t.Errorf("%d were sent, or not in due order", len(h.order[endpoint]))
			}
			h.idle()
		},
		"a breaker that is open begins with a probe when the endpoint goes on": func(t *testing.T, limits Limits) {
			h := newHouse(t, limits)
			h.w.backoff = Backoff{time.Minute, 10 * time.Minute}
			works := time.Now().Add(10 * time.Minute)
			endpoint := h.open(until(works, always(503, 0), always(200, 0)), of("a"), atOnce(8))
			h.load(100, 2*time.Second, endpoint)
			h.sleep(5 * time.Second)
			if !h.w.lanes[endpoint].breaker.open {
				t.Fatal("the breaker is closed")
			}
			h.change(endpoint, paused(true))
			h.sleep(2 * time.Second)
			before := len(h.sent[endpoint])
			h.sleep(20 * time.Minute) // longer than the schedule, after which a breaker holds nothing back
			h.is("sent while paused", len(h.sent[endpoint])-before, 0, 0)
			h.change(endpoint, paused(false))
			h.most[endpoint] = 0
			h.sleep(time.Second)
			h.is("within a second", h.requests(endpoint, time.Second), 1, 200)
			h.sleep(time.Minute)
			if h.w.lanes[endpoint] != nil && h.w.lanes[endpoint].breaker.open {
				t.Error("the breaker is open")
			}
			if got := h.statuses(endpoint); got[webhook.Failed] > 0 || got[webhook.Cancelled] > 0 {
				t.Errorf("%v: the pause was counted", got)
			}
			h.idle()
		},
		"an endpoint may be disabled meanwhile": func(t *testing.T, limits Limits) {
			h := newHouse(t, limits)
			endpoint := h.open(always(200, 0), of("a"), paused(true))
			h.load(10, time.Second, endpoint)
			h.change(endpoint, func(e *webhook.Endpoint) { e.Enabled = false })
			h.sleep(2 * time.Second)
			if l := h.w.lanes[endpoint]; !l.refused || l.paused || !l.toBeCancelled {
				t.Errorf("refused %t, paused %t, to be cancelled %t", l.refused, l.paused, l.toBeCancelled)
			}
			h.is("sent", len(h.sent[endpoint]), 0, 0)
		},
	}
	for name, run := range tests {
		for park, after := range map[string]time.Duration{"park=500ms": 500 * time.Millisecond, "park=0": 0} {
			t.Run(name+"/"+park, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					limits := usual
					limits.ParkAfter = after
					run(t, limits)
				})
			})
		}
	}
}
