package store_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

func TestDropSlot(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	if dropped, err := st.DropSlot(t.Context()); dropped || err != nil {
		t.Errorf("without a slot: %t, %v", dropped, err)
	}
	exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
	config, err := pgx.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	config.RuntimeParams["replication"] = "database"
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	streaming := conn.PgConn().Exec(t.Context(), `START_REPLICATION SLOT `+db.Slot+` LOGICAL 0/0 (proto_version '1', publication_names 'walhook')`)
	pgtest.Eventually(t, 10*time.Second, "the slot is in use", func() bool {
		return query[bool](t, db.Pool, `SELECT active FROM pg_replication_slots WHERE slot_name = $1`, db.Slot)
	})
	if dropped, err := st.DropSlot(t.Context()); dropped || err == nil || !strings.Contains(err.Error(), "in use by pid") {
		t.Errorf("in use: %t, %v", dropped, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = conn.Close(ctx) // a stream does not end by being asked to
	_ = streaming
	pgtest.Eventually(t, 10*time.Second, "the slot is free", func() bool {
		dropped, _ := st.DropSlot(t.Context())
		return dropped
	})
	if n := query[int](t, db.Pool, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, db.Slot); n != 0 {
		t.Error("the slot is there")
	}
}

func TestUninstall(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	rs := owed(t, db, newEndpoint(t, db.Pool, "org_1"), 2)
	rs[0], rs[1] = outcome(rs[0], webhook.Success, 1, 200), outcome(rs[1], webhook.Retrying, 1, 500)
	insert(t, st, fence, rs...)
	// The application's own.
	exec(t, db.Pool, `CREATE TABLE webhook_mine (id uuid PRIMARY KEY DEFAULT gen_random_uuid())`)
	exec(t, db.Pool, `CREATE VIEW webhook_theirs AS SELECT 1 AS one`)
	ours := func() int {
		return query[int](t, db.Pool, `SELECT (SELECT count(*) FROM pg_class WHERE relname LIKE 'webhook\_%' AND relname NOT LIKE 'webhook\_mine%' AND relname <> 'webhook_theirs')
			+ (SELECT count(*) FROM pg_proc WHERE proname LIKE 'webhook\_%')`)
	}
	before := ours()

	for _, c := range []struct{ make, unmake, what string }{
		{`CREATE VIEW report AS SELECT status, count(*) FROM webhook_deliveries GROUP BY 1`, `DROP VIEW report`, "view report"},
		{`ALTER TABLE webhook_mine ADD other uuid DEFAULT webhook_uuidv7()`, `ALTER TABLE webhook_mine DROP other`, "column other of table webhook_mine"},
	} {
		exec(t, db.Pool, c.make)
		if _, err := st.DropTables(t.Context(), readSchema(t), func(int, int) {}); err == nil || !strings.Contains(err.Error(), c.what) {
			t.Errorf("%s: %v, want an error that names %s", c.make, err, c.what)
		}
		if n := ours(); n != before {
			t.Errorf("%s: %d of %d are left", c.make, n, before)
		}
		exec(t, db.Pool, c.unmake)
	}

	t.Run("does not make applications wait", func(t *testing.T) {
		tx := begin(t, db.Pool)
		newEvent(t, tx, "org_1", "payment.failed")
		began := time.Now()
		if _, err := st.DropTables(t.Context(), readSchema(t), func(int, int) {}); err == nil {
			t.Error("it dropped a table that somebody writes")
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it waited %s", took)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	})

	exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
	for what, drop := range map[string]func() (bool, error){ // by two at once, one of them finds nothing
		"slot": func() (bool, error) { return st.DropSlot(t.Context()) },
		"publication": func() (bool, error) {
			did, err := st.DropPublication(t.Context())
			return did == "publication walhook dropped", err
		},
		"tables": func() (bool, error) { return st.DropTables(t.Context(), readSchema(t), func(int, int) {}) },
	} {
		var wg sync.WaitGroup
		var times atomic.Int32
		for range 3 {
			wg.Go(func() {
				dropped, err := drop()
				for inTheWay(err) {
					dropped, err = drop()
				}
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
				if dropped {
					times.Add(1)
				}
			})
		}
		if wg.Wait(); times.Load() != 1 {
			t.Errorf("%s: %d have dropped it, want one", what, times.Load())
		}
	}
	if n := ours(); n != 0 {
		t.Errorf("left over: %q", column[string](t, db.Pool, `SELECT relname::text FROM pg_class WHERE relname LIKE 'webhook\_%' UNION ALL SELECT proname FROM pg_proc WHERE proname LIKE 'webhook\_%'`))
	}
	if n := query[int](t, db.Pool, `SELECT count(*) FROM pg_publication`); n != 0 {
		t.Error("the publication is there")
	}
	exec(t, db.Pool, `INSERT INTO webhook_mine DEFAULT VALUES; SELECT * FROM webhook_theirs`)
	if err := apply(t.Context(), db.Pool, readSchema(t)); err != nil {
		t.Errorf("installed again: %v", err)
	}
}

// inTheWay reports whether another is just dropping it: a table's lock was waited for in vain, or it holds the slot.
func inTheWay(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return isBusy(err) || ok && pg.Code == "55006" || err != nil && strings.Contains(err.Error(), "in use by pid")
}

// A slot of our name may be anybody's: it stays, and nothing else is dropped either.
func TestDropSlotOfOthers(t *testing.T) {
	t.Parallel()
	db, other := pgtest.New(t), pgtest.Empty(t)
	for what, c := range map[string]struct{ pool, sql string }{
		"another database's": {"other", `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`},
		"a physical one":     {"", `SELECT pg_create_physical_replication_slot($1)`},
		"another plugin's":   {"", `SELECT pg_create_logical_replication_slot($1, 'test_decoding')`},
	} {
		pool := db.Pool
		if c.pool != "" {
			pool = other.Pool
		}
		exec(t, pool, c.sql, db.Slot)
		st := store.New(db.Pool, db.Slot, 0)
		for name, err := range map[string]error{"MayUninstall": st.MayUninstall(t.Context(), readSchema(t), true), "DropSlot": second(st.DropSlot(t.Context()))} {
			if !errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), "does not belong to this database's walhook") {
				t.Errorf("%s: %s: %v", what, name, err)
			}
		}
		if n := query[int](t, db.Pool, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, db.Slot); n != 1 {
			t.Errorf("%s: the slot has gone", what)
			continue
		}
		exec(t, pool, `SELECT pg_drop_replication_slot($1)`, db.Slot)
	}
}

func second[T any](_ T, err error) error { return err }

// Without WALHOOK_SCHEMA the schema that is looked into may not be walhook's.
func TestUninstallOfAnotherSchema(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
	exec(t, db.Pool, `CREATE SCHEMA other`)
	elsewhere := store.New(newPool(t, db, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["search_path"] = "other" }), db.Slot, 0)
	for _, tables := range []bool{false, true} {
		err := elsewhere.MayUninstall(t.Context(), readSchema(t), tables)
		if !errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), "are in schema public") || !strings.Contains(err.Error(), "WALHOOK_SCHEMA") {
			t.Errorf("tables %t: %v", tables, err)
		}
		if err := store.New(db.Pool, db.Slot, 0).MayUninstall(t.Context(), readSchema(t), tables); err != nil {
			t.Errorf("tables %t, in its schema: %v", tables, err)
		}
	}
	exec(t, db.Pool, `SELECT pg_drop_replication_slot($1)`, db.Slot)
}

