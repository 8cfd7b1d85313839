package faults

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/postgres"
)

// standbyName is the standby's application_name and its physical slot.
const standbyName = "standby"

// follow starts a standby of a server, with settings of its own.
func follow(t testing.TB, primary *postgres.Server, settings map[string]string) *postgres.Server {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), primary.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if version := conn.PgConn().ParameterStatus("server_version"); settings["sync_replication_slots"] == "on" && version < "17" {
		t.Skipf("PostgreSQL synchronizes slots from version 17 on, and this is %s: set WALHOOK_TEST_POSTGRES_VERSION", version)
	}
	if _, err := conn.Exec(t.Context(), `SELECT pg_create_physical_replication_slot($1, true)`, standbyName); err != nil {
		t.Fatal(err)
	}
	backup := backUp(t, primary, false)
	standby, err := backup.Standby(t.Context(), settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Close(); err != nil {
			t.Error(err)
		}
	})
	return standby
}

// backUp copies a running server. The copy lives as long as the test.
func backUp(t testing.TB, server *postgres.Server, slots bool) *postgres.Backup {
	t.Helper()
	backup, err := server.Backup(t.Context(), slots)
	if errors.Is(err, postgres.ErrNoBackup) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := backup.Close(); err != nil {
			t.Error(err)
		}
	})
	return backup
}
