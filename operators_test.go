package main

import (
	"encoding/json"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/outbox"
	"github.com/walhook/walhook/sign"
)

// operators makes an endpoint as the docs do: with one INSERT.
func (w *world) operators(url string) (id, secret string) {
	w.t.Helper()
	id = query[string](w, `INSERT INTO webhook_endpoints (organization_id, url, all_organizations) VALUES ('ops', $1, true) RETURNING id::text`, url)
	return id, query[string](w, `SELECT secret FROM webhook_secrets WHERE endpoint_id = $1`, id)
}

// heard are the types of the requests, in order and each once. All have to be of one
// organization, and signed with the secret.
func (r *receiver) heard(t *testing.T, organization, secret string) []string {
	t.Helper()
	types := []string{}
	for _, got := range r.requests() {
		var event struct{ Event, OrganizationID string }
		if err := json.Unmarshal([]byte(got.body), &event); err != nil {
			t.Fatal(err)
		}
		if err := sign.Verify(got.header, []byte(got.body), secret); err != nil || event.OrganizationID != organization || got.header.Get("X-Webhook-Event") != event.Event {
			t.Errorf("got %s: %v; want it of %s", got.body, err, organization)
		}
		types = append(types, event.Event)
	}
	slices.Sort(types)
	return slices.Compact(types)
}

// An endpoint of one organization fails, works again, and is gone: operators hear of it, and the
// organization that they are listed in is not concerned.
func TestOperatorsHearOfTrouble(t *testing.T) {
	w := newWorld(t)
	var status atomic.Int32
	status.Store(503)
	customer := newReceiver(t, func(int) int { return int(status.Load()) })
	ops := newReceiver(t, always(200))
	id, _ := w.endpoint(customer.URL)
	operators, secret := w.operators(ops.URL)
	w.run()
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT o, 'payment.succeeded', '{}' FROM unnest('{org_1,ops}'::text[]) o, generate_series(1, 40)`)
	hear := func(want ...string) {
		t.Helper()
		pgtest.Eventually(t, patience, "operators hear "+strings.Join(want, ", "), func() bool { return slices.Equal(ops.heard(t, "org_1", secret), want) })
	}
	hear(outbox.TypeDeliveryExhausted, outbox.TypeEndpointFailing)
	w.eventually("all have failed", `SELECT count(*) = 40 FROM webhook_deliveries WHERE endpoint_id = $1 AND status = 'failed'`, id)
	status.Store(200)
	w.insert("payment.failed")
	hear(outbox.TypeDeliveryExhausted, outbox.TypeEndpointFailing, outbox.TypeEndpointRecovered)
	status.Store(410)
	w.insert("payment.refunded")
	hear(outbox.TypeDeliveryExhausted, outbox.TypeEndpointDisabled, outbox.TypeEndpointFailing, outbox.TypeEndpointRecovered)

	if body := ops.requests()[0].body; !strings.Contains(body, id.String()) {
		t.Errorf("%s does not name the endpoint", body)
	}
	w.eventually("each is recorded once, as the customer's organization's", `SELECT count(*) = (SELECT count(*) FROM webhook_outbox WHERE starts_with(event_type, 'webhook.'))
		AND count(*) FILTER (WHERE status = 'success' AND organization_id = 'org_1') = count(*) FROM webhook_deliveries WHERE endpoint_id = $1`, operators)
}

// Operators' endpoints that are dead cause no event at all: each would cause the next.
func TestDeadOperatorsCauseNoEvents(t *testing.T) {
	const sent = 40
	w := newWorld(t, "WALHOOK_DISABLE_AFTER=3s", "WALHOOK_RETRY_SCHEDULE="+strings.Repeat("500ms,", 59)+"500ms")
	failing, _ := w.operators(newReceiver(t, always(500)).URL)
	gone, _ := w.operators(newReceiver(t, always(410)).URL)
	exhausted, _ := w.operators(newReceiver(t, always(500)).URL)
	w.exec(`UPDATE webhook_endpoints SET retry_schedule = '{}' WHERE id = $1`, exhausted)
	w.run()
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'webhook.test', '{}' FROM generate_series(1, $1::int)`, sent)
	w.eventually("one has given up on every delivery, its breaker open", `SELECT count(*) = $2 FROM webhook_deliveries WHERE endpoint_id = $1 AND status IN ('failed', 'cancelled')`, exhausted, sent)
	w.eventually("one is disabled for failing, one for 410", `SELECT count(*) = 2 FROM webhook_endpoints WHERE id IN ($1, $2) AND NOT enabled AND disabled_reason IS NOT NULL`, failing, gone)
	w.eventually("nothing waits", `SELECT count(*) = 0 FROM webhook_deliveries WHERE status IN ('pending', 'retrying')`)
	if n := query[int](w, `SELECT count(*) FROM webhook_deliveries WHERE status = 'failed' AND attempts = 1`); n < 2 {
		t.Errorf("%d deliveries are exhausted or gone, want one of each at least", n)
	}
	if n := query[int](w, `SELECT count(*) FROM webhook_outbox`); n != sent {
		t.Errorf("%d events, want %d: none about operators", n, sent)
	}
}

// A change of all_organizations counts at once: for new events by the INSERT, and what was to be
// heard of other organizations does not leave the house any more.
func TestAllOrganizationsChangesWhileItRuns(t *testing.T) {
	w := newWorld(t)
	ops := newReceiver(t, always(200))
	id, secret := w.operators(ops.URL)
	w.exec(`SELECT webhook_pause($1)`, id)
	w.run()
	test := func(organization, eventType string) string {
		t.Helper()
		return query[string](w, `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ($1, $2, '{}') RETURNING id::text`, organization, eventType)
	}
	own, others := test("ops", outbox.TypeTest), test("org_1", outbox.TypeTest)
	w.eventually("both wait", `SELECT count(*) = 2 FROM webhook_deliveries WHERE status = 'pending'`)
	w.exec(`UPDATE webhook_endpoints SET all_organizations = false, paused_at = NULL WHERE id = $1`, id)
	w.eventually("its own is delivered", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, own)
	w.eventually("the other is cancelled", `SELECT status = 'cancelled' AND error LIKE '%another organization%' FROM webhook_deliveries WHERE event_id = $1`, others)
	payment := test("ops", "payment.succeeded")
	w.eventually("its own payment is delivered", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, payment)
	if got := ops.heard(t, "ops", secret); !slices.Equal(got, []string{"payment.succeeded", outbox.TypeTest}) {
		t.Errorf("it got %q", got)
	}

	w.exec(`UPDATE webhook_endpoints SET all_organizations = true WHERE id = $1`, id)
	payment, others = test("ops", "payment.succeeded"), test("org_1", outbox.TypeTest)
	w.eventually("the other's is delivered", `SELECT status = 'success' AND organization_id = 'org_1' FROM webhook_deliveries WHERE event_id = $1`, others)
	if n := query[int](w, `SELECT count(*) FROM webhook_deliveries WHERE event_id = $1`, payment); n != 0 {
		t.Error("it still gets its organization's payments")
	}
	// A replay to operators works like any.
	w.exec(`SELECT webhook_replay(id) FROM webhook_deliveries WHERE event_id = $1`, others)
	w.eventually("it is delivered again", `SELECT status = 'success' AND attempts = 2 FROM webhook_deliveries WHERE event_id = $1`, others)
}
