package store_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
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
	"webhook_delivery_id", "webhook_event_patterns", "webhook_explain", "webhook_filter_cost", "webhook_filter_matches", "webhook_replay", "webhook_replay_failed", "webhook_schema_version",
	"webhook_send_test", "webhook_stats", "webhook_uuid_at", "webhook_uuid_time", "webhook_uuidv7", "webhook_waiting",
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

// rightsOf is a line for each right of a role on what is walhook's.
const rightsOf = `
SELECT c.relname || ' ' || a.privilege_type FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
WHERE c.relname LIKE 'webhook\_%' AND a.grantee = $1::regrole
UNION ALL SELECT p.proname || ' ' || a.privilege_type FROM pg_proc p CROSS JOIN LATERAL aclexplode(p.proacl) AS a
WHERE p.proname LIKE 'webhook\_%' AND a.grantee = $1::regrole`

// Platforms grant all that is made to roles that face the internet.
func TestDefaultPrivilegesGiveNothing(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)
	// platform grants to a new role, by both kinds of default privileges, and to PUBLIC.
	platform := func(t *testing.T, db *pgtest.DB) (anon string) {
		t.Helper()
		anon = strings.Replace(db.Slot, "test", "anon", 1)
		exec(t, db.Pool, `CREATE ROLE "`+anon+`"`)
		t.Cleanup(func() {
			for _, sql := range []string{`DROP OWNED BY "` + anon + `" CASCADE`, `DROP ROLE "` + anon + `"`} {
				if _, err := db.Pool.Exec(context.Background(), sql); err != nil {
					t.Error(err)
				}
			}
		})
		for _, what := range []string{"TABLES", "SEQUENCES", "FUNCTIONS", "TYPES"} {
			exec(t, db.Pool, `ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON `+what+` TO "`+anon+`" WITH GRANT OPTION`)
			exec(t, db.Pool, `ALTER DEFAULT PRIVILEGES GRANT ALL ON `+what+` TO "`+anon+`"`)
		}
		exec(t, db.Pool, `ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC`)
		exec(t, db.Pool, `CREATE TABLE webhook_of_the_application ()`)
		return anon
	}
	// install applies schema.sql and returns what it warns of.
	install := func(t *testing.T, db *pgtest.DB) (warnings []string) {
		t.Helper()
		config, err := pgx.ParseConfig(db.URL)
		if err != nil {
			t.Fatal(err)
		}
		config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { warnings = append(warnings, n.Message) }
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(t.Context()))
		if _, err := conn.PgConn().Exec(t.Context(), schema).ReadAll(); err != nil {
			t.Fatal(err)
		}
		return warnings
	}
	check := func(t *testing.T, db *pgtest.DB, anon string, warnings []string, keeps ...string) {
		t.Helper()
		got := column[string](t, db.Pool, granted, `"`+anon+`"`)
		got = slices.DeleteFunc(got, func(r string) bool { return strings.HasPrefix(r, "webhook_of_the_application") })
		if slices.Sort(got); !slices.Equal(got, keeps) {
			t.Errorf("the role has %d rights by default: %q, want %q", len(got), got, keeps)
		}
		if public := column[string](t, db.Pool, rightsOf, "-"); slices.ContainsFunc(public, func(r string) bool { return strings.HasSuffix(r, "SELECT") && !strings.HasPrefix(r, "webhook_of") }) {
			t.Errorf("PUBLIC has %q", public)
		}
		if len(warnings) != 2 || !strings.Contains(warnings[0]+warnings[1], anon) || !strings.Contains(warnings[0]+warnings[1], "PUBLIC") {
			t.Errorf("warnings: %q, want one for each grantee", warnings)
		}
		if got := query[bool](t, db.Pool, `SELECT has_table_privilege($1, 'webhook_of_the_application', 'SELECT')`, anon); !got {
			t.Error("a table of the application was taken from the role")
		}
	}

	t.Run("in a new database, and what is granted later stays", func(t *testing.T) {
		t.Parallel()
		db := pgtest.Empty(t)
		anon := platform(t, db)
		check(t, db, anon, install(t, db))

		exec(t, db.Pool, `SELECT webhook_add_partition('webhook_outbox', '2020-01-01'), webhook_add_partition('webhook_deliveries', '2020-01-01')`)
		if got := column[string](t, db.Pool, rightsOf, anon); slices.ContainsFunc(got, func(r string) bool { return strings.Contains(r, "_p20") }) {
			t.Errorf("on a new partition: %q", got)
		}
		exec(t, db.Pool, `GRANT SELECT ON webhook_deliveries TO "`+anon+`"`)
		exec(t, db.Pool, `GRANT EXECUTE ON FUNCTION webhook_rotate_secret TO "`+anon+`"`)
		exec(t, db.Pool, `DROP VIEW webhook_attempts`)
		if warnings := install(t, db); len(warnings) != 2 {
			t.Errorf("a view that was made again: warnings %q", warnings)
		}
		got := column[string](t, db.Pool, rightsOf+` EXCEPT SELECT 'webhook_of_the_application ' || privilege FROM unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER,MAINTAIN}'::text[]) AS privilege ORDER BY 1`, anon)
		if want := []string{"webhook_deliveries SELECT", "webhook_rotate_secret EXECUTE"}; !slices.Equal(got, want) {
			t.Errorf("after the schema was applied again the role has %q, want %q", got, want)
		}
	})

	t.Run("once, in a database of version 4, whose own grants stay", func(t *testing.T) {
		t.Parallel()
		var anon string
		db, roles := version4(t, func(db *pgtest.DB) { anon = platform(t, db) })
		grants := map[string][]string{}
		for _, role := range roles {
			grants[role] = column[string](t, db.Pool, granted, role)
		}
		if got := column[string](t, db.Pool, rightsOf, anon); len(got) < 50 {
			t.Fatalf("before: %q", got)
		}
		warnings := install(t, db)
		keeps := slices.IndexFunc(warnings, func(w string) bool { return strings.Contains(w, "keeps INSERT") })
		if keeps < 0 {
			t.Fatalf("nothing says that an INSERT stays: %q", warnings)
		}
		if w := warnings[keeps]; !strings.Contains(w, "REVOKE INSERT, SELECT (id) ON webhook_outbox FROM "+anon) {
			t.Errorf("how to take the INSERT away: %q", w)
		}
		// Whoever is called PUBLIC is no application.
		check(t, db, anon, slices.Delete(warnings, keeps, keeps+1), "webhook_outbox INSERT", "webhook_outbox.id SELECT")
		exec(t, db.Pool, `REVOKE INSERT, SELECT (id) ON webhook_outbox FROM "`+anon+`"`)
		for role, want := range grants {
			if lost, _ := differences(want, column[string](t, db.Pool, granted, role)); len(lost) > 0 {
				t.Errorf("%s lost %q", role, lost)
			}
		}
		exec(t, db.Pool, `GRANT SELECT ON webhook_outbox TO "`+anon+`"`)
		if warnings := install(t, db); len(warnings) > 0 {
			t.Errorf("applied again: %q", warnings)
		}
		if !query[bool](t, db.Pool, `SELECT has_table_privilege($1, 'webhook_outbox', 'SELECT')`, anon) {
			t.Error("what was granted after the upgrade was taken away")
		}
	})
}

