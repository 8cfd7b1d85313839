package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/webhook"
)

// This file reads endpoints for the page of the admin server and for walhook status; browsedeliveries.go reads its
// deliveries, and acts.go has its buttons. Every statement reads a bounded number of deliveries
// and events by an index, whatever is in the tables, and ends after browseTimeout. The list of
// endpoints in trouble reads all endpoints.

// WaitingCounted bounds the deliveries of one endpoint that are counted: about 1 ms of PostgreSQL, where nobody has vacuumed yet.
const WaitingCounted = 1000

// browseTimeout ends a statement of the page: ten times what the slowest takes.
const browseTimeout = "2s"

const (
	prepareBrowse      = `SELECT set_config('statement_timeout', '` + browseTimeout + `', true)`
	rowsNear           = 20   // of each endpoint, in which its last failure is looked for, and what is due first
	deliveriesShown    = 25   // of a list of deliveries: each may have a payload of 256 KiB to be cut
	deliveriesScanned  = 5000 // rows that one list reads at most: some 15 ms
	daysScanned        = 7    // so far back one list looks, so that few partitions are touched
	payloadExcerpt     = 500  // characters in a list
	responseExcerpt    = 500
	payloadShown       = 32 << 10 // characters on a delivery's page
	wholeResponse      = 16 << 10 // more than walhook keeps of any
	unfinishedStatuses = `('pending', 'retrying')`
)

// An EndpointView is an endpoint as operators see it.
type EndpointView struct {
	ID              uuid.UUID
	OrganizationID  string
	Host            string // scheme, host and port: the rest of a URL may hold credentials
	Description     string
	EventTypes      []string
	ForAll          bool // all_organizations: operators are told by it
	Enabled         bool
	DisabledAt      *time.Time
	DisabledReason  string
	FailingSince    *time.Time
	BreakerOpenedAt *time.Time
	PausedAt        *time.Time

	Waiting     int64      // deliveries that are pending or retrying
	WaitingMore bool       // there are more than were counted
	NextAt      *time.Time // when the first of them is, or was, due
	Last        *LastFailure
}

// Trouble reports whether the endpoint is not getting all that it is owed.
func (e *EndpointView) Trouble() bool {
	return !e.Enabled || e.FailingSince != nil || e.PausedAt != nil
}

// A LastFailure is the failed delivery that changed last, of those near the ends of its lists.
type LastFailure struct {
	Delivery   uuid.UUID
	At         time.Time
	StatusCode int // 0: no answer came
	Class      string
	Error      string
}

const (
	endpointView = `
SELECT e.id, e.organization_id, e.url, coalesce(e.description, ''), e.event_types, e.all_organizations, e.enabled, e.disabled_at, coalesce(e.disabled_reason, ''),
       f.failing_since, f.breaker_opened_at, e.paused_at
FROM webhook_endpoints AS e LEFT JOIN webhook_endpoint_failures AS f ON f.endpoint_id = e.id
WHERE `
	// Nobody is told of the trouble of an operators' endpoint, so it comes first.
	worstFirst = `
ORDER BY NOT e.all_organizations, CASE WHEN NOT e.enabled THEN 3 WHEN e.paused_at IS NOT NULL THEN 2 WHEN f.breaker_opened_at IS NOT NULL THEN 0 WHEN f.failing_since IS NOT NULL THEN 1 ELSE 4 END,
         coalesce(f.failing_since, e.disabled_at, e.paused_at, e.created_at), e.id LIMIT @limit::int`

	selectTroubled       = endpointView + `f.endpoint_id IS NOT NULL OR NOT e.enabled OR e.paused_at IS NOT NULL` + worstFirst
	selectOrganizationOf = endpointView + `e.organization_id = @organization::text` + worstFirst
	selectEndpointView   = endpointView + `e.id = @id::uuid`

	// Two indexes have what an endpoint's attempts came to last: that of what waits, from the row that is due last, and that of
	// dead letters, from the newest. The latter has the order (endpoint_id, id). A row comparison, where endpoint_id = … would
	// do, leaves no other index with that order to be chosen.
	selectStanding = `
SELECT r.id, least(w.n, @counted::int), w.n > @counted::int, CASE WHEN isfinite(w.next_at) THEN w.next_at END,
       failed.id, failed.updated_at, coalesce(failed.status_code, 0), coalesce(failed.error_class, ''), coalesce(left(failed.error, 500), '')
FROM pg_catalog.unnest(@ids::uuid[]) AS r(id)
CROSS JOIN LATERAL (
    SELECT (SELECT count(*) FROM (SELECT FROM webhook_deliveries AS d WHERE d.endpoint_id = r.id AND d.status IN ` + unfinishedStatuses + `
                                  ORDER BY d.next_attempt_at, d.id LIMIT @counted::int + 1) AS counted) AS n,
           (SELECT min(greatest(d.next_attempt_at, d.created_at))
            FROM (SELECT d.next_attempt_at, d.created_at FROM webhook_deliveries AS d WHERE d.endpoint_id = r.id AND d.status IN ` + unfinishedStatuses + `
                  ORDER BY d.next_attempt_at, d.id LIMIT @near::int) AS d) AS next_at) AS w
LEFT JOIN LATERAL (
    SELECT l.* FROM (
        (SELECT d.id, d.updated_at, d.status_code, d.error_class, d.error FROM webhook_deliveries AS d
         WHERE d.endpoint_id = r.id AND d.status IN ` + unfinishedStatuses + ` ORDER BY d.next_attempt_at DESC, d.id DESC LIMIT @near::int)
        UNION ALL
        (SELECT d.id, d.updated_at, d.status_code, d.error_class, d.error FROM webhook_deliveries AS d
         WHERE d.status IN ('failed', 'cancelled') AND (d.endpoint_id, d.id) <= (r.id, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
           AND (d.endpoint_id, d.id) >= (r.id, '00000000-0000-0000-0000-000000000000'::uuid)
         ORDER BY d.endpoint_id DESC, d.id DESC LIMIT @near::int)) AS l
    WHERE l.error_class IS NOT NULL OR l.error IS NOT NULL ORDER BY l.updated_at DESC LIMIT 1) AS failed ON true`
)

