package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// partitionsAhead bounds how long walhook can be away before events go into the DEFAULT partition.
	partitionsAhead = 14
	// partitionsBack bounds how far back days found in the DEFAULT partitions get partitions of their own: imported
	// events of years ago must not make thousands.
	partitionsBack = 31
	// upkeepStatement bounds one statement of the upkeep, and with it how long a DEFAULT partition is locked while an
	// ATTACH looks through it for rows of the new day. It is empty in normal life.
	upkeepStatement = "2s"
	// deleteChunk bounds one transaction that deletes from the DEFAULT partitions: some 10 ms of row locks.
	deleteChunk = 1000
	// deleteChunks bounds how much one Upkeep deletes.
	deleteChunks = 200
)

// Partitions keeps the daily partitions of webhook_outbox and
// webhook_deliveries: it makes days ahead, and drops days past retention.
//
// A day is dropped when all of its deliveries are finished and every event that
// may be in it is behind the confirmed position. The latter takes several looks
// (see horizon), which are remembered here, so it takes more than one Upkeep.
// Upkeep is not for concurrent use.
type Partitions struct {
	store     *Store
	retention time.Duration
	past      *horizon
}

// NewPartitions returns the upkeep of a store's tables. A retention of 0 keeps everything.
func NewPartitions(s *Store, retention time.Duration) *Partitions {
	return &Partitions{store: s, retention: retention}
}

// An Upkeep tells what one round of upkeep did.
type Upkeep struct {
	Made    []string // partitions made
	Moved   int64    // rows moved into them out of the DEFAULT partitions
	Stuck   []string // partitions not made: the DEFAULT partition holds too many rows of that day
	Dropped []string // days dropped, as 2006-01-02
	Deleted int64    // finished rows past retention deleted from the DEFAULT partitions
	GaveWay bool     // a lock was not to be had: the rest is for the next round
}

// Upkeep does one round. A lock that somebody holds is no error: what needs it is left for the next round.
func (p *Partitions) Upkeep(ctx context.Context) (Upkeep, error) {
	var u Upkeep
	if err := p.ahead(ctx, &u); err != nil {
		return u, fmt.Errorf("make partitions: %w", err)
	}
	if p.retention <= 0 {
		return u, nil
	}
	before, err := p.confirmed(ctx)
	if err != nil {
		return u, fmt.Errorf("find out what is past retention and confirmed: %w", err)
	}
	if before.IsZero() {
		return u, nil
	}
	if err := p.deleteOld(ctx, before, &u); err != nil {
		return u, fmt.Errorf("delete old rows: %w", err)
	}
	if err := p.dropOld(ctx, before, &u); err != nil {
		return u, fmt.Errorf("drop old partitions: %w", err)
	}
	return u, nil
}

