package faults

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"
)

// The scenarios, by their names in -run. Each runs with both values of
// WALHOOK_PARK_AFTER.
var scenarios = []struct {
	name string
	run  func(*testing.T, Setup)
}{
	{"NoFault", noFault},
	{"KillMinus9", killMinus9},
	{"KillMinus9Mixed", killMinus9Mixed},
	{"RollingRestart", rollingRestart},
	{"KillPostgres", killPostgres},
	{"StopPostgresWhileHanging", stopPostgresWhileHanging},
	{"LockedDeliveries", lockedDeliveries},
	{"Takeover", takeover},
	{"Freeze", freeze},
	{"DroppedSlot", droppedSlot},
	{"InvisibleCommit", invisibleCommit},
	{"OneOfFiftyHangs", oneOfFiftyHangs},
}

var parkAfter = []time.Duration{500 * time.Millisecond, 0}

func TestFaults(t *testing.T) {
	if !*faults {
		t.Skip("-faults or WALHOOK_FAULTS=1 runs them; TestKilledAgainAndAgain is the short one")
	}
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			for _, park := range parkAfter {
				t.Run("park="+park.String(), func(t *testing.T) { s.run(t, setup(t, park)) })
			}
		})
	}
}

func TestKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	if *faults {
		t.Skip("TestFaults/KillMinus9 does more")
	}
	if testing.Short() {
		t.Skip("takes about 15 s")
	}
	for _, park := range parkAfter {
		t.Run("loses nothing with park="+park.String(), func(t *testing.T) {
			t.Parallel()
			x := newTrial(t, setup(t, park))
			kills(x, Load{Rate: 100, Duration: 7 * time.Second}, 1500*time.Millisecond)
		})
	}
}

func noFault(t *testing.T, s Setup) {
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	before, measured := p.metric(t.Context(), "go_goroutines")
	<-x.drive(Load{Rate: *rate, Duration: lasting(20 * time.Second)})
	x.drain(time.Minute)
	goroutines := "not measured"
	if measured {
		const others = 20 // connections that the pools keep for a while
		after := before
		x.eventually(30*time.Second, "the goroutines of the load are gone", func() bool {
			after, measured = p.metric(t.Context(), "go_goroutines")
			return measured && after <= before+others
		})
		goroutines = fmt.Sprintf("%.0f to %.0f", before, after)
	}
	x.finish(time.Minute, "goroutines="+goroutines)
}

func killMinus9(t *testing.T, s Setup) {
	kills(newTrial(t, s), Load{Rate: *rate, Duration: lasting(time.Minute)}, *every)
}

// kills kills walhook again and again under a load, and starts it at once.
func kills(x *Trial, load Load, every time.Duration) {
	x.Helper()
	p := x.start()
	x.ready()
	lives, moved := killUntil(x, p, x.drive(load), every)
	x.expect(10*moved >= 9*lives, "the confirmed position moved in %d of %d lives", moved, lives)
	x.finish(time.Minute, fmt.Sprintf("moved=%d/%d", moved, lives))
}

// killUntil kills until done, and says in how many lives the confirmed position moved.
func killUntil(x *Trial, p *Process, done <-chan struct{}, every time.Duration) (lives, moved int) {
	x.Helper()
	confirmed := x.slot().Confirmed
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return lives, moved
		case <-ticker.C:
		}
		x.expect(p.running(), "%s has ended by itself: %v", p.Name, p.ended)
		if err := p.kill(); err != nil {
			x.Fatal(err)
		}
		p = x.start()
		x.crashes++
		lives++
		now := x.slot().Confirmed
		if now > confirmed {
			moved++
		}
		confirmed = now
	}
}

// killMinus9Mixed kills under two-phase commits, COPY, and two huge
// transactions, one of which is rolled back.
func killMinus9Mixed(t *testing.T, s Setup) {
	const huge = 10_000
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	done := x.drive(Load{Rate: *rate / 2, Duration: lasting(30 * time.Second), Mixed: true})
	for _, rollBack := range []bool{false, true} {
		x.load.Go(func() {
			if err := x.driver.copy(context.WithoutCancel(t.Context()), x.driver.newEvents(huge), rollBack); err != nil {
				t.Errorf("a huge transaction: %v", err)
			}
		})
	}
	lives, moved := killUntil(x, p, done, *every)
	x.finish(2*time.Minute, fmt.Sprintf("moved=%d/%d", moved, lives))
}

