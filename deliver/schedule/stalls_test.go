package schedule

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// row fetches rows of retries that are due.
func (r *rig) row(endpoint uuid.UUID, n int) {
	for range n {
		r.w.admitDue(&webhook.Due{ID: uuid.New(), EndpointID: endpoint, Status: webhook.Retrying, Attempts: 1,
			Event: outbox.Event{ID: uuid.New(), OrganizationID: "org_1", Payload: []byte(`{}`)}}, time.Now())
	}
}

// A share of low-priority attempts wakes one lane. If that lane gets no permit, another
// one that waits for a share must still get it soon.
func TestAShareThatIsNotUsedGoesToAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		limits := Limits{ParkAfter: 500 * time.Millisecond, MaxInFlight: 4, EndpointInFlight: 8, Window: 64, MaxMemory: 1 << 20, Timeout: 10 * time.Second}
		r := newRig(t, limits) // 3 low-priority shares, 2 permits for unproven endpoints
		hangs, a, b, y := r.endpoint(), r.endpoint(), r.endpoint(), r.endpoint()
		for _, proven := range []uuid.UUID{a, b, y} {
			r.event(proven)
			r.answer(r.started[0], 200)
		}
		r.commit()
		r.event(hangs) // holds an unproven permit: org_1's other unproven endpoints get none
		r.row(a, 2)
		r.w.dispatch(time.Now())
		r.row(b, 1)
		r.w.dispatch(time.Now())
		if r.w.low != 3 || r.w.running != 4 {
			t.Fatalf("low %d running %d", r.w.low, r.w.running)
		}
		for range 3 {
			r.row(r.endpoint(), 1)
		}
		r.row(y, 1)
		r.w.dispatch(time.Now())
		if n := r.w.lists[toStartLow].Len(); n != 4 {
			t.Fatalf("%d lanes wait for a share", n)
		}
		for range 3 {
			r.answer(r.started[1], 200)
		}
		r.commit()
		begun := time.Now()
		for r.w.lanes[y].running == 0 && time.Since(begun) < 9*time.Second {
			time.Sleep(ParkEvery)
			for _, l := range r.w.lookUpNext(10, time.Now()) {
				r.lookUp(l.id, true)
			}
			r.w.Tick(time.Now())
		}
		if took := time.Since(begun); took > holdAgain+2*ParkEvery {
			t.Errorf("low %d of 3, running %d of 4: the lane was not started for %v; in toStartLow: %v, timer: %v, Verify: %v", r.w.low, r.w.running, took,
				r.w.lanes[y].in[toStartLow] != nil, !r.w.lanes[y].touchAt.IsZero(), r.w.Verify(time.Now()))
		}
	})
}

// A lane whose organization changes while an unproven attempt is under way.
func TestPermitsMoveWithTheOrganization(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, small)
		e := r.endpoint()
		r.event(e)
		if len(r.started) != 1 {
			t.Fatal(len(r.started))
		}
		r.w.lookedUp(r.w.lane(e, time.Now()), &webhook.Endpoint{ID: e, OrganizationID: "org_2", Enabled: true}, r.target, time.Now(), time.Now())
		r.answer(r.started[0], 200)
		r.commit()
		if err := r.w.Verify(time.Now()); err != nil || len(r.w.unprovenOf) != 0 {
			t.Errorf("left of unproven permits: %v, %v", r.w.unprovenOf, err)
		}
	})
}

