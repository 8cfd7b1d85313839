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
	e := newEvent(&outbox.Event{ID: uuid.Must(uuid.NewV7()), OrganizationID: "org_1", Type: "payment.succeeded", Payload: []byte(`{}`)})
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
	r.w.paged(asked[0], time.Now())
	r.w.dispatch(time.Now())
	return rows[n:]
}

// takeIn takes in an event as the fan-out does, and reports whether it did before the
// context ended.
func takeIn(ctx context.Context, s *Scheduler, e *outbox.Event) bool {
	for a := s.NewAdmission(e, nil, time.Now()); !a.Admit(time.Now()); {
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

func TestWindow(t *testing.T) {
	t.Parallel()
	tests := map[string]func(t *testing.T){
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
		"what waits for longer than ParkAfter is parked, and its lane goes on from the table": func(t *testing.T) {
			limits := small
			limits.Window = 1024
			r := newRig(t, limits)
			endpoint := r.endpoint()
			for range 4 {
				r.event(endpoint)
			}
			time.Sleep(small.ParkAfter)
			r.w.parkOverdue(time.Now())
			inserts, _ := r.commit()
			var waits []webhook.Record // the queued ones: due at once
			for _, row := range inserts {
				if row.Wait <= 0 {
					waits = append(waits, row)
				} else if row.Wait <= small.Timeout+leaseMargin/2 {
					t.Errorf("a running attempt's row is due again after %v, within its own timeout", row.Wait)
				}
			}
			if statuses(inserts)[webhook.Pending] != 4 || len(waits) != 2 {
				t.Fatalf("%v rows, %d of them due; want 4 pending, 2 due", statuses(inserts), len(waits))
			}
			if r.w.ledger.confirmed == 0 {
				t.Error("parked deliveries keep the slot from moving")
			}
			r.event(endpoint)
			more, _ := r.commit()
			if len(more) != 1 || more[0].Status != webhook.Pending {
				t.Fatalf("a lane that is behind did not park what follows at once: %v", statuses(more))
			}
			r.answer(r.started[0], 200)
			r.answer(r.started[0], 200)
			r.lookUp(endpoint, true)
			waits = append(waits, more...)
			r.page(endpoint, waits...)
			for len(r.started) > 0 {
				r.answer(r.started[0], 200)
			}
			r.page(endpoint, waits[2:]...)
			if r.w.lanes[endpoint].spilled {
				t.Error("one page held all that was left, and the lane does not go direct again")
			}
			for len(r.started) > 0 {
				r.answer(r.started[0], 200)
			}
			inserts, updates := r.commit()
			if len(inserts) != 0 || statuses(updates)[webhook.Success] != 5 {
				t.Errorf("inserts %v, updates %v; want 5 updates", statuses(inserts), statuses(updates))
			}
			r.wantEmpty()
		},
		"an outcome does not stand behind thousands that are parked": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			r.event(endpoint)
			behind := r.w.lane(r.endpoint(), time.Now())
			r.w.spill(behind, true)
			for range 10 * recordBatch {
				r.event(behind.id)
			}
			r.answer(r.started[0], 200)
			_, records := r.w.takeNew()
			if got := statuses(records); got[webhook.Success] != 1 || got[webhook.Pending] != recordBatch-1 {
				t.Errorf("the first batch: %v, want the outcome, and filled", got)
			}
		},
		"an outcome that overtakes its lease is written once": func(t *testing.T) {
			r := newRig(t, small)
			r.event(r.endpoint())
			time.Sleep(small.ParkAfter)
			r.w.parkOverdue(time.Now())
			r.answer(r.started[0], 200)
			inserts, updates := r.commit()
			if statuses(inserts)[webhook.Success] != 1 || len(inserts)+len(updates) != 1 {
				t.Errorf("inserts %v, updates %v; want one success", statuses(inserts), statuses(updates))
			}
			r.wantEmpty()
		},
		"an outcome that comes while its lease is written follows as an update": func(t *testing.T) {
			r := newRig(t, small)
			r.event(r.endpoint())
			time.Sleep(small.ParkAfter)
			r.w.parkOverdue(time.Now())
			taken, _ := r.w.takeNew()
			r.w.recordedBy(taken)
			r.answer(r.started[0], 200)
			r.w.inserted(taken, true, nil, time.Now())
			inserts, updates := r.commit()
			if len(inserts) != 0 || statuses(updates)[webhook.Success] != 1 {
				t.Errorf("inserts %v, updates %v; want one update", statuses(inserts), statuses(updates))
			}
			r.wantEmpty()
		},
		"a batch is confirmed by its own echo, not by that of the one before": func(t *testing.T) {
			r := newRig(t, small)
			r.event(r.endpoint())
			r.answer(r.started[0], 200)
			taken, _ := r.w.takeNew()
			batch, at := r.w.recordedBy(taken)
			if at.lsn != 100 || r.w.ledger.confirmed != 0 {
				t.Errorf("recorded up to %v and confirmed %v before the echo; want 0/64 and nothing", at.lsn, r.w.ledger.confirmed)
			}
			if r.w.ledger.echo(batch); r.w.ledger.confirmed != 100 {
				t.Errorf("confirmed %v after the echo, want 0/64", r.w.ledger.confirmed)
			}
		},
		"an outcome whose row was there already is applied as an update": func(t *testing.T) {
			r := newRig(t, small)
			r.event(r.endpoint())
			r.answer(r.started[0], 200)
			taken, _ := r.w.takeNew()
			r.w.recordedBy(taken)
			r.w.inserted(taken, false, nil, time.Now())
			if _, updates := r.commit(); statuses(updates)[webhook.Success] != 1 {
				t.Errorf("updates %v, want the outcome", statuses(updates))
			}
			r.wantEmpty()
		},
		"PARK_AFTER=0 parks before the first attempt": func(t *testing.T) {
			limits := small
			limits.ParkAfter = 0
			r := newRig(t, limits)
			endpoint := r.endpoint()
			r.event(endpoint)
			if len(r.started) != 0 {
				t.Fatal("an attempt was made before the row is written")
			}
			inserts, _ := r.commit()
			r.page(endpoint, inserts...)
			r.answer(r.started[0], 200)
			if _, updates := r.commit(); statuses(updates)[webhook.Success] != 1 {
				t.Errorf("updates %v, want one success", statuses(updates))
			}
			r.wantEmpty()
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
		"a replay begins a new series": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			row := webhook.Record{ID: uuid.New(), EventID: uuid.New(), Status: webhook.Pending, Attempts: 3}
			r.w.hasRows(r.w.lane(endpoint, time.Now()))
			r.page(endpoint, row)
			r.answer(r.started[0], 500)
			_, updates := r.commit()
			if u := updates[0]; u.Status != webhook.Retrying || u.SeriesStart != 3 || u.Attempts != 4 || u.Wait < time.Minute {
				t.Errorf("%+v, want a retry after the first wait of the schedule", u)
			}
		},
		"a row that was recorded while its page was read is not sent again": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			r.event(endpoint)
			d := r.started[0]
			r.w.removed = map[uuid.UUID]bool{} // the page is asked for
			r.answer(d, 200)
			r.commit()
			r.w.admitDue(&webhook.Due{ID: d.id, EndpointID: endpoint, Status: webhook.Pending}, time.Now())
			r.w.dispatch(time.Now())
			if len(r.started) != 0 {
				t.Error("sent twice")
			}
		},
		"a delivery that was replayed during its attempt is fetched again at once": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			l := r.w.lane(endpoint, time.Now())
			row := webhook.Record{ID: uuid.New(), EventID: uuid.New(), Status: webhook.Pending}
			r.w.hasRows(l)
			r.page(endpoint, row)
			r.answer(r.started[0], 500)
			l.after.ID = row.ID // pages have gone past it
			taken, _ := r.w.takeExisting()
			r.w.updated(taken, nil, nil, map[uuid.UUID]bool{row.ID: true}, time.Now())
			if !l.rows || l.after.ID != uuid.Nil {
				t.Errorf("it waits in the table, and the lane does not ask for it: rows %v, after %v", l.rows, l.after.ID)
			}
			r.page(endpoint, row)
			if len(r.started) != 1 {
				t.Fatalf("%d attempts, want another", len(r.started))
			}
			r.answer(r.started[0], 200)
			r.commit()
			r.wantEmpty()
		},
		"a replay of what waits in the lane begins a new series": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			l := r.w.lane(endpoint, time.Now())
			l.limit = 0
			due := &webhook.Due{ID: uuid.New(), EndpointID: endpoint, Status: webhook.Retrying, Attempts: 7, SeriesStart: 2, Event: outbox.Event{ID: uuid.New(), OrganizationID: "org_1"}}
			r.w.admitDue(due, time.Now())
			due.Status, due.DueAt = webhook.Pending, webhook.DueTime{Time: time.Now(), Valid: true}
			r.w.admitDue(due, time.Now())
			if d := r.w.deliveries[due.ID]; d == nil || d.series != 7 || d.seen.DueAt != due.DueAt || len(r.w.deliveries) != 1 {
				t.Errorf("it is as it was fetched: %+v", d)
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
		"a row that an operator has locked waits aside": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			row := webhook.Record{ID: uuid.New(), EventID: uuid.New(), Status: webhook.Pending}
			r.w.hasRows(r.w.lane(endpoint, time.Now()))
			r.page(endpoint, row)
			r.answer(r.started[0], 200)
			taken, _ := r.w.takeExisting()
			aside, _ := r.w.updated(taken, map[uuid.UUID]bool{row.ID: true}, nil, nil, time.Now())
			if len(aside) != 1 || r.w.deliveries[row.ID] == nil {
				t.Fatal("the outcome is lost")
			}
			if r.w.low != 0 {
				t.Error("it keeps a place for retries meanwhile")
			}
			r.w.enlist(aside[0])
			if _, updates := r.commit(); statuses(updates)[webhook.Success] != 1 {
				t.Error("the outcome is not written when the row is free again")
			}
			r.wantEmpty()
		},
		"a new session adopts what is in memory": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			id, _ := r.event(endpoint)
			r.w.ledger.reset(0)
			if !r.w.adopt(outbox.DeliveryID(id, endpoint)) {
				t.Fatal("not adopted: it would be sent twice")
			}
			r.w.ledger.end(100, time.Now())
			if r.commit(); r.w.ledger.confirmed != 0 {
				t.Fatal("confirmed before the adopted delivery is recorded")
			}
			r.answer(r.started[0], 200)
			if r.commit(); r.w.ledger.confirmed != 100 {
				t.Errorf("confirmed %v when the adopted delivery is recorded, want 0/64", r.w.ledger.confirmed)
			}
		},
		"what a new session's database may have lost waits for a row once more": func(t *testing.T) {
			r := newRig(t, small)
			id, _ := r.event(r.endpoint())
			d := r.w.deliveries[outbox.DeliveryID(id, r.started[0].lane.id)]
			r.w.parkOverdue(time.Now().Add(small.ParkAfter))
			if inserts, _ := r.commit(); len(inserts) != 1 {
				t.Fatalf("%d rows, want the lease", len(inserts))
			}
			r.w.ledger.reset(0)
			r.w.forgetRows(time.Now())
			r.w.adopt(d.id)
			r.w.ledger.end(100, time.Now())
			if r.commit(); r.w.ledger.confirmed != 0 {
				t.Error("confirmed, and the lease may be lost")
			}
			r.answer(d, 503)
			if inserts, updates := r.commit(); len(inserts) != 1 || len(updates) != 0 || r.w.ledger.confirmed != 100 {
				t.Errorf("%d rows inserted, %d updated, confirmed %v; want one that is there in any case, and 0/64", len(inserts), len(updates), r.w.ledger.confirmed)
			}
			r.wantEmpty()
		},
		"what waits because it has a row is no part of a new session": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			var rows []webhook.Record
			for range small.EndpointInFlight + 1 {
				rows = append(rows, webhook.Record{ID: uuid.New(), EventID: uuid.New(), Status: webhook.Pending})
			}
			l := r.w.lane(endpoint, time.Now())
			r.w.hasRows(l)
			for rest := rows; len(rest) > 0; {
				rest = r.page(endpoint, rest...)
			}
			running := map[uuid.UUID]bool{}
			for _, d := range r.started {
				running[d.id] = true
			}
			r.w.ledger.reset(0)
			r.w.forgetRows(time.Now())
			for _, row := range rows {
				if r.w.adopt(row.ID) != running[row.ID] {
					t.Errorf("in memory %t, under way %t: what waits there is never parked, and holds the slot", !running[row.ID], running[row.ID])
				}
			}
			if len(running) == len(rows) || !l.rows || l.prefetched != 0 || r.w.fetched != len(running) {
				t.Errorf("%d of %d under way; rows %t, prefetched %d, fetched %d", len(running), len(rows), l.rows, l.prefetched, r.w.fetched)
			}
			for len(r.started) > 0 {
				r.answer(r.started[0], 200)
			}
			r.w.ledger.end(100, time.Now())
			if r.commit(); r.w.ledger.confirmed != 100 {
				t.Errorf("confirmed %v, want 0/64", r.w.ledger.confirmed)
			}
			r.wantEmpty()
		},
		"a row that the reconciler writes waits for the attempt under way": func(t *testing.T) {
			r := newRig(t, small)
			id, _ := r.event(r.endpoint())
			d := outbox.DeliveryID(id, r.started[0].lane.id)
			if got := r.w.PendingWait(d); got <= small.Timeout {
				t.Errorf("it is due after %v", got)
			}
			r.answer(r.started[0], 200)
			if got := r.w.PendingWait(d); got != -webhook.ParkedDue {
				t.Errorf("it is due after %v when the attempt has ended", got)
			}
		},
		"an old event that is repeated while it is in memory holds no later transaction": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			id, _ := r.event(endpoint)
			r.w.adopt(outbox.DeliveryID(id, endpoint))
			r.w.ledger.end(500, time.Now())
			r.answer(r.started[0], 200)
			if r.commit(); r.w.ledger.confirmed != 500 {
				t.Errorf("confirmed %v, want 0/1F4", r.w.ledger.confirmed)
			}
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
		"what is parked at once keeps no body": func(t *testing.T) {
			limits := small
			limits.ParkAfter = 0
			r := newRig(t, limits)
			endpoint := r.endpoint()
			e := &outbox.Event{ID: uuid.Must(uuid.NewV7()), OrganizationID: "org_1", Payload: []byte(`{}`), EndpointIDs: []uuid.UUID{endpoint}}
			takeIn(t.Context(), r.w, e)
			if d := r.w.deliveries[outbox.DeliveryID(e.ID, endpoint)]; d == nil || d.event.body != nil {
				t.Errorf("%+v holds memory that nobody counts", d)
			}
		},
		"no page is asked for while the window is full": func(t *testing.T) {
			r := newRig(t, small)
			r.w.hasRows(r.w.lane(r.endpoint(), time.Now()))
			r.w.held = small.Window
			if lanes := r.w.toAsk(1, time.Now()); len(lanes) != 0 || !r.w.starved {
				t.Error("asks again and again for rows that have no room")
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
		"what is parked behind a page is not forgotten": func(t *testing.T) {
			r := newRig(t, small)
			l := r.w.lane(r.endpoint(), time.Now())
			r.w.hasRows(l)
			full := r.w.toAsk(1, time.Now())[0]
			full.got, full.end = full.size, (&webhook.Due{ID: uuid.New()}).End()
			r.w.paged(full, time.Now())
			l.parks++ // a row that stands before where that page ended
			r.w.paged(r.w.toAsk(1, time.Now())[0], time.Now())
			if !l.rows || l.after != (webhook.PageEnd{}) {
				t.Error("the lane does not look from the beginning again")
			}
		},
		"the round of lanes that ask ends where what is free does": func(t *testing.T) {
			limits := small
			limits.Window, limits.EndpointInFlight, limits.MaxInFlight = 64*32, 8, 8
			r := newRig(t, limits)
			for range 32 {
				l := r.w.lane(r.endpoint(), time.Now())
				l.proven, l.prefetched = true, 8 // half of what it may hold before others ask, more than that after
				r.w.hasRows(l)
				l.size = 16
			}
			r.w.fetched = limits.Window/2 - 16*prefetchShare
			for _, l := range r.w.lanes {
				r.w.touch(l)
			}
			if asked := r.w.toAsk(32, time.Now()); len(asked) == 0 || len(asked) == 32 {
				t.Errorf("%d lanes ask, want some and not all", len(asked))
			}
		},
		"rows leave half of the window to the stream": func(t *testing.T) {
			r := newRig(t, small)
			for range small.Window {
				r.w.hasRows(r.w.lane(r.endpoint(), time.Now()))
			}
			for asked := r.w.toAsk(1, time.Now()); len(asked) > 0; asked = r.w.toAsk(1, time.Now()) {
				p := asked[0]
				for range p.size {
					p.got++
					r.w.admitDue(&webhook.Due{ID: uuid.New(), EndpointID: p.lane.id, Status: webhook.Pending, Event: outbox.Event{OrganizationID: "org_1", Payload: []byte(`{}`)}}, time.Now())
				}
				r.w.paged(p, time.Now())
			}
			if r.w.held != small.Window/2 || !r.w.starved {
				t.Errorf("%d rows in memory, starved %v; want %d and true", r.w.held, r.w.starved, small.Window/2)
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
