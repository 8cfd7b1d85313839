package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
)

// newWorldWithRole has a database that is empty, and a walhook whose role has what
// docs/operations.md gives it, and no more.
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
	w.exec(fmt.Sprintf(`CREATE ROLE "%[1]s" LOGIN REPLICATION PASSWORD '%[1]s'`, role))
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
	u.User = url.UserPassword(role, role) // where one is asked for
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
				// Older servers refuse it as a parameter of the session, so the statement that takes it away has to fit in.
				w.exec(fmt.Sprintf(`ALTER %s "%s" SET transaction_timeout = '200ms'`, whose, whom))
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

// ends runs a walhook that has to end by itself, and returns its exit code and why.
func (w *world) ends(env ...string) (code int, why string) {
	w.t.Helper()
	const within = 20 * time.Second // 5 s, on a machine that is busy
	cfg, err := config.Load(append(env, w.env...))
	if err != nil {
		return exitConfig, err.Error()
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), within)
	defer cancel()
	if err = run(ctx, cfg, slog.New(slog.NewTextHandler(w.log, nil))); err == nil {
		w.t.Errorf("it still tries after %s", within)
		return exitClean, ""
	}
	return exitCode(err), err.Error()
}

func TestASchemaOfItsOwn(t *testing.T) {
	w, role := newWorldWithRole(t, `WALHOOK_SCHEMA=Web"hooks.ü`)
	// Tables of our names in the schema that the role would look into: nobody looks.
	w.exec(`CREATE TABLE webhook_outbox (id int); CREATE TABLE webhook_endpoints (id int)`)
	rcv := newReceiver(t, func(n int) int { return []int{500, 204}[min(n, 1)] })
	w.run()
	w.exec(`SET search_path = "Web""hooks.ü"`)
	for range 4 { // each connection of the pool
		w.exec(`SELECT pg_catalog.set_config('search_path', '"Web""hooks.ü"', false)`)
	}
	w.exec(`ALTER ROLE "` + role + `" SET search_path = nowhere`) // what the role has does not matter
	w.exec(`ALTER DATABASE "` + w.db.Slot + `" SET search_path = "Web""hooks.ü"`)
	w.db.Pool.Reset()
	w.endpoint(rcv.URL, "payment.*")
	event := w.insert("payment.succeeded")
	w.eventually("it is delivered", `SELECT status = 'success' AND attempts = 2 FROM webhook_deliveries WHERE event_id = $1`, event)
	if n := query[int](w, `SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relname LIKE 'webhook%'`); n != 2 {
		t.Errorf("%d tables of ours in another schema", n-2)
	}
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.run() // again, where all is there
	event = w.insert("payment.failed")
	w.eventually("it is delivered after a restart", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, event)
}

func TestASchemaThatMayNotBeMade(t *testing.T) {
	w, role := newWorldWithRole(t, "WALHOOK_SCHEMA=webhooks")
	w.exec(fmt.Sprintf(`REVOKE CREATE ON DATABASE "%s" FROM "%s"`, w.db.Slot, role))
	code, why := w.ends()
	want := fmt.Sprintf(`CREATE SCHEMA webhooks AUTHORIZATION %s`, role)
	if code != exitNotPrepared || !strings.Contains(why, want) {
		t.Fatalf("exit %d: %s, want one that says %s", code, why, want)
	}
	w.exec(want) // what was said works
	w.exec(fmt.Sprintf(`GRANT CREATE ON DATABASE "%s" TO "%s"`, w.db.Slot, role))
	w.run()
}

