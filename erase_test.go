package main

import (
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/postgres/pgtest"
)

// A customer is erased by the DELETEs that docs/operations.md has, while walhook delivers to them and to
// others: nothing is left, nothing more is sent, and the others notice nothing.
func TestErasingACustomer(t *testing.T) {
	w := newWorld(t)
	page, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)## Erasing a customer\n.*?```sql\n(DELETE.*?)```").FindStringSubmatch(string(page))
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
		+ (SELECT count(*) FROM webhook_endpoints WHERE organization_id = 'org_1')`
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

// webhook_forget erases a customer under load. Whatever walhook holds of theirs at that time leaves
// no row once it has returned 0: attempts under way, with a row and without, what waits to be sent
// again, what waits in memory, and what a restart reads once more.
func TestForgettingACustomer(t *testing.T) {
	for name, park := range map[string]string{"what is under way has a row": "WALHOOK_PARK_AFTER=0", "what is under way has none": "WALHOOK_PARK_AFTER=1m"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, park, "WALHOOK_RETRY_SCHEDULE=100ms", "WALHOOK_TIMEOUT=30s")
			answer := make(chan struct{})
			let := sync.OnceFunc(func() { close(answer) })
			slow := newReceiver(t, func(int) int { <-answer; return 410 })
			t.Cleanup(let)
			good, broken, other := newReceiver(t, always(200)), newReceiver(t, always(500)), newReceiver(t, always(200))
			for _, r := range []*receiver{good, slow, broken} {
				w.exec(`INSERT INTO webhook_endpoints (organization_id, url, event_types) VALUES ('org_1', $1, '{*,webhook.*}')`, r.URL)
			}
			w.exec(`SELECT webhook_create_endpoint('org_2', $1)`, other.URL)
			w.run()
			others := 0
			load := func() {
				w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_' || 1 + n % 2, 'payment.succeeded', '{}' FROM generate_series(1, 100) AS n`)
				others += 50
			}
			load()
			pgtest.Eventually(t, patience, "attempts are under way", func() bool {
				return len(slow.requests()) > 0 && len(good.requests()) > 20 && len(broken.requests()) > 20
			})
			load()
			w.eventually("nothing is left", `SELECT webhook_forget('org_1') = 0`)
			const left = `SELECT (SELECT count(*) FROM webhook_outbox WHERE organization_id = 'org_1') + (SELECT count(*) FROM webhook_deliveries WHERE organization_id = 'org_1')
				+ (SELECT count(*) FROM webhook_endpoints WHERE organization_id = 'org_1') + (SELECT count(*) FROM webhook_forgetting)
				+ (SELECT count(*) FROM webhook_secrets) - 1`
			if n := query[int](w, left); n != 0 {
				t.Errorf("%d rows are left", n)
			}
			load() // the customer's are owed to nobody now
			w.exec(`DELETE FROM webhook_outbox WHERE organization_id = 'org_1'`)
			w.eventually("the others' webhooks arrive", `SELECT count(*) = $1 FROM webhook_deliveries WHERE organization_id = 'org_2' AND status = 'success'`, others)
			time.AfterFunc(time.Second, let) // what was under way ends, and ends while walhook stops
			if err := w.stop(); err != nil {
				t.Errorf("stop: %v", err)
			}
			if n := query[int](w, left); n != 0 {
				t.Errorf("%d rows came back when what was under way ended", n)
			}
			before := len(good.requests()) + len(slow.requests()) + len(broken.requests())
			w.exec(`UPDATE webhook_state SET reconcile_from = 'epoch'`)
			w.run()
			load()
			w.exec(`DELETE FROM webhook_outbox WHERE organization_id = 'org_1'`)
			w.eventually("the others' webhooks arrive after a restart", `SELECT count(*) = $1 FROM webhook_deliveries WHERE organization_id = 'org_2' AND status = 'success'`, others)
			w.eventually("all is compared", `SELECT reconcile_from IS NULL FROM webhook_state`)
			if n := query[int](w, left); n != 0 {
				t.Errorf("%d rows came back after a restart", n)
			}
			if n := len(good.requests()) + len(slow.requests()) + len(broken.requests()) - before; n != 0 {
				t.Errorf("%d requests to the customer after they were erased", n)
			}
		})
	}
}
