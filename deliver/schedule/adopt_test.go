package schedule

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

func TestAdoption(t *testing.T) {
	each(t, map[string]func(t *testing.T){
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
		"a row that was read before a new session stands for nothing that the session brings": func(t *testing.T) {
			r := newRig(t, small)
			endpoint := r.endpoint()
			event := uuid.Must(uuid.NewV7())
			id := outbox.DeliveryID(event, endpoint)
			r.w.hasRows(r.w.lane(endpoint, time.Now()))
			pages := r.w.TakePages(1, time.Now())
			r.w.BeginSession(&webhook.Session{}, webhook.Fence{Epoch: 1}, r.w.NextSeq(), time.Now()) // after a failover that lost the row
			r.w.AdmitDue(pages[0], &webhook.Due{ID: id, EndpointID: endpoint, Status: webhook.Pending,
				Event: outbox.Event{ID: event, OrganizationID: "org_1", Payload: []byte(`{}`)}}, time.Now())
			if r.w.adopt(id) && r.w.deliveries[id].tx == nil {
				t.Error("the repeated event holds nothing, and its delivery has no row")
			}
			r.w.Fetched(pages, false, time.Now())
			if l := r.w.lane(endpoint, time.Now()); l.paging || !l.rows || l.prefetched != 0 {
				t.Errorf("paging %t, rows %t, prefetched %d; want the page to be read again", l.paging, l.rows, l.prefetched)
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
	})
}