// The schema is that of the first session, also when another one comes first in the
// search_path later.
func TestTheSchemaIsPinned(t *testing.T) {
	w, role := newWorldWithRole(t)
	rcv := newReceiver(t, always(200))
	w.run()
	w.endpoint(rcv.URL)
	w.exec(fmt.Sprintf(`CREATE SCHEMA AUTHORIZATION "%s"`, role)) // "$user" comes first
	w.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1`, role)
	event := w.insert("payment.succeeded")
	w.eventually("it is delivered", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, event)
}

func TestWhatCanNeverWorkEnds(t *testing.T) {
	w, role := newWorldWithRole(t)
	base := asRole(w.db.URL, role)
	for _, tt := range []struct {
		what string
		env  []string
		code int
		says []string
	}{
		{"a parameter that nobody knows", []string{"WALHOOK_DATABASE_URL=" + base + "&connection_limits=5"}, exitConfig, []string{"WALHOOK_DATABASE_URL", `"connection_limits"`}},
		{"a value that cannot be", []string{"WALHOOK_DATABASE_URL=" + base + "&work_mem=much"}, exitConfig, []string{"WALHOOK_DATABASE_URL", `"work_mem"`}},
		{"for replication alone", []string{"WALHOOK_REPLICATION_URL=" + base + "&connection_limits=5"}, exitConfig, []string{"WALHOOK_REPLICATION_URL", `"connection_limits"`}},
		{"a database that is not there", []string{"WALHOOK_DATABASE_URL=" + onDatabase(base, "nowhere")}, exitNotPrepared, []string{"nowhere", "CREATE DATABASE"}},
		{"a role that is not there", []string{"WALHOOK_DATABASE_URL=" + asRole(w.db.URL, "nobody_at_all")}, exitConfig, []string{"nobody_at_all"}},
		{"a password with a blank", []string{"WALHOOK_DATABASE_URL=" + keywords(t, base) + " password=hunter2 ter3=x"}, exitConfig, []string{"in ' '"}},
		{"no schema", []string{"WALHOOK_DATABASE_URL=" + base + "&search_path=nowhere"}, exitNotPrepared, []string{"WALHOOK_SCHEMA"}},
	} {
		code, why := w.ends(tt.env...)
		if code != tt.code || strings.Contains(why, "hunter2") || strings.Contains(why, "ter3") {
			t.Errorf("%s: exit %d, want %d: %s", tt.what, code, tt.code, why)
		}
		for _, says := range tt.says {
			if !strings.Contains(why, says) {
				t.Errorf("%s: %q does not say %q", tt.what, why, says)
			}
		}
	}
	w.run("WALHOOK_DATABASE_URL=" + base + "&schema=app&pgbouncer=true&connection_limit=5&pool_max_conns=3&keepalives_idle=3&gssencmode=prefer")
}

// A stop is no failure, also while walhook waits for the answer of a database that is silent.
func TestAStopWhileTheDatabaseIsSilent(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		silent, err := listener.Accept()
		stop()
		<-t.Context().Done()
		if err == nil {
			silent.Close()
		}
	}()
	cfg := load(t, "WALHOOK_DATABASE_URL=postgres://walhook@"+listener.Addr().String()+"/app")
	if err := run(ctx, cfg, slog.New(slog.NewTextHandler(t.Output(), nil))); err != nil {
		t.Errorf("run returned %v", err)
	}
}

// A standby answers while the primary has no connection left, and shows rows as due that have
// been delivered.
func TestOfSeveralHostsThePrimaryIsTaken(t *testing.T) {
	t.Parallel()
	primary, err := postgres.Start(t.Context(), postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { primary.Close() })
	backup, err := primary.Backup(t.Context(), false)
	if errors.Is(err, postgres.ErrNoBackup) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { backup.Close() })
	standby, err := backup.Standby(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { standby.Close() })
	at, err := url.Parse(primary.URL())
	if err != nil {
		t.Fatal(err)
	}
	both := strings.Replace(standby.URL(), "/postgres?", ","+at.Host+"/postgres?", 1)
	d, err := openDatabase(t.Context(), load(t, "WALHOOK_DATABASE_URL="+both))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	var recovers bool
	if err := d.pool.QueryRow(t.Context(), `SELECT pg_is_in_recovery()`).Scan(&recovers); err != nil || recovers {
		t.Errorf("the pool is at a standby: %t, %v", recovers, err)
	}
	cc, err := d.replication()
	if err != nil {
		t.Fatal(err)
	}
	cc.RuntimeParams["replication"] = "database"
	stream, err := pgconn.ConnectConfig(t.Context(), cc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close(context.WithoutCancel(t.Context())) })
	if r, err := stream.Exec(t.Context(), `SELECT pg_is_in_recovery()`).ReadAll(); err != nil || string(r[0].Rows[0][0]) != "f" {
		t.Errorf("the stream is at a standby: %v, %v", r, err)
	}
}

// keywords is a connection string of the other form.
func keywords(t *testing.T, text string) string {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("host=%s port=%s user=%[3]s password=%[3]s dbname=%[4]s sslmode=disable", u.Hostname(), u.Port(), u.User.Username(), strings.TrimPrefix(u.Path, "/"))
}

// newFakePooler stands between walhook and PostgreSQL, and treats the parameters of a
// connection as a pooler does. It ends after the walhooks that are started behind it.
func newFakePooler(t *testing.T, server string, refuse func(*pgproto3.StartupMessage) *pgproto3.ErrorResponse) (address string) {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); listener.Close(); all.Wait() })
	upstream := u.Host
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer client.Close()
				defer context.AfterFunc(ctx, func() { client.Close() })()
				poolOne(ctx, client, upstream, refuse)
			})
		}
	})
	u.Host = listener.Addr().String()
	return u.String()
}

func poolOne(ctx context.Context, client net.Conn, server string, refuse func(*pgproto3.StartupMessage) *pgproto3.ErrorResponse) {
	backend := pgproto3.NewBackend(client, client)
	for {
		message, err := backend.ReceiveStartupMessage()
		if err != nil {
			return
		}
		startup, ok := message.(*pgproto3.StartupMessage)
		if !ok { // TLS is asked for
			if _, err := client.Write([]byte("N")); err != nil {
				return
			}
			continue
		}
		if refusal := refuse(startup); refusal != nil {
			backend.Send(refusal)
			_ = backend.Flush()
			return
		}
		upstream, err := new(net.Dialer).DialContext(ctx, "tcp", server)
		if err != nil {
			return
		}
		defer upstream.Close()
		frontend := pgproto3.NewFrontend(upstream, upstream)
		frontend.Send(startup)
		if frontend.Flush() != nil {
			return
		}
		go func() { _, _ = io.Copy(upstream, client); upstream.Close() }()
		_, _ = io.Copy(client, upstream)
		return
	}
}

// pgBouncer knows few parameters, and not replication.
func pgBouncer(m *pgproto3.StartupMessage) *pgproto3.ErrorResponse {
	for name := range m.Parameters {
		switch strings.ToLower(name) {
		case "user", "database", "client_encoding", "application_name", "datestyle", "timezone", "standard_conforming_strings":
		default:
			return &pgproto3.ErrorResponse{Severity: "FATAL", Code: "08P01", Message: "unsupported startup parameter: " + name}
		}
	}
	return nil
}

// passesOver is a pooler that takes every parameter, and forgets it.
func passesOver(m *pgproto3.StartupMessage) *pgproto3.ErrorResponse {
	for name := range m.Parameters {
		if name != "user" && name != "database" && name != "client_encoding" {
			delete(m.Parameters, name)
		}
	}
	return nil
}

func TestThroughAPooler(t *testing.T) {
	for _, tt := range []struct {
		name   string
		pooler func(*pgproto3.StartupMessage) *pgproto3.ErrorResponse
	}{{"that refuses parameters", pgBouncer}, {"that forgets parameters", passesOver}} {
		t.Run(tt.name, func(t *testing.T) {
			w, role := newWorldWithRole(t)
			pooler := newFakePooler(t, asRole(w.db.URL, role), tt.pooler)
			code, why := w.ends("WALHOOK_DATABASE_URL=" + pooler)
			if code != exitConfig || !strings.Contains(why, "WALHOOK_REPLICATION_URL") {
				t.Errorf("everything through it: exit %d: %s", code, why)
			}
			w.exec(`ALTER ROLE "` + role + `" SET statement_timeout = '50ms'`)
			env := []string{"WALHOOK_DATABASE_URL=" + pooler, "WALHOOK_REPLICATION_URL=" + asRole(w.db.URL, role)}
			code, why = w.ends(env...)
			fix := fmt.Sprintf(`ALTER ROLE %s IN DATABASE %s SET statement_timeout = 0`, role, w.db.Slot)
			if code != exitConfig || !strings.Contains(why, fix) {
				t.Errorf("with a timeout: exit %d: %s", code, why)
			}
			w.exec(fix)
			rcv := newReceiver(t, func(n int) int { return []int{500, 204}[min(n, 1)] })
			w.run(env...)
			w.endpoint(rcv.URL, "payment.*")
			event := w.insert("payment.succeeded")
			w.eventually("SQL through it, and replication beside it", `SELECT status = 'success' AND attempts = 2 FROM webhook_deliveries WHERE event_id = $1`, event)
		})
	}
}
