package schedule

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
)

func perSecond(r float64) func(*webhook.Endpoint) {
	return func(e *webhook.Endpoint) { e.RatePerSecond = r }
}

func atOnce(n int) func(*webhook.Endpoint) { return func(e *webhook.Endpoint) { e.MaxInFlight = n } }

func TestLanes(t *testing.T) {
	t.Parallel()
	tests := map[string]func(t *testing.T){
		"what is beyond the rate is parked, and drains in order": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint, other := h.open(always(200, 0), perSecond(10)), h.open(always(200, 0))
			h.event(endpoint, other)
			h.sleep(time.Second)
			for range 99 {
				h.event(endpoint)
			}
			delete(h.delay, other)
			h.event(other)
			h.sleep(100 * time.Millisecond)
			if got := h.statuses(endpoint); got[webhook.Pending] < 90 {
				t.Errorf("%v, want what has to wait in the table", got)
			}
			if h.delay[other] > time.Millisecond {
				t.Errorf("another endpoint's event waited for %v", h.delay[other])
			}
			h.sleep(12 * time.Second)
			h.is("sent", len(h.sent[endpoint]), 100, 100)
			h.idle()
		},
		"a rate beyond all reason is a rate too": func(t *testing.T) {
			h := newHouse(t, usual)
			never, free := h.open(always(200, 0), perSecond(1e-300)), h.open(always(200, 0), perSecond(1e300))
			for range 3000 {
				h.event(never, free)
			}
			h.sleep(10 * time.Minute)
			h.is("at next to none", len(h.sent[never]), 1, 1)
			h.is("at any", len(h.sent[free]), 3000, 3000)
		},
		"a new rate is in force within a second": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(200, 0), perSecond(0.01))
			for range 1000 {
				h.event(endpoint)
			}
			h.sleep(time.Minute)
			h.is("at one in 100 s", len(h.sent[endpoint]), 1, 2)
			h.change(endpoint, perSecond(100))
			h.sleep(3 * time.Second)
			h.is("three seconds later", len(h.sent[endpoint]), 200, 320)
			h.change(endpoint, perSecond(1))
			h.sleep(time.Second)
			before := len(h.sent[endpoint])
			h.sleep(5 * time.Second)
			h.is("a second after it was lowered, in 5 s", len(h.sent[endpoint])-before, 4, 6)
			h.change(endpoint, perSecond(0))
			h.sleep(5 * time.Second)
			h.is("after it was taken away", len(h.sent[endpoint]), 1000, 1000)
			h.idle()
		},
		"a new limit is in force within a second, also while nothing ends": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(200, 9*time.Second), atOnce(1))
			for range 5 {
				h.event(endpoint)
			}
			h.sleep(2 * time.Second)
			h.is("at once", h.underWay[endpoint], 1, 1)
			h.change(endpoint, atOnce(5))
			h.sleep(time.Second)
			h.is("at once", h.underWay[endpoint], 5, 5)
		},
		"an endpoint that only fails gets a probe now and then, and nothing else is counted": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(503, time.Millisecond))
			h.load(100, 10*time.Second, endpoint)
			h.sleep(50 * time.Second)
			h.is("requests in the first minute", len(h.sent[endpoint]), breakAfter, breakAfter+40)
			h.sleep(time.Minute)
			h.is("requests in the second", h.requests(endpoint, time.Minute), 4, 6)
			h.is("at once, in the end", h.underWay[endpoint], 0, 1)
			if l := h.w.lanes[endpoint]; !l.breaker.open || h.w.open != 1 {
				t.Errorf("%+v, %d open; want one", l.breaker, h.w.open)
			}
			if got := h.statuses(endpoint); got[webhook.Pending]+got[webhook.Retrying] != 1000 || got[webhook.Pending] < 900 {
				t.Errorf("%v, want all 1000 waiting, most without an attempt", got)
			}
			h.is("in memory", len(h.w.deliveries), 0, 1)
		},
		"one that hangs holds few permits and none of the memory": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(0, 10*time.Second))
			h.load(100, 30*time.Second, endpoint)
			h.is("at once", h.most[endpoint], unprovenPermits, unprovenPermits)
			h.is("after the timeouts", h.underWay[endpoint], 0, 1)
			h.is("in memory", len(h.w.deliveries), 0, 10)
		},
		"nothing is held back for longer than a schedule lasts": func(t *testing.T) {
			h := newHouse(t, usual)
			h.w.backoff = Backoff{time.Second, time.Second}
			endpoint := h.open(always(503, time.Millisecond))
			for range 200 {
				h.event(endpoint)
			}
			h.sleep(10 * time.Second)
			if got := h.statuses(endpoint); got[webhook.Failed] != 200 {
				t.Errorf("%v, want 200 failed", got)
			}
			h.is("attempts", len(h.sent[endpoint]), 600, 600)
			h.idle()
		},
		"one that is up again gets what has waited, slowly at first": func(t *testing.T) {
			h := newHouse(t, usual)
			up := time.Now().Add(2 * time.Minute)
			endpoint := h.open(until(up, always(503, 0), always(200, 100*time.Millisecond)))
			h.load(20, 50*time.Second, endpoint)
			h.sleep(time.Until(up))
			began := len(h.sent[endpoint])
			for len(h.sent[endpoint]) == began {
				h.sleep(time.Millisecond)
			}
			if wait := time.Since(up); wait > probeMax {
				t.Errorf("noticed after %v, want %v at the most", wait, probeMax)
			}
			clear(h.most)
			first := len(h.sent[endpoint])
			h.sleep(350 * time.Millisecond)
			h.is("sent after three round trips", len(h.sent[endpoint])-first, 2, 20)
			h.sleep(20 * time.Second)
			if got := h.statuses(endpoint); got[webhook.Pending] != 0 {
				t.Errorf("%v, want nothing pending", got)
			}
			h.is("at once, in the end", h.most[endpoint], 32, 32)
			before := h.delay[endpoint]
			delete(h.delay, endpoint)
			h.event(endpoint)
			h.sleep(0)
			if h.delay[endpoint] > time.Millisecond {
				t.Errorf("a new event waited for %v (%v before): the lane does not go direct again", h.delay[endpoint], before)
			}
		},
		"a low rate of failures is no breaker's business": func(t *testing.T) {
			h := newHouse(t, usual)
			n := 0
			endpoint := h.open(func(time.Time) (int, time.Duration) {
				if n++; n%4 == 0 {
					return 200, time.Millisecond
				}
				return 500, time.Millisecond
			})
			h.load(100, 10*time.Second, endpoint)
			h.is("sent", len(h.sent[endpoint]), 1000, 1000)
			if h.w.open != 0 {
				t.Error("its breaker is open")
			}
		},
		"an open breaker is known to the next process": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(503, 0), func(e *webhook.Endpoint) { e.BreakerOpen = true })
			h.load(100, 10*time.Second, endpoint)
			h.is("requests in 10 s", len(h.sent[endpoint]), 3, 6)
		},
		"an operator's word closes it, slowly at first": func(t *testing.T) {
			h := newHouse(t, usual)
			mended := false
			endpoint := h.open(func(time.Time) (int, time.Duration) {
				if mended {
					return 200, 10 * time.Millisecond
				}
				return 503, 0
			})
			h.load(100, 33*time.Second, endpoint) // the next probe is more than 10 s away
			if h.w.open != 1 {
				t.Fatal("its breaker is closed")
			}
			mended = true
			h.sleep(time.Second)
			if h.w.open != 1 {
				t.Fatal("a probe came first")
			}
			before := len(h.sent[endpoint])
			h.change(endpoint, func(e *webhook.Endpoint) { e.RetriedAt = time.Now() })
			h.w.found(h.w.lanes[endpoint], time.Now()) // what the retrier does when rows have become due
			h.w.reconsiderTouched(time.Now())
			h.sleep(5 * time.Millisecond)
			h.is("sent at once", len(h.sent[endpoint])-before, 1, 1)
			h.sleep(time.Second)
			h.is("sent in a second", len(h.sent[endpoint])-before, 100, 5000)
			if h.w.open != 0 {
				t.Error("its breaker is open")
			}
		},
		"an operator's word of before does not close it again": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(503, 0), func(e *webhook.Endpoint) { e.RetriedAt = time.Now() })
			h.load(100, 10*time.Second, endpoint)
			h.w.found(h.w.lanes[endpoint], time.Now())
			h.w.reconsiderTouched(time.Now())
			h.sleep(time.Second)
			if h.w.open != 1 {
				t.Error("its breaker is closed")
			}
		},
		"once it is enabled again it begins anew": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(503, 0))
			h.load(100, 10*time.Second, endpoint)
			h.change(endpoint, func(e *webhook.Endpoint) { e.Enabled = false })
			h.w.lanes[endpoint].ask = true // what the walk does
			h.w.touch(h.w.lanes[endpoint])
			h.sleep(time.Second)
			if h.w.open != 0 || h.w.lists[toCancel].Len() != 1 {
				t.Errorf("%d open, %d to sweep; want 0 and 1", h.w.open, h.w.lists[toCancel].Len())
			}
			before := len(h.sent[endpoint])
			h.load(10, time.Second, endpoint)
			h.is("sent while disabled", len(h.sent[endpoint])-before, 0, 0)
		},
		"retries leave a quarter of the permits to first attempts": func(t *testing.T) {
			limits := usual
			limits.MaxInFlight, limits.EndpointInFlight = 64, 2
			h := newHouse(t, limits)
			var slow []uuid.UUID
			for range 30 {
				slow = append(slow, h.open(always(200, 900*time.Millisecond)))
			}
			fresh := h.open(always(200, 5*time.Millisecond))
			h.load(1, 10*time.Second, append([]uuid.UUID{fresh}, slow...)...) // all are known to answer
			for _, endpoint := range slow {
				h.waiting(endpoint, 200, 1)
			}
			h.sleep(5 * time.Second)
			h.is("retries under way", h.w.low, 40, 48)
			delete(h.delay, fresh)
			h.load(100, 20*time.Second, fresh)
			if h.delay[fresh] > 10*time.Millisecond {
				t.Errorf("a first attempt waited for %v", h.delay[fresh])
			}
			h.is("retries under way", h.w.low, 40, 48)
			h.sleep(5 * time.Minute)
			for _, endpoint := range slow {
				h.is("sent", len(h.sent[endpoint]), 210, 210)
			}
			h.idle()
		},
		"a replay of many rows does not delay its own endpoint's events": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(200, 5*time.Millisecond))
			h.load(100, time.Second, endpoint)
			h.waiting(endpoint, 20_000, 1)
			clear(h.delay)
			h.load(100, 3*time.Second, endpoint)
			if h.delay[endpoint] > 10*time.Millisecond {
				t.Errorf("an event waited for %v", h.delay[endpoint])
			}
			h.is("of the replay, meanwhile", len(h.sent[endpoint])-400, 5000, 20_000)
			h.sleep(10 * time.Second)
			h.is("sent", len(h.sent[endpoint]), 20_400, 20_400)
			h.idle()
		},
		"first attempts that saturate an endpoint leave its retries a share": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(200, 100*time.Millisecond), atOnce(10)) // 100 a second
			h.load(90, time.Second, endpoint)
			h.waiting(endpoint, 1000, 1)
			h.load(90, 20*time.Second, endpoint)
			late := 0
			for _, r := range h.table {
				if r.Attempts == 2 {
					late++
				}
			}
			h.is("retries sent", late, 100, 1000)
		},
		"many rows of one endpoint do not stand before few of another": func(t *testing.T) {
			h := newHouse(t, usual)
			many, few := h.open(always(200, 50*time.Millisecond)), h.open(always(200, 50*time.Millisecond))
			h.waiting(many, 30_000, 1)
			h.waiting(few, 10, 1)
			h.sleep(500 * time.Millisecond)
			h.is("of the ten", len(h.sent[few]), 10, 10)
			h.is("of the many", len(h.sent[many]), 100, 400)
		},
		"endpoints that hang leave permits, and room for rows, to others": func(t *testing.T) {
			h := newHouse(t, usual)
			direct, fromTable := h.open(always(200, 5*time.Millisecond)), h.open(always(200, 5*time.Millisecond))
			h.event(direct, fromTable)
			var hanging []uuid.UUID
			for range 200 {
				endpoint := h.open(always(0, 10*time.Second))
				h.waiting(endpoint, 100, 0)
				hanging = append(hanging, endpoint)
			}
			h.sleep(time.Second)
			h.waiting(fromTable, 1000, 1)
			delete(h.delay, direct)
			h.load(100, 5*time.Second, append([]uuid.UUID{direct}, hanging[:50]...)...)
			if h.delay[direct] > 30*time.Millisecond {
				t.Errorf("an event for an endpoint that works waited for %v", h.delay[direct])
			}
			h.is("sent of the rows of another", len(h.sent[fromTable]), 1001, 1001)
			h.is("permits taken", h.w.running, 1, usual.MaxInFlight/unprovenShare+10)
			h.sleep(3 * time.Minute)
			h.is("permits taken when the breakers are open", h.w.running, 0, 200)
		},
		"slow endpoints that are busy leave permits to others": func(t *testing.T) {
			h := newHouse(t, usual)
			var slow []uuid.UUID
			for range 100 {
				slow = append(slow, h.open(always(200, 900*time.Millisecond)))
			}
			works := h.open(always(200, 5*time.Millisecond))
			h.event(append([]uuid.UUID{works}, slow...)...)
			h.sleep(time.Second)
			for _, endpoint := range slow {
				h.waiting(endpoint, 500, 0)
			}
			delete(h.delay, works)
			h.load(100, 10*time.Second, works)
			if h.delay[works] > 30*time.Millisecond {
				t.Errorf("an event for another endpoint waited for %v", h.delay[works])
			}
			const looks = 100 // over a second, because slow endpoints answer in waves
			taken := 0
			for range looks {
				h.sleep(10 * time.Millisecond)
				h.is("permits taken", h.w.running, 0, usual.MaxInFlight)
				taken += h.w.running
			}
			h.is("permits taken, on average", taken/looks, usual.MaxInFlight/2, usual.MaxInFlight)
		},
		"endpoints that answered and then hang do so too": func(t *testing.T) {
			h := newHouse(t, usual)
			stop := time.Now().Add(2 * time.Second)
			var all []uuid.UUID
			for range 100 {
				all = append(all, h.open(until(stop, always(200, 5*time.Millisecond), always(0, 10*time.Second))))
			}
			works := h.open(always(200, 5*time.Millisecond))
			all = append(all, works)
			h.load(10, 2*time.Second, all...)
			delete(h.delay, works)
			h.load(10, 20*time.Second, all...)
			if h.delay[works] > 30*time.Millisecond {
				t.Errorf("an event for the endpoint that works waited for %v", h.delay[works])
			}
			h.is("permits taken when the breakers are open", h.w.running, 0, 200)
		},
		"a newcomer finds a place beside many that have stopped answering": func(t *testing.T) {
			h := newHouse(t, usual)
			stop := time.Now().Add(2 * time.Second)
			for range 20 {
				endpoint := h.open(until(stop, always(200, 300*time.Millisecond), always(0, 10*time.Second)), func(e *webhook.Endpoint) { e.OrganizationID = "org_1" })
				h.event(endpoint)
				h.waiting(endpoint, 1000, 0)
			}
			h.sleep(time.Until(stop) + 2*time.Second)
			newcomer := h.open(always(200, 5*time.Millisecond), func(e *webhook.Endpoint) { e.OrganizationID = "org_2" })
			h.event(newcomer)
			h.sleep(300 * time.Millisecond)
			h.is("sent to the newcomer", len(h.sent[newcomer]), 1, 1)
		},
		"an endpoint that is fed from the table uses all of its limit, however small the window": func(t *testing.T) {
			limits := usual
			limits.Window, limits.MaxInFlight = 256, 128
			h := newHouse(t, limits)
			endpoint := h.open(always(200, 500*time.Millisecond))
			h.event(endpoint)
			h.sleep(time.Second)
			h.waiting(endpoint, 1000, 0)
			h.sleep(10 * time.Second)
			h.is("at once", h.most[endpoint], 32, 32)
		},
		"a lane whose outcome is not recorded is not forgotten": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(200, 0))
			h.event(endpoint)
			h.sleep(time.Millisecond)
			l := h.w.lanes[endpoint]
			l.unreported = nil
			if h.w.ended != 1 || l.idle() {
				t.Errorf("%d outcomes unrecorded, idle %v", h.w.ended, l.idle())
			}
			h.w.unreported = nil
		},
		"a burst for one endpoint does not hold up the stream for others": func(t *testing.T) {
			h := newHouse(t, usual)
			busy, calm := h.open(always(200, 50*time.Millisecond)), h.open(always(200, time.Millisecond))
			h.event(calm)
			h.sleep(time.Second)
			began := time.Now()
			for range 5000 {
				h.event(busy)
			}
			h.event(calm)
			if took := time.Since(began); took > ParkEvery {
				t.Errorf("an event waited for %v behind a burst for another endpoint", took)
			}
			h.sleep(30 * time.Second)
			h.is("of the burst", len(h.sent[busy]), 5000, 5000)
			h.idle()
		},
		"a backlog for one endpoint alone is written once": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(200, time.Millisecond)) // 32,000 a second
			for range 20_000 {
				h.event(endpoint)
			}
			h.sleep(time.Second)
			h.is("written before their attempt", int(h.w.counts.Parked), 0, 0)
			h.is("sent", len(h.sent[endpoint]), 20_000, 20_000)
		},
		"large bodies of one endpoint leave memory to others": func(t *testing.T) {
			limits := usual
			limits.MaxMemory = 8 * 200
			h := newHouse(t, limits)
			slow, other := h.open(always(200, 9*time.Second)), h.open(always(200, time.Millisecond))
			for range 20 {
				h.event(slow)
			}
			if h.w.bytes > limits.MaxMemory/2 {
				t.Errorf("one endpoint holds %d of %d bytes", h.w.bytes, limits.MaxMemory)
			}
			h.event(other)
			h.sleep(10 * time.Millisecond)
			h.is("sent to another", len(h.sent[other]), 1, 1)
			h.sleep(3 * time.Minute)
			h.is("sent", len(h.sent[slow]), 20, 20)
			h.idle()
		},
		"nothing turns while everything waits": func(t *testing.T) {
			h := newHouse(t, usual)
			limited, dead := h.open(always(200, 0), perSecond(0.1)), h.open(always(503, 0))
			for range 100 {
				h.event(limited, dead)
			}
			h.sleep(10 * time.Minute)
			if n := len(h.w.timed); n > 2 {
				t.Errorf("%d entries for two lanes that wait", n)
			}
			if until := time.Until(h.w.timed[0].touchAt); until < 0 {
				t.Errorf("the clock is late by %v", -until)
			}
		},
	}
	for _, n := range []int{1, 2, 4, 8, 10} {
		tests[fmt.Sprintf("one endpoint alone may use nearly all of %d permits", n)] = func(t *testing.T) { usesPermits(t, n) }
	}
	for _, rate := range []float64{0.5, 1, 7, 10, 200, 2000} {
		tests[fmt.Sprintf("a rate of %v holds in every second, and is used up", rate)] = func(t *testing.T) { holdsRate(t, rate) }
	}
	for name, run := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, run)
		})
	}
}

