package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// Text in and casts in SQL: that works in every one of pgx's query modes. Null
// leaves created_at and endpoint_ids to the trigger.
const insertEvent = `
INSERT INTO webhook_outbox (id, organization_id, event_type, payload, created_at, endpoint_ids)
VALUES (@id::text::uuid, @organization_id, @event_type, @payload::text::jsonb, @created_at, @endpoint_ids::text[]::uuid[])`

// Enqueue inserts an event in the application's own transaction: it is
// delivered if that commits, and never if it does not. It returns the event's
// id, which is made here unless the event has one. The transaction's role needs
// INSERT on webhook_outbox, and its search_path has to find that table.
//
// OrganizationID, Type and Payload are required. Without CreatedAt, it is the
// time of the transaction. Without EndpointIDs, every enabled endpoint of the
// organization that subscribes to the type gets the event. An event that cannot
// be delivered is refused by the database, with a *pgconn.PgError whose Hint
// says what to do.
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