// An endpoint gets an event every 10 ms, each of which is sent at once. A look-up takes
// 30 ms, and no event waits for one: it is made ahead, although the queue is always empty.
func TestNoEventWaitsForALookUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Limits: usual, Backoff: Backoff{time.Minute}})
		begun := map[uuid.UUID]time.Time{}
		var worst time.Duration
		waited := 0
		s.OnStart(func(d *Delivery) {
			if took := time.Since(begun[d.event.id]); took > 5*time.Millisecond {
				waited++
				worst = max(worst, took)
			}
			go s.Finish(d, webhook.Attempt{StatusCode: 200, EndedAt: time.Now()}, time.Now())
		})
		s.BeginSession(&webhook.Session{}, webhook.Fence{Epoch: 1}, 1, time.Now())
		defer time.Sleep(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { // the directory
			for {
				select {
				case <-ctx.Done():
					return
				case <-s.ToLookUp:
				}
				for {
					wanted := s.TakeLookUps(500, time.Now())
					if len(wanted) == 0 {
						break
					}
					asOf := time.Now()
					time.Sleep(30 * time.Millisecond)
					for i := range wanted {
						wanted[i].Endpoint, wanted[i].Target = &webhook.Endpoint{ID: wanted[i].EndpointID, OrganizationID: "org_1", Enabled: true}, &send.Target{}
					}
					s.LookedUp(wanted, false, asOf, time.Now())
				}
			}
		}()
		go func() { // the clock
			for ctx.Err() == nil {
				time.Sleep(ParkEvery)
				s.Tick(time.Now())
			}
		}()
		endpoint := uuid.New()
		event := func() {
			e := &outbox.Event{ID: uuid.Must(uuid.NewV7()), OrganizationID: "org_1", Type: "payment.succeeded", Payload: []byte(`{}`), EndpointIDs: []uuid.UUID{endpoint}}
			s.mu.Lock() // which the callback has
			begun[e.ID] = time.Now()
			s.mu.Unlock()
			s.NewAdmission(e, time.Now(), nil, time.Now()).Admit(time.Now())
		}
		event()
		time.Sleep(100 * time.Millisecond) // the first look-up
		s.mu.Lock()
		waited, worst = 0, 0
		s.mu.Unlock()
		for range 1000 {
			event()
			time.Sleep(10 * time.Millisecond)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if waited > 0 {
			t.Errorf("%d of 1000 events waited for a look-up, up to %v", waited, worst)
		}
	})
}

// The scan finds endpoints whose rows are not due yet, every few seconds and after each
// change hint. None of them is looked up.
func TestOnlyEndpointsInUseAreLookedUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, usual)
		looked := 0
		directory := func(n int) {
			for range n {
				wanted := r.w.TakeLookUps(500, time.Now())
				if len(wanted) == 0 {
					return
				}
				looked += len(wanted)
				for i := range wanted {
					wanted[i].Endpoint, wanted[i].Target = &webhook.Endpoint{ID: wanted[i].EndpointID, OrganizationID: "org_1", Enabled: true}, r.target
				}
				r.w.LookedUp(wanted, false, time.Now(), time.Now())
			}
		}
		var ids []uuid.UUID
		for range 5000 {
			ids = append(ids, uuid.New())
		}
		for round := range 3 {
			looked = 0
			for i := 0; i < len(ids); i += 500 { // as retrier.runOnce
				for j := i; j < i+500; j += 100 {
					var found []webhook.Waiting
					for _, id := range ids[j : j+100] {
						found = append(found, webhook.Waiting{EndpointID: id, Enabled: true})
					}
					r.w.FoundWaiting(found, time.Now())
					directory(100) // which ToLookUp has woken, while the retrier reads the next page
				}
				for pages := r.w.TakePages(32, time.Now()); len(pages) > 0; pages = r.w.TakePages(32, time.Now()) {
					r.w.Fetched(pages, false, time.Now()) // nothing is due
				}
			}
			if looked > 0 {
				t.Errorf("scan %d: %d endpoints with nothing to send were looked up", round, looked)
			}
			time.Sleep(2 * time.Second)
		}
	})
}

// After a start no endpoint is proven. A thousand get one event each and answer within 5 ms:
// a permit that is released wakes a lane that waits for one.
func TestManyUnprovenEndpointsStartQuickly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const endpoints, within = 1000, 500 * time.Millisecond // 32 unproven permits and 5 ms take 160 ms
		limits := usual
		limits.MaxInFlight, limits.ParkAfter = 64, time.Minute
		h := newHouse(t, limits)
		var ids []uuid.UUID
		for i := range endpoints {
			id := h.open(always(200, 5*time.Millisecond))
			h.change(id, func(e *webhook.Endpoint) { e.OrganizationID = fmt.Sprint("org_", i) })
			ids = append(ids, id)
		}
		for _, id := range ids {
			h.event(id)
		}
		begun := time.Now()
		for len(h.table) < endpoints && time.Since(begun) < 10*within {
			h.sleep(10 * time.Millisecond)
		}
		if took := time.Since(begun); took > within {
			t.Errorf("%d of %d delivered after %s", len(h.table), endpoints, took)
		}
	})
}

// could reports whether a lane could start something by its facts.
func (h *house) could(l *lane, now time.Time) bool {
	s := h.w
	if l.empty() || l.gone || l.refused || l.fault.shut() || s.running >= s.limits.MaxInFlight || s.running+s.ended >= s.limits.MaxInFlight+unrecordedRoom {
		return false
	}
	l.trim()
	return !l.empty() && l.running < l.may(now) && l.running < s.permitsFor(l) && l.choose(s.lowMay(l)) != nil && !l.nextToken(now).After(now)
}

