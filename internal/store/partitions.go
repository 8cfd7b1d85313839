package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// partitionsAhead is how many days ahead have partitions. It bounds how long walhook can be down before events go
	// into the DEFAULT partition.
	partitionsAhead = 14
	// partitionsBack bounds how many past days get partitions for rows found in the DEFAULT partitions: an import of
	// years must not make thousands.
	partitionsBack = 31
	// upkeepStatement bounds one statement of the upkeep. ATTACH locks the DEFAULT partition while it scans it for rows
	// of the new day, and INSERTs that belong there wait. Normally that partition is empty.
	upkeepStatement = "900ms"
	// deleteChunk bounds one transaction that deletes from the DEFAULT partitions: about 10 ms of row locks.
	deleteChunk = 1000
	// deleteChunks bounds how many chunks one Upkeep deletes.
	deleteChunks = 200
	// comparePage is how many owed deliveries of a day one query compares: about 30 ms.
	comparePage = 8000
	// compareFor bounds how long one Upkeep compares days. The next one continues there.
	compareFor = 30 * time.Second
	// dropStatement bounds the last check of a day, and its drop. Counting the day's events takes most of that; only
	// an INSERT of an event of that day waits for it.
	dropStatement = "10s"
	// partitionsCounted bounds how many days ahead are counted.
	partitionsCounted = 60
)

// Partitions maintains the daily partitions of webhook_outbox and webhook_deliveries: it
// creates days ahead, and drops days past retention.
//
// A day is dropped when all its deliveries are finished, every event that may still be
// inserted into it is behind the confirmed position, and every event in it has all its rows:
// an id may be late, and its event not recorded yet. That takes several steps (see horizon),
// so more than one Upkeep. Upkeep is not for concurrent use.
type Partitions struct {
	store     *Store
	retention time.Duration
	past      *horizon
	days      map[time.Time]*dayProgress // past retention
	busy      time.Time                  // the day that somebody was using the last time: it is tried last
}

// A dayProgress says how far the events of a day have been compared with their rows.
type dayProgress struct {
	upto   Position
	events int64
	end    bool
}

// A KeptDay is past retention and has no waiting delivery, but was not dropped.
type KeptDay struct{ Day, Why string }

// NewPartitions returns a Partitions for a store's tables. A retention of 0 keeps everything.
func NewPartitions(s *Store, retention time.Duration) *Partitions {
	return &Partitions{store: s, retention: retention, days: map[time.Time]*dayProgress{}}
}

// An Upkeep says what one round of upkeep did.
type Upkeep struct {
	Made             []string // partitions created
	Moved            int64    // rows moved into them from the DEFAULT partitions
	Stuck            []string // partitions not created: the DEFAULT partition has too many rows of that day, or some and too many of others
	Dropped          []string // days dropped, as 2006-01-02
	Kept             []KeptDay
	Deleted          int64 // finished rows past retention deleted from the DEFAULT partitions
	LockNotAvailable bool  // a lock was not available: the rest is left for the next round
}

// Upkeep does one round. An unavailable lock is no error: what needs it is left for the next round.
func (p *Partitions) Upkeep(ctx context.Context) (Upkeep, error) {
	var u Upkeep
	err := p.ahead(ctx, &u)
	if err != nil {
		err = fmt.Errorf("make partitions: %w", err)
	}
	return u, errors.Join(err, p.old(ctx, &u)) // dropping may work even if creating does not
}

// The days from yesterday to two weeks ahead, and those with rows in the DEFAULT partitions.
// These are found by jumping from the first row of one day to the first row of the next. Both
// tables get each day.
const selectMissingPartitions = `
WITH RECURSIVE today(day) AS (SELECT (now() AT TIME ZONE 'UTC')::date),
bounds(low, high) AS (
    SELECT webhook_uuid_at((day - @back::int)::timestamp AT TIME ZONE 'UTC'),
           webhook_uuid_at((day + @ahead::int + 1)::timestamp AT TIME ZONE 'UTC') FROM today
),
events(id) AS (
    (SELECT o.id FROM webhook_outbox_default o, bounds b WHERE o.id >= b.low AND o.id < b.high ORDER BY o.id LIMIT 1)
    UNION ALL
    SELECT (SELECT o.id FROM webhook_outbox_default o, bounds b
            WHERE o.id >= webhook_uuid_at(date_trunc('day', webhook_uuid_time(e.id), 'UTC') + interval '24 hours') AND o.id < b.high
            ORDER BY o.id LIMIT 1)
    FROM events e WHERE e.id IS NOT NULL
),
deliveries(id) AS (
    (SELECT d.id FROM webhook_deliveries_default d, bounds b WHERE d.id >= b.low AND d.id < b.high ORDER BY d.id LIMIT 1)
    UNION ALL
    SELECT (SELECT d.id FROM webhook_deliveries_default d, bounds b
            WHERE d.id >= webhook_uuid_at(date_trunc('day', webhook_uuid_time(e.id), 'UTC') + interval '24 hours') AND d.id < b.high
            ORDER BY d.id LIMIT 1)
    FROM deliveries e WHERE e.id IS NOT NULL
),
days(day) AS (
    SELECT day + ahead FROM today, generate_series(-1, @ahead::int) AS ahead
    UNION SELECT (webhook_uuid_time(id) AT TIME ZONE 'UTC')::date FROM events WHERE id IS NOT NULL
    UNION SELECT (webhook_uuid_time(id) AT TIME ZONE 'UTC')::date FROM deliveries WHERE id IS NOT NULL
)
SELECT day, parent FROM days, pg_catalog.unnest('{webhook_outbox,webhook_deliveries}'::text[]) AS parent
WHERE to_regclass(parent || '_p' || to_char(day::timestamp, 'YYYYMMDD'::text)) IS NULL
ORDER BY day < (SELECT today.day - 1 FROM today), day, parent`

