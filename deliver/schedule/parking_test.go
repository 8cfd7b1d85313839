package schedule

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

func TestParking(t *testing.T) {
	each(t, map[string]func(t *testing.T){
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
			for range 2 * prefetchPerPermit * small.EndpointInFlight {
				r.event(endpoint)
			}
			more, _ := r.commit()
			if len(more) != 32 || statuses(more)[webhook.Pending] != 32 {
				t.Fatalf("a lane that is behind did not park what follows at once: %v", statuses(more))
			}
			r.answer(r.started[0], 200)
			r.answer(r.started[0], 200)
			r.lookUp(endpoint, true)
			waits = append(waits, more...)
			for rest := waits; len(rest) > 0; {
				if rest = r.page(endpoint, rest...); len(rest) > 0 && !r.w.lanes[endpoint].spilled {
					t.Error("the lane goes direct, and rows are left")
				}
				for len(r.started) > 0 {
					r.answer(r.started[0], 200)
				}
			}
			if r.w.lanes[endpoint].spilled {
				t.Error("one page held all that was left, and the lane does not go direct again")
			}
			for len(r.started) > 0 {
				r.answer(r.started[0], 200)
			}
			inserts, updates := r.commit()
			if len(inserts) != 0 || statuses(updates)[webhook.Success] != 36 {
				t.Errorf("inserts %v, updates %v; want 36 updates", statuses(inserts), statuses(updates))
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
	})
}
