package main

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/outbox"
)

// newWorldWithRole has a database that is empty, and a walhook whose role has what the
// README gives it, and no more.
func newWorldWithRole(t *testing.T, env ...string) (w *world, role string) {
	t.Helper()
	t.Parallel()
	db := new(pgtest.DB)
	t.Cleanup(func() { // after the database has been dropped, with what the role has in it
		if conn, err := pgx.Connect(context.Background(), onDatabase(db.URL, "postgres")); err == nil {
			_, err = conn.Exec(context.Background(), `DROP ROLE IF EXISTS "`+role+`"`)
			if err != nil {
				t.Error(err)
			}
			_ = conn.Close(context.Background())
		}
	})
	db = pgtest.Empty(t)
	w = &world{t: t, db: db, log: t.Output()}
	role = strings.Replace(db.Slot, "walhook_test_", "walhook_role_", 1)
	w.exec(fmt.Sprintf(`CREATE ROLE "%s" LOGIN REPLICATION`, role))
	w.exec(fmt.Sprintf(`GRANT CREATE ON DATABASE "%s" TO "%s"`, db.Slot, role))
	w.exec(fmt.Sprintf(`GRANT CREATE, USAGE ON SCHEMA public TO "%s"`, role))
	w.env = append(env, "WALHOOK_DATABASE_URL="+asRole(db.URL, role), "WALHOOK_SLOT="+db.Slot, "WALHOOK_ADMIN_ADDR=",
		"WALHOOK_ALLOW_HTTP=true", "WALHOOK_ALLOW_NETS=127.0.0.0/8", "WALHOOK_TIMEOUT=3s", "WALHOOK_RETRY_SCHEDULE=200ms,200ms,200ms")
	return w, role
}

func onDatabase(server, name string) string {
	u, err := url.Parse(server)
	if err != nil {
		panic(err)
	}
	u.Path = "/" + name
	return u.String()
}

func asRole(server, role string) string {
	u, err := url.Parse(server)
	if err != nil {
		panic(err)
	}
	u.User = url.User(role)
	return u.String()
}

// hostile are settings that somebody made for people or for an application.
var hostile = []string{
	"client_encoding = 'LATIN1'", "standard_conforming_strings = off", "statement_timeout = '1ms'", "lock_timeout = '1ms'",
	"idle_in_transaction_session_timeout = '1ms'", "idle_session_timeout = '1s'", "default_transaction_isolation = 'serializable'",
	"default_transaction_deferrable = on", "DateStyle = 'SQL, DMY'", "IntervalStyle = 'sql_standard'", "TimeZone = 'Asia/Kathmandu'",
	"extra_float_digits = -15", "bytea_output = 'escape'", "quote_all_identifiers = on", "array_nulls = off", "transform_null_equals = on",
	"row_security = off", "jit = on", "jit_above_cost = 0", "check_function_bodies = off", "search_path = '$user', nowhere, public",
	"plpgsql.extra_errors = 'all'", "plpgsql.extra_warnings = 'all'", "synchronous_commit = off", "backslash_quote = off", "escape_string_warning = off",
	"xmloption = document", "default_statistics_target = 1", "work_mem = '64kB'", "client_min_messages = error", "enable_indexscan = off",
}

// The body has characters that LATIN1 has, in other bytes, and some that it has not.
const foreign = `{"name": "Zo\u00eb \u2603 \u65e5\u672c \\ ''x'' 1.5"}`

