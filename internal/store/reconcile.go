package store

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// A Candidate is an owed delivery that one query found without a row.
type Candidate struct {
	ID, EventID, EndpointID uuid.UUID
	OrganizationID          string
	EventType               string
}

// shareText replaces the candidate's strings by equal ones of another candidate, so that each
// is kept once.
func (c *Candidate) shareText(with *Candidate) {
	if c.OrganizationID == with.OrganizationID {
		c.OrganizationID = with.OrganizationID
	}
	if c.EventType == with.EventType {
		c.EventType = with.EventType
	}
}

// hasRow is true if the delivery d has its row. OFFSET keeps the planner from turning it into
// a join: a cached plan from when the tables were empty would compare each owed delivery with
// every row.
const hasRow = `EXISTS (SELECT FROM webhook_deliveries x WHERE x.id = d.id OFFSET 0)`

// A Position says how far events have been compared with their deliveries: all before Event,
// and the first Owed of its own. One event may be owed to more endpoints than one query
// compares.
type Position struct {
	Event uuid.UUID
	Owed  int
}

// A Compared is the result of one Missing.
type Compared struct {
	Missing []Candidate
	Events  int      // events whose first owed delivery was compared
	Upto    Position // where the next Missing continues
	End     bool     // there was nothing more to compare
}

// The LIMIT counts owed deliveries. It ends the scan, and arrays are unpacked one by one, so
// no more of an event is read than the page needs. An event that is owed to nobody counts as
// one. The join keeps the order of the events, and unnest that of the array; Missing checks
// that.
const selectOwed = `
WITH page AS MATERIALIZED (
    SELECT id, organization_id, event_type, endpoint_ids FROM webhook_outbox
    WHERE id >= @event::uuid AND id < @until::uuid
    ORDER BY id LIMIT @limit::int + 1
)
SELECT page.id, coalesce(e.n, 0)::int, coalesce(e.id, page.id), page.organization_id, page.event_type
FROM page LEFT JOIN LATERAL pg_catalog.unnest(page.endpoint_ids) WITH ORDINALITY AS e(id, n) ON true
WHERE page.id > @event::uuid OR e.n > @owed::int
LIMIT @limit::int`

// All deliveries of an event have its time in their ids. So each millisecond is a short range
// of the primary key, however many rows lie between.
const selectRowsOfTimes = `
SELECT x.id FROM unnest(@low::uuid[], @high::uuid[]) AS r(low, high)
CROSS JOIN LATERAL (SELECT d.id FROM webhook_deliveries d WHERE d.id >= r.low AND d.id < r.high OFFSET 0) AS x`

// Missing compares up to limit deliveries that are owed for events from a position on and
// before until, and returns those without a row. Such a row may be in flight: only a second
// query tells, after everything committed before the first has been recorded. Fewer than
// limit mean the end: what becomes visible later was committed later.
func (s *Store) Missing(ctx context.Context, from Position, until uuid.UUID, limit int) (Compared, error) {
	c := Compared{Upto: from}
	owed := make([]Candidate, 0, limit)
	n := 0
	args := pgx.NamedArgs{"event": from.Event, "owed": from.Owed, "until": until, "limit": limit}
	err := s.readPinned(ctx, pinOutbox, selectOwed, args, func(rows pgx.Rows) error {
		for ; rows.Next(); n++ {
			var d Candidate
			var ordinal int
			if err := rows.Scan(asBytes(&d.EventID), &ordinal, asBytes(&d.EndpointID), &d.OrganizationID, &d.EventType); err != nil {
				return err
			}
			at := Position{d.EventID, ordinal}
			if !at.after(c.Upto) && n > 0 {
				return fmt.Errorf("events out of order: %s after %s", d.EventID, c.Upto.Event)
			}
			if c.Upto = at; ordinal <= 1 {
				c.Events++
			}
			if ordinal > 0 {
				d.ID = outbox.DeliveryID(d.EventID, d.EndpointID)
				if len(owed) > 0 {
					d.shareText(&owed[len(owed)-1])
				}
				owed = append(owed, d)
			}
		}
		return rows.Err()
	})
	c.End = n < limit
	if err == nil && len(owed) > 0 {
		c.Missing, err = s.withoutRow(ctx, owed)
	}
	if err != nil {
		return Compared{}, fmt.Errorf("look for owed deliveries without a row: %w", err)
	}
	return c, nil
}

func (p Position) after(o Position) bool {
	c := bytes.Compare(p.Event[:], o.Event[:])
	return c > 0 || c == 0 && p.Owed > o.Owed
}

