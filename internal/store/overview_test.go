package store_test

import (
	"context"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
)

func TestOverview(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	overview := func() store.Overview {
		t.Helper()
		o, err := st.Overview(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	if got := overview(); *got.Slot != (store.SlotOverview{}) || *got.Waiting != (store.WaitingOverview{}) || *got.Overdue != 0 || *got.Strays != 0 || *got.Ahead != 14 || *got.Endpoints != (store.EndpointsOverview{}) {
		t.Errorf("a new database: %+v, want nothing in it", got)
	}
	endpoint := newEndpoint(t, db.Pool, "org_1")
	newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), endpoint, "pending")
	newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), endpoint, "retrying")
	newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), endpoint, "retrying")
	exec(t, db.Pool, `INSERT INTO webhook_state (slot, environment) VALUES ($1, 'production')`, db.Slot)
	exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
	exec(t, db.Pool, `INSERT INTO webhook_deliveries SELECT '01000000-0000-7000-8000-000000000000', event_id, endpoint_id, organization_id, event_type, 'success' FROM webhook_deliveries LIMIT 1`)

	got := overview()
	want := store.SlotOverview{Environment: "production", Slot: db.Slot, Exists: true, WALStatus: "reserved", LagBytes: got.Slot.LagBytes}
	if *got.Slot != want || *got.Waiting != (store.WaitingOverview{Pending: 1, Retrying: 2}) || *got.Strays != 1 {
		t.Errorf("got %+v %+v strays %d, want %+v", *got.Slot, *got.Waiting, *got.Strays, want)
	}
	if view := query[string](t, db.Pool, `SELECT concat_ws(' ', environment, slot, slot_exists, slot_active, wal_status, pending, retrying, outbox_default_rows + deliveries_default_rows) FROM webhook_status`); view != "production "+db.Slot+" t f reserved 1 2 1" {
		t.Errorf("webhook_status says %s", view)
	}
}

