//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pglogrepl"
)

// A drained is what one round of walhook came to.
type drained struct {
	firstRequest  time.Duration // after the start of the process
	recorded      time.Duration // until all rows are committed
	confirmed     time.Duration // and the slot has moved beyond the last event
	cpu, server   time.Duration
	rss           int64
	wal           wal
	dead          int64 // row versions of deliveries that were replaced
	requests      int64
	stopped       time.Duration // how long the stop took
	fromFirst     time.Duration // confirmed, from the first request
	receiverLeads time.Duration // the last request came so long before all was confirmed
}

// drain lets walhook, the bare client and both pollers work off the same backlog
// in turns, each round in another order.
func (b *bench) drain(ctx context.Context) error {
	var walhooks []drained
	var clients []outcome
	var oneByOne, parallel []polled
	arms := []struct {
		name string
		run  func(round int) error
	}{
		{"walhook", func(round int) error { return keep(&walhooks)(b.runWalhook(ctx, round)) }},
		{"bare client", func(round int) error { return keep(&clients)(b.runClient(ctx, round)) }},
		{"poller, in parallel", func(int) error { return keep(&parallel)(b.runPoller(ctx, true)) }},
		{"poller, one by one", func(int) error { return keep(&oneByOne)(b.runPoller(ctx, false)) }},
	}
	if !b.pollers {
		arms = arms[:2]
	}
	for round := range b.rounds {
		for i := range arms {
			arm := arms[(round+i)%len(arms)]
			began := now()
			if err := arm.run(round); err != nil {
				return fmt.Errorf("%s, round %d: %w", arm.name, round+1, err)
			}
			b.report.progress("drain %d/%d %s: %.1f s", round+1, b.rounds, arm.name, (now() - began).Seconds())
		}
	}
	b.reportDrain(walhooks, clients, parallel, oneByOne)
	return nil
}

// keep appends a result where there is no error.
func keep[T any](to *[]T) func(T, error) error {
	return func(result T, err error) error {
		if err == nil {
			*to = append(*to, result)
		}
		return err
	}
}

func (b *bench) runClient(ctx context.Context, round int) (outcome, error) {
	p, err := startChild(ctx, "client", job{
		URL: b.receiver.url(pathCount), N: b.n, Secret: clientSecret, Profile: b.profileFile("client", round),
	})
	if err != nil {
		return outcome{}, err
	}
	defer p.stop()
	if err := b.calm(ctx); err != nil {
		return outcome{}, err
	}
	return p.run()
}

func (b *bench) profileFile(of string, round int) string {
	if b.profile == "" {
		return ""
	}
	folder, err := filepath.Abs(b.profile)
	if err != nil {
		folder = b.profile
	}
	_ = os.MkdirAll(folder, 0o755) // creating the file says what is wrong
	return filepath.Join(folder, fmt.Sprintf("%s-%d.pprof", of, round+1))
}

// drainWithin bounds a drain that does not come to its end.
const drainWithin = 10 * time.Minute

func (b *bench) runWalhook(ctx context.Context, round int) (drained, error) {
	db, err := b.server.newDatabase(ctx)
	if err != nil {
		return drained{}, err
	}
	defer db.drop()
	if err := b.prepare(ctx, db); err != nil {
		return drained{}, err
	}
	if _, err := newEndpoint(ctx, db, organization, b.receiver.url(pathCount)); err != nil {
		return drained{}, err
	}
	last, err := waitingEvents(ctx, db.Conn, "webhook_outbox", b.n, b.perTx)
	if err != nil {
		return drained{}, err
	}
	if err := b.calm(ctx); err != nil {
		return drained{}, err
	}
	from, err := b.server.lsn(ctx)
	if err != nil {
		return drained{}, err
	}
	before := b.server.cpu()
	w, err := b.startWalhook(db, b.profileFile("walhook", round))
	if err != nil {
		return drained{}, err
	}
	defer w.kill()
	d, err := b.awaitDrained(ctx, db, w, last)
	if err != nil {
		return d, err
	}
	d.cpu, d.rss, d.server = cpuOf(w.pid), peakRSS(w.pid), b.server.cpu()-before
	to, err := b.server.lsn(ctx)
	if err != nil {
		return d, err
	}
	stopping := now()
	if err := w.stop(); err != nil {
		return d, err
	}
	d.stopped = now() - stopping
	return d, errors.Join(b.account(ctx, db, &d, from, to))
}

// A poll of positions costs PostgreSQL nothing; counting the rows does, so it
// waits until walhook says that all are recorded.
const selectPositions = `
SELECT coalesce((SELECT durable_lsn FROM webhook_state WHERE slot = $1) >= $2::text::pg_lsn, false),
       coalesce((SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1) >= $2::text::pg_lsn, false)`

// awaitDrained waits until all rows say success and the slot has moved beyond
// the last event.
func (b *bench) awaitDrained(ctx context.Context, db *database, w *walhook, last pglogrepl.LSN) (drained, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, drainWithin, errors.New("the backlog was not drained in time"))
	defer cancel()
	// The receiver tells when there is something to look for; nobody asks before.
	if err := b.awaitArrivals(ctx, w, b.n); err != nil {
		return drained{}, err
	}
	var d drained
	for d.recorded == 0 || d.confirmed == 0 {
		var recorded, confirmed bool
		asked := now()
		if err := db.QueryRow(ctx, selectPositions, db.name, last.String()).Scan(&recorded, &confirmed); err != nil {
			return d, err
		}
		if d.recorded == 0 && (recorded || confirmed) {
			var n int
			if err := db.QueryRow(ctx, "SELECT count(*) FROM webhook_deliveries WHERE status = 'success'").Scan(&n); err != nil {
				return d, err
			}
			if n == b.n {
				d.recorded = asked - w.began
			}
		}
		if confirmed && d.recorded != 0 {
			d.confirmed = max(asked-w.began, d.recorded)
			break
		}
		if err := errors.Join(w.gone(), pause(ctx, 5*time.Millisecond)); err != nil {
			return d, err
		}
	}
	a, err := b.receiver.wait(ctx, 0, time.Second)
	d.requests, d.firstRequest = a.Count, a.First-w.began
	d.fromFirst = d.confirmed - d.firstRequest
	d.receiverLeads = w.began + d.confirmed - a.Last
	return d, err
}