// withoutRow returns those of the deliveries that have no row. They must be in order of their
// events. It may miss rows that are just being moved into another partition; the second
// query finds those.
func (s *Store) withoutRow(ctx context.Context, owed []Candidate) ([]Candidate, error) {
	there := make(map[uuid.UUID]bool, len(owed))
	var low, high []pgtype.UUID
	var last time.Time
	for i := range owed {
		there[owed[i].ID] = false
		if at := outbox.IDTime(owed[i].EventID); i == 0 || at.After(last) {
			last = at
			low, high = append(low, asUUID(outbox.TimeID(at))), append(high, asUUID(outbox.TimeID(at.Add(time.Millisecond))))
		}
	}
	err := s.read(ctx, selectRowsOfTimes, pgx.NamedArgs{"low": low, "high": high}, func(rows pgx.Rows) error {
		var id uuid.UUID
		for rows.Next() {
			if err := rows.Scan(asBytes(&id)); err != nil {
				return err
			}
			if _, ours := there[id]; ours { // there may be very many others of that millisecond
				there[id] = true
			}
		}
		return rows.Err()
	})
	return slices.DeleteFunc(owed, func(c Candidate) bool { return there[c.ID] }), err
}

// There may be millions of these. With only the columns of a delivery without an attempt it
// takes half as long as the recorder's INSERT.
const insertMissing = `
INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at)
SELECT id, event_id, endpoint_id, organization_id, event_type, 'pending', now() + wait_ms::float8 * interval '1 ms'
FROM unnest(@id::uuid[], @event_id::uuid[], @endpoint_id::uuid[], @organization_id::text[], @event_type::text[], @wait_ms::bigint[])
  AS r(id, event_id, endpoint_id, organization_id, event_type, wait_ms)
WHERE ` + fenced + ` AND NOT ` + forgotten + `
ON CONFLICT (id) DO NOTHING`

// InsertMissing inserts pending rows, in one transaction, for deliveries that still have none,
// and returns how many it inserted. It is the second query for what Missing returned.
func (s *Store) InsertMissing(ctx context.Context, fence webhook.Fence, records []webhook.Record) (inserted int, err error) {
	n := len(records)
	id, event, endpoint := make([]pgtype.UUID, n), make([]pgtype.UUID, n), make([]pgtype.UUID, n)
	organization, typ, wait := make([]string, n), make([]string, n), make([]int64, n)
	for i := range records {
		r := &records[i]
		id[i], event[i], endpoint[i] = asUUID(r.ID), asUUID(r.EventID), asUUID(r.EndpointID)
		organization[i], typ[i], wait[i] = r.OrganizationID, r.EventType, r.Wait.Milliseconds()
	}
	args := s.fenceArgs(fence)
	args["id"], args["event_id"], args["endpoint_id"] = id, event, endpoint
	args["organization_id"], args["event_type"], args["wait_ms"] = organization, typ, wait
	var b pgx.Batch
	s.queueFence(&b, fence, webhook.Mark{})
	b.Queue(insertMissing, args).Exec(func(tag pgconn.CommandTag) error {
		inserted = int(tag.RowsAffected())
		return nil
	})
	if err := s.send(ctx, &b); err != nil {
		return 0, fmt.Errorf("insert %d missing deliveries: %w", len(records), err)
	}
	return inserted, nil
}

// In the order of ids, so that the first one found ends the scan.
const selectAnyMissing = `
SELECT EXISTS (
    SELECT FROM webhook_outbox o CROSS JOIN pg_catalog.unnest(o.endpoint_ids) AS e(id)
    CROSS JOIN LATERAL webhook_delivery_id(o.id, e.id) AS d(id)
    WHERE o.id >= @after::uuid AND o.id < @until::uuid AND NOT ` + hasRow + `
    ORDER BY o.id LIMIT 1
)`

// AnyMissing reports whether an event with an id from [after, until) is owed without a row
// now. If none is, it has scanned all of them.
func (s *Store) AnyMissing(ctx context.Context, after, until time.Time) (any bool, err error) {
	args := pgx.NamedArgs{"after": outbox.TimeID(after), "until": outbox.TimeID(until)}
	err = s.read(ctx, selectAnyMissing, args, func(rows pgx.Rows) error {
		for rows.Next() {
			if err := rows.Scan(&any); err != nil {
				return err
			}
		}
		return rows.Err()
	})
	if err != nil {
		return false, fmt.Errorf("look for any owed delivery without a row: %w", err)
	}
	return any, nil
}

// Now returns PostgreSQL's time, which decides what is due.
func (s *Store) Now(ctx context.Context) (now time.Time, err error) {
	if err := s.pool.QueryRow(ctx, `SELECT now()`).Scan(&now); err != nil {
		return time.Time{}, fmt.Errorf("read the clock: %w", err)
	}
	return now, nil
}
