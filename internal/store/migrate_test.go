package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

func TestCheckSchema(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)

	empty := pgtest.Empty(t)
	err := store.New(empty.Pool, empty.Slot, 0).CheckSchema(t.Context())
	if !errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), "walhook init") {
		t.Errorf("an empty database: %v", err)
	}

	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	st.Expects(schema)
	if err := st.CheckSchema(t.Context()); err != nil {
		t.Fatalf("a prepared database: %v", err)
	}
	newer := query[int](t, db.Pool, `SELECT current_setting('server_version_num')::int`) >= 150000
	for _, c := range []struct {
		damage, want string
		mended       bool // by applying the schema again
		newer        bool // PostgreSQL 15
	}{
		{`DROP PUBLICATION walhook`, "publication walhook is missing", true, false},
		{`ALTER PUBLICATION walhook DROP TABLE webhook_outbox`, "does not include webhook_outbox", true, false},
		{`ALTER PUBLICATION walhook SET (publish_via_partition_root = false)`, "publish_via_partition_root", true, false},
		{`ALTER PUBLICATION walhook SET (publish = 'update')`, "publish = 'insert'", true, false},
		{`ALTER PUBLICATION walhook SET TABLE webhook_outbox WHERE (organization_id = 'x')`, "some of its rows", true, true},
		{`ALTER PUBLICATION walhook SET TABLE webhook_outbox (id, payload)`, "or columns", true, true},
		{`DROP TABLE webhook_state CASCADE`, "missing tables: webhook_state", true, false},
		{`CREATE OR REPLACE FUNCTION webhook_schema_version() RETURNS int LANGUAGE sql IMMUTABLE RETURN 0`, "version 0", true, false},
		{`ALTER TABLE webhook_outbox ENABLE TRIGGER webhook_outbox_before_insert`, "ENABLE ALWAYS", true, false},
		{`ALTER TABLE webhook_outbox_default SET UNLOGGED`, "webhook_outbox_default is UNLOGGED", false, false},
		{`ALTER TABLE webhook_outbox RENAME COLUMN payload TO body`, "missing columns of webhook_outbox: payload", false, false},
	} {
		if c.newer && !newer {
			continue
		}
		tx := begin(t, db.Pool)
		exec(t, tx, c.damage)
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := st.CheckSchema(t.Context()); !errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("after %s: got %v, want %q in it", c.damage, err, c.want)
		}
		if !c.mended {
			continue
		}
		if err := st.Migrate(t.Context(), schema); err != nil {
			t.Errorf("mend after %s: %v", c.damage, err)
		}
	}
}

func TestCheckSchemaWaitsForNobody(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, begin(t, db.Pool), `LOCK TABLE webhook_outbox, webhook_deliveries, webhook_state IN ACCESS EXCLUSIVE MODE`)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := store.New(db.Pool, db.Slot, 0).CheckSchema(ctx); err != nil {
		t.Error(err)
	}
}