// awaitArrivals waits for n requests, as long as walhook lives.
func (b *bench) awaitArrivals(ctx context.Context, w *walhook, n int) error {
	for {
		a, err := b.receiver.wait(ctx, n, time.Second)
		if err == nil && a.Count >= int64(n) {
			return nil
		}
		if err := errors.Join(w.gone(), context.Cause(ctx)); err != nil {
			return err
		}
	}
}

// account reads what can be read when walhook has ended: its backends have told
// their counters then.
func (b *bench) account(ctx context.Context, db *database, d *drained, from, to pglogrepl.LSN) (err error) {
	if d.wal, err = b.server.wal(ctx, from, to); err != nil {
		return err
	}
	for deadline := now() + 5*time.Second; ; {
		var inserted int64
		err := db.QueryRow(ctx, `
SELECT coalesce(sum(n_tup_ins), 0)::bigint, coalesce(sum(n_tup_upd + n_tup_del), 0)::bigint
FROM pg_stat_user_tables WHERE relname LIKE 'webhook\_deliveries\_%'`).Scan(&inserted, &d.dead)
		if err != nil || inserted >= int64(b.n) {
			return err
		}
		if now() > deadline {
			return fmt.Errorf("PostgreSQL's statistics know of %d inserted rows", inserted)
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

func (b *bench) reportDrain(walhooks []drained, clients []outcome, parallel, oneByOne []polled) {
	n := float64(b.n)
	rate := func(d time.Duration) float64 { return n / d.Seconds() }
	perEvent := func(d time.Duration) float64 { return float64(d.Microseconds()) / n }
	confirmed := each(walhooks, func(d drained) float64 { return rate(d.confirmed) })
	bare := each(clients, func(o outcome) float64 { return rate(o.Took) })
	inParallel := each(parallel, func(p polled) float64 { return rate(p.took) })
	single := each(oneByOne, func(p polled) float64 { return rate(p.took) })
	cpu := each(walhooks, func(d drained) float64 { return perEvent(d.cpu) })
	bareCPU := each(clients, func(o outcome) float64 { return perEvent(o.CPU) })

	r := b.report
	r.title("drain: %d events of 1 KiB waiting, one endpoint, %d requests at once", b.n, inFlight)
	r.row("walhook, /s from its start, confirmed", confirmed, "%.0f", "")
	r.row("  all rows committed", each(walhooks, func(d drained) float64 { return rate(d.recorded) }), "%.0f", "")
	r.row("  from the first request, confirmed", each(walhooks, func(d drained) float64 { return rate(d.fromFirst) }), "%.0f", "")
	r.row("bare client, /s", bare, "%.0f", "")
	if b.pollers {
		r.row("poller, in parallel, /s", inParallel, "%.0f", "")
		r.row("poller, one by one, /s", single, "%.0f", "")
	}
	r.row("walhook / bare client", ratios(confirmed, bare), "%.2f", ">= 0.55")
	if b.pollers {
		r.row("walhook / poller, in parallel", ratios(confirmed, inParallel), "%.2f", ">= 4")
		r.row("walhook / poller, one by one", ratios(confirmed, single), "%.2f", ">= 4")
	}
	r.row("CPU, walhook / bare client", ratios(cpu, bareCPU), "%.2f", "<= 1.8")
	r.row("  walhook, µs per delivery", cpu, "%.1f", "")
	r.row("  bare client, µs", bareCPU, "%.1f", "")
	r.row("  PostgreSQL for walhook, µs", each(walhooks, func(d drained) float64 { return perEvent(d.server) }), "%.1f", "")
	if b.pollers {
		r.row("  PostgreSQL for poller in parallel, µs", each(parallel, func(p polled) float64 { return perEvent(p.server) }), "%.1f", "")
		r.row("  PostgreSQL for poller one by one, µs", each(oneByOne, func(p polled) float64 { return perEvent(p.server) }), "%.1f", "")
	}
	r.row("peak RSS of walhook, MiB", each(walhooks, func(d drained) float64 { return float64(d.rss) / (1 << 20) }), "%.1f", "< 96")
	r.row("WAL bytes per delivery", each(walhooks, func(d drained) float64 { return float64(d.wal.bytes) / n }), "%.0f", "<= 450")
	if b.server.walStats {
		r.row("  of them full page images", each(walhooks, func(d drained) float64 { return float64(d.wal.pageImages) / n }), "%.0f", "")
	}
	r.row("dead tuples per delivery", each(walhooks, func(d drained) float64 { return float64(d.dead) / n }), "%.4f", "0")
	r.row("requests beyond one per event", each(walhooks, func(d drained) float64 { return float64(d.requests) - n }), "%.0f", "0")
	r.row("start to first request, ms", each(walhooks, func(d drained) float64 { return millis(d.firstRequest) }), "%.0f", "")
	r.row("last request to confirmed, ms", each(walhooks, func(d drained) float64 { return millis(d.receiverLeads) }), "%.0f", "")
	r.row("SIGTERM to exit, ms", each(walhooks, func(d drained) float64 { return millis(d.stopped) }), "%.0f", "")
	r.flush()
}
