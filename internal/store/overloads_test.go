package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// Whoever may create in a schema that is looked into can make functions and operators
// that fit better than those of pg_catalog, and the caller runs them. So walhook's SQL
// has exact types, or names pg_catalog. Here all is planted that could fit better, by
// a role with nothing but CREATE; what is called, or only meant, fails.

// plantTypes are the types of what is in walhook's SQL.
const plantTypes = `{bool,"\"char\"",name,text,int2,int4,int8,numeric,float8,oid,regclass,regtype,uuid,timestamptz,timestamp,date,interval,jsonb,bytea,
	pg_lsn,xid,xid8,jsonpath,text[],uuid[],int4[],int8[],oid[],interval[]}`

// plant makes functions and operators that return a type of their own, of which there are no casts: so they are found
// where a statement is parsed, in most cases, and else where they are run.
const plant = `
CREATE TYPE public.planted AS (x int);
-- What goes where it is not what was declared: by a cast that nobody asks for, or because any type will do.
CREATE TEMP TABLE fits AS
SELECT t.oid AS given, d.oid AS declared
FROM unnest(current_setting('test.types')::regtype[]) AS t(oid) JOIN pg_type g ON g.oid = t.oid CROSS JOIN pg_type d
WHERE d.oid = t.oid OR EXISTS (SELECT FROM pg_cast k WHERE k.castsource = t.oid AND k.casttarget = d.oid AND k.castcontext = 'i')
   OR d.typname IN ('any', 'anyelement', 'anynonarray', 'anycompatible', 'anycompatiblenonarray') AND (g.typelem = 0 OR g.typlen <> -1 OR d.typname !~ 'nonarray')
   OR d.typname IN ('anyarray', 'anycompatiblearray') AND g.typelem <> 0 AND g.typlen = -1;
CREATE INDEX ON fits (declared);
ANALYZE fits;
DO $$
DECLARE
	f record;
	n int := 0;
BEGIN
	FOR f IN
		SELECT DISTINCT o.name, o.l, o.r FROM (
			SELECT o.oprname AS name, l.given::regtype AS l, r.given::regtype AS r
			FROM pg_operator o LEFT JOIN fits l ON l.declared = o.oprleft JOIN fits r ON r.declared = o.oprright
			WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND (l.given IS NULL) = (o.oprleft = 0)
			UNION ALL -- a literal without a type is taken to be of the other side's
			SELECT o.oprname, t, t FROM pg_operator o CROSS JOIN unnest(current_setting('test.types')::regtype[]) AS t
			WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprkind = 'b') AS o
		WHERE o.name = ANY (current_setting('test.operators')::text[])
		  AND NOT EXISTS (SELECT FROM pg_operator e WHERE e.oprnamespace = 'pg_catalog'::regnamespace AND e.oprname = o.name
		                  AND e.oprleft = coalesce(o.l::oid, 0) AND e.oprright = o.r)
	LOOP
		IF to_regprocedure(format('public.planted_operator(%s)', concat_ws(',', f.l, f.r))) IS NULL THEN
			EXECUTE format('CREATE FUNCTION public.planted_operator(%s) RETURNS public.planted LANGUAGE plpgsql AS %L', concat_ws(',', f.l, f.r),
				format('BEGIN RAISE EXCEPTION %L, current_user; END', format('a planted operator of %s ran as %%', concat_ws(' and ', f.l, f.r))));
		END IF;
		EXECUTE format('CREATE OPERATOR public.%s (FUNCTION = public.planted_operator, %s RIGHTARG = %s)', f.name, 'LEFTARG = ' || f.l || ',', f.r);
		n := n + 1;
	END LOOP;
	FOR f IN
		WITH RECURSIVE tuples (name, declared, chosen) AS (
			SELECT DISTINCT p.proname, ARRAY(SELECT unnest(p.proargtypes)), '{}'::oid[] FROM pg_proc p
			WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY (current_setting('test.names')::text[]) AND p.provariadic = 0 AND p.pronargs BETWEEN 1 AND 4
			UNION
			SELECT t.name, t.declared, t.chosen || x.given::oid FROM tuples t JOIN fits x ON x.declared = t.declared[cardinality(t.chosen) + 1]
		)
		SELECT DISTINCT t.name, (SELECT string_agg(a::regtype::text, ', ' ORDER BY i) FROM unnest(t.chosen) WITH ORDINALITY AS u(a, i)) AS args FROM tuples t
		WHERE cardinality(t.chosen) = cardinality(t.declared)
		  AND NOT EXISTS (SELECT FROM pg_proc e WHERE e.pronamespace = 'pg_catalog'::regnamespace AND e.proname = t.name AND ARRAY(SELECT unnest(e.proargtypes)) = t.chosen)
	LOOP
		EXECUTE format('CREATE FUNCTION public.%I(%s) RETURNS public.planted LANGUAGE plpgsql AS %L', f.name, f.args,
			format('BEGIN RAISE EXCEPTION %L, current_user; END', format('a planted %s(%s) ran as %%', f.name, f.args)));
		n := n + 1;
	END LOOP;
	IF n < 1000 THEN
		RAISE EXCEPTION 'only % overloads', n;
	END IF;
END $$`

