package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

// The worst come first, each with its last error and what waits for it.
func TestEndpointsInTrouble(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	newEndpoint(t, db.Pool, "org_1") // does not fail
	long, open, disabled, paused := newEndpoint(t, db.Pool, "org_2"), newEndpoint(t, db.Pool, "org_3"), newEndpoint(t, db.Pool, "org_4"), newEndpoint(t, db.Pool, "org_5")
	for id, since := range map[string]string{long: "3 hours", open: "1 hour", disabled: "5 hours", paused: "6 hours"} {
		exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES ($1, now() - $2::text::interval)`, id, since)
	}
	exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES (gen_random_uuid(), now())`) // of a deleted one
	exec(t, db.Pool, `UPDATE webhook_endpoint_failures SET breaker_opened_at = now() WHERE endpoint_id = $1`, open)
	exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = false WHERE id = $1`, disabled)
	exec(t, db.Pool, `UPDATE webhook_endpoints SET paused_at = now() WHERE id = $1`, paused)

	// One retries, and more of its deliveries have not been tried than are looked at.
	rs := owed(t, db, open, 40)
	for i := range rs {
		rs[i].Status, rs[i].Wait = webhook.Pending, -webhook.ParkedDue
	}
	rs[7] = outcome(rs[7], webhook.Retrying, 1, 503)
	insert(t, st, fence, rs...)
	// The other has nothing but dead letters, of which the newest counts.
	dead := owed(t, db, long, 2)
	insert(t, st, fence, outcome(dead[1], webhook.Failed, 1, 500))
	insert(t, st, fence, outcome(dead[0], webhook.Failed, 1, 404))

	troubled, more, err := st.EndpointViews(t.Context(), "", 10)
	if err != nil || more {
		t.Fatal(more, err)
	}
	if len(troubled) != 4 || troubled[2].ID.String() != paused || troubled[3].ID.String() != disabled {
		t.Fatalf("got %+v, want four", troubled)
	}
	ago := func(e store.EndpointView) string { return time.Since(*e.FailingSince).Round(time.Minute).String() }
	for i, want := range []string{
		fmt.Sprint(open, " org_3 https://example.com 1h0m0s true answered 503 40"), fmt.Sprint(long, " org_2 https://example.com 3h0m0s false answered 404 0"),
	} {
		e := troubled[i]
		if got := fmt.Sprint(e.ID, " ", e.OrganizationID, " ", e.Host, " ", ago(e), " ", e.BreakerOpenedAt != nil, " ", e.Last.Error, " ", e.Waiting); got != want {
			t.Errorf("%d: got %s, want %s", i, got, want)
		}
	}
	if troubled, more, err = st.EndpointViews(t.Context(), "", 1); err != nil || !more || len(troubled) != 1 || troubled[0].ID.String() != open {
		t.Errorf("the worst one: %+v, %v", troubled, err)
	}
	if version, err := st.Installed(t.Context()); err != nil || version != store.SchemaVersion {
		t.Errorf("version %d, %v", version, err)
	}
}

// Where all endpoints fail and everything waits, looking at the worst of them touches what they
// have, and no more.
func TestEndpointsInTroubleCostNoMoreWhereMoreWaits(t *testing.T) {
	t.Parallel()
	const rows, listed = 60_000, 20
	db := pgtest.New(t)
	unanalyzed(t, db)
	b := newBacklog(t, db, rows)
	worst := b.endpoints[:4] // for which more waits than is counted
	exec(t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, next_attempt_at)
		SELECT webhook_delivery_id(v.id, e.id), v.id, e.id, 'org_1', 'payment.failed', 'retrying', 1, now() + n * interval '1 ms'
		FROM (SELECT n, webhook_delivery_id(webhook_uuid_at(now()), gen_random_uuid()) AS id FROM generate_series(1, 5000) AS n) AS v, unnest($1::uuid[]) AS e(id)`, worst)
	exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures SELECT id, now() - CASE WHEN id = ANY ($1) THEN interval '1 day' ELSE '0' END, now() FROM webhook_endpoints`, worst)
	for _, state := range []string{"before anybody has looked at the tables", "after ANALYZE"} {
		if state == "after ANALYZE" {
			exec(t, db.Pool, `ANALYZE webhook_deliveries, webhook_endpoints, webhook_endpoint_failures`)
		}
		for _, mode := range []string{"force_custom_plan", "force_generic_plan", "auto"} {
			st, plans := explaining(t, db, mode)
			plans.take(t, "")
			troubled, more, err := st.EndpointViews(t.Context(), "", listed)
			if err != nil || len(troubled) != listed || !more || troubled[0].Waiting != store.WaitingCounted || !troubled[0].WaitingMore || troubled[listed-1].Waiting != rows/backlogEndpoints {
				t.Errorf("%s, %s: %d, %+v, %v", state, mode, len(troubled), troubled[0], err)
			}
			// Rows that nobody has vacuumed since are looked at in the table too.
			most := len(worst)*store.WaitingCounted*2 + (listed-len(worst))*rows/backlogEndpoints*2 + listed*3*backlogPartitions*4
			found := plans.take(t, "webhook_deliveries")
			if len(found) == 0 {
				t.Errorf("%s, %s: no plan", state, mode)
			}
			for _, e := range found {
				if problem := e.problem(most); problem != "" {
					t.Errorf("%s, %s: %s\n%s", state, mode, problem, e.text)
				}
			}
		}
	}
}
