//go:build linux

package main

import (
	"context"
	"fmt"
	"time"
)

// otherEndpoints is the number of endpoints whose deliveries wait.
const otherEndpoints = 200

// manyWaiting measures what it costs that deliveries of other endpoints wait for their
// next attempt, which is an hour or more away.
func (b *bench) manyWaiting(ctx context.Context) error {
	numbers := []int{max(1, b.waiting/1000), max(1, b.waiting/10), b.waiting}
	results := make([][]drained, len(numbers))
	var arms []arm
	for i, n := range numbers {
		arms = append(arms, arm{fmt.Sprintf("%d waiting", n), func(int) error { return keep(&results[i])(b.runBesideWaiting(ctx, n)) }})
	}
	if err := b.inTurns("waiting", arms); err != nil {
		return err
	}
	rate := func(d drained) float64 { return float64(b.n) / d.confirmed.Seconds() }
	r := b.report
	r.title("waiting: %d events of 1 KiB for 10 endpoints, while deliveries of %d others wait for a retry", b.n, otherEndpoints)
	for i, n := range numbers {
		r.row(fmt.Sprintf("/s from its start, confirmed: %d", n), each(results[i], rate), "%.0f", "")
	}
	for i, n := range numbers[1:] {
		r.row(fmt.Sprintf("  %d / %d", n, numbers[0]), ratios(each(results[i+1], rate), each(results[0], rate)), "%.2f", ">= 0.9")
	}
	for i, n := range numbers {
		r.row(fmt.Sprintf("CPU of PostgreSQL, µs per delivery: %d", n), each(results[i], func(d drained) float64 { return float64(d.server.Microseconds()) / float64(b.n) }), "%.1f", "")
	}
	for i, n := range numbers {
		r.row(fmt.Sprintf("peak RSS, MiB: %d", n), each(results[i], func(d drained) float64 { return mebi(d.rss) }), "%.1f", "")
	}
	for i, n := range numbers {
		r.row(fmt.Sprintf("requests beyond one per event: %d", n), each(results[i], func(d drained) float64 { return float64(d.requests) - float64(b.n) }), "%.0f", "0")
	}
	r.flush()
	return nil
}

func (b *bench) runBesideWaiting(ctx context.Context, waiting int) (d drained, err error) {
	l := backlog{events: b.n, organizations: 10, perTx: b.perTx}
	h := history{
		n: waiting, organization: others, organizations: otherEndpoints,
		status: "retrying", from: time.Hour, to: 10 * time.Hour,
	}
	err = b.fresh(ctx, func(db *database) error {
		url := b.receiver.url(pathCount)
		if err := (audience{n: l.organizations, organization: organization, url: url}).insert(ctx, db); err != nil {
			return err
		}
		if err := (audience{n: otherEndpoints, organization: others, url: url}).insert(ctx, db); err != nil {
			return err
		}
		if err := b.remember(ctx, db, h); err != nil {
			return fmt.Errorf("insert the waiting deliveries: %w", err)
		}
		d, err = b.drainBacklog(ctx, db, l, "")
		return err
	})
	return d, err
}