// A business transaction cannot pay for a right that nobody can tell from one that was granted.
func TestUpgradeTakesNoINSERTAway(t *testing.T) {
	t.Parallel()
	for defaults, grant := range map[string]string{
		"SELECT, INSERT, UPDATE, DELETE ON TABLES TO ROLE": `INSERT, SELECT (id) ON webhook_outbox`,
		"ALL ON TABLES TO ROLE":                            ``,
		"SELECT ON TABLES TO ROLE":                         `INSERT ON webhook_outbox`,
		"SELECT ON TABLES TO PUBLIC":                       `INSERT ON webhook_outbox`,
		"INSERT, UPDATE ON TABLES TO ROLE":                 `SELECT (id, created_at), UPDATE (shard) ON webhook_outbox`,
	} {
		t.Run(defaults, func(t *testing.T) {
			t.Parallel()
			var role string
			db, _ := version4(t, func(db *pgtest.DB) {
				role = newRole(t, db)
				exec(t, db.Pool, `ALTER DEFAULT PRIVILEGES GRANT `+strings.ReplaceAll(defaults, "ROLE", role))
			})
			if grant != "" {
				exec(t, db.Pool, `GRANT `+grant+` TO `+role)
			}
			columns := column[string](t, db.Pool, `SELECT r FROM (`+granted+`) AS g (r) WHERE r LIKE '%.%'`, role)
			application := newPool(t, db, asRole(role))
			enqueue := `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.failed', '{}') RETURNING id`
			exec(t, application, enqueue)
			if err := apply(t.Context(), db.Pool, readSchema(t)); err != nil {
				t.Fatal(err)
			}
			exec(t, application, enqueue)
			got := column[string](t, db.Pool, granted, role)
			if lost, _ := differences(columns, got); len(lost) > 0 {
				t.Errorf("columns that had been granted: lost %q", lost)
			}
			_, extra := differences(append(columns, "webhook_outbox INSERT", "webhook_outbox.id SELECT"), got)
			if len(extra) > 0 {
				t.Errorf("it still has %q", extra)
			}
		})
	}
}

