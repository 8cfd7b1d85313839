package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
)

func TestDue(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	first, second, empty := newEndpoint(t, db.Pool, "org_1"), newEndpoint(t, db.Pool, "org_1"), newEndpoint(t, db.Pool, "org_1")
	// Due n minutes ago, in a shuffled order; two are due at the same time, two are not due.
	rs := owedOf(t, db, first, 7, "payment.failed", 0, 24*time.Hour, 90*24*time.Hour) // in three partitions
	for i, minutes := range []int{3, 9, 1, 9, 5, -1, -1} {
		rs[i].Status, rs[i].Wait = store.Pending, -time.Duration(minutes)*time.Minute
	}
	rs[4] = outcome(rs[4], store.Retrying, 2, 500)
	rs[4].SeriesStart, rs[4].Wait = 1, -5*time.Minute
	done := outcome(owed(t, db, first, 1)[0], store.Success, 1, 200)
	others := owed(t, db, second, 3)
	for i := range others {
		others[i].Status, others[i].Wait = store.Pending, -time.Hour
	}
	insert(t, st, fence, slices.Concat(rs, others, []store.Record{done})...)
	exec(t, db.Pool, `UPDATE webhook_deliveries SET next_attempt_at = (SELECT next_attempt_at FROM webhook_deliveries WHERE id = $1) WHERE id = $2`, rs[1].ID, rs[3].ID)

	fetch := func(pages ...store.Page) map[string][]store.Due {
		t.Helper()
		got := map[string][]store.Due{}
		if err := st.Due(t.Context(), pages, func(d *store.Due) {
			got[d.EndpointID.String()] = append(got[d.EndpointID.String()], *d)
		}); err != nil {
			t.Fatal(err)
		}
		return got
	}
	ids := func(due []store.Due) (ids []uuid.UUID) {
		for _, d := range due {
			ids = append(ids, d.ID)
		}
		return ids
	}
	byID := []uuid.UUID{rs[1].ID, rs[3].ID}
	slices.SortFunc(byID, func(a, b uuid.UUID) int { return strings.Compare(a.String(), b.String()) })
	want := append(byID, rs[4].ID, rs[0].ID, rs[2].ID)

	t.Run("hands out the longest due of each endpoint, in order", func(t *testing.T) {
		got := fetch(store.Page{EndpointID: uuid.MustParse(first), Limit: 4}, store.Page{EndpointID: uuid.MustParse(empty), Limit: 4},
			store.Page{EndpointID: uuid.MustParse(second), Limit: 2}, store.Page{EndpointID: uuid.New(), Limit: 2})
		if got := ids(got[first]); !slices.Equal(got, want[:4]) {
			t.Errorf("first endpoint: %v, want %v", got, want[:4])
		}
		if len(got) != 2 || len(got[second]) != 2 {
			t.Errorf("%d endpoints, %d of the second", len(got), len(got[second]))
		}
		d := got[first][2]
		if d.Status != store.Retrying || d.Attempts != 2 || d.SeriesStart != 1 || d.Orphaned || d.Event.ID != rs[4].EventID || d.Event.OrganizationID != "org_1" ||
			d.Event.Type != "payment.failed" || string(d.Event.Payload) != `{"n": 5}` || time.Since(d.Event.CreatedAt) > time.Minute {
			t.Errorf("%+v", d)
		}
	})

	t.Run("goes on behind a page", func(t *testing.T) {
		var got []uuid.UUID
		page := store.Page{EndpointID: uuid.MustParse(first), Limit: 1}
		for range len(want) + 1 {
			for _, d := range fetch(page)[first] {
				got, page.After = append(got, d.ID), d.End()
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("page by page: %v, want %v", got, want)
		}
	})

	t.Run("takes what an operator made due since ever", func(t *testing.T) {
		exec(t, db.Pool, `UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = '-infinity' WHERE id = $1`, done.ID)
		got := fetch(store.Page{EndpointID: uuid.MustParse(first), Limit: 1})[first]
		if len(got) != 1 || got[0].ID != done.ID {
			t.Fatalf("%v, want %s", ids(got), done.ID)
		}
		got = fetch(store.Page{EndpointID: uuid.MustParse(first), Limit: 10, After: got[0].End()})[first]
		if !slices.Equal(ids(got), want) {
			t.Errorf("behind it: %v, want %v", ids(got), want)
		}
	})

	t.Run("marks what has lost its event", func(t *testing.T) {
		exec(t, db.Pool, `DELETE FROM webhook_outbox WHERE id = $1`, rs[4].EventID)
		settled(t, db)
		got := fetch(store.Page{EndpointID: uuid.MustParse(first), Limit: 10})[first]
		for _, d := range got {
			if d.Orphaned != (d.ID == rs[4].ID) || d.Orphaned != (d.Event.Payload == nil) {
				t.Errorf("%s: orphaned %t, payload %q", d.ID, d.Orphaned, d.Event.Payload)
			}
		}
		if len(got) != 6 {
			t.Errorf("%d rows", len(got))
		}
	})
}

// settled waits until every transaction of the server that was under way when a
// delivery was written has ended.
func settled(t testing.TB, db *pgtest.DB) {
	t.Helper()
	pgtest.Eventually(t, 30*time.Second, "all that was under way has ended", func() bool {
		return query[bool](t, db.Pool, `SELECT coalesce(bool_and(age(xmin) > age(pg_snapshot_xmin(pg_current_snapshot())::xid)), true) FROM webhook_deliveries WHERE next_attempt_at IS NOT NULL`)
	})
}

func TestNewlyDue(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	start, err := st.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	look := func(since time.Time, all bool, want ...string) time.Time {
		t.Helper()
		got, now, complete, err := st.NewlyDue(t.Context(), since)
		if err != nil {
			t.Fatal(err)
		}
		texts := []string{}
		for _, id := range got {
			texts = append(texts, id.String())
		}
		slices.Sort(texts)
		slices.Sort(want)
		if !slices.Equal(texts, want) || complete != all {
			t.Errorf("got %q, all %t; want %q, %t", texts, complete, want, all)
		}
		return now
	}
	look(start, true)
	var endpoints []string
	for i, wait := range []time.Duration{-time.Hour, 0, 0, time.Hour} {
		endpoint := newEndpoint(t, db.Pool, "org_1")
		endpoints = append(endpoints, endpoint)
		rs := owed(t, db, endpoint, 2)
		for j := range rs {
			rs[j].Status, rs[j].Wait = store.Pending, wait
		}
		if i == 2 {
			rs[0] = outcome(rs[0], store.Retrying, 1, 500)
			rs[0].Wait = 0
		}
		insert(t, st, fence, rs...)
	}
	now := look(start, true, endpoints[1], endpoints[2])
	if now.Before(start) {
		t.Errorf("the look was at %s, before %s", now, start)
	}
	look(now, true)
	look(now.Add(-2*time.Hour), true, endpoints[0], endpoints[1], endpoints[2])

	exec(t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at)
		SELECT webhook_uuidv7(), webhook_uuidv7(), $1, 'o', 't', 'pending', now() - interval '90 minutes' FROM generate_series(1, 5000)`, endpoints[3])
	look(now.Add(-2*time.Hour), false, endpoints[3])
}

func TestWaiting(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	// 300 endpoints with rows in one to five of 17 partitions, a tenth of them disabled, a tenth deleted.
	exec(t, db.Pool, `INSERT INTO webhook_endpoints (organization_id, url) SELECT 'org_' || n, 'https://example.com' FROM generate_series(1, 300) n`)
	exec(t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at)
		SELECT webhook_uuid_at(now() + n * interval '1 millisecond' + (n * 7 + m * 3) % 17 * interval '1 day'), webhook_uuidv7(), e.id, 'o', 't',
		       CASE m % 2 WHEN 0 THEN 'pending' ELSE 'retrying' END, now() + interval '1 day'
		FROM (SELECT row_number() OVER (ORDER BY id) AS n, id FROM webhook_endpoints) e, generate_series(0, n % 5) m ON CONFLICT DO NOTHING`)
	exec(t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status)
		SELECT webhook_uuidv7(), webhook_uuidv7(), gen_random_uuid(), 'o', 't', unnest('{success,failed,cancelled}'::text[])`)
	exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = false WHERE organization_id LIKE '%3'`)
	exec(t, db.Pool, `DELETE FROM webhook_endpoints WHERE organization_id LIKE '%7'`)
	want := column[string](t, db.Pool, `SELECT DISTINCT d.endpoint_id || ' ' || coalesce(e.enabled, false) FROM webhook_deliveries d LEFT JOIN webhook_endpoints e ON e.id = d.endpoint_id
		WHERE status IN ('pending', 'retrying') ORDER BY 1`)
	if len(want) != 300 {
		t.Fatalf("%d endpoints wait", len(want))
	}
	for _, limit := range []int{1000, 300, 7, 1} {
		var got []string
		var last uuid.UUID
		for {
			page, err := st.Waiting(t.Context(), last, limit)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range page {
				got = append(got, fmt.Sprintf("%s %t", w.EndpointID, w.Enabled))
				last = w.EndpointID
			}
			if len(page) > limit {
				t.Fatalf("a page of %d has %d", limit, len(page))
			}
			if len(page) < limit {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("in pages of %d: %d endpoints, want %d", limit, len(got), len(want))
		}
	}
}

