package faults

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// droppedSlot drops the slot under load.
func droppedSlot(t *testing.T, s Setup) {
	const before, atMost = 4 * time.Second, 30 * time.Second
	x := newTrial(t, s)
	x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	<-time.After(before)
	x.monitor.pause(true) // the new slot's position is beyond what has rows
	over := x.crash(nil)
	x.dropSlot()
	over()
	took := x.resynchronised(time.Now(), atMost)
	<-time.After(before)
	stop()
	x.finish(time.Minute, fmt.Sprintf("resync=%s", took.Round(time.Millisecond)))
}

// dropSlot drops the slot, and ends the session that streams from it.
func (x *Trial) dropSlot() {
	x.Helper()
	x.eventually(10*time.Second, "the slot is dropped", func() bool {
		_, err := x.pool.Exec(x.Context(), `SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots WHERE slot_name = $1`, slotName)
		if err == nil {
			_, err = x.pool.Exec(x.Context(), `SELECT pg_drop_replication_slot($1)`, slotName)
		}
		return err == nil
	})
}

// blockedCreation drops the slot while an open transaction delays its creation: before
// walhook's first start, and again under the running process. A slot that was created too
// early would not bring what that transaction commits.
func blockedCreation(t *testing.T, s Setup) {
	const before, atMost = 3 * time.Second, 30 * time.Second
	x := newTrial(t, s)
	x.monitor.pause(true) // the new slot's position is beyond what has rows
	var p *Process
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	first, resyncFirst := x.blockCreation(atMost, func() *Process { p = x.start(); return p })
	<-time.After(before)
	x.monitor.pause(true)
	over := x.crash(nil)
	again, resyncAgain := x.blockCreation(atMost, func() *Process { return p })
	over()
	<-time.After(before)
	stop()
	x.finish(time.Minute, fmt.Sprintf("named=%s, %s resync=%s, %s", first.Round(time.Millisecond), again.Round(time.Millisecond),
		resyncFirst.Round(time.Millisecond), resyncAgain.Round(time.Millisecond)))
}

// blockCreation drops the slot under an open transaction. It returns after how long
// walhook named the transaction, and how long after its commit walhook had caught up.
func (x *Trial) blockCreation(atMost time.Duration, walhook func() *Process) (named, resync time.Duration) {
	x.Helper()
	const namedAtMost = 10 * time.Second
	tx, err := x.pool.Begin(x.Context())
	if err != nil {
		x.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(x.Context()))
	events := x.driver.newEvents(mostRows)
	if err := insertRows(x.Context(), tx, events); err != nil {
		x.Fatal(err)
	}
	x.dropSlot()
	began, p := time.Now(), walhook()
	says := fmt.Sprintf("waiting for the transaction of pid %d", tx.Conn().PgConn().PID())
	x.eventually(2*namedAtMost, "the log and readyz name the transaction", func() bool {
		status, answer := p.ready(x.Context())
		return p.logged(says) > 0 && status == http.StatusServiceUnavailable && strings.Contains(answer, says)
	})
	named = time.Since(began)
	x.expect(named <= namedAtMost, "the transaction was named after %s", named)
	if err := x.driver.commit(x.Context(), tx, events); err != nil {
		x.Fatal(err)
	}
	return named, x.resynchronised(time.Now(), atMost)
}

// resynchronised waits until everything that is committed before a second from now has its
// rows, and the slot's position means something again.
func (x *Trial) resynchronised(began time.Time, atMost time.Duration) time.Duration {
	x.Helper()
	<-time.After(time.Second)
	owing := x.journal.Committed()
	x.eventually(2*atMost, "everything that was committed before has its rows", func() bool { return x.allHaveRows(owing) })
	took := time.Since(began)
	x.expect(took <= atMost, "resynchronised after %s", took)
	x.monitor.pause(false)
	return took
}

// invalidated is walhook's alarm for a slot that PostgreSQL has invalidated.
const invalidated = "the replication slot was invalidated by PostgreSQL"

// invalidatedSlot makes PostgreSQL invalidate the slot because of the WAL that it holds,
// while walhook cannot record anything.
func invalidatedSlot(t *testing.T, s Setup) {
	const segments = 6
	losesSlot(t, s, func(x *Trial, _ *Process) (restore func()) {
		x.exec(`ALTER SYSTEM SET max_slot_wal_keep_size = '32MB'`)
		x.exec(`SELECT pg_reload_conf()`)
		tx, err := x.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
		if _, err := tx.Exec(t.Context(), `LOCK TABLE webhook_deliveries`); err != nil {
			t.Fatal(err)
		}
		for range segments {
			x.exec(`SELECT pg_logical_emit_message(false, 'faults', 'a segment'), pg_switch_wal()`)
		}
		x.exec(`CHECKPOINT`)
		return func() {
			x.exec(`ALTER SYSTEM RESET max_slot_wal_keep_size`)
			x.exec(`SELECT pg_reload_conf()`)
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// idleSlot makes PostgreSQL invalidate the slot because nobody streams from it, while
// walhook is frozen.
func idleSlot(t *testing.T, s Setup) {
	const givenUpWithin = 30 * time.Second // walhook's wal_sender_timeout is 10 s
	losesSlot(t, s, func(x *Trial, p *Process) (restore func()) {
		var unit string
		err := x.pool.QueryRow(t.Context(), `SELECT coalesce(min(unit), '') FROM pg_settings WHERE name = 'idle_replication_slot_timeout'`).Scan(&unit)
		if err != nil {
			t.Fatal(err)
		}
		if unit == "" {
			t.Skip("PostgreSQL invalidates idle slots from version 18 on: set WALHOOK_TEST_POSTGRES_VERSION")
		}
		x.exec(`ALTER SYSTEM SET idle_replication_slot_timeout = '1` + unit + `'`)
		x.exec(`SELECT pg_reload_conf()`)
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		x.eventually(givenUpWithin, "a checkpoint invalidates the slot for idling", func() bool {
			x.exec(`CHECKPOINT`)
			var reason string
			err := x.pool.QueryRow(t.Context(), `SELECT coalesce(invalidation_reason, '') FROM pg_replication_slots WHERE slot_name = $1`, slotName).Scan(&reason)
			return err == nil && reason == "idle_timeout"
		})
		if err := p.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		return func() {
			x.exec(`ALTER SYSTEM RESET idle_replication_slot_timeout`)
			x.exec(`SELECT pg_reload_conf()`)
		}
	})
}

// losesSlot makes PostgreSQL invalidate the slot under load, and expects one alarm and a
// new slot.
func losesSlot(t *testing.T, s Setup, lose func(*Trial, *Process) (restore func())) {
	t.Helper()
	const before, atMost = 4 * time.Second, 30 * time.Second
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	<-time.After(before)
	x.monitor.pause(true) // the new slot's position is beyond what has rows
	over := x.crash(nil)
	restore := lose(x, p)
	lost := time.Now()
	x.eventually(20*time.Second, "the log says that the slot was invalidated", func() bool { return p.logged(invalidated) > 0 })
	alarmed := time.Since(lost)
	restore()
	took := x.resynchronised(time.Now(), atMost)
	over()
	<-time.After(before)
	stop()
	x.expect(p.logged(invalidated) == 1, "there were %d alarms", p.logged(invalidated))
	x.finish(time.Minute, fmt.Sprintf("alarm=%s resync=%s", alarmed.Round(time.Millisecond), took.Round(time.Millisecond)))
}
