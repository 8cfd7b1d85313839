package store_test

import (
	"testing"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
)

// A delivery that waits for its first attempt is not due before it was made: its next_attempt_at is,
// so that it goes before retries.
func TestAFirstAttemptIsDueSinceItsDeliveryWasMade(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, "walhook", 0)
	id := query[uuid.UUID](t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at)
		VALUES (webhook_uuidv7(), webhook_uuidv7(), gen_random_uuid(), 'org_1', 'payment.failed', 'pending', now() - interval '10 minutes') RETURNING id`)
	d, err := st.Delivery(t.Context(), id)
	if err != nil || !d.NextAt.Equal(d.CreatedAt) {
		t.Errorf("made at %v, it is due at %v, %v", d.CreatedAt, d.NextAt, err)
	}
}

// next_attempt_at keeps its last value when a delivery ends, and means nothing any more.
func TestOnlyUnfinishedDeliveriesHaveANextAttempt(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, "walhook", 0)
	for status, want := range map[string]bool{"pending": true, "retrying": true, "success": false, "failed": false, "cancelled": false} {
		id := query[uuid.UUID](t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at)
			VALUES (webhook_uuidv7(), webhook_uuidv7(), gen_random_uuid(), 'org_1', 'payment.failed', $1, now() + interval '1 hour') RETURNING id`, status)
		if d, err := st.Delivery(t.Context(), id); err != nil || (d.NextAt != nil) != want {
			t.Errorf("%s: the next attempt is at %v, %v", status, d.NextAt, err)
		}
		page, err := st.Deliveries(t.Context(), store.DeliveryFilter{Statuses: []string{status}})
		if err != nil || len(page.Deliveries) != 1 || (page.Deliveries[0].NextAt != nil) != want {
			t.Errorf("%s, in a list: %+v, %v", status, page.Deliveries, err)
		}
	}
}