// pg_dump reads every partition by itself, also those of tomorrow.
func TestPartitionsAreTheirReaders(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	reader := newRole(t, db)
	exec(t, db.Pool, `ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO `+reader)
	schema := readSchema(t)
	if err := apply(t.Context(), db.Pool, schema); err != nil {
		t.Fatal(err)
	}
	day := 0
	reads := func(table string) bool {
		t.Helper()
		day++
		part := query[string](t, db.Pool, `SELECT $1 || '_p' || to_char('2020-01-01'::date + $2::int, 'YYYYMMDD')`, table, day)
		exec(t, db.Pool, `SELECT webhook_add_partition($1, '2020-01-01'::date + $2::int)`, table, day)
		return query[bool](t, db.Pool, `SELECT has_table_privilege($1, $2, 'SELECT')`, reader, part)
	}
	for _, table := range []string{"webhook_outbox", "webhook_deliveries"} {
		if reads(table) {
			t.Errorf("%s: who was granted nothing reads a partition", table)
		}
		exec(t, db.Pool, `GRANT SELECT ON `+table+` TO `+reader)
		if reads(table) {
			t.Errorf("%s: who was granted the table alone reads a partition, past row security", table)
		}
		exec(t, db.Pool, `GRANT SELECT ON ALL TABLES IN SCHEMA public TO `+reader)
		if !reads(table) {
			t.Errorf("%s: who was granted all tables does not read a new partition", table)
		}
		last := query[string](t, db.Pool, `SELECT max(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = $1::text::regclass AND inhrelid::regclass::text LIKE '%\_p2%'`, table)
		exec(t, db.Pool, `DROP TABLE `+last)
		if err := apply(t.Context(), db.Pool, schema); err != nil {
			t.Fatal(err)
		}
		if !query[bool](t, db.Pool, `SELECT has_table_privilege($1, $2, 'SELECT')`, reader, last) {
			t.Errorf("%s: nor %s, which the file has made again", table, last)
		}
		exec(t, db.Pool, `ALTER TABLE `+table+` ENABLE ROW LEVEL SECURITY`)
		if reads(table) {
			t.Errorf("%s: a new partition shows what row security hides", table)
		}
		exec(t, db.Pool, `ALTER TABLE `+table+` DISABLE ROW LEVEL SECURITY`)
		exec(t, db.Pool, `ALTER DEFAULT PRIVILEGES REVOKE SELECT ON TABLES FROM `+reader)
		if !reads(table) {
			t.Errorf("%s: without default privileges, who was granted all tables does not read a new partition", table)
		}
		exec(t, db.Pool, `ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO `+reader)
		exec(t, db.Pool, `REVOKE SELECT ON ALL TABLES IN SCHEMA public FROM `+reader)
	}
}

// Who makes tables or functions of our names first would own what a superuser then fills in.
func TestSchemaRefusesWhatIsAnothers(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)
	for _, planted := range []string{
		`CREATE TABLE webhook_event_types (name text PRIMARY KEY, category text, description text)`,
		`CREATE TABLE webhook_outbox (id uuid, organization_id text) PARTITION BY RANGE (id)`,
		`CREATE VIEW webhook_status AS SELECT 1`,
		`CREATE FUNCTION webhook_schema_version() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'called as %', current_user; END $$`,
		`CREATE FUNCTION webhook_outbox_before_insert() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN new; END $$`,
		`CREATE FUNCTION webhook_uuidv7() RETURNS uuid LANGUAGE sql AS 'SELECT NULL::uuid'`,
	} {
		t.Run(planted, func(t *testing.T) {
			t.Parallel()
			db := pgtest.Empty(t)
			conn := stranger(t, db)
			exec(t, db.Pool, `GRANT CREATE, USAGE ON SCHEMA public TO `+conn.Config().User)
			exec(t, conn, planted)
			if err := store.New(db.Pool, db.Slot, 0).CheckSchema(t.Context()); !errors.Is(err, store.ErrNotPrepared) {
				t.Errorf("the check: %v, want %v", err, store.ErrNotPrepared)
			}
			checkRefusal(t, apply(t.Context(), db.Pool, schema), "belongs to", "a superuser")
			if n := query[int](t, db.Pool, `SELECT count(*) FROM pg_class WHERE relname LIKE 'webhook%' AND relowner = current_user::regrole`); n != 0 {
				t.Errorf("%d tables and views were made all the same", n)
			}
		})
	}
}

// The list of what has to be the installing role's is all that the file makes.
func TestSchemaKnowsItsTables(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)
	listed := regexp.MustCompile(`(?s)tables CONSTANT text\[\] := ('\{.*?\}');`).FindStringSubmatch(schema)
	if listed == nil {
		t.Fatal("there is no list")
	}
	made := regexp.MustCompile(`(?m)^ *CREATE (?:OR REPLACE )?(?:TABLE|VIEW)(?: IF NOT EXISTS)? (webhook_\w+)`)
	for _, m := range made.FindAllStringSubmatch(schema, -1) {
		if !regexp.MustCompile(`[{,']` + m[1] + `[},']`).MatchString(listed[1]) {
			t.Errorf("%s is not in the list of section 1", m[1])
		}
	}
}
