package faults

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// movedDatabase moves everything to another database by pg_dump and pg_restore, as
// docs/operations.md says, with unread events and waiting retries. walhook on the copy
// makes its slot and sends what is owed, with the same ids and secrets, and nothing that
// was delivered before.
func movedDatabase(t *testing.T, s Setup) {
	const before, unread = 3 * time.Second, time.Second
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	<-x.drive(Load{Rate: *rate, Duration: before})
	x.stopped(p)
	<-x.drive(Load{Rate: *rate, Duration: unread})
	x.monitor.pause(true)
	x.dropSlot() // of the old database

	dump := filepath.Join(x.folder, "moved.dump")
	old, moved := x.url(), strings.Replace(x.url(), "/postgres?", "/moved?", 1)
	x.tool("pg_dump", "--format=custom", "--file="+dump, "--dbname="+old)
	x.exec(`CREATE DATABASE moved TEMPLATE template0`)
	x.tool("pg_restore", "--exit-on-error", "--dbname="+moved, dump)
	x.rename(old, moved)

	x.monitor.forget()
	began := time.Now()
	x.start()
	took := x.resynchronised(began, 30*time.Second)
	x.monitor.pause(false)
	<-x.drive(Load{Rate: *rate, Duration: before})
	x.finish(time.Minute, fmt.Sprintf("resync=%s", took.Round(time.Millisecond)))
}

// rename gives the copy the database's name, so that the pool reconnects to the copy.
func (x *Trial) rename(old, moved string) {
	x.Helper()
	maintenance := strings.Replace(old, "/postgres?", "/template1?", 1)
	conn, err := pgx.Connect(x.Context(), maintenance)
	if err != nil {
		x.Fatal(err)
	}
	defer conn.Close(x.Context())
	if _, err := conn.Exec(x.Context(), `ALTER DATABASE postgres ALLOW_CONNECTIONS false`); err != nil { // or the pool would reconnect
		x.Fatal(err)
	}
	x.eventually(10*time.Second, "nobody is connected to the old database", func() bool {
		if _, err := conn.Exec(x.Context(), `SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE datname IN ('postgres', 'moved')`); err != nil {
			x.Fatal(err)
		}
		_, err := conn.Exec(x.Context(), `ALTER DATABASE postgres RENAME TO former`)
		return err == nil
	})
	if _, err := conn.Exec(x.Context(), `ALTER DATABASE moved RENAME TO postgres`); err != nil {
		x.Fatal(err)
	}
	x.pool.Reset()
}

// tool runs one of PostgreSQL's programs, if there is one of the server's version.
func (x *Trial) tool(name string, args ...string) {
	x.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		x.Skip(err)
	}
	output, err := exec.CommandContext(x.Context(), path, args...).CombinedOutput()
	if strings.Contains(string(output), "server version mismatch") {
		x.Skipf("%s is older than the server: %s", name, output)
	}
	if err != nil {
		x.Fatalf("%s: %v: %s", name, err, output)
	}
}