func usesPermits(t *testing.T, n int) {
	limits := usual
	limits.MaxInFlight, limits.EndpointInFlight = n, n
	h := newHouse(t, limits)
	endpoint := h.open(always(200, 100*time.Millisecond))
	h.load(1000, 5*time.Second, endpoint)
	h.is("at once", h.most[endpoint], max(n-n/8, 1), n)
	h.sleep(15 * time.Minute)
	h.is("sent", len(h.sent[endpoint]), 5000, 5000)
	h.idle()
}

func holdsRate(t *testing.T, rate float64) {
	h := newHouse(t, usual)
	endpoint := h.open(always(200, time.Millisecond), perSecond(rate))
	end := time.Now().Add(8 * time.Second)
	for range int(10 * rate) {
		h.event(endpoint)
	}
	h.sleep(time.Until(end))
	sent := h.sent[endpoint]
	h.is("sent in 8 s", len(sent), int(7.5*rate), int(8.1*rate)+1)
	first := 0
	for i, at := range sent {
		for at.Sub(sent[first]) >= time.Second {
			first++
		}
		if n, limit := i-first+1, 1.1*rate+1; float64(n) > limit {
			t.Fatalf("%d requests within a second, want at most %v", n, limit)
		}
	}
}

// A lane may prefetch so many rows for each of its permits, fewer while its endpoint is
// unproven or starts slowly.
func TestPrefetchSize(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, usual)
		now := time.Now()
		l := r.w.lane(r.endpoint(), now)
		l.limit = 4
		for _, c := range []struct {
			proven bool
			ramp   int
			want   int
		}{
			{false, 0, 4},
			{true, 0, 4 * prefetchPerPermit},
			{true, 1, 2},
		} {
			l.proven, l.breaker.ramp = c.proven, c.ramp
			if got := l.mayPrefetch(now); got != c.want {
				t.Errorf("proven %t, slow start at %d: %d rows, want %d", c.proven, c.ramp, got, c.want)
			}
		}
	})
}

