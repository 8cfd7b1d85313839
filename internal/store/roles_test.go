package store_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
)

func readRoles(t testing.TB) string {
	t.Helper()
	roles, err := os.ReadFile("../../roles.sql")
	if err != nil {
		t.Fatal(err)
	}
	return string(roles)
}

// rolesServer is a server of the test's own: names of roles are the server's.
func rolesServer(t testing.TB, schema string) *pgtest.DB {
	t.Helper()
	server := pgtest.Server(t, postgres.Options{Settings: map[string]string{"wal_level": "logical"}})
	db := &pgtest.DB{URL: server.URL(), Slot: "walhook"}
	db.Pool = newPool(t, db, func(*pgxpool.Config) {})
	if schema != "" {
		if err := apply(t.Context(), db.Pool, schema); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

// A password is what newPool's asRole gives; roles.sql sets none.
func asLogin(t testing.TB, db *pgtest.DB, role string) *pgxpool.Pool {
	t.Helper()
	exec(t, db.Pool, `ALTER ROLE `+role+` PASSWORD '`+role+`'`)
	return newPool(t, db, asRole(role))
}

// Of two at once, in one database or in two of a server, the second waits: nothing fails, whether the roles are made or are there.
func TestRolesAtOnce(t *testing.T) {
	t.Parallel()
	db := rolesServer(t, readSchema(t))
	exec(t, db.Pool, `CREATE DATABASE other`)
	other := newPool(t, db, func(c *pgxpool.Config) { c.ConnConfig.Database = "other" })
	if err := apply(t.Context(), other, readSchema(t)); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{"roles that are made", "roles that are there"} {
		var wg sync.WaitGroup
		errs := make([]error, 6)
		for i := range errs {
			wg.Go(func() { errs[i] = apply(t.Context(), []*pgxpool.Pool{db.Pool, other}[i%2], readRoles(t)) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Errorf("%s: %v", state, err)
		}
	}
	if !query[bool](t, db.Pool, `SELECT rolreplication FROM pg_roles WHERE rolname = 'walhook_run'`) {
		t.Error("walhook_run cannot replicate")
	}
}

const denied = "permission denied"

// Each role may do what it is for, and nothing else.
func TestWhatEachRoleMay(t *testing.T) {
	t.Parallel()
	db := rolesServer(t, readSchema(t))
	exec(t, db.Pool, `REVOKE CREATE ON SCHEMA public FROM PUBLIC`) // PostgreSQL 14 grants it
	st := store.New(db.Pool, db.Slot, disableAfter)
	for range 2 { // it can be applied again
		if err := st.ApplyRoles(t.Context(), readRoles(t)); err != nil {
			t.Fatal(err)
		}
	}
	roles := []string{"walhook_run", "walhook_app", "walhook_backend", "walhook_ops", "walhook_tenant"}
	pools := map[string]*pgxpool.Pool{}
	for _, role := range roles {
		pools[role] = asLogin(t, db, role)
	}
	endpoint := query[string](t, db.Pool, `INSERT INTO webhook_endpoints (organization_id, url, headers)
		VALUES ('org_1', 'https://example.com:8443/hook?token=hunter2', '{"Authorization": "Bearer hunter2"}') RETURNING id::text`)
	event := newEvent(t, db.Pool, "org_1", "payment.failed")
	delivery := newDelivery(t, db.Pool, event, endpoint, "failed")

	const run, app, backend, ops, tenant = "walhook_run ", "walhook_app ", "walhook_backend ", "walhook_ops ", "walhook_tenant "
	for sql, may := range map[string]string{
		`INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.failed', '{}') RETURNING id`: run + app + backend,
		`SELECT id FROM webhook_outbox`:                                                                run + app + backend + ops,
		`SELECT payload FROM webhook_outbox`:                                                           run + ops,
		`SELECT payload FROM webhook_outbox_default`:                                                   run,
		`UPDATE webhook_outbox SET payload = '{}'`:                                                     "",
		`DELETE FROM webhook_outbox`:                                                                   "",
		`TRUNCATE webhook_outbox`:                                                                      "",
		`SELECT id, url FROM webhook_endpoints`:                                                        run + backend,
		`SELECT id, enabled FROM webhook_endpoints`:                                                    run + backend + ops,
		`SELECT headers FROM webhook_endpoints`:                                                        run,
		`SELECT * FROM webhook_endpoints`:                                                              run,
		`SELECT FROM webhook_endpoints WHERE headers->>'Authorization' LIKE 'B%'`:                      run,
		`INSERT INTO webhook_endpoints (organization_id, url) VALUES ('org_1', 'https://example.com')`: backend,
		`INSERT INTO webhook_endpoints (organization_id, url) VALUES ('org_1', 'https://example.com') RETURNING headers`:      "",
		`INSERT INTO webhook_endpoints (id, organization_id, url) VALUES (gen_random_uuid(), 'org_1', 'https://example.com')`: "",
		`UPDATE webhook_endpoints SET url = 'https://example.org', headers = '{"A": "b"}' WHERE organization_id = 'org_1'`:    backend,
		`UPDATE webhook_endpoints SET url = 'https://example.org' RETURNING headers`:                                          "",
		`UPDATE webhook_endpoints SET headers = headers || '{"A": "b"}'`:                                                      run,
		`UPDATE webhook_endpoints SET enabled = false, disabled_reason = 'moved'`:                                             run + backend,
		`DELETE FROM webhook_endpoints WHERE id = '` + endpoint + `'`:                                                         backend,
		`SELECT secret FROM webhook_secrets`:                                                                                  run,
		`UPDATE webhook_secrets SET secret = 'a secret of sixteen' WHERE id = 0`:                                              run,
		`UPDATE webhook_secrets SET expires_at = now()`:                                                                       "",
		`INSERT INTO webhook_secrets (endpoint_id, secret) VALUES ('` + endpoint + `', 'a secret of sixteen')`:                "",
		`DELETE FROM webhook_secrets`:                                                        "",
		`SELECT webhook_create_endpoint('org_1', 'https://example.com')`:                     backend,
		`SELECT webhook_rotate_secret('` + endpoint + `')`:                                   backend,
		`SELECT webhook_set_secret('` + endpoint + `', 'a secret of sixteen')`:               backend,
		`SELECT webhook_replace_secret('` + endpoint + `', 'a secret of sixteen', '0')`:      "",
		`SELECT webhook_new_secret()`:                                                        "",
		`SELECT webhook_forget('org_9')`:                                                     backend,
		`SELECT webhook_note_forgotten('{}')`:                                                "",
		`SELECT webhook_writers()`:                                                           "",
		`SELECT * FROM webhook_forgetting`:                                                   "",
		`SELECT webhook_send_test('` + endpoint + `')`:                                       run + backend,
		`SELECT * FROM webhook_deliveries`:                                                   run + ops,
		`INSERT INTO webhook_deliveries SELECT * FROM webhook_deliveries WHERE false`:        run,
		`UPDATE webhook_deliveries SET status = 'success' WHERE id = '` + delivery + `'`:     run + ops,
		`UPDATE webhook_deliveries SET response = ''`:                                        run,
		`DELETE FROM webhook_deliveries`:                                                     "",
		`SELECT webhook_replay('` + delivery + `')`:                                          run + ops,
		`SELECT webhook_replay_failed('` + endpoint + `', now() - interval '1 day')`:         run + ops,
		`SELECT webhook_retry_now('` + endpoint + `')`:                                       run + ops,
		`SELECT webhook_pause('` + endpoint + `')`:                                           run + ops,
		`SELECT webhook_resume('` + endpoint + `')`:                                          run + ops,
		`SELECT * FROM webhook_attempts`:                                                     ops,
		`SELECT * FROM webhook_status`:                                                       run + ops,
		`SELECT * FROM webhook_state`:                                                        run + ops,
		`UPDATE webhook_state SET environment = 'x'`:                                         run,
		`DELETE FROM webhook_state`:                                                          "",
		`SELECT * FROM webhook_event_types`:                                                  run + backend + ops,
		`INSERT INTO webhook_event_types (name, category) VALUES ('a.b', 'a')`:               "",
		`SELECT * FROM webhook_retries`:                                                      run + ops,
		`SELECT * FROM webhook_endpoint_failures`:                                            run + ops,
		`SELECT * FROM webhook_stats('org_1')`:                                               run + ops,
		`SELECT * FROM webhook_explain('` + event + `')`:                                     run,
		`SELECT * FROM webhook_ops_explain('` + event + `')`:                                 ops,
		`SELECT * FROM webhook_ops_endpoints`:                                                ops,
		`SELECT * FROM webhook_tenant_endpoints`:                                             backend + tenant,
		`SELECT * FROM webhook_tenant_deliveries`:                                            backend + tenant,
		`SELECT * FROM webhook_tenant_attempts`:                                              backend + tenant,
		`UPDATE webhook_tenant_endpoints SET filter = NULL, paused_at = now()`:               backend,
		`UPDATE webhook_tenant_endpoints SET organization_id = 'x'`:                          "",
		`DELETE FROM webhook_tenant_endpoints`:                                               backend,
		`UPDATE webhook_tenant_deliveries SET status = 'pending', next_attempt_at = now()`:   backend,
		`UPDATE webhook_tenant_deliveries SET response = ''`:                                 "",
		`DELETE FROM webhook_tenant_deliveries`:                                              "",
		`SELECT webhook_add_partition('webhook_outbox', current_date)`:                       run,
		`SELECT webhook_drop_day('2020-01-01')`:                                              run,
		`SELECT webhook_delete_old('2020-01-01', 1)`:                                         run,
		`DROP TABLE webhook_outbox_p` + time.Now().UTC().AddDate(0, 0, 7).Format("20060102"): "",
		`ALTER TABLE webhook_outbox ADD COLUMN x int`:                                        "",
		`ALTER TABLE webhook_outbox DISABLE TRIGGER ALL`:                                     "",
		`CREATE TABLE public.mine ()`:                                                        "",
		`ALTER PUBLICATION walhook SET (publish = 'delete')`:                                 "",
		`SET ROLE walhook_owner`:                                                             "",
	} {
		for _, role := range roles {
			tx := begin(t, pools[role])
			_, err := tx.Exec(t.Context(), sql)
			wanted := strings.Contains(may, role+" ")
			switch text := errorText(err); {
			case wanted && err != nil:
				t.Errorf("%s: %s: %v", role, sql, err)
			case !wanted && !strings.Contains(text, denied) && !strings.Contains(text, "must be owner"):
				t.Errorf("%s may: %s (%v)", role, sql, err)
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}

	t.Run("operators see scheme and host of URLs", func(t *testing.T) {
		for _, sql := range []string{
			`SELECT url FROM webhook_ops_endpoints WHERE id = $1`, `SELECT url FROM webhook_ops_explain($2) WHERE endpoint_id = $1`,
		} {
			sql = strings.NewReplacer("$1", "'"+endpoint+"'", "$2", "'"+event+"'").Replace(sql)
			if got := query[string](t, pools["walhook_ops"], sql); got != "https://example.com:8443" {
				t.Errorf("%s: %s", sql, got)
			}
		}
		if got := query[string](t, db.Pool, `SELECT webhook_url_host('https://user:hunter2@example.com?x=hunter2@b')`); got != "https://example.com" {
			t.Error(got)
		}
	})

	t.Run("all that is walhook's belongs to its owner", func(t *testing.T) {
		if others := column[string](t, db.Pool, `
			SELECT c.relname::text FROM pg_class c WHERE c.relname LIKE 'webhook%' AND pg_get_userbyid(c.relowner) <> 'walhook_owner'
			UNION ALL SELECT p.proname FROM pg_proc p WHERE p.proname LIKE 'webhook%' AND pg_get_userbyid(p.proowner) <> 'walhook_owner'
			UNION ALL SELECT pubname FROM pg_publication WHERE pg_get_userbyid(pubowner) <> 'walhook_owner'`); len(others) > 0 {
			t.Errorf("another's: %q", others)
		}
	})
}

// The application's role cannot silence operators' endpoints, whatever it calls. Operators and walhook do what they are for.
func TestOperatorsEndpointsAreNotTheApplications(t *testing.T) {
	t.Parallel()
	db := rolesServer(t, readSchema(t))
	if err := store.New(db.Pool, db.Slot, disableAfter).ApplyRoles(t.Context(), readRoles(t)); err != nil {
		t.Fatal(err)
	}
	operators := newOperators(t, db, "")
	in := strings.NewReplacer("ENDPOINT", "'"+operators+"'")
	backend := asLogin(t, db, "walhook_backend")
	exec(t, backend, `SELECT webhook_create_endpoint('ops', 'https://example.com')`)
	for _, sql := range []string{
		`UPDATE webhook_endpoints SET enabled = false WHERE id = ENDPOINT`, `UPDATE webhook_endpoints SET filter = '$.a == 1'`, `DELETE FROM webhook_endpoints`,
		`SET walhook.organization = 'ops'; UPDATE webhook_tenant_endpoints SET paused_at = now()`, `SET walhook.organization = 'ops'; DELETE FROM webhook_tenant_endpoints`,
		`SELECT webhook_rotate_secret(ENDPOINT)`, `SELECT webhook_set_secret(ENDPOINT, 'a secret of its own')`, `SELECT webhook_forget('ops')`,
	} {
		refused(t, backend, "only the owner of the tables", in.Replace(sql))
	}
	exec(t, backend, in.Replace(`SELECT webhook_send_test(ENDPOINT)`))
	exec(t, backend, `DELETE FROM webhook_endpoints WHERE NOT all_organizations`)

	ops, run := asLogin(t, db, "walhook_ops"), asLogin(t, db, "walhook_run")
	for _, may := range []struct {
		db  querier
		sql string
	}{
		{ops, `SELECT webhook_pause(ENDPOINT)`},
		{ops, `SELECT webhook_resume(ENDPOINT)`},
		{run, `SELECT webhook_pause(ENDPOINT)`},
		{run, `UPDATE webhook_endpoints SET enabled = false, disabled_reason = 'answered 410 Gone' WHERE id = ENDPOINT`},
		{db.Pool, `SET ROLE walhook_owner; SELECT webhook_rotate_secret(ENDPOINT); SELECT webhook_forget('ops'); RESET ROLE`},
	} {
		exec(t, may.db, in.Replace(may.sql))
	}
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_endpoints`); n != 0 {
		t.Errorf("%d endpoints are left", n)
	}
}

func TestTenantsSeeTheirOwn(t *testing.T) {
	t.Parallel()
	db := rolesServer(t, readSchema(t))
	if err := store.New(db.Pool, db.Slot, disableAfter).ApplyRoles(t.Context(), readRoles(t)); err != nil {
		t.Fatal(err)
	}
	for _, organization := range []string{"org_1", "org_2"} {
		newDelivery(t, db.Pool, newEvent(t, db.Pool, organization, "payment.failed"), newEndpoint(t, db.Pool, organization), "failed")
	}
	tenant := begin(t, asLogin(t, db, "walhook_tenant"))
	for setting, want := range map[string][]string{"org_1": {"org_1"}, "org_2": {"org_2"}, "": {}, "org_3": {}} {
		exec(t, tenant, `SELECT set_config('walhook.organization', $1, true)`, setting)
		for _, view := range []string{"webhook_tenant_endpoints", "webhook_tenant_deliveries", "webhook_tenant_attempts"} {
			sql := `SELECT organization_id FROM ` + view
			if view == "webhook_tenant_attempts" {
				sql = `SELECT d.organization_id FROM webhook_tenant_attempts a JOIN webhook_tenant_deliveries d ON d.id = a.delivery_id`
			}
			if got := column[string](t, tenant, sql); !slices.Equal(got, want) {
				t.Errorf("with %q, %s shows %q", setting, view, got)
			}
		}
	}
	// A function that tells what it is called with sees no other organization's row.
	exec(t, tenant, `SELECT set_config('walhook.organization', 'org_1', true)`)
	exec(t, tenant, `CREATE FUNCTION pg_temp.tell(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN
		IF $1 <> 'org_1' THEN RAISE EXCEPTION 'saw %', $1; END IF; RETURN true; END $$`)
	for _, view := range []string{"webhook_tenant_endpoints", "webhook_tenant_deliveries"} {
		exec(t, tenant, `SELECT FROM `+view+` WHERE pg_temp.tell(organization_id)`)
	}
	// A range of ids reads the partitions of its days alone.
	plan := strings.Join(column[string](t, tenant, `EXPLAIN SELECT FROM webhook_tenant_deliveries WHERE id >= webhook_uuid_at(now() - interval '1 hour') AND id < webhook_uuid_at(now() + interval '1 hour')`), "\n")
	if strings.Count(plan, "webhook_deliveries_p") > 4 && !strings.Contains(plan, "Subplans Removed") {
		t.Errorf("it reads every day:\n%s", plan)
	}
}

// The former owner, perhaps the application itself, goes on beside the change.
func TestRolesTakeOverAnInstallation(t *testing.T) {
	t.Parallel()
	db := rolesServer(t, "")
	exec(t, db.Pool, `CREATE ROLE former LOGIN REPLICATION PASSWORD 'former'`)
	exec(t, db.Pool, `CREATE SCHEMA "web hooks" AUTHORIZATION former`)
	exec(t, db.Pool, `DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO former', current_database()); END $$`)
	in := func(role string) *pgxpool.Pool {
		return newPool(t, db, func(c *pgxpool.Config) {
			if role != "" {
				asRole(role)(c)
			}
			c.ConnConfig.RuntimeParams["search_path"] = `"web hooks", pg_temp`
		})
	}
	former, super := in("former"), in("")
	if err := apply(t.Context(), former, readSchema(t)); err != nil {
		t.Fatal(err)
	}
	st := store.New(super, db.Slot, disableAfter)
	exec(t, former, `CREATE FUNCTION webhook_of_the_application() RETURNS int LANGUAGE sql RETURN 1`)

	t.Run("a transaction that has inserted is not waited for", func(t *testing.T) {
		tx := begin(t, former)
		newEvent(t, tx, "org_1", "payment.failed")
		began := time.Now()
		checkRefusal(t, apply(t.Context(), super, readRoles(t)), "nothing was changed", "beside an open transaction")
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it waited for %s", took)
		}
		if n := query[int](t, super, `SELECT count(*) FROM pg_class WHERE relowner = to_regrole('walhook_owner')`); n != 0 {
			t.Errorf("%d tables have another owner", n)
		}
	})

	if err := st.ApplyRoles(t.Context(), readRoles(t)); err != nil {
		t.Fatal(err)
	}
	newEvent(t, former, "org_1", "payment.failed")
	exec(t, former, `SELECT webhook_add_partition('webhook_outbox', current_date + 20)`)
	if err := apply(t.Context(), super, readRoles(t)); err != nil {
		t.Errorf("again: %v", err)
	}
	if got := query[string](t, super, `SELECT pg_get_userbyid(proowner) FROM pg_proc WHERE proname = 'webhook_of_the_application'`); got != "former" {
		t.Errorf("the application's function belongs to %s", got)
	}
	// An upgrade makes what is missing as the owner, whoever may act as it.
	for _, pool := range []*pgxpool.Pool{former, super} {
		exec(t, super, `DROP VIEW webhook_ops_endpoints`)
		if err := store.New(pool, db.Slot, disableAfter).Apply(t.Context(), readSchema(t)); err != nil {
			t.Fatal(err)
		}
		if got := query[string](t, super, `SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'webhook_ops_endpoints'::regclass`); got != "walhook_owner" {
			t.Errorf("a view that was made again belongs to %s", got)
		}
	}
}

// On a managed platform nobody is a superuser.
func TestRolesNeedNoSuperuser(t *testing.T) {
	t.Parallel()
	db := rolesServer(t, "")
	exec(t, db.Pool, `CREATE ROLE admin LOGIN CREATEROLE REPLICATION PASSWORD 'admin'`)
	exec(t, db.Pool, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO admin', current_database()); END $$`)
	exec(t, db.Pool, `GRANT CREATE, USAGE ON SCHEMA public TO admin WITH GRANT OPTION`)
	admin := newPool(t, db, asRole("admin"))
	st := store.New(admin, db.Slot, disableAfter)
	for again := range 2 {
		if err := st.Apply(t.Context(), readSchema(t)); err != nil {
			t.Fatal(err)
		}
		if again == 0 {
			exec(t, db.Pool, `CREATE ROLE weak LOGIN PASSWORD 'weak'; GRANT admin TO weak`)
			checkRefusal(t, apply(t.Context(), newPool(t, db, asRole("weak")), readRoles(t)), "cannot make walhook's roles", "a role without CREATEROLE")
		}
		if err := st.ApplyRoles(t.Context(), readRoles(t)); err != nil {
			t.Fatal(err)
		}
	}
	if got := query[string](t, db.Pool, `SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'webhook_outbox'::regclass`); got != "walhook_owner" {
		t.Errorf("the outbox belongs to %s", got)
	}
	// Before PostgreSQL 16 only a superuser gives REPLICATION.
	if version := query[int](t, db.Pool, `SELECT current_setting('server_version_num')::int`); version >= 160000 !=
		query[bool](t, db.Pool, `SELECT rolreplication FROM pg_roles WHERE rolname = 'walhook_run'`) {
		t.Error("walhook_run: whether it may replicate is wrong")
	}
}

// A superuser applies the file where a stranger has planted functions and operators.
func TestRolesCallNoOverload(t *testing.T) {
	t.Parallel()
	db := rolesServer(t, readSchema(t))
	planted(t, db)
	for range 2 {
		if err := store.New(db.Pool, db.Slot, disableAfter).ApplyRoles(t.Context(), readRoles(t)); err != nil {
			t.Error(err)
		}
	}
}

// The lists in roles.sql are what schema.sql makes.
func TestRolesKnowAllObjects(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	roles := readRoles(t)
	for _, name := range column[string](t, db.Pool, `
		SELECT c.relname::text FROM pg_class c WHERE c.relname LIKE 'webhook\_%' AND c.relkind IN ('r', 'p', 'v') AND (NOT c.relispartition OR c.relname LIKE '%\_default')
		UNION SELECT p.proname FROM pg_proc p WHERE p.proname LIKE 'webhook\_%'`) {
		if !strings.Contains(roles, ","+name+",") && !strings.Contains(roles, "{"+name+",") && !strings.Contains(roles, "'"+name+",") && !strings.Contains(roles, ","+name+"}") && !strings.Contains(roles, "'"+name+"}") {
			t.Errorf("roles.sql does not give %s to walhook_owner", name)
		}
	}
}

// walhook's role does all that walhook does.
func TestRunAsWalhookRun(t *testing.T) {
	t.Parallel()
	db := rolesServer(t, readSchema(t))
	if err := store.New(db.Pool, db.Slot, disableAfter).ApplyRoles(t.Context(), readRoles(t)); err != nil {
		t.Fatal(err)
	}
	asRun(t, db, asLogin(t, db, "walhook_run"))
}
