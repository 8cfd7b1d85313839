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

// A drained is the result of draining a backlog.
type drained struct {
	events        int
	firstRequest  time.Duration // from the start of the process
	recorded      time.Duration // until all rows are committed
	confirmed     time.Duration // and the slot has moved beyond the last event
	cpu, server   time.Duration
	rss           int64
	from, to      pglogrepl.LSN // what was written meanwhile
	wal           wal
	dead          int64 // row versions of deliveries that were replaced
	requests      int64
	stopped       time.Duration // how long the stop took
	fromFirst     time.Duration // confirmed, from the first request
	receiverLeads time.Duration // the last request came so long before all was confirmed
}

// drain has walhook, the bare client and both pollers drain the same backlog in turns,
// in another order each round.
func (b *bench) drain(ctx context.Context) error {
	var walhooks []drained
	var clients []outcome
	var oneByOne, parallel []polled
	arms := []arm{
		{"walhook", func(round int) error { return keep(&walhooks)(b.runWalhook(ctx, plain, round)) }},
		{"bare client", func(round int) error { return keep(&clients)(b.runClient(ctx, "client", plain, round)) }},
		{"poller, in parallel", func(int) error { return keep(&parallel)(b.runPoller(ctx, true)) }},
		{"poller, one by one", func(int) error { return keep(&oneByOne)(b.runPoller(ctx, false)) }},
	}
	if !b.pollers {
		arms = arms[:2]
	}
	if err := b.inTurns("drain", arms); err != nil {
		return err
	}
	b.reportDrain(walhooks, clients, parallel, oneByOne)
	return nil
}

