package store_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

// Whatever the encoding of a session or of psql is, and whatever a backslash means
// there: the file means the same.
func TestSchemaIsASCII(t *testing.T) {
	t.Parallel()
	for i, line := range strings.Split(readSchema(t), "\n") {
		if parts := strings.Split(line, "'"); len(parts) > 1 {
			for j := 1; j < len(parts); j += 2 {
				if strings.Contains(parts[j], `\`) && !strings.HasSuffix(parts[j-1], "E") {
					t.Errorf("line %d of schema.sql has a backslash in a literal without E: %s", i+1, line)
				}
			}
		}
		if strings.ContainsFunc(line, func(r rune) bool { return r > unicode.MaxASCII || r < ' ' }) {
			t.Errorf("line %d of schema.sql has a character that is not printable ASCII: %s", i+1, line)
		}
	}
}

func TestSchemaAndCodeAgree(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)

	if got := query[int](t, db.Pool, `SELECT webhook_schema_version()`); got != store.SchemaVersion {
		t.Errorf("schema.sql is version %d, the code's SchemaVersion %d", got, store.SchemaVersion)
	}

	want := []string{}
	for _, typ := range outbox.EventTypes {
		want = append(want, typ.Name+" "+typ.Category)
	}
	for _, name := range []string{outbox.TypeTest, outbox.TypeEndpointDisabled, outbox.TypeDeliveryExhausted} {
		want = append(want, name+" "+outbox.OwnCategory)
	}
	slices.Sort(want)
	got := column[string](t, db.Pool, `SELECT name || ' ' || category FROM webhook_event_types`)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("webhook_event_types has\n%q, the code\n%q", got, want)
	}

	if got := query[int](t, db.Pool, `SELECT substring(prosrc FROM 'size > ([0-9]+)')::int FROM pg_proc WHERE proname = 'webhook_outbox_before_insert'`); got != outbox.MaxPayloadBytes {
		t.Errorf("the trigger's limit is %d bytes, MaxPayloadBytes %d", got, outbox.MaxPayloadBytes)
	}
}

func TestSchemaExplainsItself(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	bare := column[string](t, db.Pool, `
		SELECT format('%s.%s', c.relname, a.attname) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
		  AND a.attnum > 0 AND col_description(c.oid, a.attnum) IS NULL
		UNION ALL
		SELECT c.relname FROM pg_class c
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
		  AND obj_description(c.oid, 'pg_class') IS NULL
		UNION ALL
		SELECT p.proname FROM pg_proc p
		WHERE p.pronamespace = 'public'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL`)
	if len(bare) > 0 {
		t.Errorf("without a comment: %q", bare)
	}
	if unsafe := column[string](t, db.Pool, `
		SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef
		  AND NOT coalesce(p.proconfig @> '{"search_path=public, pg_temp"}', false)`); len(unsafe) > 0 {
		t.Errorf("SECURITY DEFINER without a search_path of its own: %q", unsafe)
	}
}

func TestSchemaAppliedAgain(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)

	t.Run("keeps everything, and waits for nobody's open transaction", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		endpoint, event := newEndpoint(t, db.Pool, "org_1"), newEvent(t, db.Pool, "org_1", "payment.failed")
		newDelivery(t, db.Pool, event, endpoint, "success")
		exec(t, db.Pool, `UPDATE webhook_event_types SET description = 'ours' WHERE name = 'payment.failed'`)

		tx := begin(t, db.Pool)
		newEvent(t, tx, "org_1", "payment.failed")
		exec(t, tx, `UPDATE webhook_deliveries SET error = 'x'`)
		exec(t, tx, `UPDATE webhook_endpoints SET description = 'x'`)
		exec(t, tx, `INSERT INTO webhook_secrets (endpoint_id, secret) VALUES ($1, 'a secret of sixteen')`, endpoint)
		exec(t, tx, `INSERT INTO webhook_state (slot) VALUES ('s')`)
		exec(t, tx, `INSERT INTO webhook_event_types (name, category) VALUES ('a.b', 'a')`)
		if err := apply(t.Context(), db.Pool, schema); err != nil {
			t.Fatalf("beside an open transaction: %v", err)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := query[string](t, db.Pool, `
			SELECT concat_ws(' ', (SELECT count(*) FROM webhook_outbox), (SELECT count(*) FROM webhook_deliveries), (SELECT count(*) FROM webhook_endpoints),
				(SELECT count(*) FROM webhook_secrets), (SELECT description FROM webhook_event_types WHERE name = 'payment.failed'))`); got != "2 1 1 2 ours" {
			t.Errorf("events, deliveries, endpoints, secrets, description: got %s", got)
		}
	})

	t.Run("holds no lock that an application waits for", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		conn, err := db.Pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		if _, err := conn.Conn().PgConn().Exec(t.Context(), strings.TrimSuffix(strings.TrimSpace(schema), "COMMIT;")).ReadAll(); err != nil {
			t.Fatal(err)
		}
		strong := column[string](t, conn, `
			SELECT format('%s %s', c.relname, l.mode) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
			WHERE l.pid = pg_backend_pid() AND c.relname LIKE 'webhook%' AND c.relkind IN ('r', 'p')
			  AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')`)
		exec(t, conn, `ROLLBACK`)
		if len(strong) > 0 {
			t.Errorf("locks: %q", strong)
		}
	})

	t.Run("by two at once", func(t *testing.T) {
		t.Parallel()
		db := pgtest.Empty(t)
		var wg sync.WaitGroup
		errs := make([]error, 3)
		for i := range errs {
			wg.Go(func() { errs[i] = store.New(db.Pool, db.Slot, 0).Migrate(t.Context(), schema) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Error(err)
		}
	})

	t.Run("over version 1", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		exec(t, db.Pool, `DROP VIEW webhook_endpoint_health, webhook_overdue CASCADE`) // and the view webhook_status
		exec(t, db.Pool, `ALTER TABLE webhook_endpoint_failures DROP COLUMN breaker_opened_at`)
		exec(t, db.Pool, `ALTER TABLE webhook_state DROP COLUMN published CASCADE, DROP COLUMN open_since CASCADE`)
		exec(t, db.Pool, `CREATE VIEW webhook_endpoint_health AS
			SELECT e.id AS endpoint_id, e.organization_id, e.url, e.enabled, e.disabled_at, e.disabled_reason, f.failing_since,
			       0::bigint AS waiting, now() AS oldest_due_at
			FROM webhook_endpoints e LEFT JOIN webhook_endpoint_failures f ON f.endpoint_id = e.id`)
		exec(t, db.Pool, `CREATE OR REPLACE FUNCTION webhook_schema_version() RETURNS int LANGUAGE sql IMMUTABLE RETURN 1`)
		endpoint := newEndpoint(t, db.Pool, "org_1")
		exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES ($1, now())`, endpoint)
		st := store.New(db.Pool, db.Slot, 0)
		if err := st.CheckSchema(t.Context()); !errors.Is(err, store.ErrNotPrepared) {
			t.Fatalf("a schema that is too old: %v, want %v", err, store.ErrNotPrepared)
		}
		if err := st.Migrate(t.Context(), schema); err != nil {
			t.Fatal(err)
		}
		if got := query[string](t, db.Pool, `SELECT breaker FROM webhook_endpoint_health WHERE failing_since IS NOT NULL`); got != "closed" {
			t.Errorf("breaker: %q", got)
		}
		if f := acquire(t, st); !f.Reconcile {
			t.Error("the first acquisition has nothing to look for")
		}
	})

	t.Run("not over a newer one", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		exec(t, db.Pool, `CREATE OR REPLACE FUNCTION webhook_schema_version() RETURNS int LANGUAGE sql IMMUTABLE RETURN `+strconv.Itoa(store.SchemaVersion+1))
		checkRefusal(t, apply(t.Context(), db.Pool, schema), "newer walhook", "apply")
		if err := store.New(db.Pool, db.Slot, 0).Migrate(t.Context(), schema); err != nil {
			t.Errorf("an older walhook beside a newer schema: %v", err)
		}
	})
}

func TestSchemaInstallsIntoTheFirstSchema(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	exec(t, db.Pool, `CREATE SCHEMA "Odd name"`)
	exec(t, db.Pool, `ALTER DATABASE "`+query[string](t, db.Pool, `SELECT current_database()`)+`" SET search_path = "Odd name", public`)
	pool, err := pgxpool.New(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := store.New(pool, db.Slot, 0).Migrate(t.Context(), readSchema(t)); err != nil {
		t.Fatal(err)
	}
	if stray := column[string](t, pool, `SELECT relname FROM pg_class WHERE relname LIKE 'webhook%' AND relnamespace <> '"Odd name"'::regnamespace`); len(stray) > 0 {
		t.Errorf("outside of the schema: %q", stray)
	}

	// Whoever inserts can have any search_path, and temporary tables of our names.
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	endpoint := newEndpoint(t, conn, "org_1")
	exec(t, conn, `SET search_path = pg_temp, public`)
	exec(t, conn, `CREATE TEMP TABLE webhook_endpoints (id uuid, organization_id text, enabled boolean, event_types text[])`)
	exec(t, conn, `CREATE TEMP TABLE webhook_event_types (name text, patterns text[])`)
	if got := query[[]string](t, conn, `
		INSERT INTO "Odd name".webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'org.created', '{}')
		RETURNING endpoint_ids::text[]`); !slices.Equal(got, []string{endpoint}) {
		t.Errorf("owed to %q, want %s", got, endpoint)
	}
}

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

// Any role that may connect can take any advisory lock, for ever.
func TestAdvisoryLocksHoldNobodyUp(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	conn, err := pgx.Connect(t.Context(), newPool(t, db, asRole(newRole(t, db))).Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	for _, key := range []string{"walhook schema", "walhook environment"} {
		exec(t, conn, `SELECT pg_advisory_lock(hashtextextended($1, 0))`, key)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	st := store.New(db.Pool, db.Slot, 0)
	if err := st.Migrate(ctx, readSchema(t)); err != nil {
		t.Fatalf("Migrate: %v", err)
	}
	if err := st.ClaimEnvironment(ctx, "production", false); err != nil {
		t.Errorf("ClaimEnvironment: %v", err)
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

// What schema.sql makes is read out of its text, for the check and for uninstall.
func TestManifestIsWhatTheSchemaMakes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	if forgotten := column[string](t, db.Pool, `
		SELECT relname::text FROM pg_class WHERE relname LIKE 'webhook\_%' AND NOT relispartition AND relkind IN ('r', 'p', 'v', 'i', 'I') AND relname <> ALL ($1)
			AND relname !~ '_(pkey|p[0-9]{8}_.*|default_.*)$'
		UNION ALL SELECT proname::text FROM pg_proc WHERE proname LIKE 'webhook\_%' AND proname <> ALL ($1)
		UNION ALL SELECT tgname::text FROM pg_trigger WHERE tgname LIKE 'webhook\_%' AND tgname <> ALL ($1)
		UNION ALL SELECT name FROM webhook_event_types WHERE category = 'webhook' AND name <> ALL ($1)`, store.Made(readSchema(t))); len(forgotten) > 0 {
		t.Errorf("not found in schema.sql: %q", forgotten)
	}
}

func TestPublicationOfOthers(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)
	for what, c := range map[string]struct {
		make, want string // a refusal; "": it is used
		published  string // of webhook_outbox and the others, afterwards
	}{
		"another installation":    {`CREATE SCHEMA b; CREATE TABLE b.webhook_outbox (id int PRIMARY KEY); CREATE PUBLICATION walhook FOR TABLE b.webhook_outbox`, "includes b.webhook_outbox", "b.webhook_outbox iudt"},
		"another's altogether":    {`CREATE TABLE orders (id int PRIMARY KEY); CREATE PUBLICATION walhook FOR TABLE orders`, "includes orders", "orders iudt"},
		"empty":                   {`CREATE PUBLICATION walhook`, "", "webhook_outbox i"},
		"FOR ALL TABLES":          {`CREATE TABLE orders (id int PRIMARY KEY); CREATE PUBLICATION walhook FOR ALL TABLES WITH (publish = 'update')`, "", "orders, webhook_outbox iu"},
		"FOR ALL TABLES, of more": {`CREATE SCHEMA b; CREATE TABLE b.webhook_outbox (id int PRIMARY KEY); CREATE PUBLICATION walhook FOR ALL TABLES WITH (publish_via_partition_root = true)`, "", "b.webhook_outbox, webhook_outbox iudt"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			db := pgtest.Empty(t)
			exec(t, db.Pool, c.make)
			st := store.New(db.Pool, db.Slot, 0)
			err := st.Migrate(t.Context(), schema)
			if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "WALHOOK_SCHEMA")) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if got := query[string](t, db.Pool, `
				SELECT (SELECT string_agg(t.relid::regclass::text, ', ' ORDER BY t.relid::regclass::text) FROM pg_get_publication_tables('walhook') t
				        WHERE t.relid::regclass::text !~ '^webhook_(?!outbox$)') || ' ' ||
				       CASE WHEN pubinsert THEN 'i' ELSE '' END || CASE WHEN pubupdate THEN 'u' ELSE '' END ||
				       CASE WHEN pubdelete THEN 'd' ELSE '' END || CASE WHEN pubtruncate THEN 't' ELSE '' END FROM pg_publication`); got != c.published {
				t.Errorf("published: %s, want %s", got, c.published)
			}
		})
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