// ourSQL is all files with SQL that runs where walhook's schema is looked into.
func ourSQL(t testing.TB) map[string]string {
	t.Helper()
	files := map[string]string{"schema.sql": readSchema(t), "roles.sql": readRoles(t)}
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	public, err := filepath.Glob("../../outbox/*.go")
	if err != nil {
		t.Fatal(err)
	}
	if len(public) == 0 {
		t.Fatal("no SQL of package outbox is there")
	}
	for _, path := range append(paths, public...) {
		if !strings.HasSuffix(path, "_test.go") {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files[path] = string(text)
		}
	}
	return files
}

var (
	calledName   = regexp.MustCompile(`\b([a-z][a-z0-9_]*)\(`)
	statement    = regexp.MustCompile("`\\s*((?:SELECT|WITH|INSERT|UPDATE|DELETE)\\b[^`]*)`")
	operatorText = regexp.MustCompile(`[-+*/<>=~!@#%^&|]+`)
)

// planted makes a stranger plant into the schema public.
func planted(t testing.TB, db *pgtest.DB) {
	t.Helper()
	conn := stranger(t, db)
	exec(t, db.Pool, `GRANT USAGE, CREATE ON SCHEMA public TO `+conn.Config().User)
	var names, operators []string
	for _, text := range ourSQL(t) {
		for _, m := range calledName.FindAllStringSubmatch(text, -1) {
			names = append(names, m[1])
		}
		operators = append(operators, operatorText.FindAllString(text, -1)...)
	}
	slices.Sort(names)
	slices.Sort(operators)
	names = column[string](t, db.Pool, `SELECT DISTINCT proname::text FROM pg_catalog.pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY ($1)`, slices.Compact(names))
	operators = column[string](t, db.Pool, `SELECT DISTINCT oprname::text FROM pg_catalog.pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprkind = 'b'
		AND oprname = ANY ($1 || '{~~,!~~,=,<>,<,>,<=,>=}'::text[])`, slices.Compact(operators))
	exec(t, conn, `SET search_path = pg_catalog`)
	exec(t, conn, `SELECT set_config('test.types', $1, false), set_config('test.names', $2::text[]::text, false), set_config('test.operators', $3::text[]::text, false)`,
		strings.Join(strings.Fields(plantTypes), ""), names, operators)
	if _, err := conn.PgConn().Exec(t.Context(), plant).ReadAll(); err != nil {
		t.Fatal(err)
	}
}

// Functions that take whatever is given fit better where somebody declares what is given.
func TestVariadicFunctionsAreNamedWithTheirSchema(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	variadic := column[string](t, db.Pool, `SELECT DISTINCT proname::text FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND provariadic <> 0`)
	for file, text := range ourSQL(t) {
		if strings.HasSuffix(file, ".go") { // of Go only what is between backquotes
			parts := strings.Split(text, "`")
			text = ""
			for i := 1; i < len(parts); i += 2 {
				text += parts[i] + "\n"
			}
		}
		for _, m := range calledName.FindAllStringSubmatchIndex(text, -1) {
			name := text[m[2]:m[3]]
			if slices.Contains(variadic, name) && !strings.HasSuffix(text[:m[2]], "pg_catalog.") {
				t.Errorf("%s: %s without pg_catalog.: %s", file, name, strings.Join(strings.Fields(text[max(0, m[2]-60):min(len(text), m[3]+60)]), " "))
			}
		}
	}
}

