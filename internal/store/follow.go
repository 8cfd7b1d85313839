package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/webhook"
)

// An Explained is what webhook_explain says of an event and an endpoint.
type Explained struct {
	EndpointID uuid.UUID
	URL        string // "": the endpoint is deleted
	Reason     string
	DeliveryID uuid.UUID // Nil: it is not owed the event
}

const selectExplained = `
SELECT x.endpoint_id, coalesce(x.url, ''), x.reason, coalesce(x.delivery_id, '00000000-0000-0000-0000-000000000000'::uuid) FROM webhook_explain(@event::uuid) AS x`

// Explain returns which endpoints of its organization an event is owed to, first, and which not.
func (s *Store) Explain(ctx context.Context, event uuid.UUID) (explained []Explained, err error) {
	err = s.read(ctx, selectExplained, pgx.NamedArgs{"event": event}, func(rows pgx.Rows) error {
		explained, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Explained])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("explain event %s: %w", event, err)
	}
	return explained, nil
}

// A Progress is how a delivery stands, and what its attempts came to.
type Progress struct {
	DeliveryID uuid.UUID
	Status     webhook.Status
	NextIn     time.Duration // Pending, Retrying: until the next attempt is due
	Attempts   []PastAttempt
}

const selectProgress = `
SELECT d.id, d.status, coalesce(extract(epoch FROM d.next_attempt_at - clock_timestamp()), 0)::float8, ` + pastAttempts + `
FROM pg_catalog.unnest(@ids::uuid[]) AS r(id) JOIN webhook_deliveries AS d ON d.id = r.id`

// Progress returns how deliveries stand that have a row: one has none while its first attempt is
// under way. Attempts are in order.
func (s *Store) Progress(ctx context.Context, ids []uuid.UUID) (progress []Progress, err error) {
	err = s.read(ctx, selectProgress, pgx.NamedArgs{"ids": asUUIDs(ids)}, func(rows pgx.Rows) error {
		progress, err = pgx.CollectRows(rows, scanProgress)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("follow %d deliveries: %w", len(ids), err)
	}
	return progress, nil
}

func scanProgress(row pgx.CollectableRow) (p Progress, err error) {
	var due float64
	var log []byte
	err = row.Scan(&p.DeliveryID, &p.Status, &due, &log)
	p.NextIn, p.Attempts = asDuration(&due), readAttempts(log)
	return p, err
}
