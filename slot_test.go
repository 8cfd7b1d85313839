package main

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/postgres/pgtest"
)

func TestWhatWaitedBeforeTheSlotIsDelivered(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 3000)`)
	w.run()
	w.eventually("all delivered", `SELECT count(*) = 3000 FROM webhook_deliveries WHERE status = 'success'`)
	if n := len(rcv.requests()); n != 3000 {
		t.Errorf("%d requests for 3000 deliveries", n)
	}
}

func TestALostSlotLosesNothing(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	w.run()
	w.insert("payment.succeeded")
	w.eventually("the first is delivered", `SELECT count(*) = 1 FROM webhook_deliveries WHERE status = 'success'`)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.exec(`SELECT pg_drop_replication_slot($1)`, w.db.Slot)
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 50)`)
	w.run()
	w.eventually("what the new slot does not bring is delivered", `SELECT count(*) = 51 FROM webhook_deliveries WHERE status = 'success'`)
	w.eventually("and need not be looked for again", `SELECT reconcile_from IS NULL FROM webhook_state`)
	if n := len(rcv.requests()); n != 51 {
		t.Errorf("%d requests for 51 deliveries", n)
	}
}

// What is committed while the outbox is not published never comes by the stream,
// and nobody says so: PostgreSQL confirms that there was nothing.
func TestATableThatWasNotPublishedForAMomentLosesNothing(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	blink := func() {
		w.exec(`ALTER PUBLICATION walhook DROP TABLE webhook_outbox`)
		w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 50)`)
		w.exec(`ALTER PUBLICATION walhook ADD TABLE webhook_outbox`)
	}
	w.run()
	w.insert("payment.succeeded")
	w.eventually("the first is delivered, and nothing has to be looked for", `SELECT count(*) = 1 FROM webhook_deliveries, webhook_state
		WHERE status = 'success' AND reconcile_from IS NULL`)
	blink()
	w.eventually("what was not published is delivered", `SELECT count(*) = 51 FROM webhook_deliveries WHERE status = 'success'`)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	blink()
	w.run()
	w.eventually("also where nobody was there to see it", `SELECT count(*) = 101 FROM webhook_deliveries WHERE status = 'success'`)
	w.eventually("and need not be looked for again", `SELECT reconcile_from IS NULL FROM webhook_state`)
	if n := len(rcv.requests()); n != 101 {
		t.Errorf("%d requests for 101 deliveries", n)
	}
}

func TestARestartRepeatsNothing(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	for round := range 4 {
		w.run()
		w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 300)`)
		pgtest.Eventually(t, patience, "some are sent", func() bool { return len(rcv.requests()) > round*300+50 })
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
	}
	w.run()
	w.eventually("all delivered", `SELECT count(*) = 1200 FROM webhook_deliveries WHERE status = 'success'`)
	if n := len(rcv.requests()); n != 1200 {
		t.Errorf("%d requests for 1200 deliveries", n)
	}
}

func TestAStandbyTakesOver(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	w.run()
	first := w.stop
	w.run() // waits: the slot is in use
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 100)`)
	w.eventually("the first delivers", `SELECT count(*) = 100 FROM webhook_deliveries WHERE status = 'success'`)
	if err := first(); err != nil {
		t.Fatal(err)
	}
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 100)`)
	w.eventually("the second delivers", `SELECT count(*) = 200 FROM webhook_deliveries WHERE status = 'success'`)
	if n := len(rcv.requests()); n != 200 {
		t.Errorf("%d requests for 200 deliveries", n)
	}
	if epoch := query[int](w, `SELECT epoch FROM webhook_state`); epoch != 2 {
		t.Errorf("epoch %d after a takeover, want 2", epoch)
	}
}

func TestTheEnvironmentHoldsACopyBack(t *testing.T) {
	w := newWorld(t)
	w.run("WALHOOK_ENVIRONMENT=production")
	w.eventually("it is remembered", `SELECT environment = 'production' FROM webhook_state`)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(w.env)
	if err != nil {
		t.Fatal(err)
	}
	if code := exitCode(run(t.Context(), cfg, slog.New(slog.DiscardHandler))); code != exitHeldBack {
		t.Errorf("exit code %d, want %d", code, exitHeldBack)
	}
}

// An endpoint more than WALHOOK_MAX_ENDPOINTS is refused until a start has a larger number.
func TestMaxEndpointsAreTheLastStarts(t *testing.T) {
	w := newWorld(t)
	insert := func() error {
		_, err := w.db.Pool.Exec(t.Context(), `INSERT INTO webhook_endpoints (organization_id, url) VALUES ('org_1', 'https://example.com')`)
		return err
	}
	for i, env := range [][]string{{"WALHOOK_MAX_ENDPOINTS=1"}, {"WALHOOK_MAX_ENDPOINTS=2", "WALHOOK_AUTO_INIT=false"}} {
		w.run(env...)
		if err := insert(); err != nil {
			t.Errorf("endpoint %d: %v", i+1, err)
		}
		if err := insert(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("more than %d endpoints", i+1)) {
			t.Errorf("endpoint %d: %v", i+2, err)
		}
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOneRowCannotHoldTheSlot(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	w.exec(`ALTER TABLE webhook_deliveries ADD CONSTRAINT poison CHECK (response NOT IN ('answer 7', 'answer 8'))`)
	w.run()
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 50)`)
	w.eventually("all recorded, two of them without what the receiver said",
		`SELECT count(*) = 50 AND count(*) FILTER (WHERE response IS NULL AND error LIKE '%23514%') = 2 FROM webhook_deliveries WHERE status = 'success'`)
	w.eventually("the slot moves on", `SELECT confirmed_flush_lsn >= durable_lsn AND durable_lsn IS NOT NULL
		FROM pg_replication_slots s JOIN webhook_state t ON t.slot = s.slot_name WHERE slot_name = $1`, w.db.Slot)
	if n := len(rcv.requests()); n != 50 {
		t.Errorf("%d requests for 50 deliveries", n)
	}
}

func TestAFencedProcessBeginsAnew(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	w.run()
	w.eventually("it holds the epoch", `SELECT epoch = 1 FROM webhook_state`)
	w.exec(`UPDATE webhook_state SET epoch = epoch + 1, holder = gen_random_uuid()`)
	event := w.insert("payment.succeeded")
	w.eventually("it delivers with another epoch", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, event)
	if epoch := query[int](w, `SELECT epoch FROM webhook_state`); epoch != 3 {
		t.Errorf("epoch %d, want 3: it wrote with an old one", epoch)
	}
	if w.ended() {
		t.Error("it has ended")
	}
	if err := w.stop(); err != nil {
		t.Errorf("run returned %v", err)
	}
}
