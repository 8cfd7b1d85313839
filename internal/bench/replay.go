//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// A replayed is the result of a load beside a replay.
type replayed struct {
	steady
	update time.Duration // how long the UPDATE took
	sent   time.Duration // from its end to the arrival of the last
}

// massReplay measures how fresh events fare while an operator replays everything that
// one of their endpoints ever got.
func (b *bench) massReplay(ctx context.Context) error {
	var without, with []replayed
	if err := b.inTurns("replay", []arm{
		{"no replay", func(int) error { return keep(&without)(b.runReplay(ctx, false)) }},
		{"with replay", func(int) error { return keep(&with)(b.runReplay(ctx, true)) }},
	}); err != nil {
		return err
	}
	l := b.fifty()
	r := b.report
	r.title("replay: %d events/s for %s to %d endpoints, while %d deliveries of one of these are replayed; figures of the fresh events",
		l.rate, l.length, l.endpoints, b.replay)
	for _, group := range []struct {
		name     string
		from, to int
		aim      string
	}{{"all", 0, l.endpoints, "<= 1.5"}, {"the same endpoint's", 0, 1, ""}, {"the others'", 1, l.endpoints, "<= 1.5"}} {
		for _, q := range []struct {
			name string
			q    float64
			aim  string
		}{{"p99", 0.99, group.aim}, {"p50", 0.5, ""}} {
			of := func(x replayed) float64 { return at(q.q, group.from, group.to)(x.steady) }
			r.row(fmt.Sprintf("%s of %s with it, ms", q.name, group.name), each(with, of), "%.2f", "")
			r.row("  without it, ms", each(without, of), "%.2f", "")
			r.row("  with / without", ratios(each(with, of), each(without, of)), "%.2f", q.aim)
		}
	}
	r.row("the UPDATE, s", each(with, func(x replayed) float64 { return x.update.Seconds() }), "%.2f", "")
	r.row("from its end to the last arrival, s", each(with, func(x replayed) float64 { return x.sent.Seconds() }), "%.2f", "")
	r.row("replayed deliveries that did not arrive", each(with, func(x replayed) float64 { return float64(b.replay - x.others) }), "%.0f", "0")
	r.row("oldest unconfirmed position with it, ms", each(with, func(x replayed) float64 { return millis(x.lag) }), "%.0f", "")
	r.row("peak RSS with it, MiB", each(with, func(x replayed) float64 { return mebi(x.rss) }), "%.1f", "")
	loads := make([]steady, len(with))
	for i := range with {
		loads[i] = with[i].steady
	}
	r.row("CPU of walhook with it, % of one", each(loads, l.walhookCPU), "%.1f", "")
	r.row("CPU of PostgreSQL with it, without the application's, %", each(loads, l.serverCPU), "%.1f", "")
	r.row("WAL with it, MiB/s", each(loads, l.walPerSecond), "%.1f", "")
	r.soundness(loads)
	r.flush()
	return nil
}

// The load's own events are not replayed, so that each arrives once.
const replayAll = `
UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now()
WHERE endpoint_id = (SELECT id FROM webhook_endpoints WHERE organization_id = $1) AND created_at < $2`

// runReplay starts both arms with the same rows.
func (b *bench) runReplay(ctx context.Context, replay bool) (x replayed, err error) {
	l := b.fifty()
	h := history{n: b.replay, organization: organization, organizations: 1, events: true, status: "success"}
	var committed time.Duration
	var before time.Time
	if replay {
		l.arrivals = b.replay
		l.meanwhile = func(ctx context.Context, conn *pgx.Conn, _ *walhook) error {
			began := now()
			_, err := conn.Exec(ctx, replayAll, organizationOf(0), before)
			committed = now()
			x.update = committed - began
			return err
		}
	}
	err = b.fresh(ctx, func(db *database) error {
		if err := l.audience(ctx, b, db); err != nil {
			return err
		}
		if err := b.remember(ctx, db, h); err != nil {
			return fmt.Errorf("insert the deliveries to replay: %w", err)
		}
		if err := db.QueryRow(ctx, "SELECT now()").Scan(&before); err != nil {
			return err
		}
		x.steady, err = b.measureLoad(ctx, db, l)
		x.sent = x.lastOther - committed
		return err
	})
	return x, err
}
