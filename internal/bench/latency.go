//go:build linux

package main

import (
	"context"
	"time"
)

// latency measures the time from an event's COMMIT to its arrival at a low rate.
func (b *bench) latency(ctx context.Context) error {
	l := load{endpoints: 3, rate: b.rate, warmUp: min(2*time.Second, b.length), length: b.length}
	s, err := b.runLoad(ctx, l)
	if err != nil {
		return err
	}
	r := b.report
	r.title("latency: %d events/s for %s, %d endpoints, from COMMIT's return to the receiver", l.rate, l.length, l.endpoints)
	one := func(name string, x float64, format, aim string) { r.row(name, []float64{x}, format, aim) }
	one("p50, ms", at(0.50, 0, l.endpoints)(s), "%.2f", "<= 1")
	one("p90, ms", at(0.90, 0, l.endpoints)(s), "%.2f", "")
	one("p99, ms", at(0.99, 0, l.endpoints)(s), "%.2f", "<= 5")
	one("max, ms", at(1, 0, l.endpoints)(s), "%.2f", "")
	one("CPU of walhook, % of one", l.walhookCPU(s), "%.1f", "")
	one("CPU of PostgreSQL without the application's, %", l.serverCPU(s), "%.1f", "")
	one("oldest unconfirmed position, ms", millis(s.lag), "%.0f", "")
	r.soundness([]steady{s})
	r.flush()
	return nil
}
