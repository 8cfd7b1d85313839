package faults

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// killPostgres kills all of PostgreSQL, so that everything since the last checkpoint has
// to be recovered: once minutes after the last checkpoint, and twice soon after a
// recovery.
func killPostgres(t *testing.T, s Setup) {
	const soon = 8 * time.Second
	s.Durable = true
	x := newTrial(t, s)
	span := lasting(2 * time.Minute)
	var oldest time.Duration
	crashPostgres(x, []time.Duration{span, soon, soon}, func() error {
		oldest = max(oldest, x.sinceCheckpoint())
		return x.server.Kill()
	})
	x.expect(oldest >= span, "the last checkpoint was never older than %s", oldest)
	x.finish(time.Minute, fmt.Sprintf("checkpoint=%s before", oldest.Round(time.Second)))
}

// sinceCheckpoint is the age of the last checkpoint.
func (x *Trial) sinceCheckpoint() time.Duration {
	x.Helper()
	var seconds float64
	if err := x.pool.QueryRow(x.Context(), `SELECT extract(epoch FROM now() - checkpoint_time) FROM pg_control_checkpoint()`).Scan(&seconds); err != nil {
		x.Fatal(err)
	}
	return time.Duration(seconds * float64(time.Second))
}

// immediateStops stops PostgreSQL at once, again and again, while checkpoints write down
// older positions of the slot.
func immediateStops(t *testing.T, s Setup) {
	const apart, enough = 4 * time.Second, 20
	s.Durable = true
	x := newTrial(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var checkpoints atomic.Int32
	x.load.Go(func() {
		pace := time.NewTicker(100 * time.Millisecond)
		defer pace.Stop()
		for ctx.Err() == nil {
			if _, err := x.pool.Exec(ctx, `CHECKPOINT`); err == nil { // fails while PostgreSQL is down
				checkpoints.Add(1)
			}
			<-pace.C
		}
	})
	spans := slices.Repeat([]time.Duration{apart}, 8)
	crashPostgres(x, spans, func() error {
		if len(x.crashes) == len(spans) {
			cancel()
		}
		return x.server.Stop("immediate")
	})
	n := checkpoints.Load()
	x.expect(n > enough, "there were %d checkpoints", n)
	x.finish(time.Minute, fmt.Sprintf("checkpoints=%d", n))
}

// crashPostgres crashes PostgreSQL under load after each of the spans, and starts it at
// once.
func crashPostgres(x *Trial, spans []time.Duration, crash func() error) {
	x.Helper()
	const backAtMost, after = 5 * time.Second, 5 * time.Second
	x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	slowest := time.Duration(0)
	for _, span := range spans {
		<-time.After(span)
		over := x.crash(nil)
		if err := crash(); err != nil {
			x.Fatal(err)
		}
		if err := x.server.Restart(x.Context()); err != nil {
			x.Fatal(err)
		}
		over()
		accepts := time.Now()
		x.monitor.forget()
		x.eventually(20*time.Second, "walhook streams again", func() bool { return x.slot().PID != 0 })
		slowest = max(slowest, time.Since(accepts))
	}
	x.expect(slowest <= backAtMost, "reconnected %s after PostgreSQL accepted", slowest)
	<-time.After(after)
	stop()
	x.drain(time.Minute)
	x.setup.Report.add("reconnect=%s", slowest.Round(time.Millisecond))
}

// postgresDown stops PostgreSQL for a long time: walhook waits, and its memory must not
// grow.
func postgresDown(t *testing.T, s Setup) {
	const before, growsAtMost, backAtMost, drainedAtMost = 5 * time.Second, 32 << 20, 5 * time.Second, time.Minute
	downFor := lasting(3 * time.Minute)
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	<-time.After(before)
	over := x.crash(nil)
	if err := x.server.Stop("fast"); err != nil {
		t.Fatal(err)
	}
	<-time.After(before) // until attempts under way have ended
	was, most := x.resident(p), int64(0)
	for range int(downFor / time.Second) {
		<-time.After(time.Second)
		most = max(most, x.resident(p))
	}
	x.expect(was > 0 && most-was < growsAtMost, "memory grew from %d to %d MiB while PostgreSQL was down", was>>20, most>>20)
	status, _ := p.ready(t.Context())
	x.expect(status == http.StatusServiceUnavailable, "readyz says %d while PostgreSQL is down", status)
	if err := x.server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	over()
	accepts := time.Now()
	x.monitor.forget()
	x.eventually(20*time.Second, "walhook streams again", func() bool { return x.slot().PID != 0 })
	back := time.Since(accepts)
	x.expect(back <= backAtMost, "reconnected %s after PostgreSQL accepted", back)
	<-time.After(before)
	stop()
	x.drain(drainedAtMost - time.Since(accepts))
	drained := time.Since(accepts)
	x.finish(time.Minute, fmt.Sprintf("down=%s memory=%d..%dMiB reconnect=%s drained=%.1fs", downFor+before, was>>20, most>>20, back.Round(time.Millisecond), drained.Seconds()))
}

// stopPostgresWhileHanging expects that a fast shutdown does not wait for walhook.
func stopPostgresWhileHanging(t *testing.T, s Setup) {
	const downFor, stopAtMost = 2 * time.Second, 10 * time.Second
	hangingFor := either(6*time.Second, 3*time.Second)
	x := newTrial(t, s)
	x.start()
	x.ready()
	release := x.receiver.hang(0, 1, 2)
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	<-time.After(hangingFor)
	over := x.crash(nil) // a cut
	began := time.Now()
	err := x.server.Stop("fast")
	took := time.Since(began)
	x.expect(err == nil && took <= stopAtMost, "PostgreSQL stopped after %s: %v", took, err)
	if err != nil {
		_ = x.server.Kill()
	}
	<-time.After(downFor)
	if err := x.server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	over()
	release()
	<-time.After(downFor)
	stop()
	x.finish(2*time.Minute, fmt.Sprintf("stop=%s", took.Round(time.Millisecond)))
}

// lockedDeliveries keeps walhook from writing, and in the end from reading, for longer than
// the stream's timeouts: the server's, and that of walhook's session.
func lockedDeliveries(t *testing.T, s Setup) {
	const before = 3 * time.Second
	lockedFor := either(time.Minute, 14*time.Second) // the session's wal_sender_timeout is 10 s
	x := newTrial(t, s)
	x.exec(`ALTER SYSTEM SET wal_sender_timeout = '5s'`)
	x.exec(`SELECT pg_reload_conf()`)
	x.start()
	x.ready()
	done := x.drive(Load{Rate: *rate, Duration: lockedFor + 3*before})
	<-time.After(before)
	x.monitor.pause(true)
	tx, err := x.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := tx.Exec(t.Context(), `LOCK TABLE webhook_deliveries`); err != nil {
		t.Fatal(err)
	}
	x.confirmsNothing(tx, lockedFor)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	x.monitor.pause(false)
	<-done
	x.drain(2 * time.Minute)
	x.sameSender()
	x.finish(time.Minute, "the same walsender")
}

// confirmsNothing checks for a while that everything confirmed has its rows. It does so in
// the transaction that has locked them, because the monitor would have to wait.
func (x *Trial) confirmsNothing(locking pgx.Tx, lasts time.Duration) {
	x.Helper()
	confirmed, rowless := 0, 0
	for began := time.Now(); time.Since(began) < lasts; <-time.After(time.Second) {
		slot := x.slot()
		events := x.journal.TakeBelow(slot.Safe, map[uuid.UUID]bool{})
		confirmed = len(events)
		var missing int
		owed := slices.Collect(maps.Keys(x.monitor.owed(events)))
		if err := locking.QueryRow(x.Context(), `SELECT count(*) FROM (`+selectMissing+`) AS missing`, owed, (*time.Time)(nil)).Scan(&missing); err != nil {
			x.Fatal(err)
		}
		rowless = max(rowless, missing)
	}
	x.expect(rowless == 0, "%d deliveries were confirmed while nothing could be written, and had no row", rowless)
	x.expect(confirmed > 0, "nothing was confirmed before the rows were locked")
}