// What the slot keeps begins where it would read again, and not at what is confirmed.
func TestLagIsWhatIsKept(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db.Pool, `INSERT INTO webhook_state (slot) VALUES ($1)`, db.Slot)
	exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
	held := begin(t, db.Pool) // the oldest transaction holds restart_lsn back, and not the confirmed position
	exec(t, held, `INSERT INTO webhook_event_types (name, category) VALUES ('a.b', 'a')`)
	const written = 1 << 20
	exec(t, db.Pool, `SELECT pg_logical_emit_message(true, 'test', repeat('x', $1))`, written)
	exec(t, db.Pool, `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, db.Slot)
	o, err := store.New(db.Pool, db.Slot, 0).Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if o.Slot.LagBytes < written {
		t.Errorf("lag %d, with %d bytes kept", o.Slot.LagBytes, written)
	}
	if view := query[int64](t, db.Pool, `SELECT lag_bytes FROM webhook_status`); view < written {
		t.Errorf("webhook_status.lag_bytes is %d, with %d bytes kept", view, written)
	}
	if o.Slot.SafeBytes != nil {
		t.Errorf("%d bytes are safe, and there is no limit", *o.Slot.SafeBytes)
	}
}

func TestSafeWAL(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t, postgres.Options{Settings: map[string]string{"max_slot_wal_keep_size": "256MB"}})
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := apply(t.Context(), pool, readSchema(t)); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `SELECT pg_create_logical_replication_slot('walhook', 'pgoutput')`)
	o, err := store.New(pool, "walhook", 0).Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if o.Slot.SafeBytes == nil || *o.Slot.SafeBytes < 200<<20 || *o.Slot.SafeBytes > 300<<20 {
		t.Errorf("safe: %v, want about 256 MiB", o.Slot.SafeBytes)
	}
	if !query[bool](t, pool, `SELECT safe_wal_bytes > 0 FROM webhook_status`) {
		t.Error("webhook_status.safe_wal_bytes")
	}
}

func TestOverdueIsWhatCouldBeSentNow(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	both := func() (overdue, view time.Duration) {
		t.Helper()
		o, err := st.Overview(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return *o.Overdue, time.Duration(query[float64](t, db.Pool, `SELECT coalesce(extract(epoch FROM now() - oldest_due_at), 0)::float8 FROM webhook_status`) * float64(time.Second))
	}
	for what, c := range map[string]struct {
		sql string // about endpoint e and its delivery d
		due bool
	}{
		"due an hour ago":              {`SELECT`, true},
		"due for ever":                 {`UPDATE webhook_deliveries SET next_attempt_at = '-infinity', created_at = now() - interval '1 hour' WHERE endpoint_id = $1`, true},
		"parked, which is due at once": {`UPDATE webhook_deliveries SET status = 'pending', attempts = 0, next_attempt_at = now() - interval '70 minutes', created_at = now() - interval '1 hour' WHERE endpoint_id = $1`, true},
		"failing":                      {`INSERT INTO webhook_endpoint_failures VALUES ($1, now())`, true},
		"held by a breaker":            {`INSERT INTO webhook_endpoint_failures VALUES ($1, now(), now())`, false},
		"held by a rate":               {`UPDATE webhook_endpoints SET rate_per_second = 1 WHERE id = $1`, false},
		"about to be cancelled":        {`UPDATE webhook_endpoints SET enabled = false WHERE id = $1`, false},
		"of a deleted endpoint":        {`DELETE FROM webhook_endpoints WHERE id = $1`, false},
		"due tomorrow":                 {`UPDATE webhook_deliveries SET next_attempt_at = now() + interval '1 day' WHERE endpoint_id = $1`, false},
		"due never":                    {`UPDATE webhook_deliveries SET next_attempt_at = 'infinity' WHERE endpoint_id = $1`, false},
	} {
		exec(t, db.Pool, `DELETE FROM webhook_deliveries`)
		endpoint := newEndpoint(t, db.Pool, "org_1")
		id := newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), endpoint, "retrying")
		exec(t, db.Pool, `UPDATE webhook_deliveries SET next_attempt_at = now() - interval '1 hour', created_at = now() - interval '2 hours' WHERE id = $1`, id)
		if c.sql != `SELECT` {
			exec(t, db.Pool, c.sql, endpoint)
		}
		overdue, view := both()
		for _, d := range []time.Duration{overdue, view} {
			if c.due != (d >= time.Hour) || !c.due && d != 0 || d > 61*time.Minute {
				t.Errorf("%s: overdue by %s, webhook_status by %s", what, overdue, view)
			}
		}
		if n := query[int](t, db.Pool, `SELECT retrying + pending FROM webhook_status`); n != 1 {
			t.Errorf("%s: %d wait", what, n)
		}
		exec(t, db.Pool, `SELECT * FROM webhook_endpoint_health`)
	}
}

// Each endpoint with waiting rows is looked up by itself, and not compared with every endpoint there
// is, also where the planner expects that none can be sent to.
func TestOverdueComparesNoPairs(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	const endpoints, dead = 4000, 400
	exec(t, db.Pool, `INSERT INTO webhook_endpoints (organization_id, url) SELECT 'org_' || i, 'https://example.com/' || i FROM generate_series(1, $1) AS i`, endpoints)
	exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures SELECT id, now(), now() FROM webhook_endpoints ORDER BY id LIMIT $1`, dead)
	exec(t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, next_attempt_at)
		SELECT e, e, f.endpoint_id, 'org_1', 'payment.failed', 'retrying', 1, now() - interval '1 hour' FROM (SELECT endpoint_id, webhook_uuidv7() AS e FROM webhook_endpoint_failures) AS f`)
	exec(t, db.Pool, `ANALYZE`)
	plan := strings.Join(column[string](t, db.Pool, `EXPLAIN (ANALYZE, TIMING OFF) SELECT * FROM webhook_overdue`), "\n")
	for _, m := range regexp.MustCompile(`Rows Removed by Join Filter: (\d+)`).FindAllStringSubmatch(plan, -1) {
		if n, _ := strconv.Atoi(m[1]); n > endpoints {
			t.Errorf("%d pairs were compared:\n%s", n, plan)
		}
	}
	if !strings.Contains(plan, "webhook_endpoints_pkey") {
		t.Errorf("endpoints are not looked up one by one:\n%s", plan)
	}

	st, plans := explaining(t, db, "auto")
	plans.take(t, "")
	for range 2 { // by due time, and then by endpoint
		if _, err := st.Overview(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range plans.take(t, "") {
		e.Plan.walk(func(n *planNode) {
			if n.Unjoined*n.Loops > endpoints {
				t.Errorf("%.0f pairs were compared: %s", n.Unjoined*n.Loops, e.Query)
			}
		})
	}
}

// One part that cannot be read takes none of the others with it.
func TestOverviewComesInParts(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	for table, missing := range map[string]func(store.Overview) bool{
		"webhook_outbox_default": func(o store.Overview) bool {
			return o.Slot != nil && o.Waiting != nil && o.Overdue != nil && o.Strays == nil
		},
		"webhook_deliveries": func(o store.Overview) bool { return o.Slot != nil && o.Waiting == nil && o.Overdue == nil },
		"webhook_state": func(o store.Overview) bool {
			return o.Slot == nil && o.Waiting != nil && o.Overdue != nil && o.Strays != nil
		},
	} {
		tx := begin(t, db.Pool)
		exec(t, tx, `LOCK TABLE `+table+` IN ACCESS EXCLUSIVE MODE`)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		o, err := st.Overview(ctx)
		cancel()
		if err == nil || !missing(o) {
			t.Errorf("with %s locked: %+v, %v", table, o, err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOverviewCountsEndpointsByState(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	for sql, n := range map[string]int{
		`SELECT`: 1,
		`INSERT INTO webhook_endpoint_failures VALUES ($1, now())`:                                                                                 2,
		`INSERT INTO webhook_endpoint_failures VALUES ($1, now(), now())`:                                                                          3,
		`UPDATE webhook_endpoints SET enabled = false WHERE id = $1`:                                                                               4,
		`WITH f AS (INSERT INTO webhook_endpoint_failures VALUES ($1, now(), now())) UPDATE webhook_endpoints SET paused_at = now() WHERE id = $1`: 6,
		`WITH f AS (INSERT INTO webhook_endpoint_failures VALUES ($1, now(), now())) UPDATE webhook_endpoints SET enabled = false WHERE id = $1`:   1,
	} {
		for range n {
			if id := newEndpoint(t, db.Pool, "org_1"); sql != `SELECT` {
				exec(t, db.Pool, sql, id)
			}
		}
	}
	exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES (gen_random_uuid(), now())`) // of a deleted one
	o, err := store.New(db.Pool, db.Slot, 0).Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := (store.EndpointsOverview{OK: 1, Failing: 2, Open: 3, Paused: 6, Disabled: 5}); *o.Endpoints != want {
		t.Errorf("got %+v, want %+v", *o.Endpoints, want)
	}
}