// runClient has the bare client, or the lean one, work off a workload.
func (b *bench) runClient(ctx context.Context, client string, w workload, round int) (outcome, error) {
	p, err := startChild(ctx, client, job{
		URL: w.url(b.receiver), Certificate: b.receiver.certificate, N: w.events(b.n), Size: w.size, Secret: clientSecret,
		Profile: b.profileFile(client, round),
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
	_ = os.MkdirAll(folder, 0o755) // if this fails, creating the file reports why
	return filepath.Join(folder, fmt.Sprintf("%s-%d.pprof", of, round+1))
}

// A draining is a walhook that drains a backlog.
type draining struct {
	*walhook
	db     *database
	events int
	from   pglogrepl.LSN // the end of the WAL before walhook was started
	last   pglogrepl.LSN // the end of the backlog
	server time.Duration // PostgreSQL's CPU by then
}

// startDraining inserts a backlog into a database that has its endpoints, and starts
// walhook.
func (b *bench) startDraining(ctx context.Context, db *database, l backlog, profile string, env ...string) (*draining, error) {
	d := &draining{db: db, events: l.events}
	var err error
	if d.last, err = l.insert(ctx, db.Conn, "webhook_outbox"); err != nil {
		return nil, err
	}
	if err := b.calm(ctx); err != nil {
		return nil, err
	}
	if d.from, err = b.server.lsn(ctx); err != nil {
		return nil, err
	}
	d.server = b.server.cpu()
	d.walhook, err = b.startWalhook(db, profile, env...)
	return d, err
}

// drainBacklog has walhook drain a backlog whose requests are all counted.
func (b *bench) drainBacklog(ctx context.Context, db *database, l backlog, profile string, env ...string) (drained, error) {
	w, err := b.startDraining(ctx, db, l, profile, env...)
	if err != nil {
		return drained{}, err
	}
	defer w.kill()
	d, err := b.awaitDrained(ctx, w)
	if err != nil {
		return d, err
	}
	stopping := now()
	err = w.stop()
	d.stopped = now() - stopping
	return d, err
}

// runWalhook has walhook work off a workload.
func (b *bench) runWalhook(ctx context.Context, w workload, round int) (d drained, err error) {
	err = b.fresh(ctx, func(db *database) error {
		if err := (audience{n: w.endpoints, organization: organization, url: w.url(b.receiver)}).insert(ctx, db); err != nil {
			return err
		}
		if err := db.vacuum(ctx, "webhook_endpoints, webhook_secrets"); err != nil {
			return err
		}
		l := backlog{events: w.events(b.n), organizations: w.endpoints, perTx: b.perTx, size: w.size}
		if d, err = b.drainBacklog(ctx, db, l, b.profileFile("walhook", round), w.environment(b.receiver)...); err != nil {
			return err
		}
		return b.account(ctx, db, &d)
	})
	return d, err
}

const (
	// A poll of positions costs PostgreSQL nothing; looking for rows that wait does,
	// so that follows when walhook says that all are recorded.
	selectPositions = `
SELECT coalesce((SELECT durable_lsn FROM webhook_state WHERE slot = $1) >= $2::text::pg_lsn, false),
       coalesce((SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1) >= $2::text::pg_lsn, false)`

	// What is recorded may wait still: it was parked, or failed. What waits for longer
	// than that is a history of others. One look at the index of each partition.
	selectWaiting = `
SELECT coalesce(min(next_attempt_at) < now() + interval '30 minutes', false)
FROM webhook_deliveries WHERE status IN ('pending', 'retrying')`

	selectSuccess = `SELECT count(*) FROM webhook_deliveries WHERE status = 'success' AND starts_with(organization_id, $1)`
)

// drainWithin bounds a drain that does not end: a million events at a thousand per
// second.
const drainWithin = 20 * time.Minute

// awaitDrained waits until all rows are a success and the slot has passed the last
// event.
func (b *bench) awaitDrained(ctx context.Context, w *draining) (drained, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, drainWithin, errors.New("the backlog was not drained in time"))
	defer cancel()
	// The receiver tells when there is something to look for; nobody asks before.
	if err := b.awaitArrivals(ctx, w); err != nil {
		return drained{}, err
	}
	d := drained{events: w.events}
	for d.recorded == 0 || d.confirmed == 0 {
		var recorded, confirmed, waiting bool
		asked := now()
		if err := w.db.QueryRow(ctx, selectPositions, w.db.name, w.last.String()).Scan(&recorded, &confirmed); err != nil {
			return d, err
		}
		if d.recorded == 0 && (recorded || confirmed) {
			if err := w.db.QueryRow(ctx, selectWaiting).Scan(&waiting); err != nil {
				return d, err
			}
			if !waiting {
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
	d.cpu, d.rss, d.server = cpuOf(w.PID), peakRSS(w.PID), b.server.cpu()-w.server
	return d, b.verify(ctx, w, &d)
}

// verify compares the result with the rows and with the receiver's count.
func (b *bench) verify(ctx context.Context, w *draining, d *drained) error {
	a, err := b.receiver.wait(ctx, 0, 0)
	if err != nil {
		return err
	}
	d.requests, d.firstRequest = a.Count, a.First-w.began
	d.fromFirst = d.confirmed - d.firstRequest
	d.receiverLeads = w.began + d.confirmed - a.Last
	if d.to, err = b.server.lsn(ctx); err != nil {
		return err
	}
	d.from = w.from
	var n int
	if err := w.db.QueryRow(ctx, selectSuccess, organization).Scan(&n); err != nil {
		return err
	}
	if n != w.events {
		return fmt.Errorf("%d rows of %d say success", n, w.events)
	}
	return nil
}

// awaitArrivals waits for one request per event while walhook lives.
func (b *bench) awaitArrivals(ctx context.Context, w *draining) error {
	for {
		a, err := b.receiver.wait(ctx, w.events, time.Second)
		if err != nil || a.Count >= int64(w.events) {
			return err
		}
		if err := errors.Join(w.gone(), context.Cause(ctx)); err != nil {
			return err
		}
	}
}

// account reads what can be read when walhook has ended: its backends have told
// their counters then.
func (b *bench) account(ctx context.Context, db *database, d *drained) (err error) {
	if d.wal, err = b.server.wal(ctx, d.from, d.to); err != nil {
		return err
	}
	for deadline := now() + 5*time.Second; ; {
		var inserted int64
		err := db.QueryRow(ctx, `
SELECT coalesce(sum(n_tup_ins), 0)::bigint, coalesce(sum(n_tup_upd + n_tup_del), 0)::bigint
FROM pg_stat_user_tables WHERE relname LIKE 'webhook\_deliveries\_%'`).Scan(&inserted, &d.dead)
		if err != nil || inserted >= int64(d.events) {
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
	r.row("peak RSS of walhook, MiB", each(walhooks, func(d drained) float64 { return mebi(d.rss) }), "%.1f", "< 96")
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
