package store_test

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
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

// What was documented to be granted up to version 4, and what versions 5 and 6 added. Version 7 has roles.sql.
const (
	grantsOfVersion4 = `
GRANT INSERT, SELECT (id) ON webhook_outbox TO ROLE_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON webhook_endpoints TO ROLE_backend;
GRANT EXECUTE ON FUNCTION webhook_create_endpoint, webhook_rotate_secret TO ROLE_backend;
GRANT SELECT ON webhook_outbox, webhook_deliveries, webhook_endpoints, webhook_event_types, webhook_state,
    webhook_endpoint_failures, webhook_attempts, webhook_endpoint_health, webhook_status TO ROLE_ops;
GRANT UPDATE (status, next_attempt_at) ON webhook_deliveries TO ROLE_ops;`
	grantsOfVersion5 = grantsOfVersion4 + `
GRANT EXECUTE ON FUNCTION webhook_set_secret TO ROLE_backend;
GRANT INSERT, SELECT (id) ON webhook_outbox TO ROLE_backend;
GRANT EXECUTE ON FUNCTION webhook_retry_now TO ROLE_ops;`
)

// former reads a file of a former version, the last that landed, from testdata.
func former(t testing.TB, name string) string {
	t.Helper()
	file, err := os.Open("testdata/" + name + ".sql.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unpacked, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// version4 is a database of version 4 in use, with the documented roles, whose names it returns. What comes before is done first.
func version4(t testing.TB, before ...func(*pgtest.DB)) (db *pgtest.DB, roles map[string]string) {
	t.Helper()
	return versionInUse(t, "4", before...)
}

func versionInUse(t testing.TB, version string, before ...func(*pgtest.DB)) (db *pgtest.DB, roles map[string]string) {
	t.Helper()
	db = pgtest.Empty(t)
	for _, do := range before {
		do(db)
	}
	if err := apply(t.Context(), db.Pool, former(t, "schema-"+version)); err != nil {
		t.Fatal(err)
	}
	roles = map[string]string{}
	grants := grantsOfVersion4
	if version >= "5" {
		grants = grantsOfVersion5
	}
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
	use(t, db)
	return db, roles
}

// use leaves rows in every table.
func use(t testing.TB, db *pgtest.DB) {
	t.Helper()
	exec(t, db.Pool, `INSERT INTO webhook_event_types (name, category) VALUES ('invoice.paid', 'invoice')`)
	for i, status := range []string{"success", "failed", "cancelled", "pending", "retrying"} {
		endpoint := newEndpoint(t, db.Pool, "org_1", "invoice.*", "payment.failed")
		newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), endpoint, status)
		if i%2 == 0 {
			exec(t, db.Pool, `SELECT webhook_rotate_secret($1)`, endpoint)
			exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures (endpoint_id, failing_since) VALUES ($1, now())`, endpoint)
		}
	}
	exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = false WHERE id = (SELECT id FROM webhook_endpoints LIMIT 1)`)
	exec(t, db.Pool, `INSERT INTO webhook_state (slot, epoch, environment, durable_lsn) VALUES ($1, 3, 'production', '1/2')`, db.Slot)
}

// Days ago. The last of them has no partition: its rows are in DEFAULT. schema.sql itself makes those of yesterday and later.
const oldestDay, dayWithoutPartition = 6, 4

// addDays makes the partitions of the days before.
func addDays(t testing.TB, db *pgtest.DB) {
	t.Helper()
	for day := oldestDay; day > dayWithoutPartition; day-- {
		for _, table := range []string{"webhook_outbox", "webhook_deliveries"} {
			exec(t, db.Pool, `SELECT webhook_add_partition($1, (now() AT TIME ZONE 'UTC')::date - $2::int)`, table, day)
		}
	}
}

// grownOld adds what an installation has after some days: deliveries of every status on each of them, with all that
// attempts leave, an endpoint with everything that can be chosen, secrets that have expired, and a deleted endpoint.
func grownOld(t testing.TB, db *pgtest.DB) {
	t.Helper()
	addDays(t, db)
	const insert = `INSERT INTO webhook_endpoints (organization_id, url, description, headers, max_in_flight, rate_per_second, event_types)
		VALUES ('org_3', 'https://example.com:8443/hook?token=hunter2', 'of the shop', '{"Authorization": "Bearer hunter2"}', 7, 25, '{*}') RETURNING id::text`
	chosen, deleted := query[string](t, db.Pool, insert), query[string](t, db.Pool, insert)
	exec(t, db.Pool, `INSERT INTO webhook_secrets (endpoint_id, secret, expires_at) VALUES ($1, 'a secret of one''s own', now() - interval '1 hour')`, chosen)
	exec(t, db.Pool, `SELECT webhook_rotate_secret($1)`, chosen)
	for day := oldestDay; day >= dayWithoutPartition; day-- {
		for _, status := range []string{"success", "failed", "cancelled", "pending", "retrying"} {
			for _, endpoint := range []string{chosen, deleted} {
				event := outbox.DeliveryID(outbox.TimeID(time.Now().AddDate(0, 0, -day)), uuid.New()).String()
				exec(t, db.Pool, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, 'org_3', 'payment.failed', '{}')`, event)
				newDelivery(t, db.Pool, event, endpoint, status)
			}
		}
	}
	exec(t, db.Pool, `UPDATE webhook_deliveries SET attempts = 3, series_start = 1, status_code = 503, error_class = 'http_5xx', error = 'answered 503',
		response = 'later', completed_at = CASE WHEN status = 'failed' THEN now() END,
		attempt_log = '[{"attempt": 1, "at": "2026-11-23T12:00:00Z", "error_class": "timeout", "error": "no answer", "duration_ms": 10000}]'
		WHERE organization_id = 'org_3' AND status IN ('failed', 'retrying')`)
	exec(t, db.Pool, `DELETE FROM webhook_endpoints WHERE id = $1`, deleted)
	for _, table := range []string{"webhook_outbox", "webhook_deliveries"} {
		if n := query[int](t, db.Pool, `SELECT count(*) FROM `+table+`_default`); n != 10 {
			t.Fatalf("%d rows of %s are in DEFAULT", n, table)
		}
	}
}

// contents is all rows, by the columns of version 1.
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
		`SELECT endpoint_id, failing_since, to_jsonb(f) ->> 'breaker_opened_at' FROM webhook_endpoint_failures f`,
		`SELECT slot, epoch, holder, durable_lsn, environment FROM webhook_state`,
	} {
		lines = append(lines, column[string](t, q, `SELECT r::text FROM (`+s+`) r ORDER BY 1`)...)
	}
	return lines
}

// everything is contents, and the rows of the tables that later versions made.
func everything(t testing.TB, q querier) []string {
	t.Helper()
	lines := contents(t, q)
	for table, s := range map[string]string{ // versions 5 and 7 made them
		"webhook_retries": `SELECT endpoint_id, asked_at FROM webhook_retries`,
		"webhook_audit":   `SELECT id, at, who, action, organization_id, endpoint_id, count, detail FROM webhook_audit`,
	} {
		if query[bool](t, q, `SELECT to_regclass($1) IS NOT NULL`, table) {
			lines = append(lines, column[string](t, q, `SELECT r::text FROM (`+s+`) r ORDER BY 1`)...)
		}
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

// An upgrade that runs again changes nothing, and an application's INSERTs do not wait for either. Raise the version, and
// the file of the former one is wanted in testdata: git show COMMIT:schema.sql | gzip -9n.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)
	// One after the other: the application bears a lock for 100 ms, and so many upgrades at once would take the CPU from it.
	for number := 1; number < store.SchemaVersion; number++ {
		version := strconv.Itoa(number)
		t.Run("from version "+version+" makes what a fresh installation has, and keeps rows and grants", func(t *testing.T) {
			db, roles := versionInUse(t, version)
			grownOld(t, db)
			if got := query[int](t, db.Pool, `SELECT webhook_schema_version()`); got != number {
				t.Fatalf("the file of version %d has version %d", number, got)
			}
			before := everything(t, db.Pool)
			grants := map[string][]string{}
			for _, role := range roles {
				grants[role] = column[string](t, db.Pool, granted, role)
			}
			stop := insertAllTheTime(t, db, roles["app"])
			st := store.New(db.Pool, db.Slot, 0)
			err := st.Migrate(t.Context(), schema)
			once := column[string](t, db.Pool, files)
			if err == nil {
				err = st.Apply(t.Context(), schema)
			}
			if inserted := stop(); err != nil || inserted == 0 {
				t.Fatalf("beside %d events: %v", inserted, err)
			}
			if rewritten, with := differences(once, column[string](t, db.Pool, files)); len(rewritten)+len(with) > 0 {
				t.Errorf("a second time rewrote %q with %q", rewritten, with)
			}

			fresh := pgtest.Empty(t)
			if err := apply(t.Context(), fresh.Pool, schema); err != nil {
				t.Fatal(err)
			}
			addDays(t, fresh)
			missing, extra := differences(column[string](t, fresh.Pool, catalogue), column[string](t, db.Pool, catalogue))
			if len(missing)+len(extra) > 0 {
				t.Errorf("a fresh installation has\n%s\nthe upgraded one\n%s", strings.Join(missing, "\n"), strings.Join(extra, "\n"))
			}
			for role, want := range grants {
				got := column[string](t, db.Pool, granted, role)
				if lost, came := differences(want, got); len(lost)+len(came) > 0 || len(got) != len(want) {
					t.Errorf("%s lost %q and got %q", role, lost, came)
				}
			}
			if lost, came := differences(before, everything(t, db.Pool)); len(lost)+len(came) > 0 {
				t.Errorf("lost\n%s\ncame\n%s", strings.Join(lost, "\n"), strings.Join(came, "\n"))
			}
			checkUse(t, db.Pool)
		})
	}
}

// files are the tables and indexes, each with the file that it is in: whatever writes it anew changes that.
const files = `SELECT format('%s in %s', c.relname, c.relfilenode) FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace`

// owners are the objects, each with its owner.
const owners = `
SELECT format('%s of %s', c.relname, c.relowner::regrole) FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
UNION ALL SELECT format('%s of %s', p.oid::regprocedure, p.proowner::regrole) FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
UNION ALL SELECT format('%s of %s', b.pubname, b.pubowner::regrole) FROM pg_publication b`

// Version 7 came with roles.sql. The upgrade is `walhook init --roles`: schema.sql, and then roles.sql.
func TestUpgradeWithRoles(t *testing.T) {
	t.Parallel()
	db := rolesServer(t, former(t, "schema-7"))
	st := store.New(db.Pool, db.Slot, 0)
	if err := st.ApplyRoles(t.Context(), former(t, "roles-7")); err != nil {
		t.Fatal(err)
	}
	use(t, db)
	grownOld(t, db)
	before := everything(t, db.Pool)
	stop := insertAllTheTime(t, db, "walhook_app")
	var err error
	for range 2 {
		err = errors.Join(err, st.Apply(t.Context(), readSchema(t)), st.ApplyRoles(t.Context(), readRoles(t)))
	}
	if inserted := stop(); err != nil || inserted == 0 {
		t.Fatalf("beside %d events: %v", inserted, err)
	}

	exec(t, db.Pool, `CREATE DATABASE fresh`)
	fresh := &pgtest.DB{URL: strings.Replace(db.URL, "/postgres?", "/fresh?", 1), Slot: "fresh"}
	fresh.Pool = newPool(t, fresh, func(*pgxpool.Config) {})
	if err := errors.Join(apply(t.Context(), fresh.Pool, readSchema(t)), apply(t.Context(), fresh.Pool, readRoles(t))); err != nil {
		t.Fatal(err)
	}
	addDays(t, fresh)
	for what, sql := range map[string]string{"catalogue": catalogue, "owners": owners} {
		missing, extra := differences(column[string](t, fresh.Pool, sql), column[string](t, db.Pool, sql))
		if len(missing)+len(extra) > 0 {
			t.Errorf("%s: a fresh installation has\n%s\nthe upgraded one\n%s", what, strings.Join(missing, "\n"), strings.Join(extra, "\n"))
		}
	}
	for _, role := range []string{"walhook_owner", "walhook_run", "walhook_app", "walhook_backend", "walhook_ops", "walhook_tenant"} {
		lacks, extra := differences(column[string](t, fresh.Pool, granted, role), column[string](t, db.Pool, granted, role))
		if len(lacks)+len(extra) > 0 {
			t.Errorf("%s lacks %q and has %q", role, lacks, extra)
		}
	}
	if lost, came := differences(before, everything(t, db.Pool)); len(lost)+len(came) > 0 {
		t.Errorf("lost\n%s\ncame\n%s", strings.Join(lost, "\n"), strings.Join(came, "\n"))
	}
	checkUse(t, db.Pool)
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

// Of two that upgrade at once, the second has looked before the first has added the columns, and goes on while the first changes
// the tables: it no longer needs the lock for which it would wait then.
func TestUpgradeByTwoAtOnce(t *testing.T) {
	t.Parallel()
	db, _ := versionInUse(t, "7")
	const commit, wait = "\nCOMMIT;\n", "pg_sleep(0.05::float8)"
	columns, _, _ := strings.Cut(readSchema(t), commit)
	if !strings.Contains(columns, wait) {
		t.Fatalf("the first transaction has no %s", wait)
	}
	columns += commit
	second := make(chan error, 1)
	go func() { second <- apply(t.Context(), db.Pool, strings.Replace(columns, wait, "pg_sleep(2)", 1)) }()
	pgtest.Eventually(t, 10*time.Second, "the second has looked", func() bool {
		return query[bool](t, db.Pool, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep')`)
	})
	if err := apply(t.Context(), db.Pool, columns); err != nil {
		t.Fatal(err)
	}
	first := begin(t, db.Pool)
	exec(t, first, `LOCK TABLE webhook_event_types, webhook_endpoints IN SHARE ROW EXCLUSIVE MODE`) // as CREATE TRIGGER does
	if err := <-second; err != nil {
		t.Error(err)
	}
}

// Whatever walhook records begins with webhook_state, and goes on with the other tables. An upgrade that locks them the other way
// round keeps the running former version waiting, until it gives up itself.
func TestUpgradeBesideARecording(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"4", "7"} {
		t.Run("of version "+version, func(t *testing.T) {
			t.Parallel()
			db, _ := versionInUse(t, version)
			schema := readSchema(t)
			st := store.New(db.Pool, db.Slot, 0)
			st.ApplyFor(time.Minute) // a slow machine may need another try
			tx := begin(t, db.Pool)
			exec(t, tx, `UPDATE webhook_state SET updated_at = now()`)
			upgraded := make(chan error, 1)
			go func() { upgraded <- st.Migrate(t.Context(), schema) }()
			waiting(t, db, 1)
			exec(t, tx, `SET LOCAL lock_timeout = '100ms'`)
			exec(t, tx, `UPDATE webhook_deliveries SET updated_at = now()`)
			exec(t, tx, `INSERT INTO webhook_endpoint_failures (endpoint_id, failing_since) SELECT id, now() FROM webhook_endpoints ON CONFLICT (endpoint_id) DO NOTHING`)
			newEvent(t, tx, "org_1", "payment.failed")
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := <-upgraded; err != nil {
				t.Error(err)
			}
		})
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
