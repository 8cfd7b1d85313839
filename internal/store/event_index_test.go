package store_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
)

// fillYesterday writes deliveries of yesterday's events in the order in which walhook last wrote them: of every 50th, which
// failed, at one of the times of the retry schedule. It returns the partition.
func fillYesterday(t testing.TB, db *pgtest.DB, endpoint string, rows int) (partition string) {
	t.Helper()
	day := time.Now().UTC().AddDate(0, 0, -1).Truncate(24 * time.Hour)
	exec(t, db.Pool, `
		INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, status_code, duration_ms, created_at, updated_at, completed_at)
		SELECT webhook_delivery_id(event, $3), event, $3, 'org_1', 'payment.failed', CASE WHEN n % 50 = 0 THEN 'failed' ELSE 'success' END, 1, 200, 5, now(), now(), now()
		FROM (SELECT n, n * 86400.0 / $2::int AS at, webhook_delivery_id(webhook_uuid_at($1::timestamptz + n * 86400.0 / $2::int * interval '1 second'), gen_random_uuid()) AS event
		      FROM generate_series(0, $2::int - 1) AS n) AS events
		ORDER BY at + CASE WHEN n % 50 = 0 THEN ('{5,305,2105,9305,27305,63305}'::float8[])[1 + n / 50 % 6] * (1 + random() / 5) ELSE 0 END`,
		day, rows, endpoint)
	return "webhook_deliveries_p" + day.Format("20060102")
}

