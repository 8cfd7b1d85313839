package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"go.uber.org/goleak"

	"github.com/walhook/walhook/internal/postgres"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEmpty(t *testing.T) {
	t.Parallel()
	a, b := Empty(t), Empty(t)
	if a.URL == b.URL || a.Slot == b.Slot {
		t.Errorf("two tests share the database %s or the slot %s", a.URL, a.Slot)
	}
	if got := a.Pool.Config().MaxConns; got != 4 {
		t.Errorf("MaxConns = %d, want 4", got)
	}
	execute(t, a, "CREATE TABLE mine ()")
	var theirs bool
	scan(t, b, "SELECT to_regclass('mine') IS NOT NULL", &theirs)
	if theirs {
		t.Error("one test's table is in the other's database")
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	if _, err := readSchema(); errors.Is(err, fs.ErrNotExist) {
		t.Skip(err)
	}
	db := New(t)
	var exists bool
	scan(t, db, "SELECT to_regclass('webhook_outbox') IS NOT NULL", &exists)
	if !exists {
		t.Error("there is no table webhook_outbox")
	}
}

func TestSchema(t *testing.T) {
	t.Parallel()
	// Functions with dollar quotes and transactions of its own: what a psql script may hold.
	const first = `BEGIN; CREATE TABLE first (n int DEFAULT 1); COMMIT;
		CREATE FUNCTION answer() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 42; END $$;
		CREATE PUBLICATION everything FOR ALL TABLES;`
	const second = `CREATE TABLE second ()`

	t.Run("is in every database, also when schemas take turns", func(t *testing.T) {
		t.Parallel()
		for range 3 {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				var answer, publications int
				scan(t, newDB(t, first), "SELECT answer()", &answer)
				scan(t, newDB(t, first), "SELECT count(*) FROM pg_publication", &publications)
				if answer != 42 || publications != 1 {
					t.Errorf("answer() = %d with %d publications, want 42 with 1", answer, publications)
				}
				execute(t, newDB(t, second), "INSERT INTO second DEFAULT VALUES")
			})
		}
	})
	t.Run("is applied anew each day", func(t *testing.T) {
		day := time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)
		name := templateName(first, day)
		if templateName(first, day.Add(24*time.Hour-1)) != name || templateName(first, day.Add(24*time.Hour)) == name {
			t.Error("a database has days ahead of another one")
		}
	})
	t.Run("with an error says which", func(t *testing.T) {
		url, err := sharedURL(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = createDatabase(t.Context(), url, "walhook_test_broken", "CREATE TABLE half (); SELECT 1/0")
		if refused, _ := errors.AsType[*pgconn.PgError](err); refused == nil || refused.Code != "22012" {
			t.Errorf("%v, want a division by zero", err)
		}
	})
}

func TestCleanUp(t *testing.T) {
	t.Parallel()
	outer := t // what it cleans up is cleaned up after the databases
	for name, use := range map[string]func(t *testing.T, db *DB){
		"an open pool":     func(t *testing.T, db *DB) { execute(t, db, "SELECT") },
		"a closed pool":    func(t *testing.T, db *DB) { db.Pool.Close() },
		"an idle slot":     makeSlot,
		"a stream":         func(t *testing.T, db *DB) { makeSlot(t, db); stream(t, outer, db) },
		"another session":  func(t *testing.T, db *DB) { dial(outer, db.URL) },
		"a dropped one":    func(t *testing.T, db *DB) { execute(t, db, "SELECT"); db.Pool.Close(); dropNow(t, db) },
		"two slots, in it": func(t *testing.T, db *DB) { makeSlot(t, db); db.Slot += "_2"; makeSlot(t, db) },
	} {
		t.Run("drops a database with "+name, func(t *testing.T) {
			t.Parallel()
			var db *DB
			t.Run("test", func(t *testing.T) {
				db = Empty(t)
				use(t, db)
			})
			conn := dial(t, Empty(t).URL)
			var left int
			err := conn.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_database WHERE datname = $1) +
				(SELECT count(*) FROM pg_replication_slots WHERE database = $1)`, databaseOf(t, db)).Scan(&left)
			if err != nil || left != 0 {
				t.Errorf("%d databases and slots are left, %v", left, err)
			}
		})
	}
}

func TestServer(t *testing.T) {
	t.Parallel()
	var server *postgres.Server
	t.Run("test", func(t *testing.T) {
		server = Server(t, postgres.Options{})
		dial(t, server.URL())
	})
	if err := server.Stop("fast"); !errors.Is(err, postgres.ErrNotRunning) {
		t.Errorf("Stop of a server whose test has ended: %v, want %v", err, postgres.ErrNotRunning)
	}
}

func TestEventually(t *testing.T) {
	t.Parallel()
	looks := 0
	Eventually(t, time.Minute, "three looks", func() bool { looks++; return looks == 3 })

	late := &recorder{TB: t}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Eventually(late, 0, "the impossible", func() bool { return false })
	}()
	<-ended
	if !strings.Contains(late.said, "the impossible") {
		t.Errorf("it failed with %q, which does not say what did not happen", late.said)
	}
}

// BenchmarkNew measures a test's database, made and dropped.
func BenchmarkNew(b *testing.B) {
	Empty(b)
	for b.Loop() {
		b.StopTimer()
		url, err := sharedURL(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := createDatabase(b.Context(), url, "walhook_test_benchmark", "CREATE TABLE t ()"); err != nil {
			b.Fatal(err)
		}
		if err := dropDatabase(b.Context(), url, "walhook_test_benchmark"); err != nil {
			b.Fatal(err)
		}
	}
}

// recorder takes a failure without failing.
type recorder struct {
	testing.TB
	said string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func makeSlot(t *testing.T, db *DB) {
	t.Helper()
	execute(t, db, "SELECT pg_create_logical_replication_slot('"+db.Slot+"', 'pgoutput')")
}

// stream leaves a walsender that is streaming from the slot until the outer test ends.
func stream(t, outer *testing.T, db *DB) {
	t.Helper()
	execute(t, db, "CREATE PUBLICATION p")
	conn := dial(outer, db.URL+"&replication=database").PgConn()
	start := "START_REPLICATION SLOT " + db.Slot + " LOGICAL 0/0 (proto_version '1', publication_names 'p')"
	conn.Frontend().SendQuery(&pgproto3.Query{String: start})
	if err := conn.Frontend().Flush(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 10*time.Second, "the slot is active", func() bool {
		var active bool
		scan(t, db, "SELECT active FROM pg_replication_slots WHERE slot_name = '"+db.Slot+"'", &active)
		return active
	})
}

func dropNow(t *testing.T, db *DB) {
	t.Helper()
	url, err := sharedURL(t.Context())
	if err == nil {
		err = dropDatabase(t.Context(), url, databaseOf(t, db))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func databaseOf(t *testing.T, db *DB) string {
	t.Helper()
	config, err := pgx.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	return config.Database
}

func dial(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func execute(t *testing.T, db *DB, sql string) {
	t.Helper()
	if _, err := db.Pool.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func scan(t *testing.T, db *DB, sql string, into any) {
	t.Helper()
	if err := db.Pool.QueryRow(t.Context(), sql).Scan(into); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}
