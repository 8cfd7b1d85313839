// Package outbox is what a Go application imports: it enqueues an event in the
// application's own transaction (Enqueue), and knows the event types and how
// ids are made. It imports nothing of walhook.
package outbox

import (
	"time"

	"github.com/google/uuid"
)

// MaxPayloadBytes bounds an event's payload, measured on its text form as
// PostgreSQL prints jsonb. schema.sql enforces the same number at INSERT, so
// that the application hears of it.
const MaxPayloadBytes = 256 << 10

// An Event is one committed row of webhook_
type Event struct {
	ID             uuid.UUID // UUIDv7, made at INSERT
	OrganizationID string
	Type           string
	Payload        []byte // JSON, exactly as PostgreSQL prints the jsonb
	CreatedAt      time.Time
	EndpointIDs    []uuid.UUID // who is owed, decided in the application's transaction
}

// Own reports whether the event is one of walhook's own (category webhook),
// whose deliveries never cause another event.
func (e *Event) Own() bool { return IsOwnType(e.Type) }
