package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// A customer is erased by what docs/operations.md says, while walhook delivers to them and to
// others: nothing is left, nothing more is sent, and the others notice nothing.
func TestErasingACustomer(t *testing.T) {
	w := newWorld(t)
	page, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)## Erasing a customer\n.*?```sql\n(.*?)```").FindStringSubmatch(string(page))
	if block == nil {
		t.Fatal("docs/operations.md does not say how")
	}
	erase := strings.ReplaceAll(block[1], "org_9", "org_1")
	good, broken := newReceiver(t, always(200)), newReceiver(t, always(500))
	w.endpoint(good.URL)
	w.endpoint(broken.URL)
	other := newReceiver(t, always(200))
	w.exec(`SELECT webhook_create_endpoint('org_2', $1)`, other.URL)
	w.run("WALHOOK_RETRY_SCHEDULE=1h")
	for range 20 {
		w.insert("payment.succeeded")
		w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_2', 'payment.succeeded', '{}')`)
	}
	w.eventually("something waits for the broken endpoint", `SELECT count(*) > 0 FROM webhook_deliveries WHERE status = 'retrying' AND organization_id = 'org_1'`)
	w.eventually("the others have theirs", `SELECT count(*) = 20 FROM webhook_deliveries WHERE organization_id = 'org_2' AND status = 'success'`)
	const left = `SELECT (SELECT count(*) FROM webhook_outbox WHERE organization_id = 'org_1') + (SELECT count(*) FROM webhook_deliveries WHERE organization_id = 'org_1')
		+ (SELECT count(*) FROM webhook_endpoints WHERE organization_id = 'org_1') + (SELECT count(*) FROM webhook_audit WHERE organization_id = 'org_1')`
	for range 3 { // what walhook was just recording comes back once
		w.exec(erase)
		w.insert("payment.failed") // owed to nobody now
		w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_2', 'payment.succeeded', '{}')`)
	}
	w.eventually("the others' webhooks arrive", `SELECT count(*) = 23 FROM webhook_deliveries WHERE organization_id = 'org_2' AND status = 'success'`)
	w.exec(erase)
	if n := query[int](w, left); n != 0 {
		t.Errorf("%d rows are left", n)
	}
	if n := query[int](w, `SELECT count(*) FROM webhook_secrets AS s WHERE NOT EXISTS (SELECT FROM webhook_endpoints AS e WHERE e.id = s.endpoint_id)`); n != 0 {
		t.Errorf("%d secrets are left", n)
	}
	before := len(broken.requests()) + len(good.requests())
	if err := w.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	w.run()
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_2', 'payment.succeeded', '{}')`)
	w.eventually("the others' webhooks arrive after a restart too", `SELECT count(*) = 24 FROM webhook_deliveries WHERE organization_id = 'org_2' AND status = 'success'`)
	if after := len(broken.requests()) + len(good.requests()); after != before {
		t.Errorf("%d requests to the customer after they were erased", after-before)
	}
	if n := query[int](w, left); n != 0 {
		t.Errorf("%d rows came back", n)
	}
}
