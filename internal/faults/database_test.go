package faults

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"
)

// killPostgres kills all of PostgreSQL with everything that a checkpoint would have saved.
func killPostgres(t *testing.T, s Setup) {
	s.Durable = true
	x := newTrial(t, s)
	crashPostgres(x, 3, 8*time.Second, x.server.Kill)
}

// immediateStops has PostgreSQL drop everything, again and again, while
// checkpoints write the slot's older positions down.
func immediateStops(t *testing.T, s Setup) {
	s.Durable = true
	x := newTrial(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	x.load.Go(func() {
		pace := time.NewTicker(100 * time.Millisecond)
		defer pace.Stop()
		for ctx.Err() == nil {
			_, _ = x.pool.Exec(ctx, `CHECKPOINT`) // fails while PostgreSQL is down
			<-pace.C
		}
	})
	crashPostgres(x, either(8, 3), 4*time.Second, func() error {
		if len(x.crashes) == either(8, 3) {
			cancel()
		}
		return x.server.Stop("immediate")
	})
}

// crashPostgres ends PostgreSQL under load, again and again, and starts it at once.
func crashPostgres(x *Trial, times int, apart time.Duration, crash func() error) {
	x.Helper()
	const backAtMost = 5 * time.Second
	x.start()
	x.ready()
	done := x.drive(Load{Rate: *rate, Duration: time.Duration(times+1) * apart})
	ticker := time.NewTicker(apart)
	defer ticker.Stop()
	slowest := time.Duration(0)
	for range times {
		<-ticker.C
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
	<-done
	x.finish(time.Minute, fmt.Sprintf("reconnect=%s", slowest.Round(time.Millisecond)))
}

// postgresDown stops PostgreSQL for long: walhook waits, and does not grow.
func postgresDown(t *testing.T, s Setup) {
	const before, growsAtMost, backAtMost = 5 * time.Second, 32 << 20, 5 * time.Second
	downFor := either(time.Minute, 20*time.Second)
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
	<-time.After(before) // what was under way has ended
	was, most := x.resident(p), int64(0)
	for range int(downFor/time.Second) - 1 {
		<-time.After(time.Second)
		most = max(most, x.resident(p))
	}
	x.expect(most-was < growsAtMost, "memory grew from %d to %d MiB while PostgreSQL was down", was>>20, most>>20)
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
	x.finish(time.Minute, fmt.Sprintf("down=%s memory=%d..%dMiB reconnect=%s", downFor, was>>20, most>>20, back.Round(time.Millisecond)))
}

// stopPostgresWhileHanging wants a fast shutdown not to wait for walhook.
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

// lockedDeliveries keeps walhook from writing for longer than any timeout of the stream.
func lockedDeliveries(t *testing.T, s Setup) {
	const before = 3 * time.Second
	lockedFor := either(20*time.Second, 14*time.Second) // wal_sender_timeout is 10 s
	x := newTrial(t, s)
	x.start()
	x.ready()
	done := x.drive(Load{Rate: *rate, Duration: lockedFor + 3*before})
	<-time.After(before)
	x.monitor.pause(true)
	tx, err := x.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `LOCK TABLE webhook_deliveries`); err != nil {
		t.Fatal(err)
	}
	<-time.After(lockedFor)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	x.monitor.pause(false)
	<-done
	x.drain(2 * time.Minute)
	x.monitor.mu.Lock()
	senders := len(x.monitor.senders)
	x.monitor.mu.Unlock()
	x.expect(senders == 1, "there were %d walsenders", senders)
	x.finish(time.Minute, fmt.Sprintf("walsenders=%d", senders))
}