func TestMigrateSaysWhoIsInTheWay(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)
	for what, c := range map[string]struct {
		hold, want string
		make       func(testing.TB) *pgtest.DB
	}{
		"a reader of a view": {`SELECT FROM webhook_status`, "a lock on webhook_overdue", pgtest.New},
		"who applies it too": {`LOCK TABLE webhook_state IN SHARE UPDATE EXCLUSIVE MODE`, "a lock on webhook_state", pgtest.New},
		"a first one":        {`CREATE TABLE webhook_state ()`, "an open transaction", pgtest.Empty},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			db := c.make(t)
			role := newRole(t, db)
			exec(t, db.Pool, `GRANT CREATE ON SCHEMA public TO `+role)
			st := store.New(newPool(t, db, asRole(role)), db.Slot, 0) // a role that sees no other session
			if what != "a first one" {
				st = store.New(db.Pool, db.Slot, 0)
			}
			st.ApplyFor(time.Millisecond)
			tx := begin(t, db.Pool)
			exec(t, tx, c.hold)
			want := "pid " + query[string](t, tx, `SELECT pg_backend_pid()::text`)
			began := time.Now()
			err := st.Apply(t.Context(), schema)
			if err == nil || errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q with %s in it", err, want, c.want)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %s", took)
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// What a restore, a DBA or a rename leaves behind is found, and mended, while the
// version is current, by the role that owns the tables.
func TestMigrateMends(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)
	db := pgtest.Empty(t)
	role := newRole(t, db)
	exec(t, db.Pool, `GRANT CREATE ON SCHEMA public TO `+role)
	exec(t, db.Pool, `DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO `+strings.ReplaceAll(role, `'`, `''`)+`', current_database()); END $$`)
	pool := newPool(t, db, asRole(role))
	st := store.New(pool, db.Slot, 0)
	st.Expects(schema)
	if err := st.Migrate(t.Context(), schema); err != nil {
		t.Fatal(err)
	}
	today := `webhook_outbox_p` + time.Now().UTC().Format("20060102")
	for _, c := range []struct {
		damage, want string
		beside       bool // delivering does not need it: CheckSchema finds nothing
	}{
		{`ALTER TABLE webhook_outbox DISABLE TRIGGER ALL; ALTER TABLE webhook_outbox ENABLE TRIGGER ALL`, "ENABLE ALWAYS", false}, // pg_restore --disable-triggers
		{`ALTER TABLE webhook_endpoints DISABLE TRIGGER USER`, "is disabled", true},
		{`ALTER TABLE ` + today + ` DISABLE TRIGGER webhook_outbox_before_insert`, today, false},
		{`ALTER TABLE ` + today + ` ENABLE TRIGGER webhook_outbox_before_update`, today, false},
		{`ALTER TABLE webhook_deliveries DISABLE TRIGGER USER`, "webhook_deliveries_notify of webhook_deliveries is disabled", true},
		{`DROP TRIGGER webhook_endpoints_after_insert ON webhook_endpoints`, "webhook_endpoints_after_insert is missing", true},
		{`DROP TRIGGER webhook_outbox_before_update ON webhook_outbox`, "missing: webhook_outbox_before_update", false},
		{`DROP INDEX webhook_deliveries_lane_idx`, "webhook_deliveries_lane_idx is missing", true},
		{`DROP INDEX webhook_secrets_unsealed_idx`, "webhook_secrets_unsealed_idx is missing", true},
		{`DROP FUNCTION webhook_replay(uuid)`, "webhook_replay is missing", true},
		{`DROP FUNCTION webhook_url_problem(text)`, "missing: webhook_url_problem", false},
		{`DROP VIEW webhook_attempts`, "webhook_attempts is missing", true},
		{`ALTER TABLE webhook_event_types DISABLE TRIGGER webhook_event_types_keep_from_delete; DELETE FROM webhook_event_types WHERE category = 'webhook'; ALTER TABLE webhook_event_types ENABLE TRIGGER webhook_event_types_keep_from_delete`, "", true},
	} {
		exec(t, db.Pool, c.damage)
		err := st.CheckSchema(t.Context())
		if !c.beside && (!errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), c.want)) || c.beside && err != nil {
			t.Errorf("after %s: got %v, want %q in it", c.damage, err, c.want)
		}
		if found, err := st.Beside(t.Context()); err != nil || c.beside && !strings.Contains(strings.Join(found, ", "), c.want) {
			t.Errorf("after %s: found %q, %v, want %q in it", c.damage, found, err, c.want)
		}
		if err := st.Migrate(t.Context(), schema); err != nil {
			t.Errorf("mend after %s: %v", c.damage, err)
		}
		endpoint := newEndpoint(t, pool, "org_1")
		if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_secrets WHERE endpoint_id = $1`, endpoint); n != 1 {
			t.Errorf("after %s an endpoint has %d secrets", c.damage, n)
		}
		exec(t, pool, `DELETE FROM webhook_endpoints WHERE id = $1`, endpoint)
	}
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_event_types WHERE name IN ('`+outbox.TypeTest+`', '`+outbox.TypeEndpointDisabled+`', '`+outbox.TypeDeliveryExhausted+`')`); n != 3 {
		t.Errorf("%d of walhook's event types are there", n)
	}
	if states := column[string](t, db.Pool, `SELECT DISTINCT tgname || ' ' || tgenabled::text FROM pg_trigger WHERE tgname LIKE 'webhook\_outbox\_before%'`); len(states) != 2 || !strings.HasSuffix(states[0]+states[1], "A") {
		t.Errorf("triggers of the outbox and its partitions: %q", states)
	}
}