// rollingRestart replaces walhook by a new one that stands by already.
func rollingRestart(t *testing.T, s Setup) {
	const restarts, apart, gapAtMost = 6, 3 * time.Second, 2 * time.Second
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	done := x.drive(Load{Rate: *rate, Duration: restarts * apart})
	slowest := time.Duration(0)
	ticker := time.NewTicker(apart * 3 / 4)
	defer ticker.Stop()
	for range restarts - 1 {
		<-ticker.C
		next := x.start()
		x.standingBy(next)
		took, err := p.stop(timeout + exitMargin)
		x.expect(err == nil, "%v", err)
		slowest = max(slowest, took)
		x.holds(next, 5*time.Second)
		p = next
	}
	<-done
	gap := longestGap(x)
	x.expect(gap <= gapAtMost, "nothing was sent for %s", gap)
	x.finish(time.Minute, fmt.Sprintf("restarts=%d exit=%s gap=%s", restarts-1, slowest.Round(time.Millisecond), gap.Round(time.Millisecond)))
}

// standingBy waits until a process waits for the slot.
func (x *Trial) standingBy(p *Process) {
	x.Helper()
	x.eventually(20*time.Second, p.Name+" stands by", func() bool {
		var n int
		err := x.pool.QueryRow(x.Context(), `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND backend_type = 'walsender'`, p.Name).Scan(&n)
		return err == nil && n > 0
	})
}

// holds waits until a process streams from the slot.
func (x *Trial) holds(p *Process, within time.Duration) {
	x.Helper()
	x.eventually(within, p.Name+" holds the slot", func() bool {
		var name string
		err := x.pool.QueryRow(x.Context(), `SELECT a.application_name FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
			WHERE s.slot_name = $1`, slotName).Scan(&name)
		return err == nil && name == p.Name
	})
}

// longestGap is how long nothing was received between the first and the last request.
func longestGap(x *Trial) (gap time.Duration) {
	_, requests := x.journal.copy()
	for i := 1; i < len(requests); i++ {
		gap = max(gap, requests[i].At.Sub(requests[i-1].At))
	}
	return gap
}

// killPostgres kills all of PostgreSQL with everything that a checkpoint would have saved.
func killPostgres(t *testing.T, s Setup) {
	const times, apart, backAtMost = 3, 8 * time.Second, 5 * time.Second
	s.Durable = true
	x := newTrial(t, s)
	x.start()
	x.ready()
	done := x.drive(Load{Rate: *rate, Duration: (times + 1) * apart})
	ticker := time.NewTicker(apart)
	defer ticker.Stop()
	slowest := time.Duration(0)
	for range times {
		<-ticker.C
		if err := x.server.Kill(); err != nil {
			t.Fatal(err)
		}
		x.crashes++
		if err := x.server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		accepts := time.Now()
		x.monitor.forget()
		x.eventually(20*time.Second, "walhook streams again", func() bool { return x.slot().PID != 0 })
		slowest = max(slowest, time.Since(accepts))
	}
	x.expect(slowest <= backAtMost, "reconnected %s after PostgreSQL accepted", slowest)
	<-done
	x.finish(time.Minute, fmt.Sprintf("reconnect=%s", slowest.Round(time.Millisecond)))
}

// stopPostgresWhileHanging wants a fast shutdown not to wait for walhook.
func stopPostgresWhileHanging(t *testing.T, s Setup) {
	const hangingFor, downFor, stopAtMost = 6 * time.Second, 2 * time.Second, 10 * time.Second
	x := newTrial(t, s)
	x.start()
	x.ready()
	release := x.receiver.hang(0, 1, 2)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	x.load.Go(func() { x.driver.drive(ctx, Load{Rate: *rate}) })
	<-time.After(hangingFor)
	began := time.Now()
	err := x.server.Stop("fast")
	took := time.Since(began)
	x.expect(err == nil && took <= stopAtMost, "PostgreSQL stopped after %s: %v", took, err)
	if err != nil {
		_ = x.server.Kill()
	}
	x.crashes++ // a cut
	<-time.After(downFor)
	if err := x.server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	release()
	<-time.After(downFor)
	cancel()
	x.finish(2*time.Minute, fmt.Sprintf("stop=%s", took.Round(time.Millisecond)))
}

