package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
)

// catalogue is a line for all that schema.sql makes, as it is: columns, constraints, indexes, triggers, functions,
// views, publications, comments and the rights of PUBLIC and the owner.
const catalogue = `
WITH ours AS (SELECT c.* FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace),
rights (what, acl) AS (
    SELECT c.relname::text, coalesce(c.relacl, acldefault('r', c.relowner)) FROM ours c WHERE c.relkind IN ('r', 'p', 'v')
    UNION ALL SELECT p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner)) FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
)
SELECT format('column %s.%s %s %s null=%s default=%s identity=%s generated=%s: %s', c.relname, row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum), a.attname,
              format_type(a.atttypid, a.atttypmod), NOT a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated, col_description(c.oid, a.attnum))
FROM ours c JOIN pg_attribute a ON a.attrelid = c.oid LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relkind IN ('r', 'p', 'v', 'S') AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL SELECT format('relation %s %s rls=%s/%s options=%s: %s', c.relname, c.relkind, c.relrowsecurity, c.relforcerowsecurity, c.reloptions, obj_description(c.oid)) FROM ours c
UNION ALL SELECT format('view %s %s', c.relname, pg_get_viewdef(c.oid)) FROM ours c WHERE c.relkind = 'v'
UNION ALL SELECT format('index %s: %s', pg_get_indexdef(c.oid), obj_description(c.oid)) FROM ours c WHERE c.relkind IN ('i', 'I')
UNION ALL SELECT format('constraint %s %s %s', c.relname, k.conname, pg_get_constraintdef(k.oid)) FROM ours c JOIN pg_constraint k ON k.conrelid = c.oid
UNION ALL SELECT format('trigger %s %s %s', c.relname, pg_get_triggerdef(t.oid), t.tgenabled) FROM ours c JOIN pg_trigger t ON t.tgrelid = c.oid WHERE NOT t.tgisinternal
UNION ALL SELECT format('function %s: %s', pg_get_functiondef(p.oid), obj_description(p.oid)) FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
UNION ALL SELECT format('publication %s %s', to_jsonb(p) - 'oid' - 'pubowner', (SELECT array_agg(r.prrelid::regclass::text) FROM pg_publication_rel r WHERE r.prpubid = p.oid)) FROM pg_publication p
UNION ALL SELECT format('right %s %s %s', r.what, CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE 'owner' END, a.privilege_type)
FROM rights r CROSS JOIN LATERAL aclexplode(r.acl) a JOIN pg_database d ON d.datname = current_database() WHERE a.grantee IN (0, d.datdba)`

// granted is a line for every right of a role.
const granted = `
SELECT format('%s %s', p.proname, a.privilege_type) FROM pg_proc p CROSS JOIN LATERAL aclexplode(p.proacl) a
WHERE a.grantee = $1::text::regrole
UNION ALL SELECT format('%s %s', c.relname, a.privilege_type) FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a WHERE a.grantee = $1::text::regrole
UNION ALL SELECT format('%s.%s %s', c.relname, t.attname, a.privilege_type)
FROM pg_attribute t JOIN pg_class c ON c.oid = t.attrelid CROSS JOIN LATERAL aclexplode(t.attacl) a WHERE a.grantee = $1::text::regrole`

// What was documented to be granted at version 4.
const grantsOfVersion4 = `
GRANT INSERT, SELECT (id) ON webhook_outbox TO ROLE_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON webhook_endpoints TO ROLE_backend;
GRANT EXECUTE ON FUNCTION webhook_create_endpoint, webhook_rotate_secret TO ROLE_backend;
GRANT SELECT ON webhook_outbox, webhook_deliveries, webhook_endpoints, webhook_event_types, webhook_state,
    webhook_endpoint_failures, webhook_attempts, webhook_endpoint_health, webhook_status TO ROLE_ops;
GRANT UPDATE (status, next_attempt_at) ON webhook_deliveries TO ROLE_ops;`

// version4 is a database of version 4 in use, with the documented roles, whose names it returns. What comes before is done first.
func version4(t testing.TB, before ...func(*pgtest.DB)) (db *pgtest.DB, roles map[string]string) {
	t.Helper()
	return versionInUse(t, "4", before...)
}

func versionInUse(t testing.TB, version string, before ...func(*pgtest.DB)) (db *pgtest.DB, roles map[string]string) {
	t.Helper()
	old, err := os.ReadFile("testdata/schema-" + version + ".sql")
	if err != nil {
		t.Fatal(err)
	}
	db = pgtest.Empty(t)
	for _, do := range before {
		do(db)
	}
	if err := apply(t.Context(), db.Pool, string(old)); err != nil {
		t.Fatal(err)
	}
	roles = map[string]string{}
	grants := grantsOfVersion4
	for _, name := range []string{"app", "backend", "ops"} {
		roles[name] = db.Slot + "_" + name
		grants = strings.ReplaceAll(grants, "ROLE_"+name, roles[name])
		exec(t, db.Pool, `CREATE ROLE `+roles[name])
		t.Cleanup(func() {
			_, _ = db.Pool.Exec(context.Background(), `DROP OWNED BY `+roles[name])
			_, _ = db.Pool.Exec(context.Background(), `DROP ROLE `+roles[name])
		})
	}
	exec(t, db.Pool, grants)
	exec(t, db.Pool, `INSERT INTO webhook_event_types (name, category) VALUES ('invoice.paid', 'invoice')`)
	for i, status := range []string{"success", "failed", "cancelled", "pending", "retrying"} {
		endpoint := newEndpoint(t, db.Pool, "org_1", "invoice.*", "payment.failed")
		newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), endpoint, status)
		if i%2 == 0 {
			exec(t, db.Pool, `SELECT webhook_rotate_secret($1)`, endpoint)
			exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES ($1, now(), now())`, endpoint)
		}
	}
	exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = false WHERE id = (SELECT id FROM webhook_endpoints LIMIT 1)`)
	exec(t, db.Pool, `INSERT INTO webhook_state (slot, epoch, environment, durable_lsn) VALUES ($1, 3, 'production', '1/2')`, db.Slot)
	return db, roles
}

