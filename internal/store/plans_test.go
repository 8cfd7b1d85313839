package store_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// A hotStatement is run by walhook all the time, or in a hurry.
type hotStatement struct {
	name    string
	holding string // a text of its own
	blocks  int    // that it may touch: what walking its index costs, and no more
	run     func(t testing.TB, st *store.Store, fence webhook.Fence, b *backlog)
}

func missing8000(t testing.TB, st *store.Store, _ webhook.Fence, _ *backlog) {
	from := store.Position{Event: outbox.TimeID(time.Now().Add(-10 * 24 * time.Hour))}
	c, err := st.Missing(t.Context(), from, outbox.TimeID(time.Now().Add(time.Hour)), 8000)
	if err != nil || len(c.Missing) != 0 || c.End || c.Events != 2000 {
		t.Errorf("%d missing, %d events, the end %t, %v", len(c.Missing), c.Events, c.End, err)
	}
}

// pages reads one part of a list.
func pages(t testing.TB, st *store.Store, f store.DeliveryFilter, want int) {
	page, err := st.Deliveries(t.Context(), f)
	if err != nil || len(page.Deliveries) != want {
		t.Errorf("%+v: %d deliveries, %v", f, len(page.Deliveries), err)
	}
}

var hotStatements = []hotStatement{
	{"selectDue of 32 endpoints, 32 rows each", "after_due", 32*backlogPartitions*4 + 32*32*12, func(t testing.TB, st *store.Store, _ webhook.Fence, b *backlog) {
		n := 0
		for range 2 { // the first page, and the one behind it
			pages := make([]webhook.Page, 32)
			ends := map[uuid.UUID]webhook.PageEnd{}
			for i := range pages {
				pages[i] = webhook.Page{EndpointID: b.endpoints[i], Limit: 32, After: ends[b.endpoints[i]]}
			}
			if err := st.Due(t.Context(), pages, func(d *webhook.Due) { n++; ends[d.EndpointID] = d.End() }); err != nil {
				t.Error(err)
			}
		}
		if n != 2*32*32 {
			t.Errorf("%d rows", n)
		}
	}},
	{"selectNewlyDue of a second", "count(*) FROM due", backlogPartitions*4 + 2000, func(t testing.TB, st *store.Store, _ webhook.Fence, _ *backlog) {
		if _, _, _, err := st.NewlyDue(t.Context(), time.Now().Add(-time.Second)); err != nil {
			t.Error(err)
		}
	}},
	{"selectNewlyDue, many", "count(*) FROM due", backlogPartitions*4 + 6000, func(t testing.TB, st *store.Store, _ webhook.Fence, _ *backlog) {
		if _, _, all, err := st.NewlyDue(t.Context(), time.Now().Add(-24*time.Hour)); err != nil || all {
			t.Errorf("all %t, %v", all, err)
		}
	}},
	{"selectWaiting, a page of 100", "RECURSIVE walk", 101*backlogPartitions*5 + 400, func(t testing.TB, st *store.Store, _ webhook.Fence, b *backlog) {
		if found, err := st.Waiting(t.Context(), uuid.Nil, 100); err != nil || len(found) != 100 {
			t.Errorf("%d, %v", len(found), err)
		}
	}},
	{"selectExisting of 1,000", "SELECT d.id FROM pg_catalog.unnest", 1000 * 5, func(t testing.TB, st *store.Store, _ webhook.Fence, b *backlog) {
		known := map[uuid.UUID]bool{}
		if err := st.Existing(t.Context(), b.waiting, known); err != nil || len(known) != 1000 {
			t.Errorf("%d, %v", len(known), err)
		}
	}},
	{"selectProgress of 100", "extract(epoch FROM d.next_attempt_at - clock_timestamp())", 100 * 5, func(t testing.TB, st *store.Store, _ webhook.Fence, b *backlog) {
		if progress, err := st.Progress(t.Context(), b.waiting[:100]); err != nil || len(progress) != 100 {
			t.Errorf("%d, %v", len(progress), err)
		}
	}},
	{"updateDeliveries of 500", "FOR NO KEY UPDATE OF d SKIP LOCKED\n), applied", 500 * 120, func(t testing.TB, st *store.Store, fence webhook.Fence, b *backlog) {
		update(t, st, fence, b.records(500, webhook.Retrying, 1)...) // finds them all, and changes none
		update(t, st, fence, b.records(500, webhook.Retrying, 2)...)
	}},
	{"selectOwed, 8,000 deliveries", "AS MATERIALIZED (\n    SELECT id, organization_id", 2000*5 + backlogPartitions*10, missing8000},
	{"selectRowsOfTimes, 8,000 deliveries", "AS r(low, high)", 2000*(3+eventsOwedTo*2) + backlogPartitions*10, missing8000},
	{"selectAnyMissing, none of three days", "WHERE o.id >= $1::uuid AND o.id < $2::uuid AND NOT", 5000*(3+eventsOwedTo*5) + backlogPartitions*10, func(t testing.TB, st *store.Store, _ webhook.Fence, _ *backlog) {
		if there, err := st.AnyMissing(t.Context(), time.Now().Add(-13*24*time.Hour), time.Now().Add(-10*24*time.Hour)); err != nil || there {
			t.Errorf("%t, %v", there, err)
		}
	}},
	{"cancelRows, a chunk", "WITH picked", 500*60 + backlogPartitions*10, func(t testing.TB, st *store.Store, fence webhook.Fence, b *backlog) {
		if n, more, err := st.CancelRows(t.Context(), fence, b.disabled[0], "x"); err != nil || n == 0 && !more {
			t.Errorf("cancelled %d, some wait %t, %v", n, more, err)
		}
		b.disabled = b.disabled[1:]
	}},
	{"cancelOrphans of 100", "the event was deleted", 100 * 60, func(t testing.TB, st *store.Store, fence webhook.Fence, b *backlog) {
		if err := st.CancelOrphans(t.Context(), fence, b.waiting[900:]); err != nil {
			t.Error(err)
		}
	}},
	{"selectEndpoints of 100", "FROM webhook_secrets", 100 * 8, func(t testing.TB, st *store.Store, _ webhook.Fence, b *backlog) {
		if found, err := st.Endpoints(t.Context(), b.endpoints[:100]); err != nil || len(found) != 100 {
			t.Errorf("%d, %v", len(found), err)
		}
	}},
	{"insertDeliveries of 500", "INSERT INTO webhook_deliveries", 500 * 40, func(t testing.TB, st *store.Store, fence webhook.Fence, b *backlog) {
		if fresh, err := st.Insert(t.Context(), fence, webhook.Mark{}, b.fresh(500)); err != nil || !fresh {
			t.Errorf("all new %t, %v", fresh, err)
		}
	}},
	{"the page: a list of deliveries", "SELECT d.id, d.endpoint_id, d.organization_id, d.event_type, d.status FROM webhook_deliveries AS d\n    WHERE d.id <", 5000*3 + 25*20 + backlogPartitions*20, func(t testing.TB, st *store.Store, _ webhook.Fence, b *backlog) {
		pages(t, st, store.DeliveryFilter{}, 25)
		pages(t, st, store.DeliveryFilter{Statuses: []string{"retrying"}, Before: outbox.TimeID(time.Now().Add(-100 * time.Hour))}, 25)
		pages(t, st, store.DeliveryFilter{OrganizationID: "nobody"}, 0)
	}},
	{"the page: what waits for an endpoint", "FROM (SELECT * FROM webhook_deliveries AS d WHERE d.endpoint_id =", 1000*3 + 25*20 + backlogPartitions*20, func(t testing.TB, st *store.Store, _ webhook.Fence, b *backlog) {
		pages(t, st, store.DeliveryFilter{EndpointID: b.endpoints[3], Statuses: []string{"pending", "retrying"}}, 25)
	}},
	{"the page: an endpoint's dead letters", "(d.endpoint_id, d.id) <", 5000*3 + 25*20 + backlogPartitions*20, func(t testing.TB, st *store.Store, _ webhook.Fence, b *backlog) {
		pages(t, st, store.DeliveryFilter{EndpointID: b.endpoints[3], Statuses: []string{"failed"}}, 0)
	}},
	{"the page: 25 endpoints", "AS failed", 25 * (1001*2 + backlogPartitions*20), func(t testing.TB, st *store.Store, _ webhook.Fence, b *backlog) {
		if found, more, err := st.EndpointViews(t.Context(), "", 25); err != nil || len(found) != 25 || !more {
			t.Errorf("%d, more %t, %v", len(found), more, err)
		}
	}},
	{"the page: a delivery", "jsonb_pretty", 30 + backlogPartitions*2, func(t testing.TB, st *store.Store, _ webhook.Fence, b *backlog) {
		if d, err := st.Delivery(t.Context(), b.waiting[0]); err != nil || d == nil || d.Payload == nil {
			t.Errorf("%+v, %v", d, err)
		}
	}},
	{"insertExhausted of 100", "INSERT INTO webhook_outbox", 100 * 60, func(t testing.TB, st *store.Store, fence webhook.Fence, b *backlog) {
		rs := b.fresh(100)
		for i := range rs {
			rs[i].Status, rs[i].Exhausted = webhook.Failed, true
		}
		insert(t, st, fence, rs...)
	}},
}

