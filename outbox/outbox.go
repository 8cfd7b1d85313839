// Package outbox is for Go applications that send events. Enqueue inserts an event in
// the application's own transaction. The package also has the event types, and the
// functions that make ids. It imports nothing of walhook.
package outbox

import (
	"time"

	"github.com/google/uuid"
)

// MaxPayloadBytes bounds an event's payload, as PostgreSQL prints the jsonb. schema.sql
// enforces the same number at INSERT, so that the application gets the error.
const MaxPayloadBytes = 256 << 10

// An Event is a row of webhook_outbox.
type Event struct {
	ID             uuid.UUID // UUIDv7, made at INSERT
	OrganizationID string
	Type           string
	Payload        []byte // JSON, exactly as PostgreSQL prints the jsonb
	CreatedAt      time.Time
	EndpointIDs    []uuid.UUID // the endpoints that the event is owed to, chosen in the application's transaction
}

// Own reports whether the event is one of walhook's own (category webhook). Their
// deliveries never cause another event.
func (e *Event) Own() bool { return IsOwnType(e.Type) }
