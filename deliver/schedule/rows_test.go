package schedule

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

func TestRows(t *testing.T) {
	each(t, map[string]func(t *testing.T){
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
		"no page is asked for while the window is full": func(t *testing.T) {
			r := newRig(t, small)
			r.w.hasRows(r.w.lane(r.endpoint(), time.Now()))
			r.w.held = small.Window
			if lanes := r.w.toAsk(1, time.Now()); len(lanes) != 0 || !r.w.starved {
				t.Error("asks again and again for rows that have no room")
			}
		},
		"what is parked behind a page is not forgotten": func(t *testing.T) {
			r := newRig(t, small)
			l := r.w.lane(r.endpoint(), time.Now())
			r.w.hasRows(l)
			full := r.w.toAsk(1, time.Now())[0]
			full.got, full.end = full.size, (&webhook.Due{ID: uuid.New()}).End()
			r.w.paged(full)
			l.parks++ // a row that stands before where that page ended
			r.w.paged(r.w.toAsk(1, time.Now())[0])
			if !l.rows || l.after != (webhook.PageEnd{}) {
				t.Error("the lane does not look from the beginning again")
			}
		},
		"the round of lanes that ask ends where what is free does": func(t *testing.T) {
			limits := small
			limits.Window, limits.EndpointInFlight, limits.MaxInFlight = 64*32, 2, 8
			r := newRig(t, limits)
			for range 32 {
				l := r.w.lane(r.endpoint(), time.Now())
				l.proven, l.prefetched = true, 8 // half of what it may hold before others ask, more than that after
				r.w.hasRows(l)
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
				r.w.paged(p)
			}
			if r.w.held != small.Window/2 || !r.w.starved {
				t.Errorf("%d rows in memory, starved %v; want %d and true", r.w.held, r.w.starved, small.Window/2)
			}
		},
	})
}

// An id may come back to the organization that had it. Until the look-up knows, the row is
// taken in and put back, page by page, as fast as the database answers.
func TestARowOfAnotherOrganizationHasTheEndpointLookedUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, small)
		endpoint := r.endpoint()
		l := r.w.lane(endpoint, time.Now())
		l.endpoint.OrganizationID = "org_2"
		r.w.hasRows(l)
		r.page(endpoint, webhook.Record{ID: uuid.New(), EventID: uuid.New(), Status: webhook.Pending})
		if asked := r.w.lookUpNext(1, time.Now()); len(r.started) != 0 || !l.rows || len(asked) != 1 {
			t.Errorf("%d attempts, rows left %t, %d endpoints looked up; want none, true, 1", len(r.started), l.rows, len(asked))
		}
	})
}

// Else a row of the largest body would be read again and again, and wait until nothing is in
// memory. config has the least MaxMemory.
func TestTheLargestBodyFitsWhereverRowsAreFetched(t *testing.T) {
	t.Parallel()
	limits := small
	limits.MaxMemory = 1 << 20
	s := New(Options{Limits: limits})
	s.bytes = limits.MaxMemory/2 - 1
	if !s.fetchRoom() || !s.fits(&event{body: make([]byte, 256<<10+4<<10)}) {
		t.Error("the largest body does not fit, and rows are fetched")
	}
}
