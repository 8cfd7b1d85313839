package cdc

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// A pipeline that begins anew waits for a file that is just being swapped; a process that
// begins says what is wrong.
func TestAResumedStreamWaitsForItsConfiguration(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	var whole atomic.Bool
	config := d.config()
	server := config.Server
	config.Server = func() (*pgconn.Config, error) {
		if !whole.Load() {
			return nil, errors.New("WALHOOK_DATABASE_URL_FILE: the file is empty")
		}
		return server()
	}
	if err := New(config).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "the file is empty") {
		t.Errorf("a first one: %v", err)
	}
	config.Resumed = true
	r := start(t, config)
	r.eventually("a status that says so", func() bool { return strings.Contains(r.Status().Err, "the file is empty") || r.error() != nil })
	whole.Store(true)
	r.streaming(1)
}

// The making of a slot waits for the transactions of others, for hours: what an operator
// has to fix by then is no reason to end.
func TestAPasswordThatIsRotatedWhileTheSlotIsMade(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	tx, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `INSERT INTO other (t) VALUES ('open')`); err != nil {
		t.Fatal(err)
	}
	var rotated atomic.Bool
	config := d.config()
	config.Server = changed(config.Server, func(c *pgconn.Config) {
		if rotated.Load() {
			c.Database = "nowhere" // refused as a wrong password is, on a server that asks for none
		}
	})
	r := start(t, config)
	const making = `SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE_REPLICATION_SLOT%' AND query LIKE '%' || $1 || '%'`
	r.eventually("the making of the slot", func() bool { return d.value(making, d.slot) == "1" })
	rotated.Store(true)
	d.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE_REPLICATION_SLOT%' AND query LIKE '%' || $1 || '%'`, d.slot)
	r.eventually("a status that says so", func() bool { return strings.Contains(r.Status().Err, "does not exist") || r.error() != nil })
	if err := r.error(); err != nil {
		t.Fatalf("Run ended: %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	rotated.Store(false)
	r.streaming(1)
}
