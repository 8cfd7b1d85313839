package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/outbox"
)

// What is past retention: which days may go, and how they go.

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
		case passes(err):
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

// passes reports whether others are in the way at this moment, such as somebody who drops the
// same day by hand. Nobody has to act.
func passes(err error) bool {
	return lockUnavailable(err) || hasCode(err,
		"40001", // serialization_failure
		"42P01") // undefined_table
}

// isRefusal reports whether a healthy server refused the statement itself.
func isRefusal(pg *pgconn.PgError) bool {
	return !passes(pg) && !slices.Contains([]string{"08", "53", "57", "58", "XX"}, pg.Code[:min(len(pg.Code), 2)])
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

const selectEndpointIDs = `SELECT id FROM webhook_endpoints WHERE id = ANY(@ids::uuid[])`

// ofEndpoints returns those of the deliveries whose endpoint exists. What is owed to a deleted
// one would only be cancelled, and gets no row if webhook_forget has deleted it.
func (s *Store) ofEndpoints(ctx context.Context, owed []Candidate) ([]Candidate, error) {
	if len(owed) == 0 {
		return nil, nil
	}
	ids := make([]uuid.UUID, len(owed))
	for i := range owed {
		ids[i] = owed[i].EndpointID
	}
	there := map[uuid.UUID]bool{}
	err := s.read(ctx, selectEndpointIDs, pgx.NamedArgs{"ids": asUUIDs(ids)}, func(rows pgx.Rows) error { return collectIDs(rows, there) })
	return slices.DeleteFunc(owed, func(c Candidate) bool { return !there[c.EndpointID] }), err
}

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
		}
		missing, err := p.store.ofEndpoints(ctx, c.Missing)
		if err != nil {
			return false, "", err
		}
		if len(missing) > 0 { // the next round compares this page again
			return false, fmt.Sprintf("event %s is owed to an endpoint but has no delivery; if this persists, see \"Beyond the recovery window\" in docs/operations.md for the query that finds such events and how to deliver them",
				missing[0].EventID), nil
		}
		w.upto, w.end, w.events = c.Upto, c.End, w.events+int64(c.Events)
	}
	return w.end, "", nil
}

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