func TestCancelRows(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	id := uuid.MustParse(endpoint)
	rs := owed(t, db, endpoint, 5)
	rs[0].Status = store.Pending
	rs[1] = outcome(rs[1], store.Retrying, 1, 503)
	rs[2] = outcome(rs[2], store.Success, 1, 200)
	rs[3] = outcome(rs[3], store.Failed, 1, 500)
	rs[4].Status = store.Pending
	insert(t, st, fence, rs...)
	bystander := owed(t, db, newEndpoint(t, db.Pool, "org_1"), 1)[0]
	bystander.Status = store.Pending
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
		r.Status = store.Pending
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
	rs[0].Status, rs[1].Status, rs[4].Status = store.Pending, store.Pending, store.Pending
	rs[2] = outcome(rs[2], store.Retrying, 1, 500)
	rs[3] = outcome(rs[3], store.Success, 1, 200)
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

func TestExisting(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	rs := owed(t, db, newEndpoint(t, db.Pool, "org_1"), 3)
	for i := range rs {
		rs[i].Status = store.Pending
	}
	insert(t, st, fence, rs[:2]...)
	before := uuid.New()
	known := map[uuid.UUID]bool{before: true}
	if err := st.Existing(t.Context(), nil, known); err != nil {
		t.Fatal(err)
	}
	if err := st.Existing(t.Context(), []uuid.UUID{rs[0].ID, rs[1].ID, rs[2].ID, rs[0].ID, uuid.New()}, known); err != nil {
		t.Fatal(err)
	}
	if len(known) != 3 || !known[before] || !known[rs[0].ID] || !known[rs[1].ID] {
		t.Errorf("known: %v", known)
	}
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	plain, full, broken := newEndpoint(t, db.Pool, "org_1"), newEndpoint(t, db.Pool, "org_2"), newEndpoint(t, db.Pool, "org_3")
	exec(t, db.Pool, `UPDATE webhook_endpoints SET headers = '{"X-A": "ü"}', enabled = false, max_in_flight = 3, rate_per_second = 0.5 WHERE id = $1`, full)
	older := query[string](t, db.Pool, `SELECT secret FROM webhook_secrets WHERE endpoint_id = $1`, full)
	newer := query[string](t, db.Pool, `SELECT webhook_rotate_secret($1)`, full)
	exec(t, db.Pool, `INSERT INTO webhook_secrets (endpoint_id, secret, expires_at) VALUES ($1, 'an expired one, long enough', now() - interval '1 second')`, full)
	// A restore that goes past triggers.
	tx := begin(t, db.Pool)
	exec(t, tx, `SET LOCAL session_replication_role = replica`)
	exec(t, tx, `UPDATE webhook_endpoints SET headers = '{"X-A": 1}' WHERE id = $1`, broken)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}

	found, err := st.Endpoints(t.Context(), []uuid.UUID{uuid.MustParse(plain), uuid.New(), uuid.MustParse(full), uuid.MustParse(broken)})
	if err != nil {
		t.Fatal(err)
	}
	byID := map[string]store.Endpoint{}
	for _, e := range found {
		byID[e.ID.String()] = e
	}
	if e := byID[plain]; len(byID) != 3 || e.OrganizationID != "org_1" || e.URL != "https://example.com/hook" || !e.Enabled || len(e.Headers) != 0 ||
		e.MaxInFlight != 0 || e.RatePerSecond != 0 || len(e.Secrets) != 1 || e.Problem != "" {
		t.Errorf("of %d: %+v", len(byID), e)
	}
	if e := byID[full]; e.Enabled || e.Headers["X-A"] != "ü" || e.MaxInFlight != 3 || e.RatePerSecond != 0.5 ||
		!slices.Equal(e.Secrets, []store.Secret{store.Secret(older), store.Secret(newer)}) {
		t.Errorf("%+v", e)
	}
	if e := byID[broken]; !strings.Contains(e.Problem, "headers") {
		t.Errorf("one endpoint's headers: %+v", e)
	}
}

