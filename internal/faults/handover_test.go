package faults

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// rollingRestart replaces walhook by one that already stands by; the last time while an
// endpoint hangs, so that the stop waits for its requests.
func rollingRestart(t *testing.T, s Setup) {
	const apart, gapAtMost, hangingFor = 3 * time.Second, 2 * time.Second, time.Second
	restarts := either(6, 3)
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	slowest := time.Duration(0)
	ticker := time.NewTicker(apart * 3 / 4)
	defer ticker.Stop()
	for range restarts - 1 {
		<-ticker.C
		var took time.Duration
		p, took = x.handOver(p)
		slowest = max(slowest, took)
	}
	<-ticker.C
	gap := longestGap(x)
	x.expect(gap <= gapAtMost, "nothing was sent for %s", gap)
	release := x.receiver.hang(0)
	<-time.After(hangingFor)
	_, hanging := x.handOver(p)
	x.expect(hanging >= time.Second, "it stopped within %s, and did not wait for the requests", hanging)
	release()
	<-ticker.C
	stop()
	x.finish(time.Minute, fmt.Sprintf("restarts=%d exit=%s gap=%s hanging=%s", restarts, slowest.Round(time.Millisecond), gap.Round(time.Millisecond),
		hanging.Round(time.Millisecond)))
}

// handOver stops a process when the next one stands by, and returns how long that took.
func (x *Trial) handOver(p *Process) (next *Process, took time.Duration) {
	x.Helper()
	next = x.start()
	x.standingBy(next)
	took, err := p.stop(timeout + exitMargin)
	x.expect(err == nil, "%v", err)
	x.holds(next, 5*time.Second)
	return next, took
}

// standingBy waits until a process stands by.
func (x *Trial) standingBy(p *Process) {
	x.Helper()
	x.eventually(20*time.Second, p.Name+" stands by", func() bool {
		var n int
		err := x.pool.QueryRow(x.Context(), `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND backend_type = 'walsender'`, p.Name).Scan(&n)
		return err == nil && n > 0
	})
}

// holds waits until a process holds the slot.
func (x *Trial) holds(p *Process, within time.Duration) {
	x.Helper()
	x.eventually(within, p.Name+" holds the slot", func() bool {
		var name string
		err := x.pool.QueryRow(x.Context(), `SELECT a.application_name FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
			WHERE s.slot_name = $1`, slotName).Scan(&name)
		return err == nil && name == p.Name
	})
}

// longestGap is the longest time between two requests.
func longestGap(x *Trial) (gap time.Duration) {
	_, requests := x.journal.Copy()
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
		over := x.crash(active)
		if err := active.kill(); err != nil {
			t.Fatal(err)
		}
		over()
		slowest = max(slowest, x.firstRequest(standby, began, 20*time.Second))
		active = standby
	}
	stop()
	x.expect(slowest <= atMost, "took over after %s", slowest)
	x.finish(time.Minute, fmt.Sprintf("takeover=%s", slowest.Round(time.Millisecond)))
}

// firstRequest waits for a process's first request, and returns how long after began it
// came.
func (x *Trial) firstRequest(p *Process, began time.Time, within time.Duration) (took time.Duration) {
	x.Helper()
	from := x.journal.Count()
	x.eventually(within, p.Name+" sends", func() bool {
		for _, r := range x.journal.Since(from) {
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

// watchWrites makes the database note who writes into walhook's other tables.
func (x *Trial) watchWrites() {
	x.Helper()
	for _, table := range []string{"webhook_state", "webhook_outbox", "webhook_endpoints"} {
		for event, rows := range map[string]string{"INSERT": "NEW", "UPDATE": "NEW", "DELETE": "OLD"} {
			x.exec(fmt.Sprintf(`CREATE TRIGGER faults_%[1]s AFTER %[1]s ON %[2]s REFERENCING %[3]s TABLE AS written
				FOR EACH STATEMENT EXECUTE FUNCTION faults_writes()`, event, table, rows))
		}
	}
}

// writtenBy counts the rows written by a process.
func (x *Trial) writtenBy(p *Process) (rows int) {
	x.Helper()
	if err := x.pool.QueryRow(x.Context(), `SELECT coalesce(sum(rows), 0) FROM faults_writes WHERE application = $1`, p.Name).Scan(&rows); err != nil {
		x.Fatal(err)
	}
	return rows
}

// freeze freezes the active one of two, and thaws it after the other has taken over.
func freeze(t *testing.T, s Setup) {
	const frozenFor, afterwards, atMost = time.Minute, 8 * time.Second, 15 * time.Second
	x := newTrial(t, s)
	x.watchWrites()
	zombie := x.start()
	x.ready()
	standby := x.start()
	x.standingBy(standby)
	done := x.drive(Load{Rate: *rate, Duration: 2*time.Second + frozenFor + afterwards})
	<-time.After(2 * time.Second)
	began, over := time.Now(), x.crash(zombie)
	if err := zombie.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	thaw := time.After(frozenFor)
	took := x.firstRequest(standby, began, frozenFor)
	x.expect(took <= atMost, "took over after %s", took)
	<-thaw
	before, from := x.writtenBy(zombie), x.journal.Count()
	x.expect(before > 0, "writes are not noted")
	if err := zombie.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	over()
	<-done
	sent := 0
	for _, r := range x.journal.Since(from) {
		if r.Agent == zombie.Name {
			sent++
		}
	}
	written := x.writtenBy(zombie) - before
	x.expect(written == 0, "the zombie wrote %d rows", written)
	x.finish(time.Minute, fmt.Sprintf("takeover=%s zombie wrote=%d sent=%d (%s)", took.Round(time.Millisecond), written, sent, zombie.fate()))
}