// Each index, trigger and function is made by itself where it is missing: one that is
// made only together with another would be missed for ever.
func TestMigrateMendsOneByOne(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	st.Expects(schema)
	for _, drop := range column[string](t, db.Pool, `
		SELECT format('DROP TRIGGER %I ON %s', tgname, tgrelid::regclass) FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid
		WHERE g.tgname LIKE 'webhook%' AND NOT g.tgisinternal AND NOT c.relispartition
		UNION ALL
		SELECT format('DROP INDEX %s', i.indexrelid::regclass) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
		WHERE c.relname LIKE 'webhook%' AND NOT c.relispartition AND NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conindid = i.indexrelid)
		UNION ALL
		SELECT 'DROP VIEW webhook_status'`) {
		exec(t, db.Pool, drop)
		if found, err := st.Beside(t.Context()); err != nil || len(found) == 0 && st.CheckSchema(t.Context()) == nil {
			t.Errorf("after %s nothing is found missing, %v", drop, err)
		}
		if err := st.Migrate(t.Context(), schema); err != nil {
			t.Errorf("mend after %s: %v", drop, err)
		}
		if found, err := st.Beside(t.Context()); err != nil || len(found) != 0 || st.CheckSchema(t.Context()) != nil {
			t.Errorf("after %s and a mend %q are missing, %v", drop, found, err)
		}
	}
}

// A function's own search_path is a text: it keeps the old name.
func TestMigrateMendsARenamedSchema(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)
	db := pgtest.New(t)
	exec(t, db.Pool, `ALTER SCHEMA public RENAME TO "Other, name"`)
	pool := newPool(t, db, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["search_path"] = `"Other, name"` })
	st := store.New(pool, db.Slot, 0)
	st.Expects(schema)
	if err := st.CheckSchema(t.Context()); !errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), "the schema was renamed") {
		t.Errorf("got %v, want %v that says so", err, store.ErrNotPrepared)
	}
	if err := st.Migrate(t.Context(), schema); err != nil {
		t.Fatal(err)
	}
	newEvent(t, pool, "org_1", "payment.failed")
	if endpoint := newEndpoint(t, pool, "org_1"); endpoint == "" {
		t.Error("no endpoint")
	}
}

func TestMigrateWithoutPrivilege(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	role := `"` + db.Slot + `"`
	exec(t, db.Pool, `CREATE ROLE `+role)
	t.Cleanup(func() {
		_, _ = db.Pool.Exec(context.Background(), `DROP OWNED BY `+role)
		_, _ = db.Pool.Exec(context.Background(), `DROP ROLE `+role)
	})
	exec(t, db.Pool, `GRANT CREATE ON SCHEMA public TO `+role)
	config, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.RuntimeParams["role"] = db.Slot
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	st := store.New(pool, db.Slot, 0)
	if err := st.Migrate(t.Context(), readSchema(t)); !errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), "GRANT CREATE ON DATABASE") {
		t.Errorf("got %v, want the privilege that is missing", err)
	}
	exec(t, db.Pool, `DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO %I', current_database(), '`+db.Slot+`'); END $$`)
	if err := st.Migrate(t.Context(), readSchema(t)); err != nil {
		t.Errorf("with that privilege: %v", err)
	}
	newEndpoint(t, pool, "org_1")
	newEvent(t, pool, "org_1", "payment.failed")
}
