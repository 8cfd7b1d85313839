//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

// A month is days gone by in minutes: events with ids of past days, which walhook delivers, and
// the upkeep of the end of each of these days.
type month struct {
	days, retention int
	events          int // a day
	rate            int // the application's INSERTs per second beside it, of today

	today time.Time
}

// fullDay is the day that a month stands for.
const fullDay = 1_000_000

// partitionsAhead is how far ahead walhook makes partitions.
const partitionsAhead = 14

// A monthly is the result of a month.
type monthly struct {
	sizes         []int64 // of the database, at the end of each day
	partitions    []int   // of both tables
	dropped       int
	drops         []time.Duration // upkeep of the days that dropped one, from its begin
	beside, apart []time.Duration // INSERTs during these, and in the seconds before
	making        []time.Duration // INSERTs while partitions were made
}

// oneMonth measures how the database grows, and what the application feels of retention.
func (b *bench) oneMonth(ctx context.Context) error {
	m := month{days: b.days, retention: b.days / 2, events: b.month, rate: b.rate, today: time.Now().UTC().Truncate(24 * time.Hour)}
	var rounds []monthly
	if err := b.inTurns("month", []arm{{"a month", func(int) error { return keep(&rounds)(b.runMonth(ctx, m)) }}}); err != nil {
		return err
	}
	r := b.report
	r.title("month: %d days of %d events, kept for %d days: a day of %d is 1/%d; %d INSERTs/s beside it",
		m.days, m.events, m.retention, fullDay, fullDay/max(m.events, 1), m.rate)
	for _, day := range []int{m.retention / 2, m.retention, m.retention + (m.days-m.retention)/2, m.days} {
		r.row(fmt.Sprintf("database after %d days, MiB", day), each(rounds, func(x monthly) float64 { return mebi(x.sizes[day-1]) }), "%.1f", "")
	}
	r.row("largest / smallest since retention", each(rounds, func(x monthly) float64 {
		flat := x.sizes[m.retention:]
		return float64(slices.Max(flat)) / float64(slices.Min(flat))
	}), "%.3f", "<= 1.05")
	r.row("partitions at the end", each(rounds, func(x monthly) float64 { return float64(x.partitions[m.days-1]) }), "%.0f", fmt.Sprint(2*(m.retention+partitionsAhead+2)))
	r.row("days dropped", each(rounds, func(x monthly) float64 { return float64(x.dropped) }), "%.0f", fmt.Sprint(m.days-m.retention))
	r.row("upkeep that drops a day, ms", each(rounds, func(x monthly) float64 { return millis(quantile(x.drops, 0.5)) }), "%.0f", "")
	for _, q := range []struct {
		name, aim string
		q         float64
	}{{"p50", "", 0.5}, {"p99", "<= 1.5", 0.99}, {"worst", "", 1}} {
		beside := each(rounds, func(x monthly) float64 { return millis(quantile(x.beside, q.q)) })
		apart := each(rounds, func(x monthly) float64 { return millis(quantile(x.apart, q.q)) })
		r.row(q.name+" of an INSERT beside it, ms", beside, "%.2f", "")
		r.row("  in the second before, ms", apart, "%.2f", "")
		r.row("  beside / before", ratios(beside, apart), "%.2f", q.aim)
	}
	r.row("p99 of an INSERT while a day's partitions are made, ms", each(rounds, func(x monthly) float64 { return millis(quantile(x.making, 0.99)) }), "%.2f", "")
	r.row("INSERTs beside it", each(rounds, func(x monthly) float64 { return float64(len(x.beside)) }), "%.0f", "")
	r.flush()
	return nil
}

