package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/outbox"
)

// A TestWebhook is an event that an operator sends. Only EventType is required.
type TestWebhook struct {
	EventType      string
	OrganizationID string    // "": the only one that has endpoints
	EndpointID     uuid.UUID // Nil: every endpoint of the organization that subscribes to the type
	Data           []byte    // JSON; nil: the type's example
}

// ErrWhichOrganization means that a test webhook names no organization, and that not exactly
// one has endpoints.
var ErrWhichOrganization = errors.New("no organization is given")

// It reads both ends of an index: with one organization they are equal. Endpoints of operators
// are passed over: their organization is none of the application's.
const selectOnlyOrganization = `
SELECT coalesce(min(organization_id), ''), coalesce(min(organization_id) = max(organization_id), false) FROM webhook_endpoints
WHERE NOT all_organizations`

// markTest makes the outbox's trigger write the test webhook into webhook_audit, take {} for
// all endpoints that subscribe, and no payload for the type's example.
const markTest = `SELECT set_config('walhook.testing', 'on', true)`

const insertTestWebhook = `
INSERT INTO webhook_outbox (organization_id, event_type, payload, endpoint_ids)
VALUES (@organization_id, @event_type, @payload::text::jsonb, @endpoint_ids::text[]::uuid[])
RETURNING id, endpoint_ids`

// SendTest inserts a test webhook into the outbox like any event. It returns the ids of the
// event and of its deliveries, of which there may be none. Its error wraps
// ErrWhichOrganization; RefusedEvent says what is wrong with the event.
func (s *Store) SendTest(ctx context.Context, w TestWebhook) (event uuid.UUID, deliveries []uuid.UUID, err error) {
	if w.OrganizationID == "" {
		if w.OrganizationID, err = s.onlyOrganization(ctx); err != nil {
			return uuid.Nil, nil, err
		}
	}
	var payload *string // the trigger takes the type's example, see markTest
	if w.Data != nil {
		payload = new(string(w.Data))
	}
	chosen := []string{} // the trigger chooses, see markTest
	if w.EndpointID != uuid.Nil {
		chosen = []string{w.EndpointID.String()}
	}
	var endpoints []uuid.UUID
	var b pgx.Batch
	b.Queue(markTest)
	b.Queue(insertTestWebhook, pgx.NamedArgs{
		"organization_id": w.OrganizationID, "event_type": w.EventType, "payload": payload, "endpoint_ids": chosen,
	}).QueryRow(func(row pgx.Row) error { return row.Scan(&event, &endpoints) })
	if err := s.send(ctx, &b); err != nil {
		return uuid.Nil, nil, fmt.Errorf("send a test webhook: %w", err)
	}
	for _, endpoint := range endpoints {
		deliveries = append(deliveries, outbox.DeliveryID(event, endpoint))
	}
	return event, deliveries, nil
}

// RefusedEvent says why the database refused an event for what is in it: classes 22, data exception,
// and 23, integrity constraint violation, are about the row.
func RefusedEvent(err error) (why string, refused bool) {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || !strings.HasPrefix(pg.Code, "22") && !strings.HasPrefix(pg.Code, "23") {
		return "", false
	}
	return pg.Message, true
}

func (s *Store) onlyOrganization(ctx context.Context) (string, error) {
	var organization string
	var only bool
	if err := s.pool.QueryRow(ctx, selectOnlyOrganization).Scan(&organization, &only); err != nil {
		return "", fmt.Errorf("find the only organization: %w", err)
	}
	switch {
	case organization == "":
		return "", fmt.Errorf("%w, and none has endpoints", ErrWhichOrganization)
	case !only:
		return "", fmt.Errorf("%w, and several have endpoints", ErrWhichOrganization)
	default:
		return organization, nil
	}
}
