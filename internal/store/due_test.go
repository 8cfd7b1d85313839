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
	"github.com/walhook/walhook/internal/webhook"
)

func TestDue(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	first, second, empty := newEndpoint(t, db.Pool, "org_1"), newEndpoint(t, db.Pool, "org_1"), newEndpoint(t, db.Pool, "org_1")
	// Due n minutes ago, in a shuffled order; two are due at the same time, two are not due.
	rs := owedOf(t, db, first, 7, "payment.failed", 0, 24*time.Hour, 90*24*time.Hour) // in three partitions
	for i, minutes := range []int{3, 9, 1, 9, 5, -1, -1} {
		rs[i].Status, rs[i].Wait = webhook.Pending, -time.Duration(minutes)*time.Minute
	}
	rs[4] = outcome(rs[4], webhook.Retrying, 2, 500)
	rs[4].SeriesStart, rs[4].Wait = 1, -5*time.Minute
	done := outcome(owed(t, db, first, 1)[0], webhook.Success, 1, 200)
	others := owed(t, db, second, 3)
	for i := range others {
		others[i].Status, others[i].Wait = webhook.Pending, -time.Hour
	}
	insert(t, st, fence, slices.Concat(rs, others, []webhook.Record{done})...)
	exec(t, db.Pool, `UPDATE webhook_deliveries SET next_attempt_at = (SELECT next_attempt_at FROM webhook_deliveries WHERE id = $1) WHERE id = $2`, rs[1].ID, rs[3].ID)

	fetch := func(pages ...webhook.Page) map[string][]webhook.Due {
		t.Helper()
		got := map[string][]webhook.Due{}
		if err := st.Due(t.Context(), pages, func(d *webhook.Due) {
			got[d.EndpointID.String()] = append(got[d.EndpointID.String()], *d)
		}); err != nil {
			t.Fatal(err)
		}
		return got
	}
	ids := func(due []webhook.Due) (ids []uuid.UUID) {
		for _, d := range due {
			ids = append(ids, d.ID)
		}
		return ids
	}
	byID := []uuid.UUID{rs[1].ID, rs[3].ID}
	slices.SortFunc(byID, func(a, b uuid.UUID) int { return strings.Compare(a.String(), b.String()) })
	want := append(byID, rs[4].ID, rs[0].ID, rs[2].ID)

	t.Run("hands out the longest due of each endpoint, in order", func(t *testing.T) {
		got := fetch(webhook.Page{EndpointID: uuid.MustParse(first), Limit: 4}, webhook.Page{EndpointID: uuid.MustParse(empty), Limit: 4},
			webhook.Page{EndpointID: uuid.MustParse(second), Limit: 2}, webhook.Page{EndpointID: uuid.New(), Limit: 2})
		if got := ids(got[first]); !slices.Equal(got, want[:4]) {
			t.Errorf("first endpoint: %v, want %v", got, want[:4])
		}
		if len(got) != 2 || len(got[second]) != 2 {
			t.Errorf("%d endpoints, %d of the second", len(got), len(got[second]))
		}
		d := got[first][2]
		if d.Status != webhook.Retrying || d.Attempts != 2 || d.SeriesStart != 1 || d.Orphaned || d.Event.ID != rs[4].EventID || d.Event.OrganizationID != "org_1" ||
			d.Event.Type != "payment.failed" || string(d.Event.Payload) != `{"n": 5}` || time.Since(d.Event.CreatedAt) > time.Minute {
			t.Errorf("%+v", d)
		}
	})

	t.Run("goes on behind a page", func(t *testing.T) {
		var got []uuid.UUID
		page := webhook.Page{EndpointID: uuid.MustParse(first), Limit: 1}
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
		got := fetch(webhook.Page{EndpointID: uuid.MustParse(first), Limit: 1})[first]
		if len(got) != 1 || got[0].ID != done.ID {
			t.Fatalf("%v, want %s", ids(got), done.ID)
		}
		got = fetch(webhook.Page{EndpointID: uuid.MustParse(first), Limit: 10, After: got[0].End()})[first]
		if !slices.Equal(ids(got), want) {
			t.Errorf("behind it: %v, want %v", ids(got), want)
		}
	})

	t.Run("marks what has lost its event", func(t *testing.T) {
		exec(t, db.Pool, `DELETE FROM webhook_outbox WHERE id = $1`, rs[4].EventID)
		settled(t, db)
		got := fetch(webhook.Page{EndpointID: uuid.MustParse(first), Limit: 10})[first]
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
			rs[j].Status, rs[j].Wait = webhook.Pending, wait
		}
		if i == 2 {
			rs[0] = outcome(rs[0], webhook.Retrying, 1, 500)
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

func TestExisting(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	rs := owed(t, db, newEndpoint(t, db.Pool, "org_1"), 3)
	for i := range rs {
		rs[i].Status = webhook.Pending
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

// infinity is what somebody may write who means never, or at once.
func TestNeverDue(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	for _, at := range []string{"infinity", "-infinity"} {
		r := owed(t, db, endpoint, 1)[0]
		insert(t, st, fence, outcome(r, webhook.Retrying, 1, 500))
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
		if err := st.Due(t.Context(), []webhook.Page{{EndpointID: r.EndpointID, Limit: 10}}, func(d *webhook.Due) { due++ }); err != nil {
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