func (b *bench) runMonth(ctx context.Context, m month) (x monthly, err error) {
	err = b.fresh(ctx, func(db *database) error {
		for i, path := range []string{pathCount, pathCount} { // the past's, and the application's
			if err := (audience{n: 1, first: i, organization: organization, url: b.receiver.url(path)}).insert(ctx, db); err != nil {
				return err
			}
		}
		if err := b.calm(ctx); err != nil {
			return err
		}
		w, err := b.startWalhook(db, "", "WALHOOK_RETENTION=8000h") // the days are dropped here, by the same code
		if err != nil {
			return err
		}
		defer w.kill()
		if err := awaitStreaming(ctx, db, w); err != nil {
			return err
		}
		if x, err = m.pass(ctx, b, db, w); err != nil {
			return err
		}
		return w.stop()
	})
	return x, err
}

// pass passes the days. At the end of each, an application inserts events of today.
func (m month) pass(ctx context.Context, b *bench, db *database, w *walhook) (x monthly, err error) {
	pool, err := pgxpool.New(ctx, db.url)
	if err != nil {
		return x, err
	}
	defer pool.Close()
	conns, hangUp, err := b.server.connections(ctx, db.url, inserters)
	if err != nil {
		return x, err
	}
	defer hangUp()
	st := store.New(pool, db.name, 0)
	var calm, making, dropping []span
	var application probes
	for day := range m.days {
		if err := m.live(ctx, db, w, day); err != nil {
			return x, fmt.Errorf("day %d: %w", day+1, err)
		}
		// Not while the day's events are delivered: a day in seconds leaves the machine no rest.
		err := application.beside(ctx, conns, m.rate, func() error {
			before, err := spanOf(func() error { return pause(ctx, calmFor) })
			calm = append(calm, before)
			if err != nil {
				return err
			}
			made, err := spanOf(func() error { return m.makePartitions(ctx, db, w, day+1) })
			making = append(making, made)
			if err != nil || day < m.retention {
				return err
			}
			drop, err := m.drop(ctx, st, w, day)
			dropping, x.drops, x.dropped = append(dropping, drop), append(x.drops, drop.to-drop.from), x.dropped+1
			return err
		})
		if err != nil {
			return x, fmt.Errorf("the end of day %d: %w", day+1, err)
		}
		var size int64
		var partitions int
		if err := db.QueryRow(ctx, selectSize).Scan(&size, &partitions); err != nil {
			return x, err
		}
		x.sizes, x.partitions = append(x.sizes, size), append(x.partitions, partitions)
	}
	x.apart, x.making, x.beside = application.during(calm), application.during(making), application.during(dropping)
	slices.Sort(x.drops)
	return x, nil
}

// calmFor is how long the application inserts before each upkeep, for comparison.
const calmFor = time.Second

const selectSize = `
SELECT pg_database_size(current_database()), count(*) FROM pg_inherits WHERE inhparent IN ('webhook_outbox'::regclass, 'webhook_deliveries'::regclass)`

func spanOf(f func() error) (span, error) {
	s := span{from: now()}
	err := f()
	s.to = now()
	return s, err
}

func (m month) date(day int) time.Time { return m.today.AddDate(0, 0, day-m.days) }

const insertPast = `
INSERT INTO webhook_outbox (id, organization_id, event_type, payload)
SELECT e.id, $1, $2, e.payload::jsonb FROM unnest($3::uuid[], $4::text[]) AS e(id, payload)`

