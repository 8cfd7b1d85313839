package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// A Candidate is an owed delivery without a row, at one look.
type Candidate struct {
	ID, EventID, EndpointID uuid.UUID
	OrganizationID          string
	EventType               string
}

// hasRow says whether the delivery d has its row. OFFSET keeps the planner from making
// a join of it: one that was planned while the tables were empty would compare
// each owed delivery with every row, and PostgreSQL keeps plans.
const hasRow = `EXISTS (SELECT FROM webhook_deliveries x WHERE x.id = d.id OFFSET 0)`

// An exact anti-join: each event's row says to whom it is owed. The id is
// computed in SQL, so that only what is missing travels.
const selectMissing = `
WITH page AS MATERIALIZED (
    SELECT id, organization_id, event_type, endpoint_ids FROM webhook_outbox
    WHERE id > @after::uuid AND id < @until::uuid
    ORDER BY id LIMIT @limit::int
)
SELECT p.last, p.n, coalesce(c.id, p.last), coalesce(c.event_id, p.last), coalesce(c.endpoint_id, p.last),
       coalesce(c.organization_id, ''), coalesce(c.event_type, ''), c.id IS NOT NULL
FROM (SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, count(*) AS n FROM page) p
LEFT JOIN (
    SELECT d.id, page.id AS event_id, e.id AS endpoint_id, page.organization_id, page.event_type
    FROM page CROSS JOIN unnest(page.endpoint_ids) AS e(id)
    CROSS JOIN LATERAL webhook_delivery_id(page.id, e.id) AS d(id)
    WHERE NOT ` + hasRow + `
) c ON true
WHERE p.n > 0`

// Missing looks at up to limit events with ids in (after, until) and returns
// the owed deliveries that have no row now, and the last id looked at, which is
// the next call's after; uuid.Nil when there was nothing more to look at. A
// missing row may be in flight: only a second look, after everything that was
// committed by the first has been recorded, tells.
func (s *Store) Missing(ctx context.Context, after, until uuid.UUID, limit int) (missing []Candidate, last uuid.UUID, err error) {
	args := pgx.NamedArgs{"after": after, "until": until, "limit": limit}
	err = s.read(ctx, selectMissing, args, func(rows pgx.Rows) error {
		for rows.Next() {
			var c Candidate
			var n int
			var found bool
			if err := rows.Scan(&last, &n, &c.ID, &c.EventID, &c.EndpointID, &c.OrganizationID, &c.EventType, &found); err != nil {
				return err
			}
			if found {
				missing = append(missing, c)
			}
		}
		return rows.Err()
	})
	if err != nil {
		return nil, uuid.Nil, fmt.Errorf("look for owed deliveries without a row: %w", err)
	}
	return missing, last, nil
}

// In the order of ids, so that the first that is found ends it.
const selectAnyMissing = `
SELECT EXISTS (
    SELECT FROM webhook_outbox o CROSS JOIN unnest(o.endpoint_ids) AS e(id)
    CROSS JOIN LATERAL webhook_delivery_id(o.id, e.id) AS d(id)
    WHERE o.id >= @after::uuid AND o.id < @until::uuid AND NOT ` + hasRow + `
    ORDER BY o.id LIMIT 1
)`

// AnyMissing says whether an event with an id made from after until before until is
// owed without a row now. Where none is, it looks at all of them.
func (s *Store) AnyMissing(ctx context.Context, after, until time.Time) (any bool, err error) {
	args := pgx.NamedArgs{"after": TimeID(time.UnixMilli(max(0, after.UnixMilli()))), "until": TimeID(until)}
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

// TimeID returns the smallest UUID whose time is t: a bound for ranges of ids.
func TimeID(t time.Time) uuid.UUID {
	ms := uint64(t.UnixMilli())
	return uuid.UUID{byte(ms >> 40), byte(ms >> 32), byte(ms >> 24), byte(ms >> 16), byte(ms >> 8), byte(ms)}
}

// Now returns PostgreSQL's time, which decides what is due.
func (s *Store) Now(ctx context.Context) (now time.Time, err error) {
	if err := s.pool.QueryRow(ctx, `SELECT now()`).Scan(&now); err != nil {
		return time.Time{}, fmt.Errorf("read the clock: %w", err)
	}
	return now, nil
}