func TestDropPublicationOfOthers(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct{ make, did, left string }{
		"FOR ALL TABLES":       {`DROP PUBLICATION walhook; CREATE PUBLICATION walhook FOR ALL TABLES`, "was kept", "all"},
		"with another table":   {`ALTER PUBLICATION walhook ADD TABLE orders`, "removed from", "orders"},
		"of other tables only": {`DROP PUBLICATION walhook; CREATE PUBLICATION walhook FOR TABLE orders`, "was kept", "orders"},
		"of another outbox":    {`CREATE SCHEMA b; CREATE TABLE b.webhook_outbox (id int PRIMARY KEY); DROP PUBLICATION walhook; CREATE PUBLICATION walhook FOR TABLE b.webhook_outbox`, "was kept", "b.webhook_outbox"},
		"of nothing":           {`ALTER PUBLICATION walhook DROP TABLE webhook_outbox`, "dropped", ""},
		"ours":                 {`SELECT`, "dropped", ""},
		"there is none":        {`DROP PUBLICATION walhook`, "there is no publication", ""},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			exec(t, db.Pool, `CREATE TABLE orders (id int PRIMARY KEY)`)
			exec(t, db.Pool, c.make)
			did, err := store.New(db.Pool, db.Slot, 0).DropPublication(t.Context())
			if err != nil || !strings.Contains(did, c.did) {
				t.Errorf("it did %q, %v, want %q", did, err, c.did)
			}
			if left := query[string](t, db.Pool, `SELECT coalesce(string_agg(CASE WHEN p.puballtables THEN 'all' ELSE r.prrelid::regclass::text END, ', '), '')
				FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid`); left != c.left {
				t.Errorf("left: %q, want %q", left, c.left)
			}
		})
	}
}

// A table may have one of our names and be the application's.
func TestDropTablesOfOthers(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	st := store.New(db.Pool, db.Slot, 0)
	exec(t, db.Pool, `CREATE TABLE webhook_endpoints (id int); CREATE FUNCTION webhook_replay(text) RETURNS int LANGUAGE sql RETURN 1`)
	if _, err := st.DropTables(t.Context(), readSchema(t), func(int, int) {}); err != nil {
		t.Errorf("without a walhook: %v", err)
	}
	exec(t, db.Pool, `SELECT FROM webhook_endpoints; SELECT webhook_replay('x')`)
	exec(t, db.Pool, `DROP TABLE webhook_endpoints`)
	if err := st.Migrate(t.Context(), readSchema(t)); err != nil {
		t.Fatal(err)
	}
	role := newRole(t, db)
	exec(t, db.Pool, `ALTER FUNCTION webhook_replay(text) OWNER TO `+role)
	exec(t, db.Pool, `ALTER TABLE webhook_endpoint_failures OWNER TO `+role)
	if _, err := st.DropTables(t.Context(), readSchema(t), func(int, int) {}); !errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), "ALTER TABLE webhook_endpoint_failures OWNER TO") {
		t.Errorf("with a table of another owner: %v", err)
	}
	exec(t, db.Pool, `ALTER TABLE webhook_endpoint_failures OWNER TO CURRENT_USER`)
	if _, err := st.DropTables(t.Context(), readSchema(t), func(int, int) {}); err != nil {
		t.Error(err)
	}
	if left := column[string](t, db.Pool, `SELECT relname::text FROM pg_class WHERE relname LIKE 'webhook%'
		UNION ALL SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'webhook%'`); !slices.Equal(left, []string{"webhook_replay(text)"}) {
		t.Errorf("left: %q, want the other role's function", left)
	}
}
