package store_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

func TestSendTest(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	send := func(w store.TestWebhook) (uuid.UUID, []uuid.UUID) {
		t.Helper()
		event, deliveries, err := st.SendTest(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		return event, deliveries
	}
	refuses := func(w store.TestWebhook, want string) {
		t.Helper()
		_, _, err := st.SendTest(t.Context(), w)
		checkRefusal(t, err, want, "SendTest")
	}

	if _, _, err := st.SendTest(t.Context(), store.TestWebhook{EventType: "webhook.test"}); !errors.Is(err, store.ErrWhichOrganization) {
		t.Errorf("no organization at all: got %v, want ErrWhichOrganization", err)
	}

	payments := uuid.MustParse(newEndpoint(t, db.Pool, "org_1", "payment.*"))
	other := uuid.MustParse(newEndpoint(t, db.Pool, "org_1", "org.*"))
	event, deliveries := send(store.TestWebhook{EventType: "payment.failed"})
	if want := []uuid.UUID{outbox.DeliveryID(event, payments)}; !slices.Equal(deliveries, want) {
		t.Errorf("the only organization: deliveries %v, want %v", deliveries, want)
	}
	if got := query[bool](t, db.Pool, `SELECT payload = t.example FROM webhook_outbox o JOIN webhook_event_types t ON t.name = o.event_type WHERE o.id::text = $1`, event.String()); !got {
		t.Error("the example is not what was inserted")
	}
	event, deliveries = send(store.TestWebhook{EventType: "payment.failed", OrganizationID: "org_1", EndpointID: other, Data: []byte(`[1]`)})
	if want := []uuid.UUID{outbox.DeliveryID(event, other)}; !slices.Equal(deliveries, want) {
		t.Errorf("a chosen endpoint: deliveries %v, want %v", deliveries, want)
	}
	if got := query[string](t, db.Pool, `SELECT payload::text FROM webhook_outbox WHERE id::text = $1`, event.String()); got != `[1]` {
		t.Errorf("payload %s, want [1]", got)
	}
	exec(t, db.Pool, `INSERT INTO webhook_event_types (name, category) VALUES ('invoice.paid', 'invoice')`)
	event, _ = send(store.TestWebhook{EventType: "invoice.paid"})
	if got := query[string](t, db.Pool, `SELECT payload::text FROM webhook_outbox WHERE id::text = $1`, event.String()); got != `{"test": true, "message": "A test webhook"}` {
		t.Errorf("a type without an example: payload %s", got)
	}
	if _, deliveries := send(store.TestWebhook{EventType: "api_key.created"}); len(deliveries) != 0 {
		t.Errorf("nobody subscribes: deliveries %v, want none", deliveries)
	}

	newEndpoint(t, db.Pool, "org_2")
	if _, _, err := st.SendTest(t.Context(), store.TestWebhook{EventType: "webhook.test"}); !errors.Is(err, store.ErrWhichOrganization) {
		t.Errorf("two organizations: got %v, want ErrWhichOrganization", err)
	}
	refuses(store.TestWebhook{EventType: "payment.won", OrganizationID: "org_1"}, "not a known event type")
	refuses(store.TestWebhook{EventType: "payment.failed", OrganizationID: "org_2", EndpointID: payments}, "not an endpoint of organization")
	refuses(store.TestWebhook{EventType: "payment.failed", OrganizationID: "org_1", Data: []byte(`{`)}, "invalid input syntax for type json")
}

// A receiver of any type can be written against what a test webhook brings.
func TestExamples(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	if bare := column[string](t, db.Pool, `SELECT name FROM webhook_event_types WHERE jsonb_typeof(example) IS DISTINCT FROM 'object' OR example = '{}'`); len(bare) > 0 {
		t.Errorf("without an example: %q", bare)
	}
	endpoint := newEndpoint(t, db.Pool, "org_1", "org.*")
	for _, name := range column[string](t, db.Pool, `SELECT name FROM webhook_event_types`) {
		event := query[string](t, db.Pool, `SELECT webhook_send_test($1, $2)::text`, endpoint, name)
		if same := query[bool](t, db.Pool, `SELECT o.payload = t.example FROM webhook_outbox o JOIN webhook_event_types t ON t.name = o.event_type WHERE o.id::text = $1`, event); !same {
			t.Errorf("a test of %s does not bring its example", name)
		}
	}
	refused(t, db.Pool, "payload is null", `INSERT INTO webhook_outbox (organization_id, event_type) VALUES ('org_1', 'payment.failed')`)
}