// The days from yesterday to two weeks ahead, and those of which the DEFAULT
// partitions hold rows: found by leaping from the first row of one day to the
// first of the next. Both tables get each day.
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
SELECT day, parent FROM days, unnest('{webhook_outbox,webhook_deliveries}'::text[]) AS parent
WHERE to_regclass(parent || '_p' || to_char(day, 'YYYYMMDD')) IS NULL
ORDER BY day, parent`

const addPartition = `SELECT made, moved FROM webhook_add_partition(@parent, @day)`

// ahead makes the partitions that are missing, each in a transaction of its own.
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
	for _, m := range missing {
		name := fmt.Sprintf("%s_p%s", m.Parent, m.Day.Format("20060102"))
		var made bool
		var moved int64
		err := p.store.upkeep(ctx, addPartition, pgx.NamedArgs{"parent": m.Parent, "day": m.Day}, &made, &moved)
		switch {
		case hasCode(err, "57014"): // query_canceled: the DEFAULT partition is too big to be looked through
			u.GaveWay = true
			return nil
		case gaveWay(err):
			u.GaveWay = true
		case err != nil:
			return fmt.Errorf("%s: %w", name, err)
		case made:
			u.Made = append(u.Made, name)
			u.Moved += moved
		case moved > 0:
			u.Stuck = append(u.Stuck, name)
		}
	}
	return nil
}

// A horizon finds out that every event inserted before a moment is behind the
// confirmed position, in three looks that may be far apart:
//
//  1. read the next transaction id: whoever wrote before has a smaller one;
//  2. see that all smaller ones have ended, prepared ones and those of other databases included, and read the insert LSN
//     after that: their commits are before it;
//  3. see that the confirmed position has passed that LSN.
type horizon struct {
	before time.Time // what is older is past retention
	xid    string    // look 1
	lsn    string    // look 2; empty before
}

const selectHorizon = `
SELECT date_trunc('day', now() - @retention_ms::bigint * interval '1 ms', 'UTC'), pg_snapshot_xmax(pg_current_snapshot())::text`

const selectEnded = `
SELECT CASE WHEN pg_snapshot_xmin(pg_current_snapshot()) >= @xid::text::xid8 THEN pg_current_wal_insert_lsn()::text ELSE '' END`

// An idle outbox moves the slot and not the state row. Neither moves beyond what is
// recorded, but a slot that was made anew begins beyond what has to be looked for.
const selectPassed = `
SELECT NOT EXISTS (SELECT FROM webhook_state WHERE slot = @slot AND reconcile_from IS NOT NULL)
   AND (coalesce((SELECT durable_lsn >= @lsn::text::pg_lsn FROM webhook_state WHERE slot = @slot), false)
     OR coalesce((SELECT confirmed_flush_lsn >= @lsn::text::pg_lsn FROM pg_replication_slots
                  WHERE slot_name = @slot AND database = current_database()), false))`

// confirmed returns the end of the days that are past retention and confirmed,
// once the looks are done, and begins anew; the zero time until then.
func (p *Partitions) confirmed(ctx context.Context) (time.Time, error) {
	s := p.store
	if p.past == nil {
		h := &horizon{}
		if err := s.upkeep(ctx, selectHorizon, pgx.NamedArgs{"retention_ms": p.retention.Milliseconds()}, &h.before, &h.xid); err != nil {
			return time.Time{}, err
		}
		p.past = h
	}
	if p.past.lsn == "" {
		if err := s.upkeep(ctx, selectEnded, pgx.NamedArgs{"xid": p.past.xid}, &p.past.lsn); err != nil || p.past.lsn == "" {
			return time.Time{}, err
		}
	}
	var passed bool
	if err := s.upkeep(ctx, selectPassed, pgx.NamedArgs{"lsn": p.past.lsn, "slot": s.slot}, &passed); err != nil || !passed {
		return time.Time{}, err
	}
	before := p.past.before
	p.past = nil
	return before, nil
}

const selectOldDays = `
SELECT DISTINCT day FROM (
    SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent IN ('webhook_outbox'::regclass, 'webhook_deliveries'::regclass)
      AND c.relname ~ '^webhook_(outbox|deliveries)_p[0-9]{8}$'
) d
WHERE day < (@before::timestamptz AT TIME ZONE 'UTC')::date ORDER BY day`

const dropDay = `SELECT webhook_drop_day(@day)`

// dropOld drops days as pairs. A day with unfinished work stays.
func (p *Partitions) dropOld(ctx context.Context, before time.Time, u *Upkeep) error {
	days, err := collect(ctx, p.store, selectOldDays, pgx.NamedArgs{"before": before}, pgx.RowTo[time.Time])
	if err != nil {
		return err
	}
	for _, day := range days {
		var dropped bool
		err := p.store.upkeep(ctx, dropDay, pgx.NamedArgs{"day": day}, &dropped)
		switch {
		case gaveWay(err):
			// One try in a round: each one may hold an INSERT up for its lock_timeout.
			u.GaveWay = true
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", day.Format(time.DateOnly), err)
		case dropped:
			u.Dropped = append(u.Dropped, day.Format(time.DateOnly))
		}
	}
	return nil
}

const deleteOldRows = `SELECT events, deliveries FROM webhook_delete_old(@before, @most)`

// deleteOld deletes what is finished and past retention from the DEFAULT partitions.
func (p *Partitions) deleteOld(ctx context.Context, before time.Time, u *Upkeep) error {
	for range deleteChunks {
		var events, deliveries int64
		err := p.store.upkeep(ctx, deleteOldRows, pgx.NamedArgs{"before": before, "most": deleteChunk}, &events, &deliveries)
		if gaveWay(err) {
			u.GaveWay = true
			return nil
		}
		if err != nil {
			return err
		}
		u.Deleted += events + deliveries
		if events == 0 && deliveries == 0 {
			return nil
		}
	}
	return nil
}

const prepareUpkeep = `SELECT set_config('statement_timeout', '` + upkeepStatement + `', true), set_config('row_security', 'off', true)`

// upkeep runs a statement that returns one row, in a transaction of its own.
func (s *Store) upkeep(ctx context.Context, sql string, args pgx.NamedArgs, into ...any) error {
	var b pgx.Batch
	b.Queue(prepareUpkeep)
	b.Queue(sql, args).QueryRow(func(row pgx.Row) error { return row.Scan(into...) })
	return s.send(ctx, &b)
}

func collect[T any](ctx context.Context, s *Store, sql string, args pgx.NamedArgs, row pgx.RowToFunc[T]) (all []T, err error) {
	err = s.read(ctx, sql, args, func(rows pgx.Rows) error {
		all, err = pgx.CollectRows(rows, row)
		return err
	})
	return all, err
}
