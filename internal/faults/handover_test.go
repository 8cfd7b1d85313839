package faults

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// rollingRestart replaces walhook by a new one that stands by already.
func rollingRestart(t *testing.T, s Setup) {
	const apart, gapAtMost = 3 * time.Second, 2 * time.Second
	restarts := either(6, 3)
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	done := x.drive(Load{Rate: *rate, Duration: time.Duration(restarts) * apart})
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

// takeover kills the active one of two.
func takeover(t *testing.T, s Setup) {
	const atMost = 3 * time.Second
	times := either(5, 3)
	x := newTrial(t, s)
	active := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
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
	stop()
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
