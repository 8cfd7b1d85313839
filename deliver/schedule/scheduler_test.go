package schedule

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// A rig is a window whose attempts, commits and look-ups the test makes.
type rig struct {
	t       *testing.T
	w       *Scheduler
	started []*Delivery // attempts under way
	target  *send.Target
}

func newRig(t *testing.T, limits Limits) *rig {
	r := &rig{t: t, w: New(Options{Limits: limits, Backoff: Backoff{time.Minute, time.Hour}}), target: &send.Target{}}
	r.w.onStart = func(d *Delivery) { r.started = append(r.started, d) }
	r.w.session = &webhook.Session{}
	return r
}

var small = Limits{ParkAfter: 500 * time.Millisecond, MaxInFlight: 8, EndpointInFlight: 2, Window: 32, MaxMemory: 1 << 20, Timeout: 10 * time.Second}

// endpoint makes an endpoint that is known and enabled.
func (r *rig) endpoint() uuid.UUID {
	id := uuid.New()
	r.lookUp(id, true)
	return id
}

func (r *rig) lookUp(id uuid.UUID, enabled bool) {
	r.w.lookedUp(r.w.lane(id, time.Now()), &webhook.Endpoint{ID: id, OrganizationID: "org_1", Enabled: enabled}, r.target, time.Now(), time.Now())
}

// event offers one event of its own transaction, and reports whether it was taken in.
func (r *rig) event(endpoints ...uuid.UUID) (id uuid.UUID, admitted bool) {
	return r.eventOf("payment.succeeded", endpoints...)
}

func (r *rig) eventOf(typ string, endpoints ...uuid.UUID) (id uuid.UUID, admitted bool) {
	e := newEvent(&outbox.Event{ID: uuid.Must(uuid.NewV7()), OrganizationID: "org_1", Type: typ, Payload: []byte(`{}`)})
	for _, endpoint := range endpoints {
		if !r.w.admit(e, endpoint, outbox.DeliveryID(e.id, endpoint), time.Now(), time.Now().Add(r.w.limits.ParkAfter), time.Now()) {
			return e.id, false
		}
	}
	r.w.ledger.end(r.w.ledger.recorded.lsn+100, time.Now())
	r.w.dispatch(time.Now())
	return e.id, true
}

func (r *rig) answer(d *Delivery, status int) {
	r.t.Helper()
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	for i, s := range r.started {
		if s == d {
			r.started = append(r.started[:i:i], r.started[i+1:]...)
			a := webhook.Attempt{StatusCode: status, EndedAt: time.Now()}
			if status > 299 {
				a.Class = webhook.ErrHTTP5xx
			}
			r.w.finish(d, a, time.Now())
			r.w.dispatch(time.Now())
			return
		}
	}
	r.t.Fatal("this delivery was not started")
}

// commit writes everything that waits, and returns the new rows and the updates.
func (r *rig) commit() (inserts, updates []webhook.Record) {
	for len(r.w.newRows)+len(r.w.toBeParked) > 0 {
		taken, records := r.w.takeNew()
		r.w.recordedBy(taken)
		r.w.inserted(taken, true, nil, time.Now())
		inserts = append(inserts, records...)
	}
	for len(r.w.existing) > 0 {
		taken, records := r.w.takeExisting()
		r.w.updated(taken, nil, nil, nil, time.Now())
		updates = append(updates, records...)
	}
	r.w.ledger.echo(r.w.ledger.taken)
	return inserts, updates
}

// page lets the retrier fetch one page of a lane, of rows that are due, and
// returns those that it did not take.
func (r *rig) page(endpoint uuid.UUID, rows ...webhook.Record) (rest []webhook.Record) {
	r.t.Helper()
	asked := r.w.toAsk(32, time.Now())
	if len(asked) != 1 || asked[0].lane.id != endpoint {
		r.t.Fatalf("%d lanes want a page, want the one", len(asked))
	}
	n := min(asked[0].size, len(rows))
	for _, row := range rows[:n] {
		asked[0].got++
		r.w.admitDue(&webhook.Due{ID: row.ID, EndpointID: endpoint, Status: row.Status, Attempts: row.Attempts,
			Event: outbox.Event{ID: row.EventID, OrganizationID: "org_1", Payload: []byte(`{}`)}}, time.Now())
	}
	r.w.paged(asked[0])
	r.w.dispatch(time.Now())
	return rows[n:]
}

