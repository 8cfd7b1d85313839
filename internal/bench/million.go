//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A passage is the result for a backlog that the slot has passed.
type passage struct {
	drained               // if the endpoints answer
	passed  time.Duration // from walhook's start until the slot had passed the last event
	rss     int64
}

// bigBacklog measures memory, and how long PostgreSQL has to keep the WAL, when far more
// waits at the start than fits into memory.
func (b *bench) bigBacklog(ctx context.Context) error {
	var hanging, answering []passage
	if err := b.inTurns("million", []arm{
		{"hanging", func(int) error { return keep(&hanging)(b.runBigBacklog(ctx, false)) }},
		{"answering", func(int) error { return keep(&answering)(b.runBigBacklog(ctx, true)) }},
	}); err != nil {
		return err
	}
	r := b.report
	r.title("million: %d events of 1 KiB waiting, 50 endpoints", b.million)
	for _, arm := range []struct {
		name     string
		passages []passage
	}{{"all hang", hanging}, {"all answer", answering}} {
		r.row(arm.name+": peak RSS, MiB", each(arm.passages, func(p passage) float64 { return mebi(p.rss) }), "%.1f", "< 256")
		r.row("  until the slot has passed the last event, s", each(arm.passages, func(p passage) float64 { return p.passed.Seconds() }), "%.1f", "")
	}
	r.row("  until all are delivered, s", each(answering, func(p passage) float64 { return p.recorded.Seconds() }), "%.1f", "")
	r.row("  deliveries/s", each(answering, func(p passage) float64 { return float64(b.million) / p.recorded.Seconds() }), "%.0f", "")
	r.row("  requests beyond one per event", each(answering, func(p passage) float64 { return float64(p.requests) - float64(b.million) }), "%.0f", "0")
	r.flush()
	return nil
}

const selectPassed = `
SELECT coalesce((SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1) >= $2::text::pg_lsn, false)`

func (b *bench) runBigBacklog(ctx context.Context, answering bool) (p passage, err error) {
	path := pathHang
	if answering {
		path = pathCount
	}
	l := backlog{events: b.million, organizations: 50, perTx: b.perTx}
	err = b.fresh(ctx, func(db *database) error {
		if err := (audience{n: l.organizations, organization: organization, url: b.receiver.url(path)}).insert(ctx, db); err != nil {
			return err
		}
		w, err := b.startDraining(ctx, db, l, "")
		if err != nil {
			return err
		}
		defer w.kill()
		if p, err = b.awaitPassage(ctx, w, answering); err != nil {
			return err
		}
		if err := b.receiver.reset(ctx); err != nil { // releases hanging requests
			return err
		}
		return w.stop()
	})
	return p, err
}

func (b *bench) awaitPassage(ctx context.Context, w *draining, answering bool) (p passage, err error) {
	within, cancel := context.WithTimeoutCause(ctx, drainWithin, errors.New("the slot did not pass the backlog in time"))
	defer cancel()
	if err := await(within, w.db.Conn, w.walhook, selectPassed, w.db.name, w.last.String()); err != nil {
		return p, fmt.Errorf("wait for the slot: %w", err)
	}
	p.passed = now() - w.began
	if answering {
		if p.drained, err = b.awaitDrained(ctx, w); err != nil {
			return p, err
		}
	}
	p.rss = peakRSS(w.PID)
	return p, nil
}
