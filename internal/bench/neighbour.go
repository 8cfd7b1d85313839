//go:build linux

package main

import (
	"context"
	"fmt"
	"time"
)

// neighbour measures what one endpoint that hangs does to forty-nine others.
func (b *bench) neighbour(ctx context.Context) error {
	l := load{endpoints: 50, rate: b.rate * 5 / 2, warmUp: 2 * time.Second, length: b.length * 2 / 3}
	var arms [2][]steady // without and with the one that hangs
	for round := range b.rounds {
		for i := range arms {
			l.hanging = (round + i) % 2
			s, err := b.measureLoad(ctx, l, l.endpoints-1)
			if err != nil {
				return fmt.Errorf("round %d, %d hanging: %w", round+1, l.hanging, err)
			}
			arms[l.hanging] = append(arms[l.hanging], s)
			b.report.progress("neighbour %d/%d, %d hanging: p99 %.2f ms", round+1, b.rounds, l.hanging, millis(quantile(s.latencies, 0.99)))
		}
	}
	at := func(q float64) func(steady) float64 {
		return func(s steady) float64 { return millis(quantile(s.latencies, q)) }
	}
	with, without := each(arms[1], at(0.99)), each(arms[0], at(0.99))
	r := b.report
	r.title("neighbour: %d events/s for %s, 50 endpoints of which one hangs; figures of the 49 others", l.rate, l.length)
	r.row("p99 with it, ms", with, "%.2f", "")
	r.row("p99 without it, ms", without, "%.2f", "")
	r.row("p99 with / without", ratios(with, without), "%.2f", "<= 1.5")
	r.row("p50 with it, ms", each(arms[1], at(0.5)), "%.2f", "")
	r.row("p50 without it, ms", each(arms[0], at(0.5)), "%.2f", "")
	r.row("max with it, ms", each(arms[1], at(1)), "%.1f", "")
	r.row("max without it, ms", each(arms[0], at(1)), "%.1f", "")
	r.row("oldest unconfirmed position with it, ms", each(arms[1], func(s steady) float64 { return millis(s.lag) }), "%.0f", "moves")
	r.row("oldest unconfirmed position without it, ms", each(arms[0], func(s steady) float64 { return millis(s.lag) }), "%.0f", "")
	ofOne := func(f func(steady) time.Duration) func(steady) float64 {
		return func(s steady) float64 { return 100 * f(s).Seconds() / l.length.Seconds() }
	}
	walhook := ofOne(func(s steady) time.Duration { return s.cpu })
	server := ofOne(func(s steady) time.Duration { return s.server })
	r.row("CPU of walhook with it, % of one", each(arms[1], walhook), "%.1f", "")
	r.row("CPU of walhook without it", each(arms[0], walhook), "%.1f", "")
	r.row("CPU of PostgreSQL with it, without the application's, %", each(arms[1], server), "%.1f", "")
	r.row("CPU of PostgreSQL without it", each(arms[0], server), "%.1f", "")
	r.row("requests beyond one per event", each(arms[1], func(s steady) float64 { return float64(s.repeated) }), "%.0f", "0")
	r.row("how late the driver was (p99), ms", each(arms[1], func(s steady) float64 { return millis(s.late) }), "%.2f", "")
	r.flush()
	return nil
}
