package faults

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/walhook/walhook/internal/oracle"
)

// failoverWithoutSlot loses the primary, and walhook's slot with it.
func failoverWithoutSlot(t *testing.T, s Setup) { failover(t, s, false) }

// failoverWithSlot loses the primary, but the standby has synchronized walhook's slot.
func failoverWithSlot(t *testing.T, s Setup) {
	failover(t, s, true)
}

// failover kills the primary under load and promotes the standby. The application's
// commits wait for the standby, so that none it knows of is lost. walhook's commits do
// not.
func failover(t *testing.T, s Setup, synced bool) {
	const before, hangingFor, headless, backAtMost, resyncAtMost = 4 * time.Second, 2 * time.Second, lookWithin + time.Second, 5 * time.Second, 30 * time.Second
	s.Local = true
	s.Standby = map[string]string{"primary_slot_name": standbyName, "hot_standby_feedback": "on"}
	if synced {
		s.Standby["sync_replication_slots"] = "on"
	}
	x := newTrial(t, s)
	if synced {
		x.set("synchronized_standby_slots", standbyName)
	}
	x.synchronousStandby(standbyName)
	application, err := pgxpool.New(t.Context(), x.applicationURL()+"&synchronous_commit=on")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(application.Close)
	x.driver.pool = application
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	if synced {
		x.eventually(time.Minute, "the standby has synchronized the slot", x.slotIsSynchronized)
	}
	<-time.After(before)
	release := x.receiver.hang(0) // so that rows are pending
	<-time.After(hangingFor)
	if !synced {
		x.monitor.pause(true) // the new slot's position is beyond what has rows
	}
	over := x.crash(nil)
	if err := x.server.Kill(); err != nil {
		t.Fatal(err)
	}
	<-time.After(headless)
	status, says := p.ready(t.Context())
	x.expect(status == http.StatusServiceUnavailable, "readyz says %d while there is no primary: %s", status, says)
	pending := x.pendingOnStandby()
	x.expect(pending > 0, "the standby has no pending row, and so none can be lost")
	if err := x.standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	over()
	promoted := time.Now()
	release()
	x.monitor.forget()
	x.eventually(20*time.Second, "walhook streams from the new primary", func() bool { return x.slot().PID != 0 })
	back := time.Since(promoted)
	x.expect(back <= backAtMost, "reconnected %s after the promotion", back)
	undone := x.goneWith(oracle.Unknown)
	took := x.resynchronised(promoted, resyncAtMost)
	<-time.After(before)
	stop()
	made := p.logged("replication slot created")
	x.expect(synced == (made == 0), "the slot was made %d times", made)
	x.finish(time.Minute, fmt.Sprintf("pending=%d reconnect=%s resync=%s undone=%d", pending, back.Round(time.Millisecond), took.Round(time.Millisecond), undone))
}

// pendingOnStandby counts the pending rows on the standby.
func (x *Trial) pendingOnStandby() (n int) {
	x.Helper()
	conn, err := pgx.Connect(x.Context(), x.standby.URL())
	if err != nil {
		x.Fatal(err)
	}
	defer conn.Close(x.Context())
	if err := conn.QueryRow(x.Context(), `SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'`).Scan(&n); err != nil {
		x.Fatal(err)
	}
	return n
}

// goneWith marks the events of these fates that the database has lost.
func (x *Trial) goneWith(fates ...oracle.Fate) int {
	x.Helper()
	var e oracle.Evidence
	if err := e.ReadTables(x.Context(), x.pool, judgedApart...); err != nil {
		x.Fatal(err)
	}
	return x.journal.Undo(e.Outbox, fates...)
}

// set changes a setting of the server that needs no restart.
func (x *Trial) set(name, value string) {
	x.Helper()
	x.exec(fmt.Sprintf(`ALTER SYSTEM SET %s = '%s'`, name, value))
	x.exec(`SELECT pg_reload_conf()`)
}

// slotIsSynchronized reports whether the standby has a permanent copy of walhook's slot.
func (x *Trial) slotIsSynchronized() bool {
	x.Helper()
	conn, err := pgx.Connect(x.Context(), x.standby.URL())
	if err != nil {
		x.Fatal(err)
	}
	defer conn.Close(x.Context())
	var synced bool
	err = conn.QueryRow(x.Context(), `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND synced AND NOT temporary)`, slotName).Scan(&synced)
	return err == nil && synced
}