// contents is all rows, by the columns of version 4.
func contents(t testing.TB, q querier) []string {
	t.Helper()
	var lines []string
	for _, s := range []string{
		`SELECT name, category, description, patterns FROM webhook_event_types WHERE category <> 'webhook'`,
		`SELECT id, organization_id, url, event_types, description, headers, enabled, disabled_at, disabled_reason, max_in_flight, rate_per_second, created_at, updated_at FROM webhook_endpoints`,
		`SELECT id, endpoint_id, secret, created_at, expires_at FROM webhook_secrets`,
		`SELECT id, organization_id, event_type, payload, created_at, endpoint_ids, shard FROM webhook_outbox WHERE payload = '{}'`,
		`SELECT id, event_id, endpoint_id, organization_id, event_type, status, attempts, next_attempt_at, status_code, error_class, error, response, duration_ms,
		        attempt_log, series_start, created_at, updated_at, completed_at FROM webhook_deliveries`,
		`SELECT endpoint_id, failing_since, breaker_opened_at FROM webhook_endpoint_failures`,
		`SELECT slot, epoch, holder, durable_lsn, environment FROM webhook_state`,
	} {
		lines = append(lines, column[string](t, q, `SELECT r::text FROM (`+s+`) r ORDER BY 1`)...)
	}
	return lines
}

// differences are the lines that only one of two has.
func differences(a, b []string) (onlyA, onlyB []string) {
	missing := func(from, in []string) (only []string) {
		for _, line := range from {
			if !slices.Contains(in, line) {
				only = append(only, line)
			}
		}
		return only
	}
	return missing(a, b), missing(b, a)
}

func TestUpgrade(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)
	for _, version := range []string{"4", "7"} {
		t.Run("from version "+version+" makes what a fresh installation has, and keeps rows and grants", func(t *testing.T) {
			t.Parallel()
			db, roles := versionInUse(t, version)
			before := contents(t, db.Pool)
			grants := map[string][]string{}
			for _, role := range roles {
				grants[role] = column[string](t, db.Pool, granted, role)
			}
			stop := insertAllTheTime(t, db, roles["app"])
			err := store.New(db.Pool, db.Slot, 0).Migrate(t.Context(), schema)
			if inserted := stop(); err != nil || inserted == 0 {
				t.Fatalf("beside %d events: %v", inserted, err)
			}

			fresh := pgtest.Empty(t)
			if err := apply(t.Context(), fresh.Pool, schema); err != nil {
				t.Fatal(err)
			}
			missing, extra := differences(column[string](t, fresh.Pool, catalogue), column[string](t, db.Pool, catalogue))
			if len(missing)+len(extra) > 0 {
				t.Errorf("a fresh installation has\n%s\nthe upgraded one\n%s", strings.Join(missing, "\n"), strings.Join(extra, "\n"))
			}
			if lost, came := differences(before, contents(t, db.Pool)); len(lost)+len(came) > 0 {
				t.Errorf("lost\n%s\ncame\n%s", strings.Join(lost, "\n"), strings.Join(came, "\n"))
			}
			for role, want := range grants {
				got := column[string](t, db.Pool, granted, role)
				if lost, came := differences(want, got); len(lost)+len(came) > 0 || len(got) != len(want) {
					t.Errorf("%s lost %q and got %q", role, lost, came)
				}
			}
		})
	}
}

// Columns of a table that the application's INSERT reads need a lock that its open transaction excludes. The upgrade does not
// queue for it, so nobody waits; it says whose transaction that is, and goes on after its end.
func TestUpgradeBesideAnOpenTransaction(t *testing.T) {
	t.Parallel()
	db, roles := version4(t)
	schema := readSchema(t)
	st := store.New(db.Pool, db.Slot, 0)
	st.ApplyFor(time.Millisecond)
	tx := begin(t, db.Pool)
	newEvent(t, tx, "org_1", "payment.failed")
	pid := query[int](t, tx, `SELECT pg_backend_pid()`)

	stop := insertAllTheTime(t, db, roles["app"])
	err := st.Migrate(t.Context(), schema)
	if inserted := stop(); err == nil || errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d ", pid)) {
		t.Fatalf("beside %d events: %v, want one that names pid %d", inserted, err, pid)
	}
	if got := query[int](t, db.Pool, `SELECT webhook_schema_version()`); got != 4 {
		t.Errorf("the version is %d", got)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	st.ApplyFor(time.Minute)
	if err := st.Migrate(t.Context(), schema); err != nil {
		t.Error(err)
	}
}

// insertAllTheTime inserts events as an application that waits for no lock, until it is told to stop and says how many.
func insertAllTheTime(t testing.TB, db *pgtest.DB, role string) (stop func() int) {
	t.Helper()
	pool := newPool(t, db, func(c *pgxpool.Config) {
		c.MaxConns = 1
		c.ConnConfig.RuntimeParams["role"] = role
		c.ConnConfig.RuntimeParams["lock_timeout"] = "100ms" // what an application can bear
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int)
	begun := make(chan struct{})
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			_, err := pool.Exec(context.WithoutCancel(ctx), `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.failed', '{"n": 1}')`)
			if err != nil {
				t.Errorf("an INSERT of the application: %v", err)
			}
			if n == 0 {
				close(begun)
			}
		}
		ended <- n
	}()
	<-begun
	return func() int {
		cancel()
		return <-ended
	}
}