// takeIn takes in an event as the fan-out does, and reports whether it did before the
// context ended.
func takeIn(ctx context.Context, s *Scheduler, e *outbox.Event) bool {
	for a := s.NewAdmission(e, time.Now(), nil, time.Now()); !a.Admit(time.Now()); {
		select {
		case <-ctx.Done():
			a.GiveUp()
			return false
		case <-s.RoomFreed:
		case <-time.After(ParkEvery):
		}
	}
	return true
}

func statuses(records []webhook.Record) map[webhook.Status]int {
	n := map[webhook.Status]int{}
	for _, r := range records {
		n[r.Status]++
	}
	return n
}

func (r *rig) wantEmpty() {
	r.t.Helper()
	w := r.w
	if len(w.deliveries) != 0 || w.held != 0 || w.fetched != 0 || w.bytes != 0 || w.running != 0 || w.ended != 0 || w.parked != 0 || w.aging.Len() != 0 {
		r.t.Errorf("left in the window: deliveries %d, held %d, fetched %d, bytes %d, running %d, ended %d, parked %d, aging %d",
			len(w.deliveries), w.held, w.fetched, w.bytes, w.running, w.ended, w.parked, w.aging.Len())
	}
	for _, l := range w.lanes {
		if l.held != 0 || l.running != 0 || l.parking != 0 {
			r.t.Errorf("left in a lane: held %d, running %d, parking %d", l.held, l.running, l.parking)
		}
	}
}

// each runs every test by itself, in a bubble with a clock of its own.
func each(t *testing.T, tests map[string]func(t *testing.T)) {
	t.Parallel()
	for name, run := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, run)
		})
	}
}