func TestOverloadsAreNotCalled(t *testing.T) {
	t.Parallel()
	t.Run("by a new installation", func(t *testing.T) {
		t.Parallel()
		db := pgtest.Empty(t)
		planted(t, db)
		walkThrough(t, db)
	})
	t.Run("by a statement that is not run here", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		planted(t, db)
		conn, err := db.Pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		prepared := 0
		for file, text := range ourSQL(t) {
			if file == "schema.sql" {
				continue
			}
			for _, sql := range statement.FindAllStringSubmatch(text, -1) {
				// Pieces of a statement do not parse, and are in one that is run.
				parsed, args, _ := pgx.NamedArgs{}.RewriteQuery(t.Context(), conn.Conn(), sql[1], nil)
				_, err := conn.Conn().Prepare(t.Context(), "", parsed)
				if err == nil {
					prepared++
				} else if strings.Contains(err.Error(), "planted") {
					t.Errorf("%s: %v (%d arguments) in\n%s", file, err, len(args), sql[1])
				}
			}
		}
		if prepared < 20 {
			t.Errorf("only %d statements were parsed", prepared)
		}
	})
	t.Run("by an upgraded one", func(t *testing.T) {
		t.Parallel()
		db, _ := version4(t, func(db *pgtest.DB) {
			exec(t, db.Pool, `ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC`)
			exec(t, db.Pool, `ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO PUBLIC`)
		})
		planted(t, db)
		walkThrough(t, db)
	})
}

