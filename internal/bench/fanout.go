//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

// A fanned is the result of a trickle beside an event that is owed to very many
// endpoints.
type fanned struct {
	steady
	insert  time.Duration // of the event
	arrived time.Duration // from its COMMIT until the last request
	success time.Duration // until all its rows are a success
	passed  time.Duration // until the slot has passed it
}

// wideFanOut measures an event that is owed to very many endpoints, and how it affects a
// trickle of another organization.
func (b *bench) wideFanOut(ctx context.Context) error {
	var alone, answering, hanging []fanned
	if err := b.inTurns("fanout", []arm{
		{"without it", func(int) error { return keep(&alone)(b.runFanOut(ctx, pathAnswer, nil)) }},
		{"answering", func(int) error { return keep(&answering)(b.runFanOut(ctx, pathAnswer, b.awaitFannedOut)) }},
		{"hanging", func(int) error { return keep(&hanging)(b.runFanOut(ctx, pathHang, awaitFanPassed)) }},
	}); err != nil {
		return err
	}
	l := b.trickle()
	seconds := func(f func(fanned) time.Duration) func(fanned) float64 {
		return func(x fanned) float64 { return f(x).Seconds() }
	}
	memory := func(x fanned) float64 { return mebi(x.rss) }
	r := b.report
	r.title("fanout: an event owed to %d endpoints, beside a trickle of %d events/s for %s of another organization", b.fanout, l.rate, l.length)
	r.row("INSERT of it, ms", each(answering, func(x fanned) float64 { return millis(x.insert) }), "%.0f", "")
	r.row("all answer: until all have arrived, s", each(answering, seconds(func(x fanned) time.Duration { return x.arrived })), "%.2f", "")
	r.row("  until all rows say success, s", each(answering, seconds(func(x fanned) time.Duration { return x.success })), "%.2f", "")
	r.row("  peak RSS, MiB", each(answering, memory), "%.1f", "")
	r.row("all hang: until the slot has passed it, s", each(hanging, seconds(func(x fanned) time.Duration { return x.passed })), "%.2f", "")
	r.row("  peak RSS, MiB", each(hanging, memory), "%.1f", "")
	r.row("without it: peak RSS, MiB", each(alone, memory), "%.1f", "")
	p99 := func(x fanned) float64 { return at(0.99, 0, 1)(x.steady) }
	p50 := func(x fanned) float64 { return at(0.5, 0, 1)(x.steady) }
	r.row("p99 of the trickle without it, ms", each(alone, p99), "%.2f", "")
	r.row("  while all answer, ms", each(answering, p99), "%.2f", "")
	r.row("  while all answer / without it", ratios(each(answering, p99), each(alone, p99)), "%.2f", "<= 1.5")
	r.row("  while all hang, ms", each(hanging, p99), "%.2f", "")
	r.row("  while all hang / without it", ratios(each(hanging, p99), each(alone, p99)), "%.2f", "<= 1.5")
	r.row("p50 of the trickle without it, ms", each(alone, p50), "%.2f", "")
	r.row("  while all answer, ms", each(answering, p50), "%.2f", "")
	r.row("  while all hang, ms", each(hanging, p50), "%.2f", "")
	r.row("events of the trickle that did not arrive", each(hanging, func(x fanned) float64 { return float64(x.missing) }), "%.0f", "0")
	r.row("requests of the trickle beyond one per event", each(hanging, func(x fanned) float64 { return float64(x.repeated) }), "%.0f", "0")
	r.flush()
	return nil
}

// trickle is the load of the other organization, which has one endpoint.
func (b *bench) trickle() load {
	return load{endpoints: 1, rate: b.rate / 4, warmUp: min(2*time.Second, b.length), length: b.length * 2 / 3}
}

// A fan is the one event when it is committed.
type fan struct {
	conn      *pgx.Conn
	walhook   *walhook
	id        uuid.UUID
	slot      string
	committed time.Duration
	end       pglogrepl.LSN
}

// runFanOut measures the trickle. If until is not nil, runFanOut inserts the event after
// the warm-up, and until waits for its end.
func (b *bench) runFanOut(ctx context.Context, path string, until func(context.Context, fan, *fanned) error) (x fanned, err error) {
	l := b.trickle()
	err = b.fresh(ctx, func(db *database) error {
		if until != nil {
			l.meanwhile = func(ctx context.Context, conn *pgx.Conn, w *walhook) error {
				ctx, cancel := context.WithTimeoutCause(ctx, drainWithin, errors.New("the event's deliveries did not end in time"))
				defer cancel()
				f := fan{conn: conn, walhook: w, id: uuid.Must(uuid.NewV7()), slot: db.name}
				if x.insert, err = f.insert(ctx); err != nil {
					return err
				}
				return until(ctx, f, &x)
			}
		}
		if err := l.audience(ctx, b, db); err != nil {
			return err
		}
		if err := (audience{n: b.fanout, organization: others, together: true, url: b.receiver.url(path)}).insert(ctx, db); err != nil {
			return err
		}
		if err := db.vacuum(ctx, "webhook_endpoints, webhook_secrets"); err != nil {
			return err
		}
		if err := db.skip(ctx); err != nil {
			return err
		}
		x.steady, err = b.measureLoad(ctx, db, l)
		return err
	})
	return x, err
}

func (f *fan) insert(ctx context.Context) (took time.Duration, err error) {
	began := now()
	_, err = f.conn.Exec(ctx, "INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, $2, $3, $4)",
		f.id, others, eventType, string(payload(0, payloadBytes)))
	f.committed = now()
	if err == nil {
		f.end, err = scanLSN(f.conn.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text"))
	}
	if err != nil {
		return 0, fmt.Errorf("insert the event: %w", err)
	}
	return f.committed - began, nil
}

const selectAllSuccess = `
SELECT count(*) = $2 FROM webhook_deliveries
WHERE event_id = $1 AND status = 'success' AND id >= webhook_uuid_at(webhook_uuid_time($1)) AND id < webhook_uuid_at(webhook_uuid_time($1) + interval '1 ms')`

// awaitFannedOut waits until all requests have arrived and are recorded.
func (b *bench) awaitFannedOut(ctx context.Context, f fan, x *fanned) error {
	for {
		n, err := b.receiver.elsewhere(ctx)
		if err := errors.Join(err, f.walhook.gone()); err != nil {
			return err
		}
		if n >= int64(b.fanout) {
			break
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	x.arrived = now() - f.committed
	if err := await(ctx, f.conn, f.walhook, selectAllSuccess, f.id, b.fanout); err != nil {
		return fmt.Errorf("wait for the rows of the event: %w", err)
	}
	x.success = now() - f.committed
	return nil
}

// awaitFanPassed waits until the slot has passed the event.
func awaitFanPassed(ctx context.Context, f fan, x *fanned) error {
	if err := await(ctx, f.conn, f.walhook, selectPassed, f.slot, f.end.String()); err != nil {
		return fmt.Errorf("wait for the slot: %w", err)
	}
	x.passed = now() - f.committed
	return nil
}
