package faults

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// shadowClock replaces the function that tells this database's time, so that its clock
// can differ from walhook's.
const shadowClock = `
CREATE SCHEMA faults_clock;
CREATE TABLE faults_clock.off (by interval NOT NULL);
INSERT INTO faults_clock.off VALUES ('0');
GRANT USAGE ON SCHEMA faults_clock TO PUBLIC;
GRANT SELECT ON faults_clock.off TO PUBLIC;
SET allow_system_table_mods = on;
ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO true_clock_timestamp;
CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    'SELECT pg_catalog.true_clock_timestamp() + off.by FROM faults_clock.off';
RESET allow_system_table_mods`

const (
	// far is how much the clock is off. near is still allowed, and beyond is not.
	far, near, beyond = 10 * time.Minute, 110 * time.Second, 130 * time.Second

	// inForceAfter is how long walhook may rely on what it has read, plus the time of a
	// request.
	inForceAfter = time.Second + 500*time.Millisecond

	skewed = "more than two minutes apart" // in walhook's log
)

// clockOff sets the clock wrong in both directions, and right again. It also starts a
// walhook while the clock is wrong.
func clockOff(t *testing.T, s Setup) {
	const goesOnWithin = 3 * time.Second
	s.Role = true
	x := newTrial(t, s)
	x.exec(shadowClock)
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	for _, way := range []time.Duration{1, -1} {
		x.setClock(way * near)
		<-time.After(inForceAfter)
		x.sends("with a clock that is off by "+(way*near).String(), goesOnWithin)
		x.refuses(p, way*beyond)
	}
	x.setClock(0)
	x.sends("with a clock that is right again", goesOnWithin)
	ahead := x.whileOff(p, p.logged(skewed), far, stop)
	x.sends("of what waited", goesOnWithin)
	stop = x.driveOn(Load{Rate: *rate})
	behind := x.whileOff(p, p.logged(skewed), -far, stop)

	x.setClock(far)
	_, err := p.stop(timeout + exitMargin)
	x.expect(err == nil, "%v", err)
	p = x.start()
	x.ready()
	stop = x.driveOn(Load{Rate: *rate})
	started := x.whileOff(p, 0, far, stop)
	x.finish(time.Minute, ahead, behind, started)
}

// setClock sets how far PostgreSQL's clock is ahead of walhook's.
func (x *Trial) setClock(by time.Duration) {
	x.Helper()
	x.exec(`UPDATE faults_clock.off SET by = $1`, by)
}

// sends waits for another request.
func (x *Trial) sends(what string, within time.Duration) {
	x.Helper()
	n := x.journal.Count()
	x.eventually(within, "something is sent "+what, func() bool { return x.journal.Count() > n })
}

// refuses sets the clock wrong under load, and expects that walhook sends nothing and says
// why.
func (x *Trial) refuses(p *Process, by time.Duration) {
	x.Helper()
	const loaded = 2 * time.Second
	said := p.logged(skewed)
	x.setClock(by)
	<-time.After(inForceAfter)
	from := x.journal.Count()
	<-time.After(loaded)
	sent := x.journal.Count() - from
	x.expect(sent == 0, "%d requests were sent with a clock that is off by %s", sent, by)
	x.saysSo(p, said)
}

// whileOff sets the clock wrong under load, and expects that walhook sends nothing while
// the slot moves on. It ends the load, measures what walhook still does, and sets the
// clock right. said is how often the log had reported a wrong clock before.
func (x *Trial) whileOff(p *Process, said int, by time.Duration, endLoad func()) (figures string) {
	x.Helper()
	const loaded, measured = 4 * time.Second, 5 * time.Second
	x.setClock(by)
	<-time.After(inForceAfter)
	from, used := x.journal.Count(), x.cpu(p)
	<-time.After(loaded)
	used = x.cpu(p) - used
	x.saysSo(p, said)
	endLoad()
	x.load.Wait()
	end := insertLSN(x.Context(), x.pool)
	x.eventually(3*time.Second, "unsent deliveries are parked and confirmed", func() bool { return x.slot().Confirmed >= end })

	cpu, rate := x.idleRates(p, measured)
	const cpuAtMost, rateAtMost = 0.1, 100 // a few look-ups a second, including the trial's own
	x.expect(cpu <= cpuAtMost, "walhook uses %.0f%% of a CPU while it can do nothing", 100*cpu)
	x.expect(rate <= rateAtMost, "%.0f transactions a second while nothing can be done", rate)
	sent := x.journal.Count() - from
	x.expect(sent == 0, "%d requests were sent with a clock that is off by %s", sent, by)
	lines := p.logged(skewed) - said
	x.expect(lines == 1, "the log says %d times that the clock is off by %s", lines, by)
	x.setClock(0)
	x.eventually(3*time.Second, "walhook is ready again", func() bool { status, _ := p.ready(x.Context()); return status == http.StatusOK })
	return fmt.Sprintf("by %s: cpu=%.1f%% (with the load %.0f%%) transactions=%.0f/s", by, 100*cpu, 100*used.Seconds()/loaded.Seconds(), rate)
}

// saysSo expects that GET /readyz and one more line of the log report the clock.
func (x *Trial) saysSo(p *Process, said int) {
	x.Helper()
	status, says := p.ready(x.Context())
	x.expect(status == http.StatusServiceUnavailable && strings.Contains(says, skewed), "readyz says %d: %s", status, says)
	lines := p.logged(skewed) - said
	x.expect(lines == 1, "the log of %s reports the clock %d times", p.Name, lines)
}

// idleRates measures walhook's share of a CPU, and the transactions per second.
func (x *Trial) idleRates(p *Process, over time.Duration) (cpu, transactions float64) {
	x.Helper()
	used, committed, began := x.cpu(p), x.transactions(), time.Now()
	<-time.After(over)
	took := time.Since(began).Seconds()
	return (x.cpu(p) - used).Seconds() / took, float64(x.transactions()-committed) / took
}

func (x *Trial) transactions() (n int64) {
	x.Helper()
	err := x.pool.QueryRow(x.Context(), `SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()`).Scan(&n)
	if err != nil {
		x.Fatal(err)
	}
	return n
}