func TestStorePlans(t *testing.T) {
	t.Parallel()
	const rows = 100_000
	db := pgtest.New(t)
	exec(t, db.Pool, `ALTER DATABASE `+pgx.Identifier{db.Slot}.Sanitize()+` SET default_statistics_target = 10`)
	db.Pool.Reset()
	unanalyzed(t, db)
	b := newBacklog(t, db, rows)
	b.disable(t, db)
	prepared, early := explaining(t, db, "force_generic_plan") // plans that were made before anybody had looked at the tables
	fence := acquire(t, prepared)
	for _, s := range hotStatements {
		s.run(t, prepared, fence, b)
	}
	early.take(t, "")

	for _, state := range []string{"right after the rows were written", "after ANALYZE"} {
		if state == "after ANALYZE" {
			exec(t, db.Pool, `ANALYZE webhook_deliveries, webhook_outbox, webhook_endpoints, webhook_secrets, webhook_state`)
		}
		for _, mode := range []string{"force_custom_plan", "force_generic_plan", "auto"} {
			t.Run(state+", "+mode, func(t *testing.T) {
				st, plans := explaining(t, db, mode)
				for _, s := range hotStatements {
					checkPlans(t, s, st, plans, fence, b, mode)
				}
			})
		}
	}
	t.Run("of what operators look at", func(t *testing.T) {
		one, all := b.endpoints[3].String(), backlogEndpoints*backlogPartitions
		for sql, most := range map[string]int{
			`SELECT * FROM webhook_overdue`:                                           all * 10,
			`SELECT * FROM webhook_waiting('` + one + `')`:                            2000,
			`SELECT * FROM webhook_endpoint_health WHERE endpoint_id = '` + one + `'`: 2000,
			`SELECT * FROM webhook_explain('` + b.events[0].String() + `')`:           20 * eventsOwedTo * backlogPartitions,
			`SELECT webhook_forget('nobody')`:                                         20 * (1000*2*5*2 + 100*backlogPartitions),
		} {
			if got := blocks(t, db.Pool, sql); got > most {
				t.Errorf("%s touches %d blocks, want %d at most", sql, got, most)
			}
		}
	})
	t.Run("after ANALYZE, with the plans of before", func(t *testing.T) {
		for _, s := range hotStatements {
			checkPlans(t, s, prepared, early, fence, b, "force_generic_plan")
		}
	})
}

