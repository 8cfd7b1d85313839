package store_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

// What a delivery has come to is told with all of its attempts, in their order.
func TestProgress(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	rs := owed(t, db, endpoint, 4)
	for i := range rs[:3] {
		rs[i] = outcome(rs[i], webhook.Retrying, 1, 503)
		rs[i].Wait = time.Minute
	}
	rs[2].Status, rs[2].Attempts, rs[2].Attempt = webhook.Pending, 0, nil
	insert(t, st, fence, rs[:3]...)
	update(t, st, fence, outcome(rs[1], webhook.Retrying, 2, 0))
	update(t, st, fence, outcome(rs[1], webhook.Success, 3, 200))
	progress, err := st.Progress(t.Context(), []uuid.UUID{rs[3].ID, rs[1].ID, rs[0].ID, rs[2].ID, uuid.New()})
	if err != nil {
		t.Fatal(err)
	}
	of := map[uuid.UUID]store.Progress{}
	for _, p := range progress {
		for i := range p.Attempts {
			if p.Attempts[i].At.IsZero() {
				t.Errorf("attempt %d has no time", p.Attempts[i].Number)
			}
			p.Attempts[i].At = time.Time{} // the rest is compared below
		}
		of[p.DeliveryID] = p
	}
	if len(progress) != 3 || len(of) != 3 {
		t.Fatalf("got %+v, want the three that have a row", progress)
	}
	failed := store.PastAttempt{Number: 1, StatusCode: 503, Class: "http_5xx", Error: "answered 503", DurationMS: 35}
	if p := of[rs[0].ID]; p.Status != webhook.Retrying || p.NextIn < 50*time.Second || p.NextIn > time.Minute || len(p.Attempts) != 1 || p.Attempts[0] != failed {
		t.Errorf("after one attempt: %+v", p)
	}
	p := of[rs[1].ID]
	if p.Status != webhook.Success || len(p.Attempts) != 3 || p.Attempts[0] != failed || p.Attempts[1].Number != 2 || p.Attempts[1].Class != "connect" ||
		p.Attempts[2] != (store.PastAttempt{Number: 3, StatusCode: 200, DurationMS: 35}) {
		t.Errorf("after three attempts: %+v", p)
	}
	exec(t, db.Pool, `UPDATE webhook_deliveries SET attempt_log = '{"attempt": "x"}' WHERE id = $1`, rs[1].ID)
	if progress, err := st.Progress(t.Context(), []uuid.UUID{rs[1].ID}); err != nil || progress[0].Status != webhook.Success || len(progress[0].Attempts) != 0 {
		t.Errorf("with a log that is none: %+v, %v", progress, err)
	}
	if p := of[rs[2].ID]; p.Status != webhook.Pending || len(p.Attempts) != 0 {
		t.Errorf("before any: %+v", p)
	}
}

func TestExplainOfTheStore(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	owed, other := newEndpoint(t, db.Pool, "org_1"), newEndpoint(t, db.Pool, "org_1", "org.*")
	event := uuid.MustParse(newEvent(t, db.Pool, "org_1", "payment.failed"))
	explained, err := st.Explain(t.Context(), event)
	if err != nil {
		t.Fatal(err)
	}
	if len(explained) != 2 || explained[0].EndpointID.String() != owed || explained[0].DeliveryID == uuid.Nil || explained[0].URL == "" ||
		explained[1].EndpointID.String() != other || explained[1].DeliveryID != uuid.Nil || !strings.Contains(explained[1].Reason, "not subscribed") {
		t.Errorf("got %+v", explained)
	}
	nobody := uuid.MustParse(newEvent(t, db.Pool, "org_2", "payment.failed"))
	if explained, err = st.Explain(t.Context(), nobody); err != nil || len(explained) != 0 {
		t.Errorf("of an organization without endpoints: %+v, %v", explained, err)
	}
}
