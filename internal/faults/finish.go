package faults

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/walhook/walhook/internal/oracle"
	"github.com/walhook/walhook/internal/terminal"
)

// How a trial ends: everything is drained, and judged.

// crash notes the beginning of a fault that may cause requests to be repeated: those of
// a process, or of any if p is nil. over notes its end.
func (x *Trial) crash(p *Process) (over func()) {
	c, i := oracle.Crash{From: time.Now()}, len(x.crashes)
	if p != nil {
		c.Agent = p.Name
	}
	x.crashes = append(x.crashes, c)
	return func() { x.crashes[i].Until, x.crashes[i].Ended = time.Now(), p != nil && !p.Running() }
}

// evidence reads journal and tables. Nothing may be under way.
func (x *Trial) evidence() *oracle.Evidence {
	x.Helper()
	e := &oracle.Evidence{Endpoints: x.endpoints, Crashes: slices.Clone(x.crashes), PerCrash: maxInFlight + unrecorded,
		LastAttempt: 1 + len(strings.Split(cmp.Or(x.setup.Schedule, retrySchedule), ","))}
	e.Events, e.Requests = x.journal.Copy()
	if x.replays != nil {
		e.Replays = x.replays()
	}
	if err := e.ReadTables(x.Context(), x.pool, judgedApart...); err != nil {
		x.Fatal(err)
	}
	x.monitor.mu.Lock()
	defer x.monitor.mu.Unlock()
	e.Online = slices.Clone(x.monitor.problems)
	var changed int
	if err := x.pool.QueryRow(x.Context(), `SELECT count(*) FROM faults_changed_success`).Scan(&changed); err != nil {
		x.Fatal(err)
	}
	if changed > 0 {
		e.Online = append(e.Online, fmt.Sprintf("walhook has changed %d rows that were a success", changed))
	}
	return e
}

const selectProgress = `
SELECT count(*) FILTER (WHERE next_attempt_at IS NULL), count(next_attempt_at) FROM webhook_deliveries`

// drain waits until every owed delivery has ended, and the slot has passed it.
func (x *Trial) drain(within time.Duration) time.Duration {
	x.Helper()
	x.load.Wait()
	began := time.Now()
	owed := x.owed()
	within = x.patient(within)
	deadline := time.After(within)
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	end := insertLSN(x.Context(), x.pool)
	ended, open, slot := 0, 0, Slot{}
	for ended < owed || open > 0 || slot.Confirmed < end {
		select {
		case <-deadline:
			x.expect(false, "not drained within %s: %d of %d deliveries have ended, %d rows are open, %s of %s is confirmed", within, ended, owed, open, slot.Confirmed, end)
			return time.Since(began)
		case <-look.C:
		}
		if err := x.pool.QueryRow(x.Context(), selectProgress).Scan(&ended, &open); err != nil {
			continue
		}
		slot = x.slot()
	}
	return time.Since(began)
}

// owed counts the owed deliveries, by the outbox and by the oracle's own reading of the
// subscriptions.
func (x *Trial) owed() int {
	x.Helper()
	e := x.evidence()
	e.Requests, e.Rows, e.Online = nil, nil, nil
	return oracle.Judge(e).Deliveries
}

// finish drains, expects that the last walhook uses no more than before the load, stops
// it, judges, and reports the figures.
func (x *Trial) finish(within time.Duration, figures ...string) {
	x.Helper()
	drained := x.drain(within)
	watched := x.monitor.judge()
	figures = append(figures, x.idlesAgain()...)
	for _, p := range x.living() {
		_, err := p.stop(timeout + exitMargin)
		x.expect(err == nil, "%v", err)
	}
	verdict := oracle.Judge(x.evidence())
	x.monitor.mu.Lock()
	peak := x.monitor.peak
	x.monitor.mu.Unlock()
	x.expectWhole(x.receiver, x.killed())
	x.expect(peak > 0 && peak < maxMemory, "a walhook used %d MiB", peak>>20)
	x.Logf("deliveries=%d requests=%d resent=%d failed=%d drain=%.1fs %s", verdict.Deliveries, verdict.Requests, verdict.Resent, verdict.Failed,
		drained.Seconds(), watched)
	x.setup.Report.add("%s events, %s duplicates%s", terminal.Number(verdict.Events+x.tallied), terminal.Number(verdict.Duplicates), inCrashes(len(x.crashes)))
	if len(figures) > 0 {
		x.setup.Report.add("%s", strings.Join(figures, " "))
	}
	x.setup.Report.add("%d MiB", peak>>20)
	if err := verdict.Err(); err != nil {
		x.Error(err)
	}
	for _, f := range x.faults {
		x.Error(f)
	}
	x.judged = true
}

func inCrashes(n int) string {
	switch n {
	case 0:
		return ""
	case 1:
		return " in one crash"
	}
	return fmt.Sprintf(" in %d crashes", n)
}

// allHaveRows reports whether all deliveries of the events have their rows.
func (x *Trial) allHaveRows(events []oracle.Event) bool {
	missing, err := withoutRows(x.Context(), x.pool, x.monitor.owed(events), time.Time{})
	return err == nil && len(missing) == 0
}