func TestWindow(t *testing.T) {
	each(t, map[string]func(t *testing.T){
		"a delivery that succeeds at once is written once": func(t *testing.T) {
			r := newRig(t, small)
			r.event(r.endpoint())
			if inserts, _ := r.commit(); len(inserts) != 0 {
				t.Fatalf("%d rows before there is an outcome", len(inserts))
			}
			r.answer(r.started[0], 200)
			inserts, updates := r.commit()
			if statuses(inserts)[webhook.Success] != 1 || len(inserts) != 1 || len(updates) != 0 {
				t.Errorf("inserts %v, updates %v; want one row", statuses(inserts), statuses(updates))
			}
			if r.w.ledger.confirmed == 0 {
				t.Error("nothing may be confirmed")
			}
			r.wantEmpty()
		},
		"an endpoint's limit holds": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			for range 5 {
				r.event(endpoint)
			}
			if len(r.started) != 2 {
				t.Fatalf("%d attempts at once, want 2", len(r.started))
			}
			r.answer(r.started[0], 200)
			if len(r.started) != 2 {
				t.Errorf("%d attempts after one has ended, want 2", len(r.started))
			}
		},
		"lanes take turns": func(t *testing.T) {
			limits := small
			limits.MaxInFlight, limits.EndpointInFlight = 1, 1
			r := newRig(t, limits)
			a, b := r.endpoint(), r.endpoint()
			for range 3 {
				r.event(a)
			}
			r.event(b)
			r.answer(r.started[0], 200)
			r.answer(r.started[0], 200)
			if got := r.started[0].lane.id; got != a && r.w.lanes[b].held != 0 {
				t.Error("the other endpoint's only delivery waits behind all of the first")
			}
			if r.w.lanes[b].held != 0 && r.started[0].lane.id != b {
				t.Error("the second endpoint had no turn among three attempts")
			}
		},
		"a full window is waited for, but not beyond ParkAfter": func(t *testing.T) {
			r := newRig(t, small)
			other := r.endpoint()
			for range small.Window * 3 / 4 {
				if _, ok := r.event(r.endpoint()); !ok {
					t.Fatal("no room before the window is full")
				}
			}
			received := time.Now()
			e := newEvent(&outbox.Event{ID: uuid.Must(uuid.NewV7()), OrganizationID: "org_1", Payload: []byte(`{}`)})
			id := outbox.DeliveryID(e.id, other)
			if r.w.admit(e, other, id, received, received.Add(small.ParkAfter), time.Now()) {
				t.Fatal("the window has no bound")
			}
			time.Sleep(small.ParkAfter)
			if !r.w.admit(e, other, id, received, received.Add(small.ParkAfter), time.Now()) {
				t.Error("reading stands still beyond ParkAfter")
			}
		},
		"one endpoint cannot fill the window": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			admitted := 0
			for range small.Window {
				if _, ok := r.event(endpoint); ok {
					admitted++
				}
			}
			if want := small.EndpointInFlight + small.laneQueue(); admitted != want {
				t.Errorf("%d deliveries of one endpoint in memory, want %d", admitted, want)
			}
			if _, ok := r.event(r.endpoint()); !ok {
				t.Error("no room for another endpoint")
			}
		},
		"no attempt is started without room for its outcome": func(t *testing.T) {
			limits := small
			limits.Window, limits.EndpointInFlight, limits.ParkAfter, limits.MaxMemory = 32*unrecordedRoom, 8, time.Hour, 64<<20
			r := newRig(t, limits)
			endpoint := r.endpoint()
			for range 2 * unrecordedRoom {
				r.event(endpoint)
			}
			attempts := 0
			for len(r.started) > 0 {
				r.lookUp(endpoint, true)
				r.answer(r.started[0], 200)
				attempts++
			}
			if want := limits.MaxInFlight + unrecordedRoom; attempts != want {
				t.Errorf("%d attempts while nothing can be recorded, want %d", attempts, want)
			}
			r.commit()
			if len(r.started) == 0 {
				t.Error("nothing goes on when outcomes are recorded again")
			}
		},
		"an endpoint that was not looked up within a second gets nothing": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			time.Sleep(staleAfter)
			r.event(endpoint)
			if len(r.started) != 0 || r.w.lists[toLookUpAgain].Len() != 1 {
				t.Fatalf("%d attempts, %d look-ups wanted; want 0 and 1", len(r.started), r.w.lists[toLookUpAgain].Len())
			}
			r.lookUp(endpoint, true)
			r.w.dispatch(time.Now())
			if len(r.started) != 1 {
				t.Errorf("%d attempts after the look-up, want 1", len(r.started))
			}
		},
		"what is owed to a disabled endpoint is cancelled": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			for range 4 {
				r.event(endpoint)
			}
			r.lookUp(endpoint, false)
			r.answer(r.started[0], 503)
			r.answer(r.started[0], 503)
			inserts, _ := r.commit()
			if got := statuses(inserts); got[webhook.Pending] != 2 || got[webhook.Retrying] != 2 || len(inserts) != 4 {
				t.Errorf("%v, want all in the table, where the sweep cancels", got)
			}
			if r.w.lists[toCancel].Len() != 1 {
				t.Error("rows in the table are not swept")
			}
			r.wantEmpty()
		},
		"after 410 nothing is sent until the endpoint was looked up again": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			for range 4 {
				r.event(endpoint)
			}
			first, second := r.started[0], r.started[1]
			r.answer(first, 410)
			r.answer(second, 200)
			if len(r.started) != 0 {
				t.Fatal("sent after 410")
			}
			asOf := time.Now()
			time.Sleep(time.Millisecond)
			inserts, _ := r.commit()
			if inserts[0].Status != webhook.Failed || !inserts[0].Gone || inserts[0].Exhausted {
				t.Errorf("410 is recorded as %+v, want failed, gone, not exhausted", inserts[0])
			}
			r.w.lookedUp(r.w.lanes[endpoint], &webhook.Endpoint{ID: endpoint, OrganizationID: "org_1", Enabled: true}, r.target, asOf, time.Now())
			r.w.dispatch(time.Now())
			if len(r.started) != 0 {
				t.Error("sent on the strength of a look-up from before the endpoint was disabled")
			}
			r.lookUp(endpoint, false)
			if inserts, _ := r.commit(); statuses(inserts)[webhook.Pending] != 2 || r.w.lists[toCancel].Len() != 1 {
				t.Errorf("%v, %d sweeps; want the rest in the table, to be cancelled there", statuses(inserts), r.w.lists[toCancel].Len())
			}
			r.wantEmpty()
		},
		"the last attempt of the schedule ends as failed": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			row := webhook.Record{ID: uuid.New(), EventID: uuid.New(), Status: webhook.Retrying, Attempts: 2}
			r.w.hasRows(r.w.lane(endpoint, time.Now()))
			r.page(endpoint, row)
			r.answer(r.started[0], 500)
			_, updates := r.commit()
			if u := updates[0]; u.Status != webhook.Failed || !u.Exhausted || u.Attempts != 3 {
				t.Errorf("%+v, want the third attempt failed, and the schedule exhausted", u)
			}
		},
		"what is another organization's is not sent": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			l := r.w.lane(endpoint, time.Now())
			r.w.lookedUp(l, &webhook.Endpoint{ID: endpoint, OrganizationID: "org_2", Enabled: true}, r.target, time.Now(), time.Now())
			r.event(endpoint)
			if len(r.started) != 0 {
				t.Fatal("it is sent to the endpoint that has the id now")
			}
			inserts, _ := r.commit()
			if statuses(inserts)[webhook.Pending] != 1 || !l.rows {
				t.Errorf("it does not wait in the table, to be cancelled there: %v, rows %v", inserts, l.rows)
			}
			r.wantEmpty()
		},
		"operators hear of every organization, as long as they are operators": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			l := r.w.lane(endpoint, time.Now())
			lookUp := func(forAll bool) {
				e := &webhook.Endpoint{ID: endpoint, OrganizationID: "ops", ForAll: forAll, Enabled: true}
				r.w.lookedUp(l, e, r.target, time.Now(), time.Now())
			}
			lookUp(true)
			r.event(endpoint) // of org_1's business
			if len(r.started) != 0 {
				t.Fatal("operators get another organization's payment")
			}
			for range small.EndpointInFlight + 1 {
				r.eventOf(outbox.TypeEndpointFailing, endpoint)
			}
			if len(r.started) != small.EndpointInFlight {
				t.Fatalf("%d requests, want %d", len(r.started), small.EndpointInFlight)
			}
			lookUp(false)
			for len(r.started) > 0 {
				r.answer(r.started[0], 200)
			}
			inserts, _ := r.commit()
			if got := statuses(inserts); got[webhook.Success] != small.EndpointInFlight || got[webhook.Pending] != 2 || !l.rows {
				t.Errorf("%v, rows %v: want the payment, and what was queued when they were operators no more, to wait for being cancelled", got, l.rows)
			}
			r.wantEmpty()
		},
		"an event keeps its body until its last endpoint has room": func(t *testing.T) {
			r := newRig(t, small)
			fast, behind := r.endpoint(), r.endpoint()
			for range small.EndpointInFlight + small.laneQueue() {
				r.event(behind)
			}
			e := &outbox.Event{ID: uuid.Must(uuid.NewV7()), OrganizationID: "org_1", Payload: []byte(`{}`), EndpointIDs: []uuid.UUID{fast, behind}}
			go takeIn(t.Context(), r.w, e)
			synctest.Wait()
			r.answer(r.started[len(r.started)-1], 200) // the fast one's: the body has no user left
			synctest.Wait()
			for len(r.started) > 0 && r.w.deliveries[outbox.DeliveryID(e.ID, behind)] == nil {
				r.answer(r.started[0], 200)
				synctest.Wait()
			}
			d := r.w.deliveries[outbox.DeliveryID(e.ID, behind)]
			if d == nil || len(d.event.body) == 0 || r.w.bytes < int64(len(d.event.body)) {
				t.Fatalf("%+v: what is sent to the second endpoint is not the event", d)
			}
		},
		"the stream leaves a quarter of the window to rows": func(t *testing.T) {
			r := newRig(t, small)
			for ok := true; ok; {
				_, ok = r.event(r.endpoint())
			}
			if want := small.Window * 3 / 4; r.w.held != want {
				t.Errorf("the stream holds %d of %d, want %d", r.w.held, small.Window, want)
			}
		},
	})
}