// makePartitions makes the partitions that walhook would make that day. It tries again where a
// lock was not available, as walhook does.
func (m month) makePartitions(ctx context.Context, db *database, w *walhook, day int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, arriveWithin, errors.New("no partitions"))
	defer cancel()
	first := day + partitionsAhead
	if day == 0 {
		first = 0
	}
	for d := first; d <= min(day+partitionsAhead, m.days-1); d++ {
		for _, table := range []string{"webhook_outbox", "webhook_deliveries"} {
			for {
				_, err := db.Exec(ctx, "SELECT webhook_add_partition($1, $2)", table, m.date(d))
				if err == nil {
					break
				}
				if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != "55P03" { // lock_not_available
					return err
				}
				if err := errors.Join(w.gone(), pause(ctx, 100*time.Millisecond)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// live has the day's events delivered.
func (m month) live(ctx context.Context, db *database, w *walhook, day int) error {
	if day == 0 {
		if err := m.makePartitions(ctx, db, w, 0); err != nil {
			return err
		}
	}
	const perTx = 100
	for first := 0; first < m.events; first += perTx {
		n := min(perTx, m.events-first)
		ids, texts := make([]uuid.UUID, n), make([]string, n)
		for i := range n {
			at := m.date(day).Add(time.Duration(first+i) * 24 * time.Hour / time.Duration(m.events))
			ids[i], texts[i] = outbox.DeliveryID(outbox.TimeID(at), uuid.New()), string(payload(first+i, payloadBytes))
		}
		if _, err := db.Exec(ctx, insertPast, organizationOf(0), eventType, ids, texts); err != nil {
			return err
		}
	}
	lsn, err := scanLSN(db.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text"))
	if err != nil {
		return err
	}
	return confirmed(ctx, db, w, lsn)
}

// confirmed waits until walhook has delivered and recorded everything before a position.
func confirmed(ctx context.Context, db *database, w *walhook, lsn pglogrepl.LSN) error {
	ctx, cancel := context.WithTimeoutCause(ctx, arriveWithin, errors.New("walhook does not keep up"))
	defer cancel()
	return await(ctx, db.Conn, w, "SELECT confirmed_flush_lsn >= $2::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $1", db.name, lsn.String())
}

// A span is from the begin of something to its end, by now().
type span struct{ from, to time.Duration }

// drop does the upkeep of a day's end, as walhook does it, until it has dropped the day that is
// past retention. It tries again where a lock was not available.
func (m month) drop(ctx context.Context, st *store.Store, w *walhook, day int) (span, error) {
	kept := time.Duration(m.days-1-day+m.retention) * 24 * time.Hour
	partitions := store.NewPartitions(st, kept)
	old := m.date(day - m.retention).Format(time.DateOnly)
	ctx, cancel := context.WithTimeoutCause(ctx, arriveWithin, fmt.Errorf("%s was not dropped", old))
	defer cancel()
	for {
		s := span{from: now()}
		done, err := partitions.Upkeep(ctx)
		s.to = now()
		switch {
		case err != nil:
			return s, err
		case slices.Contains(done.Dropped, old):
			return s, nil
		case len(done.Kept) > 0 && !strings.Contains(done.Kept[0].Why, "is owed"):
			return s, fmt.Errorf("%s stays: %s", done.Kept[0].Day, done.Kept[0].Why)
		}
		if err := errors.Join(w.gone(), pause(ctx, 10*time.Millisecond)); err != nil {
			return s, err
		}
	}
}

// probes are the application's INSERTs, each from when it was due to its commit.
type probes struct {
	mu  sync.Mutex
	all []span
}

// beside inserts in an open loop while f runs.
func (p *probes) beside(ctx context.Context, conns []*pgx.Conn, rate int, f func() error) error {
	during, stop := context.WithCancel(ctx)
	defer stop()
	began, errs := now(), make([]error, len(conns))
	var wg sync.WaitGroup
	for i, conn := range conns {
		wg.Go(func() {
			for k := i; errs[i] == nil; k += len(conns) {
				due := began + time.Duration(k)*time.Second/time.Duration(rate)
				if pause(during, due-now()) != nil {
					return
				}
				errs[i] = p.insert(ctx, conn, due)
			}
		})
	}
	err := f()
	stop()
	wg.Wait()
	return errors.Join(append(errs, err)...)
}

// insert inserts an event of today. It is small, because today is never dropped.
func (p *probes) insert(ctx context.Context, conn *pgx.Conn, due time.Duration) error {
	_, err := conn.Exec(ctx, "INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ($1, $2, '{}')", organizationOf(1), eventType)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, span{due, now()})
	return err
}

// during returns the sorted durations of the INSERTs that ran beside one of the spans.
func (p *probes) during(spans []span) (took []time.Duration) {
	for _, insert := range p.all {
		if slices.ContainsFunc(spans, func(s span) bool { return insert.from < s.to && insert.to > s.from }) {
			took = append(took, insert.to-insert.from)
		}
	}
	slices.Sort(took)
	return took
}
