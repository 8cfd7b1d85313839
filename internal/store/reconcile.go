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

	"github.com/walhook/walhook/outbox"
)

// A Candidate is an owed delivery without a row, at one look.
type Candidate struct {
	ID, EventID, EndpointID uuid.UUID
	OrganizationID          string
	EventType               string
}

// shareText lets go of the candidate's own strings where another has the same.
func (c *Candidate) shareText(with *Candidate) {
	if c.OrganizationID == with.OrganizationID {
		c.OrganizationID = with.OrganizationID
	}
	if c.EventType == with.EventType {
		c.EventType = with.EventType
	}
}

// hasRow says whether the delivery d has its row. OFFSET keeps the planner from making
// a join of it: one that was planned while the tables were empty would compare
// each owed delivery with every row, and PostgreSQL keeps plans.
const hasRow = `EXISTS (SELECT FROM webhook_deliveries x WHERE x.id = d.id OFFSET 0)`

// A Position is how far events have been compared with their deliveries: all before
// an event, and so many of its own owed deliveries. One event may be owed to more
// endpoints than one look can take in.
type Position struct {
	Event uuid.UUID
	Owed  int
}

// A Compared is what one look has found.
type Compared struct {
	Missing []Candidate
	Events  int      // that the look has begun with
	Upto    Position // where the next look goes on
	End     bool     // there was nothing more to look at
}

// A page is counted by what is owed, and nothing of an event is read that does not
// belong to it: the LIMIT ends the walk, and an array is unpacked only when its turn
// comes. An event that is owed to nobody counts as one. The join keeps the order of
// the events, and unnest that of the array; Missing sees to it that they did.
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

// All deliveries of an event have its time: for each millisecond a short walk of the
// primary key, however many rows there are between.
const selectRowsOfTimes = `
SELECT x.id FROM unnest(@low::uuid[], @high::uuid[]) AS r(low, high)
CROSS JOIN LATERAL (SELECT d.id FROM webhook_deliveries d WHERE d.id >= r.low AND d.id < r.high OFFSET 0) AS x`

// Missing looks at up to limit deliveries that are owed for events with ids from a
// position on and before until, and returns those that have no row now. A missing row
// may be in flight: only a second look, after everything that was committed by the
// first has been recorded, tells. A look with room for more has come to the end: what
// becomes visible later was committed later.
func (s *Store) Missing(ctx context.Context, from Position, until uuid.UUID, limit int) (Compared, error) {
	c := Compared{Upto: from}
	owed := make([]Candidate, 0, limit)
	n := 0
	args := pgx.NamedArgs{"event": from.Event, "owed": from.Owed, "until": until, "limit": limit}
	err := s.readPinned(ctx, pinOutbox, selectOwed, args, func(rows pgx.Rows) error {
		for ; rows.Next(); n++ {
			var d Candidate
			var ordinal int
			if err := rows.Scan(&d.EventID, &ordinal, &d.EndpointID, &d.OrganizationID, &d.EventType); err != nil {
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
				if len(owed) > 0 { // what many have in common is kept once
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

// withoutRow returns those of the deliveries, which are in order of their events, that
// have no row. Rows that are just moved into another partition may be missed: what is
// missing is looked for once more.
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
			if err := rows.Scan(&id); err != nil {
				return err
			}
			if _, ours := there[id]; ours { // others of that millisecond may be very many
				there[id] = true
			}
		}
		return rows.Err()
	})
	return slices.DeleteFunc(owed, func(c Candidate) bool { return there[c.ID] }), err
}

// Of what there may be millions: with no more than is known of a delivery that has had
// no attempt it takes half as long as what the recorder writes.
const insertMissing = `
INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at)
SELECT id, event_id, endpoint_id, organization_id, event_type, 'pending', now() + wait_ms::float8 * interval '1 ms'
FROM unnest(@id::uuid[], @event_id::uuid[], @endpoint_id::uuid[], @organization_id::text[], @event_type::text[], @wait_ms::bigint[])
  AS r(id, event_id, endpoint_id, organization_id, event_type, wait_ms)
WHERE ` + fenced + `
ON CONFLICT (id) DO NOTHING`

// InsertMissing writes pending rows, in one transaction, where there are none by then,
// and returns how many that were. It is the second look at what Missing returned.
func (s *Store) InsertMissing(ctx context.Context, fence Fence, records []Record) (inserted int, err error) {
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
	s.queueFence(&b, fence, Mark{})
	b.Queue(insertMissing, args).Exec(func(tag pgconn.CommandTag) error {
		inserted = int(tag.RowsAffected())
		return nil
	})
	if err := s.send(ctx, &b); err != nil {
		return 0, fmt.Errorf("insert %d missing deliveries: %w", len(records), err)
	}
	return inserted, nil
}

// In the order of ids, so that the first that is found ends it.
const selectAnyMissing = `
SELECT EXISTS (
    SELECT FROM webhook_outbox o CROSS JOIN pg_catalog.unnest(o.endpoint_ids) AS e(id)
    CROSS JOIN LATERAL webhook_delivery_id(o.id, e.id) AS d(id)
    WHERE o.id >= @after::uuid AND o.id < @until::uuid AND NOT ` + hasRow + `
    ORDER BY o.id LIMIT 1
)`

// AnyMissing says whether an event with an id made from after until before until is
// owed without a row now. Where none is, it looks at all of them.
func (s *Store) AnyMissing(ctx context.Context, after, until time.Time) (any bool, err error) {
	args := pgx.NamedArgs{"after": outbox.TimeID(time.UnixMilli(max(0, after.UnixMilli()))), "until": outbox.TimeID(until)}
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