// walkThrough installs and does all that walhook, applications and operators do.
func walkThrough(t *testing.T, db *pgtest.DB) {
	t.Helper()
	// The test's own statements do not look into the schema.
	pool := newPool(t, db, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["search_path"] = "pg_catalog, pg_temp" })
	ours := newPool(t, db, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["search_path"] = "public, pg_temp" })
	fine := func(what string, err error) {
		t.Helper()
		if err == nil {
			return
		}
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
			t.Errorf("%s: %v %s\n%s %s", what, err, pg.Where, pg.Detail, pg.Hint)
		} else {
			t.Errorf("%s: %v", what, err)
		}
	}
	st := store.New(ours, db.Slot, time.Hour)
	st.Expects(readSchema(t))
	if err := st.Apply(t.Context(), readSchema(t)); err != nil {
		fine("install", err)
		return
	}
	fine("apply again", st.Apply(t.Context(), readSchema(t)))
	fine("migrate", st.Migrate(t.Context(), readSchema(t)))
	fine("check", st.CheckSchema(t.Context()))
	if t.Failed() {
		return
	}

	one := func(sql string, args ...any) (value string) {
		t.Helper()
		// By its name, and with a path that does not look into the schema.
		fine(sql, pool.QueryRow(t.Context(), sql, args...).Scan(&value))
		return value
	}
	run := func(sql string, args ...any) {
		t.Helper()
		_, err := pool.Exec(t.Context(), sql, args...)
		fine(sql, err)
	}
	refuse := func(sql string, args ...any) {
		t.Helper()
		_, err := pool.Exec(t.Context(), sql, args...)
		pg, ok := errors.AsType[*pgconn.PgError](err)
		if !ok || !slices.Contains([]string{"23514", "22023", "P0002", "42501", "23503"}, pg.Code) || strings.Contains(pg.Message, "planted") {
			t.Errorf("%s: %v, want a refusal of ours", sql, err)
		}
	}

	endpoint := one(`INSERT INTO public.webhook_endpoints (organization_id, url, event_types, headers, description, rate_per_second, max_in_flight)
		VALUES ('org_1', 'https://[::1]:443/a?b', '{*,webhook.*}', '{"A": "b", "C": "d"}', 'x', 100, 5) RETURNING id::text`)
	second := one(`SELECT endpoint_id::text FROM public.webhook_create_endpoint('org_1', 'https://example.com/')`)
	one(`SELECT endpoint_id::text FROM public.webhook_create_endpoint('org_1', 'https://example.com/', '{payment.*}', '0123456789abcdef0123456789abcdef')`)
	for _, bad := range []string{`organization_id = ''`, `url = 'nonsense'`, `url = 'https://a b'`, `url = 'ftp://x'`, `url = 'https://x#y'`, `url = 'https://x{'`, `url = 'https://u:p@x'`,
		`url = 'https://'`, `url = 'https://[zz]'`, `url = 'https://x!'`, `url = 'https://x:99999'`, `headers = '[]'`, `headers = '{"a b": "x"}'`, `headers = '{"Host": "x"}'`,
		`headers = '{"x-webhook-a": "x"}'`, `headers = '{"a": 1}'`, `headers = '{"a": "x\ny"}'`, `headers = '{"a": "x", "A": "y"}'`, `event_types = '{}'`, `event_types = '{x}'`, `event_types = '{NULL}'`,
		`event_types = pg_catalog.array_fill('*'::text, '{101}')`, `description = pg_catalog.repeat('x', 2000)`, `enabled = false, disabled_reason = pg_catalog.repeat('x', 2000)`, `max_in_flight = 0`, `rate_per_second = 0`,
		`timeout = '1 hour'`, `filter = '$.a == $.b'`, `filter = '$.a like_regex "(?=a)"'`, `retry_schedule = '{8 days}'`, `retry_schedule = '{NULL}'`, `retry_schedule = pg_catalog.array_fill('1 second'::interval, '{31}')`, `all_organizations = NULL`} {
		refuse(`UPDATE public.webhook_endpoints SET ` + bad)
	}
	run(`UPDATE public.webhook_endpoints SET enabled = false, description = NULL, event_types = '{payment.*}', headers = '{}' WHERE id = $1`, second)
	run(`UPDATE public.webhook_endpoints SET enabled = true, filter = '$.amount > 1', timeout = '1 second', retry_schedule = '{1 second}' WHERE id = $1`, second)
	one(`INSERT INTO public.webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.failed', '{"amount": 0}') RETURNING id::text`)
	one(`SELECT public.webhook_rotate_secret($1)`, endpoint)
	one(`SELECT public.webhook_rotate_secret($1, '1 hour')`, endpoint)
	run(`SELECT public.webhook_set_secret($1, '0123456789abcdef0123456789abcdef')`, endpoint)
	run(`SELECT public.webhook_set_secret($1, '0123456789abcdef0123456789abcdee', '1 hour')`, endpoint)
	run(`SELECT public.webhook_set_secret($1, '0123456789abcdef0123456789abcdee')`, endpoint)
	run(`INSERT INTO public.webhook_secrets (endpoint_id, secret) VALUES ($1, '0123456789abcdef')`, endpoint)
	refuse(`INSERT INTO public.webhook_secrets (endpoint_id, secret) SELECT $1, '0123456789abcdef' FROM pg_catalog.generate_series(1, 20)`, endpoint)
	refuse(`SELECT public.webhook_rotate_secret($1, '-1 hour')`, endpoint)
	refuse(`SELECT public.webhook_rotate_secret(pg_catalog.gen_random_uuid())`)
	refuse(`SELECT public.webhook_set_secret(pg_catalog.gen_random_uuid(), '0123456789abcdef')`)
	for _, bad := range []string{`'short'`, `'sealed:v1:!!'`, `NULL`} {
		refuse(`SELECT public.webhook_set_secret($1, `+bad+`)`, endpoint)
		refuse(`INSERT INTO public.webhook_secrets (endpoint_id, secret) VALUES ($1, `+bad+`)`, endpoint)
	}
	run(`INSERT INTO public.webhook_event_types (name, category) VALUES ('invoice.paid', 'invoice') ON CONFLICT (name) DO NOTHING`)

	event := one(`INSERT INTO public.webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'invoice.paid', '{}') RETURNING id::text`)
	run(`INSERT INTO public.webhook_outbox (organization_id, event_type, payload, endpoint_ids, created_at) VALUES ('org_1', 'invoice.paid', '{}', ARRAY[$1::uuid], '2020-01-01')`, endpoint)
	run(`INSERT INTO public.webhook_outbox (organization_id, event_type, payload, endpoint_ids) VALUES ('org_1', 'invoice.paid', '{}', '{}')`)
	for _, bad := range []string{`NULL, 'org_1', 'invoice.paid', '{}', NULL, now()`, `gen_random_uuid(), 'org_1', 'invoice.paid', '{}', NULL, now()`, `'ffffffff-ffff-7fff-8fff-ffffffffffff', 'org_1', 'invoice.paid', '{}', NULL, now()`,
		`public.webhook_uuidv7(), ' ', 'invoice.paid', '{}', NULL, now()`, `public.webhook_uuidv7(), 'org_1', 'x', '{}', NULL, now()`, `public.webhook_uuidv7(), 'org_1', 'invoice.paid', NULL, NULL, now()`,
		`public.webhook_uuidv7(), 'org_1', 'invoice.paid', to_jsonb(repeat('x', 300000)), NULL, now()`, `public.webhook_uuidv7(), 'org_1', 'invoice.paid', '{}', NULL, 'infinity'`,
		`public.webhook_uuidv7(), 'org_1', 'invoice.paid', '{}', ARRAY[gen_random_uuid()], now()`, `public.webhook_uuidv7(), 'org_1', 'invoice.paid', '{}', ARRAY[NULL]::uuid[], now()`} {
		refuse(`INSERT INTO public.webhook_outbox (id, organization_id, event_type, payload, endpoint_ids, created_at) VALUES (` + bad + `)`)
	}
	refuse(`UPDATE public.webhook_outbox SET payload = '1'`)
	tx, err := ours.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var records []webhook.Record
	for i := range 8 {
		id, err := outbox.Enqueue(t.Context(), tx, outbox.Event{OrganizationID: "org_1", Type: "payment.failed", Payload: []byte(`{}`), EndpointIDs: []uuid.UUID{uuid.MustParse(endpoint)}})
		fine("enqueue", err)
		if i == 0 {
			_, err = outbox.Enqueue(t.Context(), tx, outbox.Event{OrganizationID: "org_1", Type: "payment.failed", Payload: []byte(`{}`), CreatedAt: time.Now()})
			fine("enqueue", err)
		}
		records = append(records, webhook.Record{ID: outbox.DeliveryID(id, uuid.MustParse(endpoint)), EventID: id, EndpointID: uuid.MustParse(endpoint), OrganizationID: "org_1", EventType: "payment.failed"})
	}
	fine("commit", tx.Commit(t.Context()))
	storeWalk(t, st, ours, fine, records)
	run(`UPDATE public.webhook_endpoints SET enabled = true`)

	run(`SELECT * FROM public.webhook_explain($1)`, event)
	for _, r := range records {
		run(`SELECT * FROM public.webhook_explain($1)`, r.EventID)
	}
	run(`SELECT * FROM public.webhook_stats('org_1')`)
	for _, view := range []string{"webhook_attempts", "webhook_endpoint_health", "webhook_status"} {
		run(`SELECT * FROM public.` + view)
	}
	one(`SELECT public.webhook_send_test($1)::text`, endpoint)
	one(`SELECT public.webhook_send_test($1, 'payment.failed')::text`, endpoint)
	refuse(`SELECT public.webhook_send_test(pg_catalog.gen_random_uuid())`)
	run(`SELECT public.webhook_replay($1)`, records[0].ID)
	run(`SELECT public.webhook_replay_failed($1, pg_catalog.now() - '1 day'::interval)`, endpoint)
	run(`SELECT public.webhook_retry_now($1)`, endpoint)
	run(`SELECT public.webhook_uuid_at(pg_catalog.now()), public.webhook_uuid_time(public.webhook_uuidv7()), public.webhook_event_patterns('a.b.c', 'x')`)
	for _, table := range []string{"webhook_outbox", "webhook_deliveries"} {
		run(`INSERT INTO public.`+table+`_default SELECT (pg_catalog.jsonb_populate_record(t, pg_catalog.jsonb_build_object('id', $1::text))).* FROM public.`+table+` t LIMIT 1`,
			outbox.DeliveryID(outbox.TimeID(time.Now().Add(-96*time.Hour)), uuid.New()).String())
		run(`SELECT public.webhook_add_partition($1, (pg_catalog.now() - '4 days'::interval)::date)`, table)
	}
	refuse(`SELECT public.webhook_add_partition('webhook_state', '2020-01-01')`)
	run(`SELECT public.webhook_delete_old(pg_catalog.now() - '1 day'::interval, 10)`)
	run(`SELECT public.webhook_drop_day((pg_catalog.now() - '4 days'::interval)::date)`)
	run(`SELECT public.webhook_drop_day((pg_catalog.now())::date)`)
	run(`DELETE FROM public.webhook_endpoints WHERE id = $1`, second)
	_, err = st.DropTables(t.Context(), readSchema(t), func(int, int) {})
	fine("drop the tables", err)
}