// blocks says how many a statement touches, with the functions that it calls. What it changes is rolled back.
func blocks(t testing.TB, pool *pgxpool.Pool, sql string) int {
	t.Helper()
	fewest := math.MaxInt
	for range 3 { // a session that plans for the first time, or after a vacuum, reads catalogues too
		tx := begin(t, pool)
		var explained []explained
		if err := json.Unmarshal([]byte(query[string](t, tx, `EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) `+sql)), &explained); err != nil {
			t.Fatal(err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		fewest = min(fewest, explained[0].Plan.Hit+explained[0].Plan.Read)
	}
	return fewest
}

// nothingFound lets statements be run of which nothing is expected yet.
type nothingFound struct{ testing.TB }

func (nothingFound) Errorf(string, ...any) {}

// A program that was started before the first event has plans that were made of
// empty tables, where reading a whole index looks as cheap as looking into it. It
// keeps them until somebody analyzes the tables, and millions of rows may come first.
func TestStorePlansOfEmptyTables(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	unanalyzed(t, db)
	b := emptyBacklog(t, db)
	b.disable(t, db)
	st, plans := explaining(t, db, "auto")
	fence := acquire(t, st)
	for _, s := range hotStatements {
		s.run(nothingFound{t}, st, fence, b)
	}
	plans.take(t, "")
	b.fill(t, db, 100_000)
	for _, s := range hotStatements {
		checkPlans(t, s, st, plans, fence, b, "force_generic_plan")
	}
}

// unanalyzed keeps autovacuum away: an ANALYZE in between would be another test.
func unanalyzed(t testing.TB, db *pgtest.DB) {
	t.Helper()
	for _, table := range column[string](t, db.Pool, `SELECT relid::regclass::text FROM pg_partition_tree('webhook_deliveries') WHERE isleaf UNION ALL
		SELECT relid::regclass::text FROM pg_partition_tree('webhook_outbox') WHERE isleaf`) {
		exec(t, db.Pool, `ALTER TABLE `+table+` SET (autovacuum_enabled = off)`)
	}
}

// Everything was replayed by one UPDATE: all is due at one moment, and the rows lie
// in that order too, so that the index of what is due over all endpoints looks
// cheap. The partitions are analyzed, as by autovacuum, and their parent never is.
func TestStorePlansAfterAMassReplay(t *testing.T) {
	t.Parallel()
	const each = 3000
	db := pgtest.New(t)
	b := newBacklog(t, db, 4000)
	exec(t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, completed_at)
		SELECT webhook_delivery_id(v.id, e.id), v.id, e.id, 'org_1', 'payment.failed', 'success', 1, now()
		FROM (SELECT webhook_delivery_id(webhook_uuid_at(now()), gen_random_uuid()) AS id FROM generate_series(1, $1)) v, unnest($2::uuid[]) e(id)`, each, b.endpoints[:32])
	exec(t, db.Pool, `UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now()`)
	for _, partition := range column[string](t, db.Pool, `SELECT relid::regclass::text FROM pg_partition_tree('webhook_deliveries') WHERE isleaf`) {
		exec(t, db.Pool, `VACUUM ANALYZE `+partition)
	}
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		t.Run(mode, func(t *testing.T) {
			st, plans := explaining(t, db, mode)
			checkPlans(t, hotStatements[0], st, plans, webhook.Fence{}, b, mode)
		})
	}
}

// Nearly all rows are one endpoint's, whose customer has been away: by the statistics
// the others' rows are as many, and any index seems as good.
func TestPlansWhereOneEndpointHasNearlyAll(t *testing.T) {
	t.Parallel()
	const rows = 60_000
	db := pgtest.New(t)
	b := newBacklog(t, db, 4000)
	exec(t, db.Pool, `DELETE FROM webhook_deliveries`)
	exec(t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, next_attempt_at)
		SELECT webhook_delivery_id(v.id, $2), v.id, $2, 'org_1', 'payment.failed', 'retrying', 1, now() + n * interval '1 ms'
		FROM (SELECT n, webhook_delivery_id(webhook_uuid_at(now()), gen_random_uuid()) AS id FROM generate_series(1, $1) AS n) AS v`, rows, b.endpoints[5])
	exec(t, db.Pool, `VACUUM ANALYZE webhook_deliveries`)
	other := b.endpoints[3]
	for sql, most := range map[string]int{
		`SELECT * FROM webhook_waiting('` + other.String() + `')`: 10 * backlogPartitions,
		`SELECT webhook_retry_now('` + other.String() + `')`:      40 * backlogPartitions,
		`SELECT * FROM webhook_stats('org_1')`:                    2*rows + 10*backlogEndpoints*backlogPartitions, // which reads a day's rows
	} {
		if got := blocks(t, db.Pool, sql); got > most {
			t.Errorf("%s touches %d blocks, want %d at most", sql, got, most)
		}
	}
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		t.Run(mode, func(t *testing.T) {
			st, plans := explaining(t, db, mode)
			fence := acquire(t, st)
			for what, run := range map[string]func() error{
				"due": func() error {
					return st.Due(t.Context(), []webhook.Page{{EndpointID: other, Limit: 100}}, func(*webhook.Due) {})
				},
				"cancel": func() error {
					_, _, err := st.CancelRows(t.Context(), fence, other, "the endpoint is disabled")
					return err
				},
				"waiting": func() error { _, err := st.Waiting(t.Context(), uuid.Nil, 100); return err },
				"newly due": func() error {
					_, _, _, err := st.NewlyDue(t.Context(), time.Now())
					return err
				},
			} {
				plans.take(t, "")
				if err := run(); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				for _, e := range plans.take(t, "webhook_deliveries") {
					if problem := e.problem(20 * backlogPartitions); problem != "" {
						t.Errorf("%s: %s\n%s", what, problem, e.text)
					}
				}
			}
		})
	}
}