// An event's deliveries are found by its time at once, and by event_id alone in a few ranges of pages, although retries of
// old events stand among new ones.
func TestPlansOfAnEvent(t *testing.T) {
	t.Parallel()
	const rows, tail = 200_000, 10_000 // the tail has been written since autovacuum came by
	db := pgtest.New(t)
	unanalyzed(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	partition := fillYesterday(t, db, endpoint, rows)
	pages := func() int {
		return query[int](t, db.Pool, `SELECT (pg_relation_size($1::text::regclass) / 8192)::int`, partition)
	}
	exec(t, db.Pool, `VACUUM ANALYZE `+partition)
	summarized := pages()/128*128 - 128
	fillYesterday(t, db, endpoint, tail)
	partitions := query[int](t, db.Pool, `SELECT count(*) FROM pg_inherits WHERE inhparent = 'webhook_deliveries'::regclass`)
	alone := pages() - summarized + 4*128 + 10*partitions

	events := column[string](t, db.Pool, `SELECT event_id::text FROM webhook_deliveries d WHERE d.ctid::text = ANY($1)
		UNION ALL (SELECT event_id::text FROM webhook_deliveries WHERE status = 'failed' ORDER BY id OFFSET 600 LIMIT 3)`,
		[]string{"(9,1)", fmt.Sprintf("(%d,1)", summarized/2), fmt.Sprintf("(%d,1)", summarized-1), fmt.Sprintf("(%d,1)", pages()-9)})
	if len(events) != 7 {
		t.Fatalf("picked %d events", len(events))
	}
	exec(t, db.Pool, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) SELECT unnest($1::uuid[]), 'org_1', 'payment.failed', '{}'`, events)
	for _, state := range []string{"before autovacuum", "after ANALYZE", "after VACUUM"} {
		switch state {
		case "after ANALYZE":
			exec(t, db.Pool, `ANALYZE webhook_deliveries`)
		case "after VACUUM":
			exec(t, db.Pool, `VACUUM `+partition)
		}
		for _, event := range events {
			if status := query[string](t, db.Pool, `SELECT status FROM webhook_explain($1)`, event); status == "" {
				t.Errorf("%s: the delivery of event %s is not found", state, event)
			}
			for sql, most := range map[string]int{
				`SELECT * FROM webhook_explain('%s')`: 200, // most of them of catalogues
				`SELECT * FROM webhook_deliveries WHERE event_id = '%[1]s' AND id >= webhook_uuid_at(webhook_uuid_time('%[1]s'))
					AND id < webhook_uuid_at(webhook_uuid_time('%[1]s') + interval '1 ms')`: 20,
				`SELECT * FROM webhook_deliveries WHERE event_id = '%s'`:           alone,
				`SELECT * FROM webhook_attempts WHERE event_id = '%s' ORDER BY at`: alone,
			} {
				sql = fmt.Sprintf(sql, event)
				if got := blocks(t, db.Pool, sql); got > most {
					t.Errorf("%s, of %d pages: %s touches %d blocks, want %d at most", state, pages(), sql, got, most)
				}
			}
		}
	}
}

// Rows past retention are deleted by the primary keys, also with a plan from when there were none, and whatever a bitmap
// scan of the index on event_id seems to cost.
func TestPlansOfDeletingOldRows(t *testing.T) {
	t.Parallel()
	const events, chunk, most = 20_000, 100, 2 * 100 * 25 // every other event waits
	db := pgtest.New(t)
	unanalyzed(t, db)
	early := newPool(t, db, func(c *pgxpool.Config) { c.MaxConns = 1 })
	deleteOld := fmt.Sprintf(`SELECT events FROM webhook_delete_old(now() - interval '30 days', %d)`, chunk)
	for range 7 { // five custom plans, and then the one that is kept
		exec(t, early, deleteOld)
	}
	newEndpoint(t, db.Pool, "org_1")
	exec(t, db.Pool, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload)
		SELECT webhook_delivery_id(webhook_uuid_at(now() - interval '50 days' + n * interval '1 s'), gen_random_uuid()), 'org_1', 'payment.failed', '{}' FROM generate_series(1, $1::int) n`, events)
	exec(t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at)
		SELECT webhook_delivery_id(o.id, e.id), o.id, e.id, 'org_1', 'payment.failed', CASE WHEN random() < 0.5 THEN 'pending' ELSE 'success' END, now() FROM webhook_outbox o, unnest(o.endpoint_ids) AS e(id)`)
	for _, state := range []string{"before ANALYZE", "after ANALYZE", "with the statistics of a hundred times as many rows"} {
		switch state {
		case "after ANALYZE":
			exec(t, db.Pool, `ANALYZE webhook_outbox_default, webhook_deliveries_default`)
		case "with the statistics of a hundred times as many rows":
			exec(t, db.Pool, `UPDATE pg_class SET reltuples = 100 * reltuples WHERE oid = 'webhook_deliveries_default'::regclass`)
		}
		for _, pool := range []*pgxpool.Pool{early, db.Pool} {
			if got := blocks(t, pool, deleteOld); got > most {
				t.Errorf("%s: it touches %d blocks, want %d at most", state, got, most)
			}
		}
	}
	if deleted := query[int](t, db.Pool, deleteOld); deleted != chunk {
		t.Errorf("%d events are deleted, want %d", deleted, chunk)
	}
}

// A day begins without a summary of its first pages. Each of its first rows would rewrite it.
func TestADayBeginsWithoutASummary(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), newEndpoint(t, db.Pool, "org_1"), "success")
	day := time.Now().UTC().Format("20060102")
	if n := query[int](t, db.Pool, `SELECT brin_summarize_range('webhook_deliveries_p`+day+`_event_id_idx', 0)`); n != 1 {
		t.Error("the first pages have a summary")
	}
	if made := query[string](t, db.Pool, `SELECT pg_get_indexdef('webhook_deliveries_p`+day+`_event_id_idx'::regclass)`); !strings.Contains(made, "values_per_range='128'") || !strings.Contains(made, "autosummarize='on'") {
		t.Errorf("a day has the index %s", made)
	}
}

// version5 makes a database of version 5 of a prepared one, as far as indexes are concerned.
func version5(t testing.TB) *pgtest.DB {
	t.Helper()
	db := pgtest.New(t)
	exec(t, db.Pool, `DROP INDEX webhook_deliveries_event_brin_idx`)
	exec(t, db.Pool, `CREATE INDEX webhook_deliveries_event_idx ON webhook_deliveries (event_id)`)
	exec(t, db.Pool, `CREATE OR REPLACE FUNCTION webhook_schema_version() RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN 5`)
	return db
}

const selectEventIndexes = `SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relname IN ('webhook_deliveries_event_idx', 'webhook_deliveries_event_brin_idx')`

func TestUpgradeFromVersion5(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)

	t.Run("makes what a fresh installation has", func(t *testing.T) {
		t.Parallel()
		db := version5(t)
		if err := store.New(db.Pool, db.Slot, 0).Migrate(t.Context(), schema); err != nil {
			t.Fatal(err)
		}
		missing, extra := differences(column[string](t, pgtest.New(t).Pool, catalogue), column[string](t, db.Pool, catalogue))
		if len(missing)+len(extra) > 0 {
			t.Errorf("a fresh installation has\n%s\nthe upgraded one\n%s", strings.Join(missing, "\n"), strings.Join(extra, "\n"))
		}
	})

	t.Run("keeps the former index beside a reader, and the next start replaces it", func(t *testing.T) {
		t.Parallel()
		db := version5(t)
		st := store.New(db.Pool, db.Slot, 0)
		st.Expects(schema)
		reader := begin(t, db.Pool)
		exec(t, reader, `SELECT FROM webhook_deliveries`)
		if err := st.Migrate(t.Context(), schema); err != nil {
			t.Fatal(err)
		}
		if got := query[string](t, db.Pool, selectEventIndexes); got != "webhook_deliveries_event_idx" {
			t.Errorf("beside a reader there is %s", got)
		}
		if err := reader.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := st.Migrate(t.Context(), schema); err != nil {
			t.Fatal(err)
		}
		if got := query[string](t, db.Pool, selectEventIndexes); got != "webhook_deliveries_event_brin_idx" {
			t.Errorf("after the next start there is %s", got)
		}
	})

	t.Run("leaves a large table to init, which replaces the index", func(t *testing.T) {
		t.Parallel()
		db := version5(t)
		st := store.New(db.Pool, db.Slot, 0)
		st.Expects(schema)
		exec(t, db.Pool, `UPDATE pg_class SET reltuples = 100001 WHERE oid = 'webhook_deliveries_default'::regclass`)
		if err := st.Migrate(t.Context(), schema); err != nil {
			t.Fatal(err)
		}
		if got := query[string](t, db.Pool, selectEventIndexes); got != "webhook_deliveries_event_idx" {
			t.Errorf("after a start there is %s", got)
		}
		if err := st.Apply(t.Context(), schema); err != nil {
			t.Fatal(err)
		}
		if got := query[string](t, db.Pool, selectEventIndexes); got != "webhook_deliveries_event_brin_idx" {
			t.Errorf("after init there is %s", got)
		}
	})

	t.Run("drops the former index beside one that somebody has built", func(t *testing.T) {
		t.Parallel()
		db := version5(t)
		st := store.New(db.Pool, db.Slot, 0)
		exec(t, db.Pool, `UPDATE pg_class SET reltuples = 100001 WHERE oid = 'webhook_deliveries_default'::regclass`)
		concurrently(t, db)
		if err := st.Migrate(t.Context(), schema); err != nil {
			t.Fatal(err)
		}
		if got := query[string](t, db.Pool, selectEventIndexes); got != "webhook_deliveries_event_brin_idx" {
			t.Errorf("there is %s", got)
		}
		if !query[bool](t, db.Pool, `SELECT indisvalid FROM pg_index WHERE indexrelid = 'webhook_deliveries_event_brin_idx'::regclass`) {
			t.Error("the index is not valid")
		}
	})
}

// concurrently builds the index as docs/upgrades.md says, without a lock that a writer waits for. \gexec executes each
// value of a result.
func concurrently(t testing.TB, db *pgtest.DB) {
	t.Helper()
	page, err := os.ReadFile("../../docs/upgrades.md")
	if err != nil {
		t.Fatal(err)
	}
	_, script, _ := strings.Cut(string(page), "<<'SQL'\nSET search_path TO webhooks;\n")
	create, script, _ := strings.Cut(script, ";\n")
	generate, _, found := strings.Cut(script, ` \gexec`)
	if !found {
		t.Fatal("docs/upgrades.md has no such script")
	}
	exec(t, db.Pool, create)
	for _, pair := range column[[]string](t, db.Pool, `SELECT ARRAY[a, b] FROM (`+generate+`) AS r(a, b)`) {
		exec(t, db.Pool, pair[0])
		exec(t, db.Pool, pair[1])
	}
}