// Whatever endpoints do and operators change, no lane that could start something waits for
// longer than until it is looked at again.
func TestNoLaneStandsStill(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				limits := Limits{ParkAfter: time.Duration(rnd.IntN(3)) * 250 * time.Millisecond, MaxInFlight: 2 + rnd.IntN(20), EndpointInFlight: 1 + rnd.IntN(8),
					Window: 16 + rnd.IntN(200), MaxMemory: 1 << 20, Timeout: 5 * time.Second}
				h := newHouseWithPoll(t, limits, 7*time.Second)
				var ids []uuid.UUID
				for i := range 3 + rnd.IntN(25) {
					var a answering
					switch rnd.IntN(5) {
					case 0:
						a = always(0, 5*time.Second)
					case 1:
						a = always(503, time.Duration(rnd.IntN(50))*time.Millisecond)
					case 2:
						a = func(time.Time) (int, time.Duration) {
							return 200 + 303*rnd.IntN(2), time.Duration(rnd.IntN(1500)) * time.Millisecond
						}
					default:
						a = always(200, time.Duration(rnd.IntN(100))*time.Millisecond)
					}
					id := h.open(a)
					if rnd.IntN(4) == 0 {
						h.change(id, perSecond(float64(1+rnd.IntN(50))))
					}
					h.change(id, func(e *webhook.Endpoint) { e.OrganizationID = fmt.Sprint("org_", i%3) })
					ids = append(ids, id)
				}
				since := map[uuid.UUID]time.Time{}
				end := time.Now().Add(60 * time.Second)
				busy := true
				for time.Now().Before(end) {
					if time.Until(end) < 30*time.Second {
						busy = false
					}
					if busy {
						id := ids[rnd.IntN(len(ids))]
						switch rnd.IntN(40) {
						case 0:
							h.waiting(id, rnd.IntN(50), 1)
						case 1:
							h.waiting(id, rnd.IntN(50), 0)
						case 2:
							on := rnd.IntN(3) > 0
							h.change(id, func(e *webhook.Endpoint) { e.Enabled = on })
						case 3:
							n := rnd.IntN(10)
							h.change(id, func(e *webhook.Endpoint) { e.MaxInFlight = n })
						default:
							h.event(id)
						}
					}
					h.sleep(time.Duration(rnd.IntN(15)) * time.Millisecond)
					now := time.Now()
					h.w.reconsiderTouched(now)
					for id, l := range h.w.lanes {
						if !h.could(l, now) {
							delete(since, id)
							continue
						}
						at, is := since[id]
						if !is {
							since[id] = now
						} else if now.Sub(at) > 400*time.Millisecond {
							_, again := h.w.wants(l, now)
							t.Fatalf("a lane could start something for %v: lists %v asked %v resume in %v (wants %v) low %d/%d running %d/%d first %d low %d fresh %v touched %v rows %v", now.Sub(at),
								fmt.Sprint(l.in[toStart] != nil, l.in[toStartLow] != nil, l.in[toLookUpFirst] != nil, l.in[toLookUpAgain] != nil), l.asked, l.touchAt.Sub(now), again,
								h.w.low, h.w.limits.lowInFlight(), h.w.running, h.w.limits.MaxInFlight, len(l.first), len(l.low), l.fresh(now), l.touched, l.rows)
						}
					}
					h.w.mu.Unlock()
					err := h.w.Verify(now)
					h.w.mu.Lock()
					if err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
}

// A receiver comes back with room for one request at once, and one more every 2 ms, while
// 3,000 deliveries wait. Slow start keeps within that room: without it, some hundred of them
// fail once more.
func TestSlowStartSparesAReceiver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const waiting, mostRefused = 3000, 10
		h := newHouse(t, usual)
		back, refused := time.Now().Add(20*time.Second), 0
		var first time.Time // request since it is back
		endpoint := h.open(nil)
		h.receivers[endpoint] = func(at time.Time) (int, time.Duration) {
			if at.Before(back) {
				return 503, 5 * time.Millisecond
			}
			if first.IsZero() {
				first = at
			}
			if h.underWay[endpoint] > 1+int(at.Sub(first)/(2*time.Millisecond)) {
				refused++
				return 503, 5 * time.Millisecond
			}
			return 200, 10 * time.Millisecond
		}
		h.waiting(endpoint, waiting, 0)
		for end := time.Now().Add(5 * time.Minute); h.statuses(endpoint)[webhook.Success] < waiting && time.Now().Before(end); {
			h.sleep(time.Second)
		}
		if done := h.statuses(endpoint)[webhook.Success]; done < waiting || refused > mostRefused {
			t.Errorf("%d of %d delivered, the receiver refused %d requests, want at most %d", done, waiting, refused, mostRefused)
		}
	})
}
