package faults

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// droppedSlot takes the slot away under load.
func droppedSlot(t *testing.T, s Setup) {
	const before, atMost = 4 * time.Second, 30 * time.Second
	x := newTrial(t, s)
	x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	<-time.After(before)
	x.monitor.pause(true) // the new slot's position is beyond what has rows
	x.eventually(10*time.Second, "the slot is dropped", func() bool {
		_, err := x.pool.Exec(t.Context(), `SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots WHERE slot_name = $1`, slotName)
		if err == nil {
			_, err = x.pool.Exec(t.Context(), `SELECT pg_drop_replication_slot($1)`, slotName)
		}
		return err == nil
	})
	x.crashes++
	took := x.resynchronised(time.Now(), atMost)
	<-time.After(before)
	stop()
	x.finish(time.Minute, fmt.Sprintf("resync=%s", took.Round(time.Millisecond)))
}

// resynchronised waits until all that was committed until a second from now has
// its rows, and the slot means something again.
func (x *Trial) resynchronised(began time.Time, atMost time.Duration) time.Duration {
	x.Helper()
	<-time.After(time.Second)
	owing := x.journal.committed()
	x.eventually(2*atMost, "everything that was committed before has its rows", func() bool { return x.allHaveRows(owing) })
	took := time.Since(began)
	x.expect(took <= atMost, "resynchronised after %s", took)
	x.monitor.pause(false)
	return took
}

// invalidatedSlot has PostgreSQL give up the slot for the WAL that it holds, while
// walhook cannot record anything.
func invalidatedSlot(t *testing.T, s Setup) {
	const before, atMost, segments = 4 * time.Second, 30 * time.Second, 6
	const alarm = "the replication slot was invalidated by PostgreSQL"
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	<-time.After(before)
	x.monitor.pause(true) // the new slot's position is beyond what has rows
	x.exec(`ALTER SYSTEM SET max_slot_wal_keep_size = '32MB'`)
	x.exec(`SELECT pg_reload_conf()`)
	tx, err := x.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := tx.Exec(t.Context(), `LOCK TABLE webhook_deliveries`); err != nil {
		t.Fatal(err)
	}
	x.crashes++
	began := time.Now()
	for range segments {
		x.exec(`SELECT pg_logical_emit_message(false, 'faults', 'a segment'), pg_switch_wal()`)
	}
	x.exec(`CHECKPOINT`)
	x.eventually(20*time.Second, "the log says that the slot was invalidated", func() bool { return p.logged(alarm) > 0 })
	alarmed := time.Since(began)
	x.exec(`ALTER SYSTEM RESET max_slot_wal_keep_size`)
	x.exec(`SELECT pg_reload_conf()`)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	took := x.resynchronised(time.Now(), atMost)
	<-time.After(before)
	stop()
	x.expect(p.logged(alarm) == 1, "there were %d alarms", p.logged(alarm))
	x.finish(time.Minute, fmt.Sprintf("alarm=%s resync=%s", alarmed.Round(time.Millisecond), took.Round(time.Millisecond)))
}
