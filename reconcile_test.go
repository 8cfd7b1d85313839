package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/outbox"
)

// eventAged is the id of an event that was made some time ago.
func eventAged(age time.Duration) uuid.UUID {
	return outbox.DeliveryID(outbox.TimeID(time.Now().Add(-age)), uuid.New())
}

const insertAged = `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, 'org_1', 'payment.succeeded', '{}')`

// documented returns the SQL statements below a heading of docs/operations.md.
func documented(t *testing.T, heading string) []string {
	t.Helper()
	text, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), heading)
	_, section, _ = strings.Cut(section, "```sql\n")
	block, _, found := strings.Cut(section, "```")
	if !found {
		t.Fatalf("docs/operations.md has no SQL below %q", heading)
	}
	return strings.Split(strings.TrimSuffix(strings.TrimSpace(block), ";"), ";\n")
}

func TestALostSlotLosesNoLongTransaction(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	w.run()
	w.insert("payment.succeeded")
	w.eventually("the first is delivered", `SELECT count(*) = 1 FROM webhook_deliveries WHERE status = 'success'`)
	w.eventually("and what was before the slot was looked for", `SELECT reconcile_from IS NULL FROM webhook_state`)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	tx, err := w.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), insertAged, eventAged(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	w.exec(`UPDATE webhook_state SET open_since = now() - interval '125 minutes'`) // as who has looked on for so long notes it
	w.exec(`SELECT pg_drop_replication_slot($1)`, w.db.Slot)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.run()
	w.eventually("what was open for two hours is delivered", `SELECT count(*) = 2 FROM webhook_deliveries WHERE status = 'success'`)
}

func TestALostSlotLosesNoEventOfAClockThatWasSetBack(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	w.exec(`ALTER TABLE webhook_outbox DISABLE TRIGGER USER`) // which refuses ids that are ahead by the clock of now
	w.exec(`INSERT INTO webhook_outbox (id, organization_id, event_type, payload, endpoint_ids, shard)
		SELECT $1, 'org_1', 'payment.succeeded', '{}', array_agg(id), 0 FROM webhook_endpoints`, eventAged(-3*time.Hour))
	w.exec(`ALTER TABLE webhook_outbox ENABLE ALWAYS TRIGGER webhook_outbox_before_insert`)
	w.run()
	w.eventually("what was inserted by a clock three hours ahead is delivered", `SELECT count(*) = 1 FROM webhook_deliveries WHERE status = 'success'`)
}

func TestWhatIsBeyondTheRecoveryWindowIsReported(t *testing.T) {
	w := newWorld(t)
	const warning = "events that are older than WALHOOK_RECOVERY_WINDOW"
	var log bytes.Buffer
	w.log = io.MultiWriter(t.Output(), &log)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	start := func(window string, delivered int) {
		t.Helper()
		log.Reset()
		w.run("WALHOOK_RECOVERY_WINDOW=" + window)
		w.eventually("it has compared", `SELECT reconcile_from IS NULL AND (SELECT count(*) = $1 FROM webhook_deliveries WHERE status = 'success') FROM webhook_state`, delivered)
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
	}
	recent, old := eventAged(0), eventAged(5*time.Hour)
	w.exec(insertAged, recent)
	start("3h", 1)
	if strings.Contains(log.String(), warning) {
		t.Errorf("nothing is older, and the log says so:\n%s", &log)
	}
	w.exec(`SELECT pg_drop_replication_slot($1)`, w.db.Slot)
	w.exec(insertAged, old)
	w.exec(`UPDATE webhook_state SET open_since = now() - interval '6 hours'`)
	start("3h", 1)
	if n := strings.Count(log.String(), warning); n != 1 {
		t.Errorf("reported %d times, want once:\n%s", n, &log)
	}
	for i, statement := range documented(t, "## Beyond the recovery window") {
		if i > 0 {
			w.exec(strings.ReplaceAll(statement, "slot = 'walhook'", "slot = '"+w.db.Slot+"'"))
			continue
		}
		if got := query[uuid.UUID](w, statement); got != old {
			t.Errorf("the query in docs/operations.md finds %s, want %s", got, old)
		}
	}
	start("72h", 2)
	if strings.Contains(log.String(), warning) {
		t.Errorf("everything was compared, and the log says:\n%s", &log)
	}
	w.exec(`SELECT pg_drop_replication_slot($1)`, w.db.Slot)
	w.exec(`UPDATE webhook_state SET open_since = now() - interval '6 hours'`) // the outbox was idle since the old one
	start("3h", 2)
	if strings.Contains(log.String(), warning) {
		t.Errorf("what is older has its deliveries, and the log says:\n%s", &log)
	}
}
