package store

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// An overdueSearch remembers where the last search for the oldest due delivery ended, and
// which endpoint had it. Nearly everything that is due may wait for a few dead endpoints, and
// the others' rows stand anywhere behind: each search looks a little further.
type overdueSearch struct {
	mu    sync.Mutex
	after uuid.UUID // the last endpoint that was looked at; nil: begin again
	worst uuid.UUID // whose delivery has been due for longest; nil: none is known
}

const (
	// overdueRows bounds the rows that are read by their due time: about 2 ms of PostgreSQL.
	overdueRows = 500

	// overdueEndpoints bounds the endpoints that one search looks at, each in all
	// partitions: about 4 ms. 1,000 endpoints take 63 searches.
	overdueEndpoints = 16
)

// Nothing holds what waits for the endpoint p.endpoint_id but walhook. As in the view webhook_overdue, also in the LIMIT.
const sendable = `
    CROSS JOIN LATERAL (SELECT e.id FROM webhook_endpoints AS e
                        WHERE e.id = p.endpoint_id AND e.enabled AND e.paused_at IS NULL AND e.rate_per_second IS NULL
                          AND NOT EXISTS (SELECT FROM webhook_endpoint_failures AS f WHERE f.endpoint_id = e.id AND f.breaker_opened_at IS NOT NULL)
                        LIMIT 1) AS sendable`

const (
	selectOldestDue = `
WITH due AS MATERIALIZED (
    SELECT endpoint_id, greatest(next_attempt_at, created_at) AS at FROM webhook_deliveries
    WHERE status IN ('pending', 'retrying') AND next_attempt_at <= now() ORDER BY next_attempt_at LIMIT @rows::int
), p AS MATERIALIZED (
    SELECT endpoint_id, min(at) AS at FROM due GROUP BY endpoint_id
)
SELECT extract(epoch FROM clock_timestamp() - min(p.at))::float8, (SELECT count(*) FROM due) < @rows::int
FROM p` + sendable

	// The worst endpoint of before, and the next ones in order of id.
	selectOverdueBehind = `
WITH RECURSIVE walk AS (
    (SELECT endpoint_id FROM webhook_deliveries WHERE status IN ('pending', 'retrying') AND endpoint_id > @after::uuid ORDER BY endpoint_id LIMIT 1)
    UNION ALL
    SELECT (SELECT d.endpoint_id FROM webhook_deliveries AS d
            WHERE d.status IN ('pending', 'retrying') AND d.endpoint_id > walk.endpoint_id ORDER BY d.endpoint_id LIMIT 1)
    FROM walk WHERE walk.endpoint_id IS NOT NULL
), page AS MATERIALIZED (
    SELECT walk.endpoint_id FROM walk WHERE walk.endpoint_id IS NOT NULL LIMIT @limit::int
), oldest AS MATERIALIZED (
    SELECT sendable.id, due.at FROM (SELECT @worst::uuid AS endpoint_id UNION ALL SELECT page.endpoint_id FROM page) AS p` + sendable + `
    CROSS JOIN LATERAL (SELECT greatest(d.next_attempt_at, d.created_at) AS at FROM webhook_deliveries AS d
                        WHERE d.endpoint_id = sendable.id AND d.status IN ('pending', 'retrying') AND d.next_attempt_at <= now()
                        ORDER BY d.next_attempt_at, d.id LIMIT 1) AS due
    ORDER BY due.at LIMIT 1
)
SELECT extract(epoch FROM clock_timestamp() - o.at)::float8, coalesce(o.id, '00000000-0000-0000-0000-000000000000'::uuid), p.n, coalesce(p.last, '00000000-0000-0000-0000-000000000000'::uuid)
FROM (SELECT count(*) AS n, (SELECT page.endpoint_id FROM page ORDER BY page.endpoint_id DESC LIMIT 1) AS last FROM page) AS p
LEFT JOIN oldest AS o ON true`
)

// Overdue returns how long the oldest delivery that could be sent now has been due; 0: there
// is none, or OverdueUnknown.
func (s *Store) Overdue(ctx context.Context) (time.Duration, error) {
	var seconds *float64
	var all bool
	if err := s.overview(ctx, prepareRead, selectOldestDue, []any{pgx.NamedArgs{"rows": overdueRows}}, &seconds, &all); err != nil {
		return 0, err
	}
	if seconds == nil && !all {
		return s.overdueBehind(ctx)
	}
	return asDuration(seconds), nil
}

// overdueBehind looks at some endpoints, because all rows that have been due for longest are
// held.
func (s *Store) overdueBehind(ctx context.Context) (time.Duration, error) {
	search := &s.overdueSearch
	search.mu.Lock()
	defer search.mu.Unlock()
	var seconds *float64
	var worst, last uuid.UUID
	var seen int
	args := pgx.NamedArgs{"after": search.after, "worst": search.worst, "limit": overdueEndpoints}
	if err := s.overview(ctx, prepareRead, selectOverdueBehind, []any{args}, &seconds, &worst, &seen, &last); err != nil {
		return 0, err
	}
	if seen < overdueEndpoints {
		last = uuid.Nil
	}
	search.after, search.worst = last, worst
	return asDuration(seconds), nil
}

// OverdueUnknown reports whether the last search has looked at some endpoints only: the next one
// goes on behind them.
func (s *Store) OverdueUnknown() bool {
	s.overdueSearch.mu.Lock()
	defer s.overdueSearch.mu.Unlock()
	return s.overdueSearch.after != uuid.Nil
}

func asDuration(seconds *float64) time.Duration {
	if seconds == nil {
		return 0
	}
	return time.Duration(max(*seconds, 0) * float64(time.Second))
}
