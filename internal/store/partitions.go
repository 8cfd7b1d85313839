package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/outbox"
)

const (
	// partitionsAhead bounds how long walhook can be away before events go into the DEFAULT partition.
	partitionsAhead = 14
	// partitionsBack bounds how far back days found in the DEFAULT partitions get partitions of their own: imported
	// events of years ago must not make thousands.
	partitionsBack = 31
	// upkeepStatement bounds one statement of the upkeep, and with it how long a DEFAULT partition is locked while an
	// ATTACH looks through it for rows of the new day: an INSERT that belongs there waits. It is empty in normal life.
	upkeepStatement = "900ms"
	// deleteChunk bounds one transaction that deletes from the DEFAULT partitions: some 10 ms of row locks.
	deleteChunk = 1000
	// deleteChunks bounds how much one Upkeep deletes.
	deleteChunks = 200
	// comparePage is how many owed deliveries of a day one look compares: some 30 ms.
	comparePage = 8000
	// compareFor bounds how long one Upkeep compares days. The next goes on from there.
	compareFor = 30 * time.Second
	// dropStatement bounds the last look at a day and its drop. What takes long is to count the day's events, for which
	// nobody waits but who inserts one of that day.
	dropStatement = "10s"
	// partitionsCounted bounds how many days ahead are counted.
	partitionsCounted = 60
)

// Partitions keeps the daily partitions of webhook_outbox and
// webhook_deliveries: it makes days ahead, and drops days past retention.
//
// A day is dropped when all of its deliveries are finished, every event that may be
// in it is behind the confirmed position, and every event that is in it has all its
// rows: an id may be late, and its event not recorded yet. These take several looks
// (see horizon), which are remembered here, so it takes more than one Upkeep.
// Upkeep is not for concurrent use.
type Partitions struct {
	store     *Store
	retention time.Duration
	past      *horizon
	days      map[time.Time]*dayProgress // past retention
	busy      time.Time                  // the day that somebody had in use the last time: it is tried last
}

// A dayProgress is how far the events of a day have been compared with their rows.
type dayProgress struct {
	upto   Position
	events int64
	end    bool
}

// A KeptDay is past retention, and was not dropped although none of its deliveries waits.
type KeptDay struct{ Day, Why string }

// NewPartitions returns the upkeep of a store's tables. A retention of 0 keeps everything.
func NewPartitions(s *Store, retention time.Duration) *Partitions {
	return &Partitions{store: s, retention: retention, days: map[time.Time]*dayProgress{}}
}

// An Upkeep tells what one round of upkeep did.
type Upkeep struct {
	Made    []string // partitions made
	Moved   int64    // rows moved into them out of the DEFAULT partitions
	Stuck   []string // partitions not made: the DEFAULT partition holds too many rows of that day, or some, and too many of others
	Dropped []string // days dropped, as 2006-01-02
	Kept    []KeptDay
	Deleted int64 // finished rows past retention deleted from the DEFAULT partitions
	GaveWay bool  // a lock was not to be had: the rest is for the next round
}

// Upkeep does one round. A lock that somebody holds is no error: what needs it is left for the next round.
func (p *Partitions) Upkeep(ctx context.Context) (Upkeep, error) {
	var u Upkeep
	err := p.ahead(ctx, &u)
	if err != nil {
		err = fmt.Errorf("make partitions: %w", err)
	}
	return u, errors.Join(err, p.old(ctx, &u)) // who may not make any may drop them
}

