package outbox_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/postgres/pgtest"
)

// stranger makes a role that may log in, connect and make temporary tables, which is
// what PUBLIC may, and connects as it.
func stranger(t testing.TB, db *pgtest.DB) *pgx.Conn {
	t.Helper()
	role := strings.Replace(db.Slot, "test", "stranger", 1)
	exec(t, db.Pool, `CREATE ROLE `+role+` LOGIN PASSWORD '`+role+`'`)
	exec(t, db.Pool, `REVOKE CREATE ON SCHEMA public FROM PUBLIC`) // PostgreSQL 14 grants it
	config, err := pgx.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	config.User, config.Password = role, role
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(context.Background()); err != nil {
			t.Error(err)
		}
		for _, sql := range []string{`DROP OWNED BY ` + role + ` CASCADE`, `DROP ROLE ` + role} {
			if _, err := db.Pool.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	return conn
}

// What PUBLIC may execute, of all that schema.sql makes: it runs with the caller's rights.
var publicFunctions = []string{
	"webhook_delivery_id", "webhook_event_patterns", "webhook_explain", "webhook_replay", "webhook_replay_failed", "webhook_schema_version",
	"webhook_send_test", "webhook_stats", "webhook_uuid_at", "webhook_uuid_time", "webhook_uuidv7",
}

const selectPublicFunctions = `
SELECT DISTINCT p.proname || CASE WHEN p.prosecdef THEN ' (SECURITY DEFINER)' ELSE '' END
FROM pg_proc p CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
WHERE p.pronamespace = 'public'::regnamespace AND a.grantee = 0 AND p.proname LIKE 'webhook%' ORDER BY 1`

func TestNothingIsPublics(t *testing.T) {
	t.Parallel()
	check := func(t *testing.T, db *pgtest.DB) {
		t.Helper()
		if got := column[string](t, db.Pool, selectPublicFunctions); !slices.Equal(got, publicFunctions) {
			t.Errorf("PUBLIC may execute\n%q, want\n%q", got, publicFunctions)
		}
		if got := column[string](t, db.Pool, `
			SELECT c.relname || ' ' || a.privilege_type FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
			WHERE c.relnamespace = 'public'::regnamespace AND a.grantee = 0 AND c.relname LIKE 'webhook%'`); len(got) > 0 {
			t.Errorf("PUBLIC has %q", got)
		}
	}

	t.Run("in a new database", func(t *testing.T) {
		t.Parallel()
		check(t, pgtest.New(t))
	})

	t.Run("after an upgrade, and what roles were granted by name stays", func(t *testing.T) {
		t.Parallel()
		db, _ := version4(t)
		role := newRole(t, db)
		exec(t, db.Pool, `GRANT EXECUTE ON FUNCTION webhook_rotate_secret, webhook_url_problem TO `+role)
		if err := apply(t.Context(), db.Pool, readSchema(t)); err != nil {
			t.Fatal(err)
		}
		check(t, db)
		for _, f := range []string{"webhook_rotate_secret(uuid, interval)", "webhook_url_problem(text)"} {
			if !query[bool](t, db.Pool, `SELECT has_function_privilege($1, $2, 'EXECUTE')`, role, f) {
				t.Errorf("the role lost EXECUTE on %s", f)
			}
		}
	})
}

// A trigger function that is SECURITY DEFINER runs the casts of the columns of the
// table that it is put on, with its owner's rights: on a stranger's table, a
// stranger's casts.
func TestTriggerFunctionsAreOfNoUseToStrangers(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	newEndpoint(t, db.Pool, "org_1")
	conn := stranger(t, db)
	role := conn.Config().User
	functions := column[string](t, db.Pool, `
		SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prorettype = 'trigger'::regtype ORDER BY 1`)
	if len(functions) < 6 {
		t.Fatalf("trigger functions: %q", functions)
	}
	exec(t, db.Pool, `CREATE SCHEMA lair AUTHORIZATION `+role)
	exec(t, conn, `CREATE TYPE lair.bait AS (x int)`)
	exec(t, conn, `CREATE FUNCTION lair.steal(lair.bait) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
		RAISE EXCEPTION 'stolen as %: %', current_user, (SELECT secret FROM public.webhook_secrets); END $$`)
	exec(t, conn, `CREATE CAST (lair.bait AS text) WITH FUNCTION lair.steal(lair.bait) AS ASSIGNMENT`)

	attack := func(function, table string) (err error) {
		for _, sql := range []string{
			`CREATE TABLE ` + table + ` (id lair.bait, organization_id lair.bait, url lair.bait, headers lair.bait, event_types lair.bait, event_type lair.bait,
				payload lair.bait, created_at lair.bait, endpoint_ids lair.bait, shard lair.bait, enabled lair.bait)`,
			`CREATE TRIGGER trap BEFORE INSERT ON ` + table + ` FOR EACH ROW EXECUTE FUNCTION public.` + function + `()`,
			`INSERT INTO ` + table + ` VALUES (ROW(1), ROW(1), ROW(1), ROW(1), ROW(1), ROW(1), ROW(1), ROW(1), ROW(1), ROW(1), ROW(1))`,
		} {
			if _, err = conn.Exec(t.Context(), sql); err != nil {
				break
			}
		}
		exec(t, conn, `DROP TABLE `+table)
		return err
	}
	for _, function := range functions {
		checkRefusal(t, attack(function, "pg_temp.trap"), "permission denied for function public."+function, function)
	}

	// And where they may execute it all the same.
	for _, function := range functions {
		exec(t, db.Pool, fmt.Sprintf(`GRANT EXECUTE ON FUNCTION %s() TO %s`, function, role))
		want := "table trap is not walhook's: drop its trigger that calls " + function
		if function == "webhook_outbox_before_update" { // which only ever refuses
			want = "an event cannot be changed"
		}
		checkRefusal(t, attack(function, "pg_temp.trap"), want, function)
	}

	// A table of ours by its name alone.
	exec(t, db.Pool, `GRANT USAGE, CREATE ON SCHEMA public TO `+role)
	checkRefusal(t, attack("webhook_outbox_before_insert", "public.webhook_outbox_trap"), "has columns of other types than webhook_outbox", "a table in walhook's schema")
}