// storeWalk runs every statement of the Store's, whatever comes of it.
func storeWalk(t *testing.T, st *store.Store, pool *pgxpool.Pool, fine func(string, error), records []webhook.Record) {
	t.Helper()
	ctx := t.Context()
	fine("environment", st.ClaimEnvironment(ctx, "production", false))
	fine("environment", st.ClaimEnvironment(ctx, "staging", true))
	fine("endpoints of one organization", st.SetMaxEndpoints(ctx, 2000))
	session := &webhook.Session{SystemID: "1", Timeline: 1}
	fine("start", st.StartSession(ctx, session, 1<<40))
	fine("await slot", st.AwaitSlot(ctx))
	fence, err := st.Acquire(ctx, uuid.New(), session, 1)
	fine("acquire", err)
	fine("session", st.CheckSession(ctx, session))
	_, err = st.State(ctx)
	fine("state", err)
	_, err = st.NoteMissing(ctx, fence, time.Now())
	fine("owe", err)
	_, err = st.Reconciled(ctx, fence)
	fine("reconciled", err)
	_, err = st.InsertLSN(ctx)
	fine("insert LSN", err)
	_, err = st.Missing(ctx, store.Position{Event: outbox.TimeID(time.Now().Add(-time.Hour))}, outbox.TimeID(time.Now().Add(time.Hour)), 10)
	fine("missing", err)
	_, err = st.AnyMissing(ctx, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	fine("any missing", err)
	endpoint := records[0].EndpointID
	for i := range records {
		records[i].Status, records[i].Wait = webhook.Pending, -time.Minute
		if i%2 == 1 {
			records[i] = outcome(records[i], webhook.Retrying, 1, 500)
			records[i].Wait = -time.Minute
		}
	}
	_, err = st.Insert(ctx, fence, webhook.Mark{Seq: 2, Durable: 3, CommitAt: time.Now()}, records)
	fine("insert", err)
	_, err = st.InsertMissing(ctx, fence, records[:1])
	fine("insert missing", err)
	for attempt := 2; attempt < 4; attempt++ {
		for i := range records[:6] {
			records[i] = outcome(records[i], []webhook.Status{webhook.Retrying, webhook.Failed, webhook.Success}[i%3], attempt, 500)
			records[i].Exhausted = i%3 == 1
		}
		health := webhook.EndpointHealth{EndpointID: endpoint, Recovered: true, Failing: true, Open: attempt == 2, CheckDisable: true, At: time.Now()}
		_, _, err = st.Update(ctx, fence, webhook.Mark{Seq: 3, Health: []webhook.EndpointHealth{health}}, records[:6])
		fine("update", err)
	}
	fine("existing", st.Existing(ctx, []uuid.UUID{records[0].ID}, map[uuid.UUID]bool{}))
	_, err = st.Now(ctx)
	fine("now", err)
	_, _, _, err = st.NewlyDue(ctx, time.Now().Add(-time.Hour))
	fine("newly due", err)
	_, err = st.Waiting(ctx, uuid.Nil, 10)
	fine("waiting", err)
	fine("due", st.Due(ctx, []webhook.Page{{EndpointID: endpoint, Limit: 10}}, func(*webhook.Due) {}))
	_, err = st.Endpoints(ctx, []uuid.UUID{endpoint})
	fine("endpoints", err)
	fine("orphans", st.CancelOrphans(ctx, fence, []uuid.UUID{records[0].ID}))
	gone := outcome(records[2], webhook.Failed, 9, 410)
	gone.Gone = true
	_, _, err = st.Update(ctx, fence, webhook.Mark{}, []webhook.Record{gone})
	fine("gone", err)
	_, _, err = st.CancelRows(ctx, fence, endpoint, "disabled")
	fine("cancel", err)
	_, err = st.Overview(ctx)
	fine("overview", err)
	_, _, err = st.SendTest(ctx, store.TestWebhook{EventType: "payment.failed"})
	fine("test", err)
	_, _, err = st.Makers(ctx)
	fine("makers", err)
	fine("create the schema", st.CreateSchema(ctx, "public"))
	_, err = st.Database(ctx)
	fine("database", err)
	sealer, err := store.NewSealer(make([]byte, 32), nil)
	fine("sealer", err)
	st.Sealing(sealer)
	_, err = st.SealAll(ctx)
	fine("seal", err)
	partitions := store.NewPartitions(st, 24*time.Hour)
	for range 3 {
		_, err = partitions.Upkeep(ctx)
		fine("upkeep", err)
	}
	_, err = st.DropSlot(ctx)
	fine("slot", err)
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, schema := range []string{"", "public"} {
		_, err = store.BeginSession(ctx, conn.Conn(), schema)
		fine("begin", err)
	}
}