// lockedDeliveries keeps walhook from writing for longer than any timeout of the stream.
func lockedDeliveries(t *testing.T, s Setup) {
	const lockedFor, before = 20 * time.Second, 3 * time.Second
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

// takeover kills the active one of two.
func takeover(t *testing.T, s Setup) {
	const times, atMost = 5, 3 * time.Second
	x := newTrial(t, s)
	active := x.start()
	x.ready()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	x.load.Go(func() { x.driver.drive(ctx, Load{Rate: *rate}) })
	slowest := time.Duration(0)
	for range times {
		standby := x.start()
		x.standingBy(standby)
		<-time.After(time.Second)
		began := time.Now()
		if err := active.kill(); err != nil {
			t.Fatal(err)
		}
		x.crashes++
		slowest = max(slowest, x.firstRequest(standby, began, 20*time.Second))
		active = standby
	}
	cancel()
	x.expect(slowest <= atMost, "took over after %s", slowest)
	x.finish(time.Minute, fmt.Sprintf("takeover=%s", slowest.Round(time.Millisecond)))
}

// firstRequest waits for a process's first request, and says how long after began it came.
func (x *Trial) firstRequest(p *Process, began time.Time, within time.Duration) (took time.Duration) {
	x.Helper()
	from := x.journal.count()
	x.eventually(within, p.Name+" sends", func() bool {
		for _, r := range x.journal.since(from) {
			if r.Agent == p.Name {
				took = r.At.Sub(began)
				return true
			}
			from++
		}
		return false
	})
	return took
}

// freeze halts the active one of two, and lets it go on after the other has taken over.
func freeze(t *testing.T, s Setup) {
	const frozenFor, afterwards, atMost = 20 * time.Second, 8 * time.Second, 15 * time.Second
	x := newTrial(t, s)
	zombie := x.start()
	x.ready()
	standby := x.start()
	x.standingBy(standby)
	done := x.drive(Load{Rate: *rate, Duration: 2*time.Second + frozenFor + afterwards})
	<-time.After(2 * time.Second)
	began := time.Now()
	if err := zombie.signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	x.crashes++
	thaw := time.After(frozenFor)
	took := x.firstRequest(standby, began, frozenFor)
	x.expect(took <= atMost, "took over after %s", took)
	<-thaw
	var thawed time.Time
	if err := x.pool.QueryRow(t.Context(), `SELECT clock_timestamp()`).Scan(&thawed); err != nil {
		t.Fatal(err)
	}
	from := x.journal.count()
	if err := zombie.signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	<-done
	sent := 0
	for _, r := range x.journal.since(from) {
		if r.Agent == zombie.Name {
			sent++
		}
	}
	var written int
	if err := x.pool.QueryRow(t.Context(), `SELECT coalesce(sum(rows), 0) FROM faults_writes WHERE application = $1 AND at >= $2`, zombie.Name, thawed).
		Scan(&written); err != nil {
		t.Fatal(err)
	}
	x.expect(written == 0, "the zombie wrote %d rows", written)
	fate := "runs"
	if !zombie.running() {
		fate = fmt.Sprint(zombie.ended)
	}
	x.finish(time.Minute, fmt.Sprintf("takeover=%s zombie wrote=%d sent=%d (%s)", took.Round(time.Millisecond), written, sent, fate))
}

// droppedSlot takes the slot away under load.
func droppedSlot(t *testing.T, s Setup) {
	const before, atMost = 4 * time.Second, 30 * time.Second
	x := newTrial(t, s)
	x.start()
	x.ready()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	x.load.Go(func() { x.driver.drive(ctx, Load{Rate: *rate}) })
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
	began := time.Now()
	<-time.After(time.Second)
	owing := x.journal.committed()
	x.eventually(2*atMost, "everything that was committed before has its rows", func() bool { return x.allHaveRows(owing) })
	took := time.Since(began)
	x.expect(took <= atMost, "resynchronised after %s", took)
	x.monitor.pause(false)
	<-time.After(before)
	cancel()
	x.finish(time.Minute, fmt.Sprintf("resync=%s", took.Round(time.Millisecond)))
}