const addPartition = `SELECT made, moved FROM webhook_add_partition(@parent, @day)`

// ahead creates the missing partitions, each in a transaction of its own, those from now on
// first. INSERTs wait while rows are moved, so they get as much time between two moves. If a
// table's lock is not available, the round skips the rest of that table: each try delays
// INSERTs.
func (p *Partitions) ahead(ctx context.Context, u *Upkeep) error {
	type partition struct {
		Day    time.Time
		Parent string
	}
	args := pgx.NamedArgs{"back": partitionsBack, "ahead": partitionsAhead}
	missing, err := collect(ctx, p.store, selectMissingPartitions, args, pgx.RowToStructByPos[partition])
	if err != nil {
		return err
	}
	busy := map[string]bool{}
	for _, m := range missing {
		if busy[m.Parent] {
			continue
		}
		name := fmt.Sprintf("%s_p%s", m.Parent, m.Day.Format("20060102"))
		var made bool
		var moved int64
		began := time.Now()
		err := p.store.upkeep(ctx, addPartition, pgx.NamedArgs{"parent": m.Parent, "day": m.Day}, &made, &moved)
		switch {
		case lockUnavailable(err): // also if the DEFAULT partition is too big to scan
			u.LockNotAvailable, busy[m.Parent] = true, true
		case err != nil:
			return fmt.Errorf("%s: %w", name, err)
		case made && moved > 0:
			u.Made, u.Moved = append(u.Made, name), u.Moved+moved
			if err := sleep(ctx, time.Since(began)); err != nil {
				return err
			}
		case made:
			u.Made = append(u.Made, name)
		case moved > 0:
			u.Stuck = append(u.Stuck, name)
		}
	}
	return nil
}

const (
	prepareDrop = `SELECT set_config('statement_timeout', '` + dropStatement + `', true), set_config('walhook.compared', @compared::text, true)`
	dropDay     = `SELECT webhook_drop_day(@day)`
)

const prepareUpkeep = `SELECT set_config('statement_timeout', '` + upkeepStatement + `', true), set_config('row_security', 'off', true)`

// upkeep runs a statement that returns one row, in its own transaction.
func (s *Store) upkeep(ctx context.Context, sql string, args pgx.NamedArgs, into ...any) error {
	var b pgx.Batch
	b.Queue(prepareUpkeep)
	b.Queue(sql, args).QueryRow(func(row pgx.Row) error { return row.Scan(into...) })
	return s.send(ctx, &b)
}

// A day counts if both tables have it.
const selectPartitionsAhead = `
SELECT coalesce(min(n) - 1, @most::int) FROM generate_series(1, @most::int) AS n, pg_catalog.unnest('{webhook_outbox,webhook_deliveries}'::text[]) AS parent
WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.relispartition
                  AND c.oid = to_regclass(parent || '_p' || to_char(((now() AT TIME ZONE 'UTC')::date + n)::timestamp, 'YYYYMMDD'::text))::oid)`

// PartitionsAhead returns how many days from tomorrow on have partitions.
func (s *Store) PartitionsAhead(ctx context.Context) (days int, err error) {
	if err := s.pool.QueryRow(ctx, selectPartitionsAhead, pgx.NamedArgs{"most": partitionsCounted}).Scan(&days); err != nil {
		return 0, fmt.Errorf("count the partitions ahead: %w", err)
	}
	return days, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func collect[T any](ctx context.Context, s *Store, sql string, args pgx.NamedArgs, row pgx.RowToFunc[T]) (all []T, err error) {
	err = s.read(ctx, sql, args, func(rows pgx.Rows) error {
		all, err = pgx.CollectRows(rows, row)
		return err
	})
	return all, err
}
