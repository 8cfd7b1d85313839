//go:build linux

package main

import (
	"context"
	"fmt"
	"time"
)

// retryStorm measures how fresh events fare while retries of other endpoints are due, as
// after an outage: with nothing due, with endpoints that work again, and with endpoints
// that still fail.
func (b *bench) retryStorm(ctx context.Context) error {
	var nothing, well, failing []steady
	url := func(query string) string { return b.receiver.url(pathAnswer + query) }
	if err := b.inTurns("storm", []arm{
		{"nothing due", func(int) error { return keep(&nothing)(b.runStorm(ctx, 0, url(""))) }},
		{"answering 200 after 20 ms", func(int) error { return keep(&well)(b.runStorm(ctx, b.storm, url("?after=20ms"))) }},
		{"answering 503 at once", func(int) error { return keep(&failing)(b.runStorm(ctx, b.storm, url("?status=503"))) }},
	}); err != nil {
		return err
	}
	l := b.fifty()
	r := b.report
	r.title("storm: %d events/s for %s to %d endpoints, while %d retries are due to %d others; figures of the fresh events",
		l.rate, l.length, l.endpoints, b.storm, otherEndpoints)
	p99, p50 := at(0.99, 0, l.endpoints), at(0.5, 0, l.endpoints)
	r.row("p99 with nothing due, ms", each(nothing, p99), "%.2f", "")
	r.row("p50 with nothing due, ms", each(nothing, p50), "%.2f", "")
	r.row("WAL with nothing due, MiB/s", each(nothing, l.walPerSecond), "%.1f", "")
	for _, storm := range []struct {
		name  string
		loads []steady
	}{{"answering 200 after 20 ms", well}, {"answering 503", failing}} {
		r.row("others "+storm.name+": p99, ms", each(storm.loads, p99), "%.2f", "")
		r.row("  p99 / nothing due", ratios(each(storm.loads, p99), each(nothing, p99)), "%.2f", "<= 1.5")
		r.row("  p50, ms", each(storm.loads, p50), "%.2f", "")
		r.row("  p50 / nothing due", ratios(each(storm.loads, p50), each(nothing, p50)), "%.2f", "")
		r.row("  max, ms", each(storm.loads, at(1, 0, l.endpoints)), "%.1f", "")
		r.row("  retries meanwhile, /s", each(storm.loads, func(s steady) float64 { return float64(s.elsewhereIn) / l.length.Seconds() }), "%.0f", "")
		r.row("  of all that are due sent by the end, %", each(storm.loads, func(s steady) float64 { return 100 * float64(s.elsewhere) / float64(b.storm) }), "%.0f", "< 100")
		r.row("  oldest unconfirmed position, ms", each(storm.loads, func(s steady) float64 { return millis(s.lag) }), "%.0f", "")
		r.row("  CPU of walhook, % of one", each(storm.loads, l.walhookCPU), "%.1f", "")
		r.row("  CPU of PostgreSQL without the application's, %", each(storm.loads, l.serverCPU), "%.1f", "")
		r.row("  WAL, MiB/s", each(storm.loads, l.walPerSecond), "%.1f", "")
		r.row("  peak RSS, MiB", each(storm.loads, func(s steady) float64 { return mebi(s.rss) }), "%.1f", "")
		r.soundness(storm.loads)
	}
	r.flush()
	return nil
}

// runStorm measures fresh events beside retries that became due in the last hour.
// walhook finds them at its start, as after an outage of its own.
func (b *bench) runStorm(ctx context.Context, due int, url string) (s steady, err error) {
	l := b.fifty()
	h := history{
		n: due, organization: others, organizations: otherEndpoints, events: true,
		status: "retrying", from: -time.Hour, to: 0,
	}
	err = b.fresh(ctx, func(db *database) error {
		if err := l.audience(ctx, b, db); err != nil {
			return err
		}
		if err := (audience{n: otherEndpoints, organization: others, url: url}).insert(ctx, db); err != nil {
			return err
		}
		if err := b.remember(ctx, db, h); err != nil {
			return fmt.Errorf("insert the due retries: %w", err)
		}
		s, err = b.measureLoad(ctx, db, l)
		return err
	})
	return s, err
}
