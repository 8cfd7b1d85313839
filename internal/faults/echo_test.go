package faults

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

// unechoedFor is longer than walhook's interval of confirmations.
const unechoedFor = 6 * time.Second

// unechoedOutcome has a standby fall behind that must have everything first. The stream
// waits for it, and so do the echoes of new records. Until these come, the records must
// not count as durable, or a failover loses them.
func unechoedOutcome(t *testing.T, s Setup) {
	const standby = "behind"
	x := newTrial(t, s)
	x.needsStandbySlots()
	x.receiver.failShare = 0
	x.streams(x.start())
	x.exec(`SELECT pg_create_physical_replication_slot($1, true)`, standby)
	release := x.receiveOnly()
	x.set("synchronized_standby_slots", standby)
	<-time.After(time.Second) // until the walsender has read the setting, and sent what it had
	stood := x.slot().Confirmed
	release()
	<-time.After(unechoedFor)
	moved := x.slot().Confirmed
	x.expect(moved == stood, "the slot was confirmed from %s to %s, and the standby has not got what was recorded", stood, moved)
	x.set("synchronized_standby_slots", "")
	x.finish(time.Minute, fmt.Sprintf("stood=%s", stood))
}

// failoverBehind loses the primary when the standby has an event but not its row. The
// standby's slot must bring the event again: everything before the slot's position must
// have its rows there.
func failoverBehind(t *testing.T, s Setup) {
	s.Local = true
	s.Standby = map[string]string{"primary_slot_name": standbyName, "hot_standby_feedback": "on"}
	x := newTrial(t, s)
	x.needsStandbySlots()
	x.receiver.failShare = 0
	x.set("synchronized_standby_slots", standbyName)
	x.streams(x.start())
	standby, err := pgxpool.New(t.Context(), x.standby.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(standby.Close)
	x.eventually(time.Minute, "the standby has synchronized the slot", func() bool {
		x.exec(`SELECT pg_log_standby_snapshot()`) // brings walhook's slot level with the standby's
		x.synchronize(standby)
		return x.slotIsSynchronized()
	})
	record := x.receiveOnly()
	x.cutOffStandby()
	record()
	<-time.After(unechoedFor)
	x.synchronize(standby)
	over := x.crash(nil)
	if err := x.server.Kill(); err != nil {
		t.Fatal(err)
	}
	slot, err := readSlot(t.Context(), standby)
	if err != nil {
		t.Fatal(err)
	}
	missing, err := withoutRows(t.Context(), standby, x.monitor.owed(x.journal.TakeBelow(slot.Confirmed, map[uuid.UUID]bool{})), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	x.expect(len(missing) == 0, "the standby's slot is beyond what has rows there: %s is confirmed, and %s", slot.Confirmed, strings.Join(slices.Collect(maps.Values(missing)), ", "))
	if err := x.standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	over()
	x.monitor.forget()
	x.eventually(20*time.Second, "walhook streams from the new primary", func() bool { return x.slot().PID != 0 })
	x.finish(time.Minute, fmt.Sprintf("slot=%s missing=%d", slot.Confirmed, len(missing)))
}

// needsStandbySlots skips where slots cannot be synchronized.
func (x *Trial) needsStandbySlots() {
	x.Helper()
	var version int
	if err := x.pool.QueryRow(x.Context(), `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		x.Fatal(err)
	}
	if version < 17_00_00 {
		x.Skip("synchronized_standby_slots came with PostgreSQL 17: this one was asked for")
	}
}

// receiveOnly makes walhook receive an event that it cannot record. It returns a function
// that lets it, and waits for the record.
func (x *Trial) receiveOnly() (record func()) {
	x.Helper()
	tx, err := x.pool.Begin(x.Context())
	if err != nil {
		x.Fatal(err)
	}
	x.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(x.Context())) })
	if _, err := tx.Exec(x.Context(), `LOCK TABLE webhook_deliveries IN EXCLUSIVE MODE`); err != nil { // this mode allows reading, and is not replicated
		x.Fatal(err)
	}
	x.insertOnce(1)
	committed := insertLSN(x.Context(), x.pool)
	x.eventually(10*time.Second, "walhook has received the event", func() bool {
		var received bool
		err := x.pool.QueryRow(x.Context(), `SELECT EXISTS (SELECT FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid
			WHERE s.slot_name = $1 AND r.write_lsn >= $2::text::pg_lsn)`, slotName, committed.String()).Scan(&received)
		return err == nil && received
	})
	return func() {
		if err := tx.Rollback(x.Context()); err != nil {
			x.Fatal(err)
		}
		x.eventually(10*time.Second, "the delivery is recorded", func() bool { return x.allHaveRows(x.journal.Committed()) })
	}
}

// cutOffStandby stops the replication to the standby, which can still query the primary.
func (x *Trial) cutOffStandby() {
	x.Helper()
	var pid int
	if err := x.pool.QueryRow(x.Context(), `SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1`, standbyName).Scan(&pid); err != nil {
		x.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		x.Fatal(err)
	}
}

// synchronize makes a standby copy the primary's slots once.
func (x *Trial) synchronize(standby *pgxpool.Pool) {
	x.Helper()
	if _, err := standby.Exec(x.Context(), `SELECT pg_sync_replication_slots()`); err != nil {
		x.Fatal(err)
	}
}