func checkPlans(t *testing.T, s hotStatement, st *store.Store, plans *plans, fence webhook.Fence, b *backlog, mode string) {
	t.Helper()
	times := 1
	if mode == "auto" {
		times = 7 // five custom plans, and then what PostgreSQL chooses
	}
	for range times {
		s.run(t, st, fence, b)
	}
	found := plans.take(t, s.holding)
	if len(found) < times {
		t.Errorf("%s: %d plans, want %d", s.name, len(found), times)
	}
	for _, e := range found {
		if problem := e.problem(s.blocks); problem != "" {
			t.Errorf("%s: %s\n%s", s.name, problem, e.text)
			return
		}
	}
}

// Rows by their id: only the partitions that they are in are touched.
func TestStorePrunesPartitions(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	_, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	rs := owed(t, db, endpoint, 20)
	for i := range rs {
		rs[i] = outcome(rs[i], webhook.Retrying, 1, 500)
		rs[i].Wait = -time.Minute
	}
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		st, plans := explaining(t, db, mode)
		insert(t, st, fence, rs...)
		for what, run := range map[string]func() error{
			"existing": func() error {
				return st.Existing(t.Context(), []uuid.UUID{rs[0].ID, rs[1].ID}, map[uuid.UUID]bool{})
			},
			"update": func() error {
				_, _, err := st.Update(t.Context(), fence, webhook.Mark{}, []webhook.Record{outcome(rs[0], webhook.Retrying, 2, 500), outcome(rs[1], webhook.Retrying, 2, 500)})
				return err
			},
			"orphans": func() error { return st.CancelOrphans(t.Context(), fence, []uuid.UUID{rs[2].ID, rs[3].ID}) },
			"exhausted": func() error {
				r := outcome(rs[4], webhook.Failed, 2, 500)
				r.Exhausted = true
				_, _, err := st.Update(t.Context(), fence, webhook.Mark{}, []webhook.Record{r})
				return err
			},
			"the event of a due row": func() error {
				return st.Due(t.Context(), []webhook.Page{{EndpointID: uuid.MustParse(endpoint), Limit: 3}}, func(*webhook.Due) {})
			},
		} {
			plans.take(t, "")
			if err := run(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			day := time.Now().UTC().Format("20060102")
			for _, e := range plans.take(t, "webhook_deliveries") {
				if strings.Contains(e.Query, uuid.Nil.String()) { // which is to have the DEFAULT partition in use
					continue
				}
				e.Plan.walk(func(n *planNode) {
					if n.Type == "ModifyTable" {
						return
					}
					if strings.Contains(n.Relation, "webhook_outbox") && n.Loops > 0 && !strings.HasSuffix(n.Relation, day) ||
						strings.Contains(n.Relation, "webhook_deliveries") && n.Loops > 0 && !strings.HasSuffix(n.Relation, day) && what != "the event of a due row" {
						t.Errorf("%s, %s: it looks into %s:\n%s", what, mode, n.Relation, e.text)
					}
				})
			}
		}
	}
}
