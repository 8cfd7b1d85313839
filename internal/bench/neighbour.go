//go:build linux

package main

import (
	"context"
	"time"
)

// fifty is the load of neighbour and of the scenarios like it: 2.5 times the rate of
// latency, over fifty endpoints, for two thirds of the time.
func (b *bench) fifty() load {
	return load{endpoints: 50, rate: b.rate * 5 / 2, warmUp: min(2*time.Second, b.length), length: b.length * 2 / 3}
}

// neighbour measures how one hanging endpoint affects forty-nine others. Neither arm
// counts the last endpoint, whether it hangs or not.
func (b *bench) neighbour(ctx context.Context) error {
	l := b.fifty()
	l.badURL = b.receiver.url(pathHang)
	counted := l.endpoints - 1
	var without, with []steady
	run := func(results *[]steady, hanging int) func(int) error {
		return func(int) error {
			l.bad = hanging
			return keep(results)(b.runLoad(ctx, l))
		}
	}
	if err := b.inTurns("neighbour", []arm{{"0 hanging", run(&without, 0)}, {"1 hanging", run(&with, 1)}}); err != nil {
		return err
	}
	r := b.report
	r.title("neighbour: %d events/s for %s, 50 endpoints of which one hangs; figures of the 49 others", l.rate, l.length)
	p99 := at(0.99, 0, counted)
	r.row("p99 with it, ms", each(with, p99), "%.2f", "")
	r.row("p99 without it, ms", each(without, p99), "%.2f", "")
	r.row("p99 with / without", ratios(each(with, p99), each(without, p99)), "%.2f", "<= 1.5")
	r.row("p50 with it, ms", each(with, at(0.5, 0, counted)), "%.2f", "")
	r.row("p50 without it, ms", each(without, at(0.5, 0, counted)), "%.2f", "")
	r.row("max with it, ms", each(with, at(1, 0, counted)), "%.1f", "")
	r.row("max without it, ms", each(without, at(1, 0, counted)), "%.1f", "")
	r.row("oldest unconfirmed position with it, ms", each(with, func(s steady) float64 { return millis(s.lag) }), "%.0f", "moves")
	r.row("oldest unconfirmed position without it, ms", each(without, func(s steady) float64 { return millis(s.lag) }), "%.0f", "")
	r.row("CPU of walhook with it, % of one", each(with, l.walhookCPU), "%.1f", "")
	r.row("CPU of walhook without it", each(without, l.walhookCPU), "%.1f", "")
	r.row("CPU of PostgreSQL with it, without the application's, %", each(with, l.serverCPU), "%.1f", "")
	r.row("CPU of PostgreSQL without it", each(without, l.serverCPU), "%.1f", "")
	r.soundness(with)
	r.flush()
	return nil
}