// What an endpoint's row says of timeout and schedule is in force within a second, and
// wins over the deployment's.
func TestAnEndpointsOwnTimeoutAndSchedule(t *testing.T) {
	t.Parallel()
	own := func(timeout time.Duration, schedule ...time.Duration) func(*webhook.Endpoint) {
		return func(e *webhook.Endpoint) { e.Timeout, e.RetrySchedule = timeout, schedule }
	}
	for name, run := range map[string]func(t *testing.T){
		"an endpoint without retries fails with its first attempt": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(503, 0))
			h.change(endpoint, func(e *webhook.Endpoint) { e.RetrySchedule = []time.Duration{} })
			h.event(endpoint)
			h.sleep(time.Second)
			if got := h.statuses(endpoint); got[webhook.Failed] != 1 {
				t.Errorf("%v, want one failed", got)
			}
			h.is("sent", len(h.sent[endpoint]), 1, 1)
			h.idle()
		},
		"a new schedule counts from the next failure on": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(503, 0), own(0, time.Second, time.Second, time.Hour, time.Hour))
			h.event(endpoint)
			h.sleep(5 * time.Second)
			h.is("sent", len(h.sent[endpoint]), 3, 3)
			h.change(endpoint, own(0, time.Second, time.Second, time.Second))
			for _, r := range h.table { // as webhook_retry_now does
				due := *r
				due.due = time.Now()
				h.store(&due)
			}
			h.sleep(5 * time.Second)
			h.is("sent in the end", len(h.sent[endpoint]), 4, 4)
			if got := h.statuses(endpoint); got[webhook.Failed] != 1 {
				t.Errorf("%v, want one failed", got)
			}
		},
		"a lease covers the endpoint's own timeout": func(t *testing.T) {
			h := newHouse(t, usual)
			long, short := h.open(always(200, 40*time.Second), own(50*time.Second)), h.open(always(200, 40*time.Second), own(time.Second))
			h.event(long, short)
			h.sleep(2 * time.Second)
			for _, r := range h.table {
				want := map[uuid.UUID]time.Duration{long: 50*time.Second + leaseMargin, short: time.Second + leaseMargin}[r.EndpointID]
				if r.Status != webhook.Pending || r.Wait != want {
					t.Errorf("%s, leased for %v, want %v", r.Status, r.Wait, want)
				}
			}
			h.change(long, own(time.Second)) // the row still says the lease of its attempt
			h.sleep(39 * time.Second)
			h.is("sent", len(h.sent[long]), 1, 1)
			if got := h.statuses(long); got[webhook.Success] != 1 {
				t.Errorf("%v, want one success", got)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, run)
		})
	}
}

