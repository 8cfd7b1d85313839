package store_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/webhook"
)

func TestCancelRows(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	id := uuid.MustParse(endpoint)
	rs := owed(t, db, endpoint, 5)
	rs[0].Status = webhook.Pending
	rs[1] = outcome(rs[1], webhook.Retrying, 1, 503)
	rs[2] = outcome(rs[2], webhook.Success, 1, 200)
	rs[3] = outcome(rs[3], webhook.Failed, 1, 500)
	rs[4].Status = webhook.Pending
	insert(t, st, fence, rs...)
	bystander := owed(t, db, newEndpoint(t, db.Pool, "org_1"), 1)[0]
	bystander.Status = webhook.Pending
	insert(t, st, fence, bystander)
	exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES ($1, now() - interval '10 days')`, endpoint)
	cancel := func(want int) {
		t.Helper()
		total := 0
		pgtest.Eventually(t, 30*time.Second, "other tests' transactions have ended", func() bool {
			n, more, err := st.CancelRows(t.Context(), fence, id, "the endpoint is disabled")
			if err != nil {
				t.Fatal(err)
			}
			total += n
			return !more
		})
		if total != want {
			t.Errorf("cancelled %d, want %d", total, want)
		}
	}

	cancel(0)
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_endpoint_failures`); n != 1 {
		t.Error("an enabled endpoint's failures are forgotten")
	}
	exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = false WHERE id = $1`, endpoint)
	exec(t, db.Pool, `UPDATE webhook_deliveries SET updated_at = updated_at - interval '30 seconds' WHERE id = $1`, rs[1].ID)
	settled(t, db)
	tx := begin(t, db.Pool)
	exec(t, tx, `SELECT FROM webhook_deliveries WHERE id = $1 FOR UPDATE`, rs[4].ID)
	cancel(2)
	if n, more, err := st.CancelRows(t.Context(), fence, id, "the endpoint is disabled"); err != nil || n != 0 || more {
		t.Errorf("cancelled %d, some wait %t, %v beside a locked row", n, more, err)
	}
	for i, want := range []string{"cancelled 0", "cancelled 1", "success 1", "failed 1", "pending 0"} {
		if got := statusOf(t, db, rs[i].ID); got != want {
			t.Errorf("%d: %s, want %s", i, got, want)
		}
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	cancel(1)
	got := column[string](t, db.Pool, `SELECT concat_ws('|', error, next_attempt_at, completed_at = updated_at) FROM webhook_deliveries WHERE status = 'cancelled' ORDER BY event_id`)
	if want := []string{"the endpoint is disabled|t", "answered 503|t", "the endpoint is disabled|t"}; !slices.Equal(got, want) {
		t.Errorf("rows: %q, want %q", got, want)
	}
	if got := statusOf(t, db, bystander.ID); got != "pending 0" {
		t.Errorf("another endpoint's: %s", got)
	}
	// The attempt's own time is not lost with updated_at, and the attempt not with a replay.
	checkLog(t, db, rs[1].ID, "1 http_5xx 503 35")
	if !query[bool](t, db.Pool, `SELECT at < now() - interval '29 seconds' FROM webhook_attempts WHERE delivery_id = $1`, rs[1].ID) {
		t.Error("the attempt seems to have been when it was cancelled")
	}
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_endpoint_failures`); n != 0 {
		t.Error("once it is enabled again, its failures of before would count")
	}

	t.Run("waits until what was written beside it is visible", func(t *testing.T) {
		r := owed(t, db, endpoint, 1)[0]
		r.Status = webhook.Pending
		tx := begin(t, db.Pool) // as if it had inserted the event and enabled the endpoint
		exec(t, tx, `UPDATE webhook_endpoints SET enabled = true WHERE id = $1`, endpoint)
		insert(t, st, fence, r)
		if n, more, err := st.CancelRows(t.Context(), fence, id, "the endpoint is disabled"); err != nil || n != 0 || !more {
			t.Errorf("cancelled %d, some wait %t, %v", n, more, err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		cancel(1)
	})

	t.Run("works for a deleted endpoint, in chunks", func(t *testing.T) {
		exec(t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at)
			SELECT webhook_uuidv7(), webhook_uuidv7(), $1, 'o', 't', 'pending', now() + n * interval '1 day' FROM generate_series(1, 1001) n`, endpoint)
		exec(t, db.Pool, `DELETE FROM webhook_endpoints WHERE id = $1`, endpoint)
		cancel(500)
		cancel(500)
		cancel(1)
		cancel(0)
	})
}

func TestCancelOrphans(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	rs := owed(t, db, newEndpoint(t, db.Pool, "org_1"), 5)
	rs[0].Status, rs[1].Status, rs[4].Status = webhook.Pending, webhook.Pending, webhook.Pending
	rs[2] = outcome(rs[2], webhook.Retrying, 1, 500)
	rs[3] = outcome(rs[3], webhook.Success, 1, 200)
	insert(t, st, fence, rs...)
	ids := []uuid.UUID{uuid.New()}
	for _, r := range rs {
		ids = append(ids, r.ID)
	}
	exec(t, db.Pool, `DELETE FROM webhook_outbox WHERE id <> $1`, rs[4].EventID) // whose event is there, whatever Due has said
	settled(t, db)
	tx := begin(t, db.Pool)
	exec(t, tx, `SELECT FROM webhook_deliveries WHERE id = $1 FOR UPDATE`, rs[1].ID)
	if err := st.CancelOrphans(t.Context(), fence, ids); err != nil {
		t.Fatalf("beside a locked row: %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"cancelled 0", "pending 0", "cancelled 1", "success 1", "pending 0"} {
		if got := statusOf(t, db, rs[i].ID); got != want {
			t.Errorf("%d: %s, want %s", i, got, want)
		}
	}
	checkLog(t, db, rs[2].ID, "1 http_5xx 500 35")
	if got := query[string](t, db.Pool, `SELECT error FROM webhook_deliveries WHERE id = $1 AND next_attempt_at IS NULL AND completed_at IS NOT NULL`, rs[0].ID); !strings.Contains(got, "deleted") {
		t.Errorf("error %q", got)
	}
}

// An endpoint's id that was given again, past the triggers: what was owed to the first
// organization's is cancelled, and no other's.
func TestCancelReassigned(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	rs := owed(t, db, endpoint, 3)
	for i := range rs {
		rs[i].Status, rs[i].Wait = webhook.Pending, -time.Minute
	}
	rs[2] = outcome(rs[2], webhook.Success, 1, 200)
	insert(t, st, fence, rs...)
	look := func() (reassigned []uuid.UUID) {
		t.Helper()
		page := webhook.Page{EndpointID: rs[0].EndpointID, Limit: 10}
		if err := st.Due(t.Context(), []webhook.Page{page}, func(d *webhook.Due) {
			if d.Reassigned {
				reassigned = append(reassigned, d.ID)
			}
		}); err != nil {
			t.Fatal(err)
		}
		return reassigned
	}
	ids := []uuid.UUID{rs[0].ID, rs[1].ID, rs[2].ID}
	if err := st.CancelReassigned(t.Context(), fence, ids); err != nil || len(look()) != 0 {
		t.Fatalf("error %v, and %d reassigned before there is one", err, len(look()))
	}
	if got := statusOf(t, db, rs[0].ID); got != "pending 0" {
		t.Fatalf("its own organization's: %s", got)
	}
	tx := begin(t, db.Pool)
	exec(t, tx, `SET LOCAL session_replication_role = replica`)
	exec(t, tx, `DELETE FROM webhook_endpoints WHERE id = $1`, endpoint)
	exec(t, tx, `INSERT INTO webhook_endpoints (id, organization_id, url) VALUES ($1, 'org_2', 'https://example.org/')`, endpoint)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(look()); n != 2 {
		t.Fatalf("%d reassigned, want 2", n)
	}
	if err := st.CancelReassigned(t.Context(), fence, ids); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"cancelled 0", "cancelled 0", "success 1"} {
		if got := statusOf(t, db, rs[i].ID); got != want {
			t.Errorf("%d: %s, want %s", i, got, want)
		}
	}
	if got := query[string](t, db.Pool, `SELECT error FROM webhook_deliveries WHERE id = $1`, rs[0].ID); !strings.Contains(got, "another organization") {
		t.Errorf("error %q", got)
	}
}
