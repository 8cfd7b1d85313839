package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/outbox"
	"github.com/walhook/walhook/sign"
)

func TestFromInsertToRow(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	id, secret := w.endpoint(rcv.URL+"/hook?token=1", "payment.*")
	w.run()

	tx, err := w.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.failed', '{}')`); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.insert("org.created") // not subscribed
	event := w.insert("payment.succeeded")
	w.eventually("the row", `SELECT count(*) = 1 FROM webhook_deliveries WHERE event_id = $1 AND status = 'success'`, event)

	if n := query[int](w, `SELECT count(*) FROM webhook_deliveries`); n != 1 {
		t.Errorf("%d rows, want the one delivery", n)
	}
	got := rcv.requests()
	if len(got) != 1 {
		t.Fatalf("%d requests, want 1: nothing that was rolled back, nothing that nobody subscribed to", len(got))
	}
	h := got[0].header
	delivery := outbox.DeliveryID(event, id).String()
	for name, want := range map[string]string{
		"X-Webhook-Event": "payment.succeeded", "X-Webhook-Delivery-ID": delivery, "X-Webhook-Retry": "0",
		"Webhook-Id": delivery, "User-Agent": "Fabrk-Webhooks/1.0", "Content-Type": "application/json",
	} {
		if h.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, h.Get(name), want)
		}
	}
	if err := sign.Verify(h, []byte(got[0].body), secret); err != nil {
		t.Errorf("the signature: %v", err)
	}
	created := query[time.Time](w, `SELECT created_at FROM webhook_outbox WHERE id = $1`, event).UTC()
	want := fmt.Sprintf(`{"id":%q,"event":"payment.succeeded","data":{"amount": 1},"organizationId":"org_1","timestamp":%q}`,
		event, created.Truncate(time.Millisecond).Format("2006-01-02T15:04:05.000Z"))
	if got[0].body != want {
		t.Errorf("body\n%s, want\n%s", got[0].body, want)
	}
	w.eventually("the slot moves past the event", `SELECT confirmed_flush_lsn >= durable_lsn AND durable_lsn IS NOT NULL
		FROM pg_replication_slots s JOIN webhook_state t ON t.slot = s.slot_name WHERE slot_name = $1`, w.db.Slot)
}

func TestASecretOfOnesOwnSigns(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	const own, next = "4f6c1c1d1d9f5d6e2f3a0b9c8d7e6f5a4f6c1c1d1d9f5d6e2f3a0b9c8d7e6f5a", "the next secret of one's own"
	id := query[uuid.UUID](w, `SELECT endpoint_id FROM webhook_create_endpoint('org_1', $1, secret => $2)`, rcv.URL, own)
	w.run()
	signedWith := func(secret string) bool {
		event := w.insert("payment.succeeded")
		w.eventually("success", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, event)
		got := rcv.requests()
		r := got[len(got)-1]
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(r.body))
		return r.header.Get("X-Webhook-Signature") == hex.EncodeToString(mac.Sum(nil)) && sign.Verify(r.header, []byte(r.body), secret) == nil
	}
	if !signedWith(own) {
		t.Error("the first request is not signed with the endpoint's own secret")
	}
	w.exec(`SELECT webhook_set_secret($1, $2)`, id, next)
	pgtest.Eventually(t, patience, "signed with the secret that was set", func() bool { return signedWith(next) })
}

// What an operator does in a prepared transaction is in force within a second of its commit.
func TestPreparedTransactions(t *testing.T) {
	server := pgtest.Server(t, postgres.Options{Settings: map[string]string{"max_prepared_transactions": "5", "wal_level": "logical"}})
	db := &pgtest.DB{URL: server.URL(), Slot: "walhook"}
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	db.Pool = pool
	w := &world{t: t, db: db, log: t.Output(), env: []string{"WALHOOK_DATABASE_URL=" + db.URL, "WALHOOK_ADMIN_ADDR=",
		"WALHOOK_ALLOW_HTTP=true", "WALHOOK_ALLOW_NETS=127.0.0.0/8", "WALHOOK_RETRY_SCHEDULE=1h"}}
	w.run()
	prepared := func(sql string) time.Time {
		t.Helper()
		w.exec(`BEGIN; ` + sql + `; PREPARE TRANSACTION 'x'`)
		time.Sleep(1500 * time.Millisecond) // a replay's time is long ago when it is committed: what is looked for begins a second ago
		w.exec(`COMMIT PREPARED 'x'`)
		return time.Now()
	}
	rcv := newReceiver(t, func(n int) int { return []int{500, 200}[min(n, 1)] })
	id, _ := w.endpoint(rcv.URL)
	event := w.insert("payment.failed")
	w.eventually("it waits", `SELECT status = 'retrying' FROM webhook_deliveries WHERE event_id = $1`, event)
	committed := prepared(`UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now()`)
	w.eventually("the replay is delivered", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, event)
	if took := time.Since(committed); took > 2*time.Second {
		t.Errorf("a replay took %s", took)
	}
	for _, sql := range []string{`UPDATE webhook_endpoints SET enabled = false`, `DELETE FROM webhook_endpoints`} {
		w.exec(`UPDATE webhook_endpoints SET enabled = true`)
		w.insert("payment.failed")
		w.eventually("delivered", `SELECT count(*) = 0 FROM webhook_deliveries WHERE status <> 'success'`)
		prepared(sql)
		time.Sleep(time.Second) // the promise
		n := len(rcv.requests())
		w.exec(`INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at)
			SELECT webhook_delivery_id(o.id, $1), o.id, $1, o.organization_id, o.event_type, 'pending', now() FROM webhook_outbox o ORDER BY id DESC LIMIT 1
			ON CONFLICT (id) DO UPDATE SET status = 'pending', next_attempt_at = now()`, id)
		w.eventually("it is cancelled", `SELECT count(*) = 1 FROM webhook_deliveries WHERE status = 'cancelled'`)
		if got := len(rcv.requests()); got != n {
			t.Errorf("after %s, %d requests", sql, got-n)
		}
		w.exec(`DELETE FROM webhook_deliveries WHERE status = 'cancelled'`)
	}
}

