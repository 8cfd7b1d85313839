package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// Parameters are text, and SQL casts them: that works in all of pgx's query modes. The
// trigger replaces a null created_at or endpoint_ids.
const insertEvent = `
INSERT INTO webhook_outbox (id, organization_id, event_type, payload, created_at, endpoint_ids)
VALUES (@id::text::uuid, @organization_id, @event_type, @payload::text::jsonb, @created_at, @endpoint_ids::text[]::uuid[])`

// Enqueue inserts an event in the application's own transaction. If that commits, the
// event is delivered; if it rolls back, never. Enqueue returns the event's id, and makes
// one if the event has none. The transaction's role needs INSERT on webhook_outbox, and
// its search_path must find that table.
//
// OrganizationID, Type and Payload are required. CreatedAt defaults to the time of the
// transaction. Without EndpointIDs, every enabled endpoint of the organization that
// subscribes to the type gets the event. The database refuses an event that cannot be
// delivered, with a *pgconn.PgError whose message says what to do.
func Enqueue(ctx context.Context, tx pgx.Tx, e Event) (uuid.UUID, error) {
	id := e.ID
	if id == uuid.Nil {
		var err error
		if id, err = uuid.NewV7(); err != nil {
			return uuid.Nil, fmt.Errorf("make an event id: %w", err)
		}
	}
	args := pgx.NamedArgs{
		"id": id.String(), "organization_id": e.OrganizationID, "event_type": e.Type,
		"payload": pgtype.Text{String: string(e.Payload), Valid: len(e.Payload) > 0}, "created_at": (*time.Time)(nil), "endpoint_ids": []string(nil),
	}
	if !e.CreatedAt.IsZero() {
		args["created_at"] = &e.CreatedAt
	}
	if e.EndpointIDs != nil {
		ids := make([]string, len(e.EndpointIDs))
		for i, endpoint := range e.EndpointIDs {
			ids[i] = endpoint.String()
		}
		args["endpoint_ids"] = ids
	}
	if _, err := tx.Exec(ctx, insertEvent, args); err != nil {
		return uuid.Nil, fmt.Errorf("enqueue %s for organization %s: %w", e.Type, e.OrganizationID, err)
	}
	return id, nil
}