// old deletes and drops what is past retention.
func (p *Partitions) old(ctx context.Context, u *Upkeep) error {
	if p.retention <= 0 {
		return nil
	}
	before, err := p.confirmed(ctx)
	if err != nil {
		return fmt.Errorf("find what is past retention and confirmed: %w", err)
	}
	if before.IsZero() {
		return nil
	}
	if err := p.deleteOld(ctx, before, u); err != nil {
		return fmt.Errorf("delete old rows: %w", err)
	}
	if err := p.dropOld(ctx, before, u); err != nil {
		return fmt.Errorf("drop old partitions: %w", err)
	}
	return nil
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
SELECT day, parent FROM days, pg_catalog.unnest('{webhook_outbox,webhook_deliveries}'::text[]) AS parent
WHERE to_regclass(parent || '_p' || to_char(day::timestamp, 'YYYYMMDD'::text)) IS NULL
ORDER BY day < (SELECT today.day - 1 FROM today), day, parent`

const addPartition = `SELECT made, moved FROM webhook_add_partition(@parent, @day)`

// ahead makes the partitions that are missing, each in a transaction of its own: first
// those from now on. Where rows have to be moved, INSERTs wait for that; they get as
// much time between two moves. Of a table that somebody has in use for longer than the
// lock timeout no more are tried in this round, because each try holds INSERTs up.
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
		case lockUnavailable(err): // also where the DEFAULT partition is too big to be looked through
			u.GaveWay, busy[m.Parent] = true, true
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
SELECT date_trunc('day', now() - @retention_ms::bigint::float8 * interval '1 ms', 'UTC'), pg_snapshot_xmax(pg_current_snapshot())::text`

const selectEnded = `
SELECT CASE WHEN pg_snapshot_xmin(pg_current_snapshot()) >= @xid::text::xid8 THEN pg_current_wal_insert_lsn()::text ELSE '' END`

// An idle outbox moves the slot and not the state row. Neither moves beyond what is
// recorded, but a slot that was made anew begins beyond what has to be looked for.
const selectPassed = `
SELECT NOT EXISTS (SELECT FROM webhook_state WHERE slot = @slot AND reconcile_from IS NOT NULL)
   AND (coalesce((SELECT durable_lsn >= @lsn::text::pg_lsn FROM webhook_state WHERE slot = @slot), false)
     OR coalesce((SELECT confirmed_flush_lsn >= @lsn::text::pg_lsn FROM pg_replication_slots
                  WHERE slot_name = @slot AND database = current_database()), false))`

// What was noted is of another time where the database was restored to an earlier one:
// it would be waited for until as much has been written again.
const selectStillToCome = `
SELECT pg_snapshot_xmax(pg_current_snapshot()) < @xid::text::xid8
    OR coalesce(pg_current_wal_insert_lsn() < nullif(@lsn::text, ''::text)::pg_lsn, false)`

// confirmed returns the end of the days that are past retention and confirmed,
// once the looks are done, and begins anew; the zero time until then.
func (p *Partitions) confirmed(ctx context.Context) (time.Time, error) {
	s := p.store
	if p.past != nil {
		var stillToCome bool
		if err := s.upkeep(ctx, selectStillToCome, pgx.NamedArgs{"xid": p.past.xid, "lsn": p.past.lsn}, &stillToCome); err != nil {
			return time.Time{}, err
		}
		if stillToCome {
			p.past = nil
		}
	}
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
    SELECT to_date(right(c.relname::text, 8), 'YYYYMMDD'::text) AS day
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent IN ('webhook_outbox'::regclass::oid, 'webhook_deliveries'::regclass::oid)
      AND c.relname::text ~ '^webhook_(outbox|deliveries)_p[0-9]{8}$'
) d
WHERE day < (@before::timestamptz AT TIME ZONE 'UTC')::date ORDER BY day`

// dropOld drops days as pairs. A day with unfinished work stays, and one that cannot be
// dropped does not keep the days after it.
func (p *Partitions) dropOld(ctx context.Context, before time.Time, u *Upkeep) error {
	days, err := collect(ctx, p.store, selectOldDays, pgx.NamedArgs{"before": before}, pgx.RowTo[time.Time])
	if err != nil {
		return err
	}
	if at := slices.IndexFunc(days, p.busy.Equal); at >= 0 {
		days = append(slices.Delete(days, at, at+1), p.busy)
	}
	end := time.Now().Add(compareFor)
	for _, day := range days {
		if time.Now().After(end) {
			return nil // the next round goes on
		}
		dropped, why, err := p.dropOne(ctx, day, end)
		switch {
		case lockUnavailable(err):
			// One try in a round: each one may hold an INSERT up for its lock_timeout.
			u.GaveWay, p.busy = true, day
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", day.Format(time.DateOnly), err)
		case dropped:
			u.Dropped = append(u.Dropped, day.Format(time.DateOnly))
		case why != "":
			u.Kept = append(u.Kept, KeptDay{day.Format(time.DateOnly), why})
		}
	}
	return nil
}

// dropOne drops a day, or says why not where somebody has to do something about it.
func (p *Partitions) dropOne(ctx context.Context, day, end time.Time) (dropped bool, why string, err error) {
	complete, why, err := p.compareDay(ctx, day, end)
	if !complete || err != nil {
		return false, why, err
	}
	dropped, err = p.drop(ctx, day)
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && isRefusal(pg) {
		return false, undroppable(pg, day), nil
	}
	return dropped, "", err
}

// isRefusal says that the server was well, and would not do this.
func isRefusal(pg *pgconn.PgError) bool {
	return !lockUnavailable(pg) && !slices.Contains([]string{"08", "53", "57", "58", "XX"}, pg.Code[:min(len(pg.Code), 2)])
}

// undroppable says why a day cannot be dropped, and what to do.
func undroppable(pg *pgconn.PgError, day time.Time) string {
	why := strings.TrimSuffix(pg.Message+": "+strings.ReplaceAll(pg.Detail, "\n", ", "), ": ")
	if pg.Code != "2BP01" { // dependent_objects_still_exist
		return why
	}
	return why + fmt.Sprintf("; drop or change the dependent objects, or keep the day as tables of your own: "+
		"ALTER TABLE webhook_outbox DETACH PARTITION webhook_outbox_p%[1]s; ALTER TABLE webhook_deliveries DETACH PARTITION webhook_deliveries_p%[1]s;", day.Format("20060102"))
}

const selectDayWaits = `
SELECT EXISTS (SELECT FROM webhook_deliveries d WHERE d.id >= @low::uuid AND d.id < @high::uuid AND d.status IN ('pending', 'retrying'))`

// whole compares the events of a day with their rows, where none waits, until a time
// that it must not take longer than. It says why, where not all events have their rows.
func (p *Partitions) compareDay(ctx context.Context, day, end time.Time) (complete bool, why string, err error) {
	low, high := outbox.TimeID(day), outbox.TimeID(day.AddDate(0, 0, 1))
	var waits bool
	if err := p.store.upkeep(ctx, selectDayWaits, pgx.NamedArgs{"low": low, "high": high}, &waits); err != nil || waits {
		return false, "", err
	}
	w := p.days[day]
	if w == nil {
		w = &dayProgress{upto: Position{Event: low}}
		p.days[day] = w
	}
	for most := comparePage; !w.end && time.Now().Before(end); {
		c, err := p.store.Missing(ctx, w.upto, high, most)
		switch {
		case TimedOut(err) && ctx.Err() == nil && most > 1:
			most = max(most/4, 1)
			continue
		case err != nil:
			return false, "", err
		case len(c.Missing) > 0: // the next round looks there again
			return false, fmt.Sprintf("event %s is owed to an endpoint but has no delivery; if this persists, see \"Beyond the recovery window\" in docs/operations.md for the query that finds such events and how to deliver them",
				c.Missing[0].EventID), nil
		}
		w.upto, w.end, w.events = c.Upto, c.End, w.events+int64(c.Events)
	}
	return w.end, "", nil
}

const (
	prepareDrop = `SELECT set_config('statement_timeout', '` + dropStatement + `', true), set_config('walhook.compared', @compared::text, true)`
	dropDay     = `SELECT webhook_drop_day(@day)`
)

// drop drops a day that was compared, unless events have come or gone since: then it
// is compared anew.
func (p *Partitions) drop(ctx context.Context, day time.Time) (dropped bool, err error) {
	compared := strconv.FormatInt(p.days[day].events, 10)
	delete(p.days, day)
	var b pgx.Batch
	b.Queue(prepareDrop, pgx.NamedArgs{"compared": compared})
	b.Queue(dropDay, pgx.NamedArgs{"day": day}).QueryRow(func(row pgx.Row) error { return row.Scan(&dropped) })
	err = p.store.send(ctx, &b)
	return dropped, err
}

const deleteOldRows = `SELECT events, deliveries FROM webhook_delete_old(@before, @most)`

// deleteOld deletes what is finished and past retention from the DEFAULT partitions.
func (p *Partitions) deleteOld(ctx context.Context, before time.Time, u *Upkeep) error {
	most := deleteChunk
	for range deleteChunks {
		var events, deliveries int64
		err := p.store.upkeep(ctx, deleteOldRows, pgx.NamedArgs{"before": before, "most": most}, &events, &deliveries)
		if hasCode(err, "57014") && most > 1 { // query_canceled: they are owed to very many endpoints
			most = max(most/8, 1)
			continue
		}
		if lockUnavailable(err) {
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

// Of both tables, or the day's events or deliveries go into a DEFAULT partition.
const selectPartitionsAhead = `
SELECT coalesce(min(n) - 1, @most::int) FROM generate_series(1, @most::int) AS n, pg_catalog.unnest('{webhook_outbox,webhook_deliveries}'::text[]) AS parent
WHERE to_regclass(parent || '_p' || to_char(((now() AT TIME ZONE 'UTC')::date + n)::timestamp, 'YYYYMMDD'::text)) IS NULL`

// PartitionsAhead returns for how many days from tomorrow on there are partitions.
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