func TestSettingsOfARoleAndADatabaseChangeNothing(t *testing.T) {
	for _, whose := range []string{"ROLE", "DATABASE"} {
		t.Run(whose, func(t *testing.T) {
			w, role := newWorldWithRole(t)
			whom := role
			if whose == "DATABASE" {
				whom = w.db.Slot
			}
			settings := hostile
			if whose == "ROLE" {
				settings = append(slices.Clone(hostile), "default_transaction_read_only = on")
			}
			for _, setting := range settings {
				w.exec(fmt.Sprintf(`ALTER %s "%s" SET %s`, whose, whom, setting))
			}
			if query[int](w, `SELECT current_setting('server_version_num')::int`) >= 170000 {
				w.exec(fmt.Sprintf(`ALTER %s "%s" SET transaction_timeout = '1ms'`, whose, whom))
			}
			rcv := newReceiver(t, func(n int) int { return []int{500, 500, 204}[min(n, 2)] })
			w.run()
			w.endpoint(rcv.URL, "payment.*")
			w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.succeeded', $1)`, foreign)
			w.eventually("it is delivered", `SELECT count(*) = 1 FROM webhook_deliveries WHERE status = 'success' AND attempts = 3`)
			got := rcv.requests()
			if len(got) != 3 || got[1].body != got[0].body || got[2].body != got[0].body || !strings.Contains(got[0].body, "Zo\u00eb \u2603 \u65e5\u672c") {
				t.Errorf("%d requests, or not the same bytes: %q", len(got), got)
			}
			log := query[string](w, `SELECT attempt_log::text FROM webhook_deliveries`)
			if strings.Count(log, `+00:00"`)+strings.Count(log, `Z"`) != 3 {
				t.Errorf("the times of the attempts are not UTC: %s", log)
			}
			w.exec(`UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now()`)
			w.eventually("a replay", `SELECT status = 'success' AND attempts = 4 FROM webhook_deliveries`)
		})
	}
}

// What the application has set for its own sessions changes nothing of what the
// trigger stores, nor does what it had when the schema was applied by psql.
func TestSettingsOfAnApplicationChangeNothing(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	for _, setting := range append(slices.Clone(hostile), "default_transaction_read_only = on") {
		if !strings.HasPrefix(setting, "client_encoding") && !strings.Contains(setting, "timeout = ") { // what psql would have: it would fail plainly
			mustExec(t, db, `ALTER DATABASE "`+db.Slot+`" SET `+setting)
		}
	}
	conn, err := pgx.Connect(t.Context(), db.URL+"&search_path=public&default_query_exec_mode=exec")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.PgConn().Exec(t.Context(), schema).ReadAll(); err != nil {
		t.Fatalf("apply the schema: %v", err)
	}
	if _, err := conn.Exec(t.Context(), `SET default_transaction_read_only = off`); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `SELECT * FROM webhook_create_endpoint('org_1', 'https://example.com/a-b.c?d=%20', '{*}')`); err != nil {
		t.Fatalf("create an endpoint: %v", err)
	}
	for url, problem := range map[string]string{
		"https://example.com/ü": "a character beyond ASCII", "https://exa mple.com": "a blank", `https://example.com/\`: "percent-encoded",
		"https://example,com": "not a host name", "https://example.com:99999": "port", "https://example.com/%zz": "percent-encoded",
	} {
		var got *string
		if err := conn.QueryRow(t.Context(), `SELECT webhook_url_problem($1)`, url).Scan(&got); err != nil || got == nil || !strings.Contains(*got, problem) {
			t.Errorf("%s: got %v, %v, want %q", url, got, err, problem)
		}
	}
	if _, err := conn.Exec(t.Context(), `UPDATE webhook_endpoints SET headers = $1`, `{"X-A": "b\u0001"}`); err == nil || !strings.Contains(err.Error(), "control character") {
		t.Errorf("a header with a control character: %v", err)
	}
	for range 2 {
		const insert = `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.succeeded', '{"a": 1}') RETURNING endpoint_ids::text`
		var owed string
		if err := conn.QueryRow(t.Context(), insert).Scan(&owed); err != nil || len(owed) != 38 {
			t.Errorf("owed to %s, %v", owed, err)
		}
	}
}

func mustExec(t *testing.T, db *pgtest.DB, sql string, args ...any) {
	t.Helper()
	if _, err := db.Pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

var _ = config.Secret("")
var _ = outbox.Publication