// What is scraped every few seconds costs as much where a million deliveries wait as where
// some thousand do, and still finds the one delivery that walhook should have sent among
// those that breakers hold.
func TestOverviewCostsNoMoreWhereMoreWaits(t *testing.T) {
	t.Parallel()
	const rows = 60_000
	db := pgtest.New(t)
	unanalyzed(t, db)
	b := newBacklog(t, db, rows)
	st, plans := explaining(t, db, "auto")
	look := func() store.Overview {
		t.Helper()
		o, err := st.Overview(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		touched := 0
		for _, e := range plans.take(t, "") {
			touched += e.Plan.Hit + e.Plan.Read
		}
		if most := 12_000; touched == 0 || touched > most {
			t.Errorf("it touches %d blocks, want %d at most", touched, most)
		}
		return o
	}
	about := func(what string, got, want int64) {
		t.Helper()
		if got < want*2/3 || got > want*3/2 {
			t.Errorf("%s: %d, want about %d", what, got, want)
		}
	}
	plans.take(t, "")
	about("all, before anybody has looked at the tables", look().Waiting.Pending+look().Waiting.Retrying, rows)
	exec(t, db.Pool, `ANALYZE webhook_deliveries`)
	about("pending", look().Waiting.Pending, rows/2)
	about("retrying", look().Waiting.Retrying, rows/2)

	if o := look(); *o.Overdue == 0 {
		t.Error("nothing is overdue, and nothing is held")
	}
	free := b.endpoints[150]
	exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures SELECT id, now(), now() FROM webhook_endpoints WHERE id <> $1`, free)
	exec(t, db.Pool, `DELETE FROM webhook_deliveries WHERE endpoint_id = $1 AND next_attempt_at < now() - interval '30 minutes'`, free) // it is not among the first
	for range 3 * len(b.endpoints) / 16 {                                                                                               // it is found within one round, and stays found
		look()
	}
	for range 3 {
		if o := look(); *o.Overdue == 0 {
			t.Error("nothing is overdue, and one endpoint of 200 is not held")
		}
	}
	exec(t, db.Pool, `UPDATE webhook_endpoints SET rate_per_second = 1 WHERE id = $1`, free)
	if o := look(); *o.Overdue != 0 {
		t.Errorf("overdue by %s, and all endpoints are held", *o.Overdue)
	}
}
