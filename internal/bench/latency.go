//go:build linux

package main

import (
	"context"
	"time"
)

// latency measures how long after its COMMIT an event arrives, at a rate that
// nobody has to hurry for.
func (b *bench) latency(ctx context.Context) error {
	l := load{endpoints: 3, rate: b.rate, warmUp: 2 * time.Second, length: b.length}
	s, err := b.measureLoad(ctx, l, l.endpoints)
	if err != nil {
		return err
	}
	r := b.report
	r.title("latency: %d events/s for %s, %d endpoints, from COMMIT's return to the receiver", l.rate, l.length, l.endpoints)
	one := func(name string, x float64, format, aim string) { r.row(name, []float64{x}, format, aim) }
	one("p50, ms", millis(quantile(s.latencies, 0.50)), "%.2f", "<= 1")
	one("p90, ms", millis(quantile(s.latencies, 0.90)), "%.2f", "")
	one("p99, ms", millis(quantile(s.latencies, 0.99)), "%.2f", "<= 5")
	one("max, ms", millis(quantile(s.latencies, 1)), "%.2f", "")
	one("CPU of walhook, % of one", 100*s.cpu.Seconds()/l.length.Seconds(), "%.1f", "")
	one("CPU of PostgreSQL without the application's, %", 100*s.server.Seconds()/l.length.Seconds(), "%.1f", "")
	one("oldest unconfirmed position, ms", millis(s.lag), "%.0f", "")
	one("requests beyond one per event", float64(s.repeated), "%.0f", "0")
	one("how late the driver was (p99), ms", millis(s.late), "%.2f", "")
	r.flush()
	return nil
}