// An endpoint's id that was given again, past the triggers: what was owed to the first
// organization's is cancelled, and no other's.
func TestCancelStrangers(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	rs := owed(t, db, endpoint, 3)
	for i := range rs {
		rs[i].Status, rs[i].Wait = store.Pending, -time.Minute
	}
	rs[2] = outcome(rs[2], store.Success, 1, 200)
	insert(t, st, fence, rs...)
	look := func() (strangers []uuid.UUID) {
		t.Helper()
		page := store.Page{EndpointID: rs[0].EndpointID, Limit: 10}
		if err := st.Due(t.Context(), []store.Page{page}, func(d *store.Due) {
			if d.Stranger {
				strangers = append(strangers, d.ID)
			}
		}); err != nil {
			t.Fatal(err)
		}
		return strangers
	}
	ids := []uuid.UUID{rs[0].ID, rs[1].ID, rs[2].ID}
	if err := st.CancelStrangers(t.Context(), fence, ids); err != nil || len(look()) != 0 {
		t.Fatalf("error %v, and %d strangers before there is one", err, len(look()))
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
		t.Fatalf("%d strangers, want 2", n)
	}
	if err := st.CancelStrangers(t.Context(), fence, ids); err != nil {
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

// infinity is what somebody may write who means never, or at once.
func TestNeverDue(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	for _, at := range []string{"infinity", "-infinity"} {
		r := owed(t, db, endpoint, 1)[0]
		insert(t, st, fence, outcome(r, store.Retrying, 1, 500))
		exec(t, db.Pool, `UPDATE webhook_deliveries SET next_attempt_at = $1::timestamptz WHERE id = $2`, at, r.ID)
		o, err := st.Overview(t.Context())
		if err != nil || o.Waiting == nil || o.Overdue == nil || *o.Overdue < 0 || *o.Overdue > time.Hour {
			t.Errorf("%s: %+v, error %v", at, o, err)
		}
		for _, view := range []string{"webhook_status", "webhook_endpoint_health", "webhook_stats('org_1')", "webhook_attempts", fmt.Sprintf("webhook_explain('%s')", r.EventID)} {
			if n := query[int](t, db.Pool, `SELECT count(*) FROM (SELECT to_jsonb(v) FROM `+view+` v) AS j`); n == 0 {
				t.Errorf("%s: %s is empty", at, view)
			}
		}
		due := 0
		if err := st.Due(t.Context(), []store.Page{{EndpointID: r.EndpointID, Limit: 10}}, func(d *store.Due) { due++ }); err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := st.NewlyDue(t.Context(), time.Now()); err != nil {
			t.Error(err)
		}
		if _, err := st.Waiting(t.Context(), uuid.Nil, 10); err != nil {
			t.Error(err)
		}
		if want := map[string]int{"infinity": 0, "-infinity": 1}[at]; due != want {
			t.Errorf("%s: %d are due, want %d", at, due, want)
		}
	}
}