// Only failures of other events than walhook's own have an open breaker told: those alone
// would cause events for ever.
func TestWhichOpenBreakersAreTold(t *testing.T) {
	t.Parallel()
	told := func(h *house) (n int) {
		for i, now := range h.health {
			was := i > 0 && h.health[i-1].Open && h.health[i-1].Tell && !now.Recovered
			n += one(now.Open && now.Tell && !was)
		}
		return n
	}
	for name, run := range map[string]func(t *testing.T){
		"not one that walhook's own events opened": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(503, 0))
			for range breakAfter {
				h.eventOf("webhook.endpoint.failing", endpoint)
			}
			h.sleep(time.Second)
			if !h.w.lanes[endpoint].breaker.open || len(h.health) == 0 {
				t.Fatal("the breaker is closed, or nothing was recorded")
			}
			h.is("told", told(h), 0, 0)
			h.event(endpoint) // the next probe, or the one after
			h.sleep(time.Minute)
			h.is("told, once a payment has failed", told(h), 1, 1)
		},
		"one that a single other event helped to open": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(503, 0))
			h.event(endpoint)
			for range breakAfter {
				h.eventOf("webhook.test", endpoint)
			}
			h.sleep(time.Second)
			h.is("told", told(h), 1, 1)
		},
		"not by failures from before it was disabled": func(t *testing.T) {
			h := newHouse(t, usual)
			endpoint := h.open(always(503, 0), func(e *webhook.Endpoint) { e.RetrySchedule = []time.Duration{} }) // so that nothing waits
			h.event(endpoint)
			h.sleep(time.Second)
			enabled := func(yes bool) {
				h.change(endpoint, func(e *webhook.Endpoint) { e.Enabled = yes })
				h.sleep(2 * time.Second)
				h.eventOf("webhook.test", endpoint) // so that it is looked up
				h.sleep(2 * time.Second)
				if h.w.lanes[endpoint].refused == yes {
					t.Fatalf("enabled: %t, and nobody has seen it", yes)
				}
			}
			enabled(false)
			enabled(true)
			for range breakAfter {
				h.eventOf("webhook.test", endpoint)
			}
			h.sleep(time.Second)
			if !h.w.lanes[endpoint].breaker.open {
				t.Fatal("the breaker is closed")
			}
			h.is("told", told(h), 0, 0)
		},
		"not if the last success came after the other event": func(t *testing.T) {
			h := newHouse(t, usual)
			at := time.Now().Add(time.Second)
			endpoint := h.open(until(at, always(503, 0), until(at.Add(time.Second), always(200, 0), always(503, 0))))
			h.event(endpoint)
			h.sleep(time.Second + 100*time.Millisecond)
			h.eventOf("webhook.test", endpoint)
			h.sleep(time.Second)
			for range breakAfter {
				h.eventOf("webhook.test", endpoint)
			}
			h.sleep(time.Second)
			if !h.w.lanes[endpoint].breaker.open {
				t.Error("the breaker is closed")
			}
			h.is("told", told(h), 0, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, run)
		})
	}
}
