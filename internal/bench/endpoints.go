//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// A crowd is the result for a number of endpoints.
type crowd struct {
	drained
	idleStart time.Duration // of a walhook for which nothing waits, until it streams
	idleRSS   int64         // and its memory then
	insert    time.Duration // of 10,000 events of one organization
}

// manyEndpoints measures what the number of endpoints costs. Each has an organization
// of its own, and about as many events as the others.
func (b *bench) manyEndpoints(ctx context.Context) error {
	numbers := slices.Compact([]int{10, max(10, b.endpoints/100), max(10, b.endpoints)})
	crowds := make([][]crowd, len(numbers))
	var arms []arm
	for i, n := range numbers {
		arms = append(arms, arm{fmt.Sprintf("%d endpoints", n), func(round int) error { return keep(&crowds[i])(b.runCrowd(ctx, n, round)) }})
	}
	if err := b.inTurns("endpoints", arms); err != nil {
		return err
	}
	b.reportCrowds(numbers, crowds)
	return nil
}

// crowdEvents gives every endpoint an event, even at the largest number of endpoints.
func (b *bench) crowdEvents() int { return max(b.n, b.endpoints) }

func (b *bench) runCrowd(ctx context.Context, n, round int) (c crowd, err error) {
	err = b.fresh(ctx, func(db *database) error {
		if err := (audience{n: n, organization: organization, url: b.receiver.url(pathCount)}).insert(ctx, db); err != nil {
			return err
		}
		if err := db.vacuum(ctx, "webhook_endpoints, webhook_secrets"); err != nil {
			return err
		}
		if err := db.skip(ctx); err != nil {
			return err
		}
		l := backlog{events: b.crowdEvents(), organizations: n, perTx: b.perTx}
		if c.drained, err = b.drainBacklog(ctx, db, l, b.profileFile(fmt.Sprintf("endpoints-%d", n), round)); err != nil {
			return err
		}
		if c.idleStart, c.idleRSS, err = b.startIdle(ctx, db); err != nil {
			return err
		}
		c.insert, err = insertInOne(ctx, db)
		return err
	})
	return c, err
}

// startIdle starts walhook while nothing waits. It reads the memory two seconds later,
// when every loop has run.
func (b *bench) startIdle(ctx context.Context, db *database) (streams time.Duration, rss int64, err error) {
	if err := b.calm(ctx); err != nil {
		return 0, 0, err
	}
	w, err := b.startWalhook(db, "")
	if err != nil {
		return 0, 0, err
	}
	defer w.kill()
	if err := awaitStreaming(ctx, db, w); err != nil {
		return 0, 0, err
	}
	streams = now() - w.began
	if err := pause(ctx, 2*time.Second); err != nil {
		return 0, 0, err
	}
	rss = peakRSS(w.PID)
	return streams, rss, w.stop()
}

const insertTenThousand = `
INSERT INTO webhook_outbox (organization_id, event_type, payload)
SELECT $1, $2, $3::jsonb FROM generate_series(1, 10000)`

// insertInOne inserts the events with one statement, and returns the median of three,
// after a first one to warm up. Most of the time is the trigger's.
func insertInOne(ctx context.Context, db *database) (time.Duration, error) {
	body := string(payload(0, payloadBytes))
	took := make([]time.Duration, 4)
	for i := range took {
		began := now()
		if _, err := db.Exec(ctx, insertTenThousand, organizationOf(0), eventType, body); err != nil {
			return 0, fmt.Errorf("insert in one statement: %w", err)
		}
		took[i] = now() - began
	}
	return quantile(slices.Sorted(slices.Values(took[1:])), 0.5), nil
}

func (b *bench) reportCrowds(numbers []int, crowds [][]crowd) {
	events := float64(b.crowdEvents())
	rate := func(c crowd) float64 { return events / c.confirmed.Seconds() }
	insert := func(c crowd) float64 { return millis(c.insert) }
	r := b.report
	r.title("endpoints: %.0f events of 1 KiB waiting, spread over a number of endpoints", events)
	for i, n := range numbers {
		r.row(fmt.Sprintf("/s from its start, confirmed: %d", n), each(crowds[i], rate), "%.0f", "")
	}
	for i, n := range numbers[1:] {
		r.row(fmt.Sprintf("  %d / %d", n, numbers[0]), ratios(each(crowds[i+1], rate), each(crowds[0], rate)), "%.2f", "")
	}
	for i, n := range numbers {
		r.row(fmt.Sprintf("written twice, %% of deliveries: %d", n), each(crowds[i], func(c crowd) float64 { return 100 * float64(c.dead) / events }), "%.1f", "0")
	}
	for i, n := range numbers {
		r.row(fmt.Sprintf("CPU of walhook, µs per delivery: %d", n), each(crowds[i], func(c crowd) float64 { return float64(c.cpu.Microseconds()) / events }), "%.1f", "")
	}
	for i, n := range numbers {
		r.row(fmt.Sprintf("CPU of PostgreSQL, µs per delivery: %d", n), each(crowds[i], func(c crowd) float64 { return float64(c.server.Microseconds()) / events }), "%.1f", "")
	}
	for i, n := range numbers {
		r.row(fmt.Sprintf("peak RSS meanwhile, MiB: %d", n), each(crowds[i], func(c crowd) float64 { return mebi(c.rss) }), "%.1f", "")
	}
	for i, n := range numbers {
		r.row(fmt.Sprintf("start to streaming with nothing waiting, s: %d", n), each(crowds[i], func(c crowd) float64 { return c.idleStart.Seconds() }), "%.2f", "< 2")
	}
	for i, n := range numbers {
		r.row(fmt.Sprintf("RSS with nothing waiting, MiB: %d", n), each(crowds[i], func(c crowd) float64 { return mebi(c.idleRSS) }), "%.1f", "< 100")
	}
	for i, n := range numbers {
		r.row(fmt.Sprintf("INSERT of 10,000 events in one statement, ms: %d", n), each(crowds[i], insert), "%.0f", "")
	}
	for i, n := range numbers[1:] {
		r.row(fmt.Sprintf("  %d / %d", n, numbers[0]), ratios(each(crowds[i+1], insert), each(crowds[0], insert)), "%.2f", "~ 1")
	}
	for i, n := range numbers {
		r.row(fmt.Sprintf("requests beyond one per event: %d", n), each(crowds[i], func(c crowd) float64 { return float64(c.requests) - events }), "%.0f", "0")
	}
	r.flush()
}
