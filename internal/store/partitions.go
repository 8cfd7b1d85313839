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

// old deletes rows and drops days past retention.
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

// A horizon finds out that every event inserted before a moment is behind the confirmed
// position, in three steps that may be far apart:
//
//  1. Read the next transaction id. Everything written before has a smaller one.
//  2. Wait until all transactions with smaller ids have ended, including prepared ones and those of other databases.
//     Then read the insert LSN: their commits are before it.
//  3. Wait until the confirmed position has passed that LSN.
type horizon struct {
	before time.Time // events before are past retention
	xid    string    // step 1
	lsn    string    // step 2; "" before
}

const selectHorizon = `
SELECT date_trunc('day', now() - @retention_ms::bigint::float8 * interval '1 ms', 'UTC'), pg_snapshot_xmax(pg_current_snapshot())::text`

const selectEnded = `
SELECT CASE WHEN pg_snapshot_xmin(pg_current_snapshot()) >= @xid::text::xid8 THEN pg_current_wal_insert_lsn()::text ELSE '' END`

// An idle outbox advances the slot, but not the state row. Neither goes beyond what is
// recorded, except a slot that was recreated: while reconcile_from is set, neither counts.
const selectPassed = `
SELECT NOT EXISTS (SELECT FROM webhook_state WHERE slot = @slot AND reconcile_from IS NOT NULL)
   AND (coalesce((SELECT durable_lsn >= @lsn::text::pg_lsn FROM webhook_state WHERE slot = @slot), false)
     OR coalesce((SELECT confirmed_flush_lsn >= @lsn::text::pg_lsn FROM pg_replication_slots
                  WHERE slot_name = @slot AND database = current_database()), false))`

// If the database was restored to an earlier state, the noted id and LSN are in the future,
// and would be reached only after as much has been written again.
const selectStillToCome = `
SELECT pg_snapshot_xmax(pg_current_snapshot()) < @xid::text::xid8
    OR coalesce(pg_current_wal_insert_lsn() < nullif(@lsn::text, ''::text)::pg_lsn, false)`

// confirmed returns the end of the days that are past retention and confirmed, and starts
// over. Until the steps are done it returns the zero time.
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

// dropOld drops days from both tables at once. A day with unfinished deliveries stays. A day
// that cannot be dropped does not keep the days after it.
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
			return nil // the next round continues
		}
		dropped, why, err := p.dropOne(ctx, day, end)
		switch {
		case lockUnavailable(err):
			// One try per round: each may delay an INSERT for the lock timeout.
			u.LockNotAvailable, p.busy = true, day
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

// dropOne drops a day. If it cannot, and an operator has to act, it returns why.
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

// isRefusal reports whether a healthy server refused the statement itself.
func isRefusal(pg *pgconn.PgError) bool {
	return !lockUnavailable(pg) && !slices.Contains([]string{"08", "53", "57", "58", "XX"}, pg.Code[:min(len(pg.Code), 2)])
}

// undroppable returns why a day cannot be dropped, and what to do.
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

// compareDay compares the events of a day with their rows, no longer than until end. It skips
// a day with waiting deliveries. If an event lacks a row it returns why the day stays.
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
		case len(c.Missing) > 0: // the next round compares this page again
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

// drop drops a day that was compared. If its number of events has changed since, the day stays
// and is compared again.
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
		if hasCode(err, "57014") && most > 1 { // query_canceled: the events are owed to very many endpoints
			most = max(most/8, 1)
			continue
		}
		if lockUnavailable(err) {
			u.LockNotAvailable = true
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
WHERE to_regclass(parent || '_p' || to_char(((now() AT TIME ZONE 'UTC')::date + n)::timestamp, 'YYYYMMDD'::text)) IS NULL`

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
