package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
)

// Something with one of walhook's names that is somebody else's will not go away by
// waiting.
func TestMigrateOverWhatIsAnothers(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)
	for name, sql := range map[string]string{
		"a type":                         `CREATE TYPE webhook_endpoints AS ENUM ('a')`,
		"a composite type":               `CREATE TYPE webhook_outbox AS (a int)`,
		"a table":                        `CREATE TABLE webhook_endpoints (id serial PRIMARY KEY, url text)`,
		"a table of the outbox's name":   `CREATE TABLE webhook_outbox (id uuid)`,
		"a table of event types":         `CREATE TABLE webhook_event_types (id int)`,
		"a partitioned table":            `CREATE TABLE webhook_deliveries (id uuid) PARTITION BY LIST (id)`,
		"a view":                         `CREATE VIEW webhook_secrets AS SELECT 1 AS a`,
		"a view of another form":         `CREATE VIEW webhook_status AS SELECT 1 AS a`,
		"a table of a view's name":       `CREATE TABLE webhook_attempts (a int)`,
		"a function of another result":   `CREATE FUNCTION webhook_uuidv7() RETURNS text LANGUAGE sql RETURN 'a'`,
		"a procedure":                    `CREATE PROCEDURE webhook_uuidv7() LANGUAGE sql AS ''`,
		"an aggregate":                   `CREATE AGGREGATE webhook_uuid_time(uuid) (SFUNC = array_append, STYPE = uuid[])`,
		"a sequence":                     `CREATE SEQUENCE webhook_state`,
		"an index of a table's name":     `CREATE TABLE other (a int); CREATE INDEX webhook_endpoint_failures ON other (a)`,
		"a function of other parameters": `CREATE FUNCTION webhook_delivery_id(a uuid, b uuid) RETURNS uuid LANGUAGE sql RETURN a`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.Empty(t)
			exec(t, db.Pool, sql)
			err := store.New(db.Pool, db.Slot, 0).Migrate(t.Context(), schema)
			if !errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), "rename") && !strings.Contains(err.Error(), "Rename") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// In any other encoding some texts cannot be stored, or bytes not be read.
func TestADatabaseThatIsNotUTF8IsRefused(t *testing.T) {
	t.Parallel()
	server := pgtest.Empty(t)
	for _, encoding := range []string{"SQL_ASCII", "LATIN1", "EUC_JP"} {
		name := server.Slot + "_" + strings.ToLower(encoding)
		exec(t, server.Pool, `CREATE DATABASE `+name+` ENCODING '`+encoding+`' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0`)
		t.Cleanup(func() {
			if _, err := server.Pool.Exec(context.Background(), `DROP DATABASE `+name+` WITH (FORCE)`); err != nil {
				t.Error(err)
			}
		})
		conn, err := pgx.Connect(t.Context(), strings.Replace(server.URL, "/"+server.Slot, "/"+name, 1)+"&client_encoding=UTF8")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(t.Context()))
		for what, begin := range map[string]func(context.Context, *pgx.Conn, string) (string, error){
			"directly": store.BeginSession, "through a pooler": store.CheckShared,
		} {
			if _, err := begin(t.Context(), conn, ""); !errors.Is(err, store.ErrEncoding) || !errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), encoding) {
				t.Errorf("%s, %s: %v", encoding, what, err)
			}
		}
		if _, err := conn.PgConn().Exec(t.Context(), readSchema(t)).ReadAll(); err == nil || !strings.Contains(err.Error(), "walhook needs UTF8") {
			t.Errorf("%s, by psql: %v", encoding, err)
		}
	}
}

// What a session may do by default, psql's with the file included, does not decide how tables are stored, nor whether it ends.
func TestSchemaOverridesDefaults(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	exec(t, db.Pool, `CREATE ACCESS METHOD columns TYPE TABLE HANDLER heap_tableam_handler`) // a table of columns could not be updated
	pool := newPool(t, db, func(c *pgxpool.Config) {
		c.ConnConfig.RuntimeParams["default_table_access_method"] = "columns"
	})
	if query[int](t, db.Pool, `SELECT current_setting('server_version_num')::int`) >= 170000 {
		exec(t, db.Pool, `ALTER DATABASE `+db.Slot+` SET transaction_timeout = '100ms'`)
	}
	if err := apply(t.Context(), pool, readSchema(t)); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `SELECT webhook_add_partition('webhook_deliveries', (now() AT TIME ZONE 'UTC')::date + 20)`)
	if others := column[string](t, db.Pool, `SELECT c.relname::text FROM pg_class AS c JOIN pg_am AS a ON a.oid = c.relam
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.amname <> 'heap'`); len(others) > 0 {
		t.Errorf("not in the heap: %q", others)
	}
}