// EndpointViews returns at most limit of the endpoints in trouble, the worst first; of an
// organization, of all its endpoints, in that order. There may be more than it returns: more says so.
func (s *Store) EndpointViews(ctx context.Context, organization string, limit int) (found []EndpointView, more bool, err error) {
	sql, args := selectTroubled, pgx.NamedArgs{"limit": limit + 1}
	if organization != "" {
		sql, args["organization"] = selectOrganizationOf, organization
	}
	if found, err = s.endpointViews(ctx, sql, args); err != nil {
		return nil, false, err
	}
	if more = len(found) > limit; more {
		found = found[:limit]
	}
	return found, more, s.standing(ctx, found)
}

// EndpointView returns one endpoint; nil: there is none of that id.
func (s *Store) EndpointView(ctx context.Context, id uuid.UUID) (*EndpointView, error) {
	found, err := s.endpointViews(ctx, selectEndpointView, pgx.NamedArgs{"id": asUUID(id)})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return &found[0], s.standing(ctx, found)
}

func (s *Store) endpointViews(ctx context.Context, sql string, args pgx.NamedArgs) (found []EndpointView, err error) {
	err = s.browse(ctx, prepareCount, sql, args, func(rows pgx.Rows) error {
		found, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (e EndpointView, err error) {
			var url string
			err = row.Scan(&e.ID, &e.OrganizationID, &url, &e.Description, &e.EventTypes, &e.ForAll, &e.Enabled, &e.DisabledAt, &e.DisabledReason, &e.FailingSince, &e.BreakerOpenedAt, &e.PausedAt)
			e.Host = webhook.Site(url)
			return e, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	return found, nil
}

// standing adds how many deliveries wait for each endpoint, and its last failure.
func (s *Store) standing(ctx context.Context, endpoints []EndpointView) error {
	if len(endpoints) == 0 {
		return nil
	}
	ids, at := make([]uuid.UUID, len(endpoints)), make(map[uuid.UUID]*EndpointView, len(endpoints))
	for i := range endpoints {
		ids[i], at[endpoints[i].ID] = endpoints[i].ID, &endpoints[i]
	}
	err := s.browse(ctx, prepareRead, selectStanding, pgx.NamedArgs{"ids": asUUIDs(ids), "counted": WaitingCounted, "near": rowsNear}, func(rows pgx.Rows) error {
		for rows.Next() {
			var id uuid.UUID
			var read EndpointView
			var delivery *uuid.UUID
			var failedAt *time.Time
			var last LastFailure
			if err := rows.Scan(&id, &read.Waiting, &read.WaitingMore, &read.NextAt, &delivery, &failedAt, &last.StatusCode, &last.Class, &last.Error); err != nil {
				return err
			}
			e := at[id]
			e.Waiting, e.WaitingMore, e.NextAt = read.Waiting, read.WaitingMore, read.NextAt
			if delivery != nil {
				last.Delivery, last.At = *delivery, *failedAt
				e.Last = &last
			}
		}
		return rows.Err()
	})
	if err != nil {
		return fmt.Errorf("count what waits for %d endpoints: %w", len(endpoints), err)
	}
	return nil
}

// browse is read with the page's own time limit.
func (s *Store) browse(ctx context.Context, prepare, sql string, args pgx.NamedArgs, collect func(pgx.Rows) error) error {
	var b pgx.Batch
	b.Queue(prepare)
	b.Queue(prepareBrowse)
	b.Queue(sql, args).Query(collect)
	return s.send(ctx, &b)
}
