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
	for _, name := range []string{outbox.TypeTest, outbox.TypeEndpointDisabled, outbox.TypeEndpointFailing, outbox.TypeEndpointRecovered, outbox.TypeDeliveryExhausted} {
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

	t.Run("leaves event types as a deployment has changed them", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		for _, sql := range []string{
			`UPDATE webhook_event_types SET example = NULL WHERE name IN ('payment.failed', 'webhook.test')`,
			`UPDATE webhook_event_types SET example = '{"a": 1}', description = 'ours', category = 'ours' WHERE name = 'payment.succeeded'`,
			`DELETE FROM webhook_event_types WHERE category = 'security'`,
			`INSERT INTO webhook_event_types (name, category) VALUES ('a.b', 'a')`,
		} {
			exec(t, db.Pool, sql)
		}
		const types = `SELECT concat_ws(' ', name, category, description, example) FROM webhook_event_types ORDER BY name`
		before := column[string](t, db.Pool, types)
		if err := apply(t.Context(), db.Pool, schema); err != nil {
			t.Fatal(err)
		}
		if lost, came := differences(before, column[string](t, db.Pool, types)); len(lost)+len(came) > 0 {
			t.Errorf("lost %q, came %q", lost, came)
		}
		exec(t, db.Pool, `CREATE OR REPLACE FUNCTION webhook_schema_version() RETURNS int LANGUAGE sql IMMUTABLE RETURN 7`)
		if err := apply(t.Context(), db.Pool, schema); err != nil {
			t.Fatal(err)
		}
		if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_event_types WHERE example IS NULL`); n != 1 {
			t.Errorf("after an upgrade %d types have no example, want the deployment's own one", n)
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
		exec(t, db.Pool, `DROP VIEW webhook_endpoint_health, webhook_ops_endpoints, webhook_overdue CASCADE`) // and the view webhook_status
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
