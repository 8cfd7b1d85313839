package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// A FailingEndpoint is one with nothing but failures, neither disabled nor paused.
type FailingEndpoint struct {
	EndpointID     uuid.UUID
	OrganizationID string
	URL            string
	Since          time.Time
	Open           bool   // its breaker is open
	Error          string // the last one that a row has; "": none has
	Waiting        int    // deliveries, up to WaitingCounted
}

// WaitingCounted bounds the deliveries of one endpoint that are counted: about 2 ms of PostgreSQL.
const WaitingCounted = 2000

// lastRows bounds the rows in which an endpoint's last error is looked for. Deliveries that wait
// for their first attempt have none, and stand at the other end of the index.
const lastRows = 20

const (
	// The longest failures first, those behind an open breaker before all.
	selectFailing = `
SELECT e.id, e.organization_id, e.url, f.failing_since, f.breaker_opened_at IS NOT NULL
FROM webhook_endpoint_failures AS f JOIN webhook_endpoints AS e ON e.id = f.endpoint_id
WHERE e.enabled AND e.paused_at IS NULL
ORDER BY f.breaker_opened_at IS NULL, f.failing_since, e.id LIMIT @limit::int`

	// Two indexes have what an endpoint's attempts came to last: that of what waits, from the row that is due last, and that of
	// dead letters, from the newest.
	selectFailingRows = `
SELECT r.id,
       (SELECT count(*) FROM (SELECT FROM webhook_deliveries AS d WHERE d.endpoint_id = r.id AND d.status IN ('pending', 'retrying')
                              ORDER BY d.next_attempt_at, d.id LIMIT @counted::int) AS counted),
       coalesce((SELECT l.error FROM (
           (SELECT d.error, d.updated_at FROM webhook_deliveries AS d WHERE d.endpoint_id = r.id AND d.status IN ('pending', 'retrying')
            ORDER BY d.next_attempt_at DESC, d.id DESC LIMIT @last::int)
           UNION ALL
           (SELECT d.error, d.updated_at FROM webhook_deliveries AS d WHERE d.endpoint_id = r.id AND d.status IN ('failed', 'cancelled')
            ORDER BY d.id DESC LIMIT @last::int)) AS l
           WHERE l.error IS NOT NULL ORDER BY l.updated_at DESC LIMIT 1), '')
FROM pg_catalog.unnest(@ids::uuid[]) AS r(id)`
)

// Failing returns at most limit of the endpoints that fail, the worst first.
func (s *Store) Failing(ctx context.Context, limit int) ([]FailingEndpoint, error) {
	failing, err := s.failing(ctx, limit)
	if err == nil && len(failing) > 0 {
		err = s.failingRows(ctx, failing)
	}
	if err != nil {
		return nil, fmt.Errorf("read the endpoints that fail: %w", err)
	}
	return failing, nil
}

func (s *Store) failing(ctx context.Context, limit int) (failing []FailingEndpoint, err error) {
	var b pgx.Batch
	b.Queue(prepareCount)
	b.Queue(selectFailing, pgx.NamedArgs{"limit": limit}).Query(func(rows pgx.Rows) error {
		failing, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (f FailingEndpoint, err error) {
			return f, row.Scan(&f.EndpointID, &f.OrganizationID, &f.URL, &f.Since, &f.Open)
		})
		return err
	})
	return failing, s.send(ctx, &b)
}

// failingRows completes endpoints with what their deliveries tell.
func (s *Store) failingRows(ctx context.Context, failing []FailingEndpoint) error {
	of := make(map[uuid.UUID]*FailingEndpoint, len(failing))
	ids := make([]uuid.UUID, len(failing))
	for i := range failing {
		ids[i] = failing[i].EndpointID
		of[ids[i]] = &failing[i]
	}
	args := pgx.NamedArgs{"ids": asUUIDs(ids), "counted": WaitingCounted, "last": lastRows}
	return s.read(ctx, selectFailingRows, args, func(rows pgx.Rows) error {
		var id uuid.UUID
		var waiting int
		var last string
		_, err := pgx.ForEachRow(rows, []any{&id, &waiting, &last}, func() error {
			of[id].Waiting, of[id].Error = waiting, last
			return nil
		})
		return err
	})
}

const selectVersion = `SELECT webhook_schema_version()`

// InstalledVersion returns the version of the schema in the database.
func (s *Store) InstalledVersion(ctx context.Context) (version int, err error) {
	err = s.overview(ctx, prepareRead, selectVersion, nil, &version)
	return version, err
}