func TestSettingsHaveNoSecondSpelling(t *testing.T) {
	t.Parallel()
	params := map[string]string{"timezone": "Asia/Kathmandu", "SEARCH_PATH": "x", "work_mem": "1MB"}
	store.Override(params, store.Settings(`We"b`))
	if params["timezone"] != "" || params["SEARCH_PATH"] != "" || params["work_mem"] != "1MB" || params["TimeZone"] != "UTC" || params["search_path"] != `"We""b", pg_temp` {
		t.Errorf("got %q", params)
	}
}

// Through a pooler walhook sets nothing, and says what the role lacks.
func TestSharedSessionsAreChecked(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db.Pool, `CREATE SCHEMA "Web.hooks"`)
	check := func(schema, params string) (string, error) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), db.URL+params)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(t.Context()))
		return store.CheckShared(t.Context(), conn, schema)
	}
	for schema, params := range map[string]string{"": "", "public": "", "Web.hooks": "&search_path=\"Web.hooks\",public", "to_be_made": "&search_path=to_be_made"} {
		if got, err := check(schema, params); err != nil || got != schema && got != "public" && got != "" {
			t.Errorf("%s: got %q, %v", schema, got, err)
		}
	}
	for params, says := range map[string]string{
		"&client_encoding=LATIN1":                     "SET client_encoding = 'UTF8'",
		"&standard_conforming_strings=off":            "SET standard_conforming_strings = on",
		"&statement_timeout=50":                       "SET statement_timeout = 0",
		"&default_transaction_isolation=serializable": "SET default_transaction_isolation = 'read committed'",
		"&search_path=public":                         `SET search_path = "Web.hooks", pg_temp`,
		"&search_path=nowhere":                        `SET search_path = "Web.hooks", pg_temp`,
	} {
		_, err := check("Web.hooks", params)
		if !errors.Is(err, store.ErrSettings) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), `IN DATABASE `+db.Slot+` SET`) {
			t.Errorf("%s: %v, want one that says %q", params, err, says)
		}
	}
	if _, err := check("", "&search_path=nowhere"); !errors.Is(err, store.ErrNoSchema) {
		t.Errorf("no schema: %v", err)
	}
}

// Who may make functions in walhook's schema is named with the statement that ends it.
func TestWhoElseMayCreate(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	exec(t, db.Pool, `REVOKE CREATE ON SCHEMA public FROM PUBLIC`)
	if who, fix, err := st.Makers(t.Context()); who != "" || fix != "" || err != nil {
		t.Errorf("nobody: got %q, %q, %v", who, fix, err)
	}
	exec(t, db.Pool, `GRANT CREATE ON SCHEMA public TO PUBLIC, pg_monitor`)
	who, fix, err := st.Makers(t.Context())
	if err != nil || !strings.Contains(who, "PUBLIC") || !strings.Contains(who, "pg_monitor") {
		t.Errorf("got %q, %v", who, err)
	}
	exec(t, db.Pool, fix)
	if who, _, _ := st.Makers(t.Context()); who != "" {
		t.Errorf("%s has fixed nothing: %q", fix, who)
	}
}

// What a role lacks is said as a statement that can be pasted.
func TestWhatARoleLacksCanBePasted(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	role := newRole(t, db)
	st := store.New(newPool(t, db, asRole(role)), db.Slot, 0)
	for range 3 { // one right after the other
		err := st.CheckSchema(t.Context())
		if err == nil {
			return
		}
		_, grant, found := strings.Cut(err.Error(), "of the table, run: ")
		if !errors.Is(err, store.ErrNotPrepared) || !found || !strings.Contains(err.Error(), "take the role of `walhook run`") {
			t.Fatalf("got %v", err)
		}
		exec(t, db.Pool, grant)
	}
	t.Error("what was said does not help")
}