// One delivery in memory is slow, and delivers all the same.
func TestTheSmallestWindow(t *testing.T) {
	w := newWorld(t, "WALHOOK_WINDOW=1", "WALHOOK_RETRY_SCHEDULE=500ms,500ms,500ms")
	w.endpoint(newReceiver(t, always(200)).URL)
	w.endpoint(newReceiver(t, always(500)).URL)
	w.run()
	for range 20 {
		w.insert("payment.succeeded")
	}
	w.eventually("all have ended", `SELECT count(*) FILTER (WHERE status = 'success') = 20 AND count(*) FILTER (WHERE status = 'failed') = 20 FROM webhook_deliveries
		WHERE event_type = 'payment.succeeded'`)
}

func TestNothingIsSignedWithAClockThatIsOff(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	// In this database, PostgreSQL's clock is another than walhook's.
	w.exec(`SET allow_system_table_mods = on;
		ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO true_clock_timestamp;
		CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql RETURN pg_catalog.true_clock_timestamp() + interval '10 minutes';
		RESET allow_system_table_mods`)
	w.run("WALHOOK_ADMIN_ADDR=127.0.0.1:0")
	event := w.insert("payment.succeeded")
	w.eventually("it waits", `SELECT status = 'pending' AND attempts = 0 FROM webhook_deliveries WHERE event_id = $1`, event)
	if n := len(rcv.requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
	w.exec(`SET allow_system_table_mods = on;
		CREATE OR REPLACE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql RETURN pg_catalog.true_clock_timestamp() - interval '1 minute';
		RESET allow_system_table_mods`)
	w.eventually("it is sent when the clock is right", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, event)
}

func TestADeletedEventIsCancelled(t *testing.T) {
	w := newWorld(t, "WALHOOK_RETRY_SCHEDULE=1h")
	rcv := newReceiver(t, always(500))
	w.endpoint(rcv.URL)
	w.run()
	event := w.insert("payment.succeeded")
	w.eventually("retrying", `SELECT status = 'retrying' FROM webhook_deliveries WHERE event_id = $1`, event)
	w.exec(`DELETE FROM webhook_outbox WHERE id = $1`, event)
	w.exec(`UPDATE webhook_deliveries SET next_attempt_at = now() WHERE event_id = $1`, event)
	w.eventually("cancelled", `SELECT status = 'cancelled' FROM webhook_deliveries WHERE event_id = $1`, event)
}

// A walsender that has seen rows come into a table before that became a partition of
// the outbox must not go on passing over it: PostgreSQL 14's does.
func TestEventsOfAPartitionThatHadRowsBefore(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	w.run()
	delivered := func(what string, n int) {
		t.Helper()
		w.insert("payment.failed")
		w.eventually(what, `SELECT count(*) = $1 FROM webhook_deliveries WHERE status = 'success'`, n)
	}
	today := query[string](w, `SELECT 'webhook_outbox_p' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')`)
	w.eventually("there are partitions", `SELECT to_regclass($1) IS NOT NULL`, today)
	w.exec(`DROP TABLE ` + today)
	delivered("an event in the DEFAULT partition", 1)
	w.exec(`DO $$ BEGIN -- as the upkeep does: a lock that is not available is tried again
	FOR i IN 1..50 LOOP
		BEGIN
			PERFORM webhook_add_partition('webhook_outbox', (now() AT TIME ZONE 'UTC')::date);
			RETURN;
		EXCEPTION WHEN lock_not_available THEN PERFORM pg_sleep(0.1);
		END;
	END LOOP;
	RAISE 'no lock was available';
	END $$`)
	w.eventually("it was moved", `SELECT count(*) = 1 FROM `+today)
	delivered("an event of the day that was moved", 2)

	bounds := query[string](w, `SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = $1::regclass`, today)
	w.exec(`CREATE TABLE by_hand (LIKE webhook_outbox INCLUDING ALL)`)
	w.exec(`INSERT INTO by_hand SELECT * FROM webhook_outbox`)
	w.exec(`DROP TABLE ` + today)
	w.exec(`ALTER TABLE webhook_outbox ATTACH PARTITION by_hand ` + bounds)
	delivered("an event of a partition that was attached by hand", 3)
}
