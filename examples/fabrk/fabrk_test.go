// Package fabrk moves the webhooks of an application made from Fabrk to walhook: see docs/from-fabrk.md.
package fabrk

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/testkit"
)

const (
	secret  = "a3f2c8d9e0b14f5a6978b7c6d5e4f30112233445566778899aabbccddeeff001" // as Fabrk makes them: 32 bytes in hex
	another = "whsec_a secret that somebody has typed"

	patience = time.Minute // for walhook to start, and to deliver
)

// A fabrk is a database of an application made from Fabrk, in which walhook has a schema of its own.
type fabrk struct {
	db       *pgtest.DB
	receiver *receiver
}

func newFabrk(t *testing.T) fabrk {
	t.Helper()
	f := fabrk{pgtest.Empty(t), newReceiver(t)}
	f.mustScript(t, `CREATE SCHEMA webhooks; ALTER DATABASE `+f.db.Slot+` SET search_path = "$user", public, webhooks`)
	f.mustScript(t, "SET search_path = webhooks;"+read(t, "../../schema.sql"))
	f.mustScript(t, read(t, "testdata/fabrk.sql"))
	f.mustScript(t, strings.NewReplacer("URL", f.receiver.url, "SECRET", secret, "ANOTHER", another).Replace(`
		INSERT INTO "Organization" VALUES ('org_1', 'One'), ('org_2', 'Two');
		INSERT INTO "Webhook" ("id", "organizationId", "url", "secret", "events", "enabled", "updatedAt") VALUES
			('hook_1',        'org_1', 'URL/hook_1',        'SECRET',  '{org.member.added,payment.succeeded}', true,  now()),
			('hook_2',        'org_2', 'URL/hook_2',        'ANOTHER', '{payment.succeeded}',                  true,  now()),
			('hook_disabled', 'org_1', 'URL/hook_disabled', 'SECRET',  '{payment.succeeded}',                  false, now()),
			('hook_nothing',  'org_1', 'URL/hook_nothing',  'SECRET',  '{}',                                   true,  now());
		INSERT INTO "WebhookDelivery" ("id", "webhookId", "event", "payload", "status", "attempts", "nextRetryAt", "createdAt")
		SELECT d.id, d.hook, 'payment.succeeded',
		       jsonb_build_object('event', 'payment.succeeded', 'data', jsonb_build_object('paymentId', d.id), 'organizationId', 'org_1', 'timestamp', '2026-11-23T12:00:00.123Z'),
		       d.status, d.attempts, (now() AT TIME ZONE 'UTC') + d.retry::interval, (now() AT TIME ZONE 'UTC') - d.age::interval
		FROM (VALUES
			('failed',     'hook_1',        'failed',  2, '15 minutes', '10 minutes'),
			('crashed',    'hook_1',        'pending', 1, NULL,         '1 hour'),
			('in_flight',  'hook_1',        'pending', 1, NULL,         '-1 hour'), -- young, however slow the test is
			('given_up',   'hook_1',        'failed',  5, NULL,         '1 day'),
			('succeeded',  'hook_1',        'success', 1, NULL,         '1 day'),
			('held_back',  'hook_disabled', 'failed',  1, '1 minute',   '10 minutes')) AS d(id, hook, status, attempts, retry, age);`))
	return f
}

// script executes statements in a session of their own, as psql would, and returns what the database says.
func (f fabrk) script(t *testing.T, sql string) (notices string, err error) {
	t.Helper()
	config, err := pgx.ParseConfig(f.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { notices += n.Message + "\n" }
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	_, err = conn.PgConn().Exec(t.Context(), sql).ReadAll()
	return notices, err
}

func (f fabrk) mustScript(t *testing.T, sql string) (notices string) {
	t.Helper()
	notices, err := f.script(t, sql)
	if err != nil {
		t.Fatal(err)
	}
	return notices
}

// move runs migrate.sql, and wants what it says.
func (f fabrk) move(t *testing.T, want ...string) {
	t.Helper()
	said := f.mustScript(t, read(t, "migrate.sql"))
	for _, w := range want {
		if !strings.Contains(said, w) {
			t.Errorf("it says %q, want %q", said, w)
		}
	}
}

// state is everything that the script may write.
func (f fabrk) state(t *testing.T) string {
	t.Helper()
	const all = `
SELECT concat_ws(E'\n',
    (SELECT string_agg(concat_ws(' ', e.organization_id, e.url, e.event_types, e.enabled, e.disabled_reason, s.secret), E'\n' ORDER BY e.url)
     FROM webhooks.webhook_endpoints AS e JOIN webhooks.webhook_secrets AS s ON s.endpoint_id = e.id),
    (SELECT string_agg(concat_ws(' ', o.organization_id, o.event_type, o.payload, o.created_at AT TIME ZONE 'UTC', e.url), E'\n' ORDER BY o.payload)
     FROM webhooks.webhook_outbox AS o JOIN webhooks.webhook_endpoints AS e ON ARRAY[e.id] = o.endpoint_ids),
    (SELECT string_agg(concat_ws(' ', d.id, d.status, CASE WHEN d."nextRetryAt" IS NOT NULL THEN 'retry' END, left(d.response, 25)), E'\n' ORDER BY d.id)
     FROM "WebhookDelivery" AS d))`
	var got string
	if err := f.db.Pool.QueryRow(t.Context(), all).Scan(&got); err != nil {
		t.Fatal(err)
	}
	return got
}

func (f fabrk) run(t *testing.T) {
	t.Helper()
	testkit.Walhook(t, f.db.URL, f.db.Slot, "WALHOOK_SCHEMA=webhooks")
}

// A receiver knows of Fabrk's documentation, and of walhook nothing.
type receiver struct {
	url      string
	received chan string // path and body's fields of what verified
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{received: make(chan string, 100)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		said, err := fabrkWebhook(request)
		if err != nil {
			t.Error(err)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		r.received <- said
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

// fabrkWebhook verifies a request as Fabrk documents it.
func fabrkWebhook(r *http.Request) (string, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return "", err
	}
	key := secret
	if r.URL.Path == "/hook_2" {
		key = another
	}
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write(body)
	if signature := r.Header.Get("X-Webhook-Signature"); signature != hex.EncodeToString(mac.Sum(nil)) {
		return "", errors.New(r.URL.Path + ": X-Webhook-Signature " + signature + " does not verify")
	}
	var fields struct {
		Event, OrganizationID, Timestamp string
		Data                             json.RawMessage
	}
	if err := json.Unmarshal(body, &fields); err != nil {
		return "", err
	}
	if _, err := uuid.Parse(r.Header.Get("X-Webhook-Delivery-ID")); err != nil || r.Header.Get("X-Webhook-Event") != fields.Event ||
		r.Header.Get("User-Agent") != "Fabrk-Webhooks/1.0" || r.Header.Get("Content-Type") != "application/json" {
		return "", errors.New("the headers are not Fabrk's: " + r.Header.Get("X-Webhook-Delivery-ID") + " " + r.Header.Get("X-Webhook-Event") + " " + r.Header.Get("User-Agent"))
	}
	return strings.Join([]string{r.URL.Path, fields.Event, fields.OrganizationID, fields.Timestamp, string(fields.Data)}, " "), nil
}

// wants waits for requests, in any order, and takes no other.
func (r *receiver) wants(t *testing.T, want ...string) {
	t.Helper()
	expected := map[string]bool{}
	for _, w := range want {
		expected[w] = true
	}
	for len(expected) > 0 {
		select {
		case got := <-r.received:
			if !expected[got] {
				t.Fatalf("received %s, want one of %v", got, expected)
			}
			delete(expected, got)
		case <-time.After(patience):
			t.Fatalf("not received within %s: %v", patience, expected)
		}
	}
}

const moved = `org_1 URL/hook_1 {org.member.added,payment.succeeded} t SECRET
org_2 URL/hook_2 {payment.succeeded} t ANOTHER
org_1 URL/hook_disabled {payment.succeeded} f it was disabled in Fabrk SECRET
org_1 payment.succeeded {"paymentId": "crashed"} 2026-11-23 12:00:00.123 URL/hook_1
org_1 payment.succeeded {"paymentId": "failed"} 2026-11-23 12:00:00.123 URL/hook_1
crashed failed moved to walhook as event
failed failed moved to walhook as event
given_up failed
held_back failed retry
in_flight pending
succeeded success`

func TestMigrate(t *testing.T) {
	t.Parallel()
	f := newFabrk(t)
	f.move(t, "moved 3 endpoints and 2 deliveries; 1 deliveries may be in flight", `"Webhook" hook_nothing subscribes to nothing, and is not moved`)
	want := strings.NewReplacer("URL", f.receiver.url, "SECRET", secret, "ANOTHER", another).Replace(moved)
	if got := f.state(t); got != want {
		t.Fatalf("moved were\n%s\nwant\n%s", got, want)
	}
	f.move(t, "moved 0 endpoints and 0 deliveries; 1 deliveries may be in flight")
	if got := f.state(t); got != want {
		t.Fatalf("moved again were\n%s\nwant\n%s", got, want)
	}

	f.run(t)
	const at = `2026-11-23T12:00:00.123Z {"paymentId": `
	f.receiver.wants(t, `/hook_1 payment.succeeded org_1 `+at+`"failed"}`, `/hook_1 payment.succeeded org_1 `+at+`"crashed"}`)

	// The application now inserts its events itself, and what Fabrk had in flight has failed.
	f.mustScript(t, `INSERT INTO webhook_outbox (organization_id, event_type, payload, created_at) VALUES
		('org_1', 'org.member.added',  '{"memberId": "m_1"}', '2026-11-24 12:00:00Z'),
		('org_2', 'payment.succeeded', '{"amount": 5000}',    '2026-11-24 12:00:00Z')`)
	f.receiver.wants(t, `/hook_1 org.member.added org_1 2026-11-24T12:00:00.000Z {"memberId": "m_1"}`, `/hook_2 payment.succeeded org_2 2026-11-24T12:00:00.000Z {"amount": 5000}`)
	f.mustScript(t, `UPDATE "WebhookDelivery" SET status = 'failed', "nextRetryAt" = now() WHERE id = 'in_flight'`)
	f.move(t, "moved 0 endpoints and 1 deliveries; 0 deliveries may be in flight")
	f.receiver.wants(t, `/hook_1 payment.succeeded org_1 `+at+`"in_flight"}`)
}

// What cannot be moved is named, and nothing is moved.
func TestRefused(t *testing.T) {
	t.Parallel()
	f := newFabrk(t)
	before := f.state(t)
	for _, c := range []struct{ name, spoil, want, mend string }{
		{
			"a missing column", `ALTER TABLE "Webhook" RENAME enabled TO active; ALTER TABLE "WebhookDelivery" RENAME response TO answer`,
			`Fabrk's tables lack "Webhook".enabled of type boolean, "WebhookDelivery".response: nothing was moved`,
			`ALTER TABLE "Webhook" RENAME active TO enabled; ALTER TABLE "WebhookDelivery" RENAME answer TO response`,
		},
		{
			"an unknown event type", `UPDATE "Webhook" SET events = events || '{invoice.paid}' WHERE id = 'hook_1'; UPDATE "WebhookDelivery" SET event = 'invoice.sent' WHERE id = 'failed'`,
			`walhook does not know these event types of Fabrk: 'invoice.paid', 'invoice.sent': nothing was moved`,
			`UPDATE "Webhook" SET events = array_remove(events, 'invoice.paid'); UPDATE "WebhookDelivery" SET event = 'payment.succeeded'`,
		},
		{
			"a secret and a URL", `UPDATE "Webhook" SET secret = 'short' WHERE id = 'hook_1'; UPDATE "Webhook" SET url = '/relative' WHERE id = 'hook_2'`,
			`these rows of Fabrk cannot be moved: "Webhook" hook_1, secret: it is not 16 to 256 printable ASCII characters; "Webhook" hook_2, url: it does not start with http:// or https://: nothing was moved`,
			`UPDATE "Webhook" SET secret = '` + secret + `' WHERE id = 'hook_1'; UPDATE "Webhook" SET url = 'https://example.com' WHERE id = 'hook_2'`,
		},
		{
			"no walhook", `ALTER TABLE webhooks.webhook_outbox RENAME TO elsewhere`,
			`there is no table webhook_outbox on the search_path ("$user", public, webhooks): run walhook init`,
			`ALTER TABLE webhooks.elsewhere RENAME TO webhook_outbox`,
		},
	} {
		f.mustScript(t, c.spoil)
		if _, err := f.script(t, read(t, "migrate.sql")); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
		f.mustScript(t, c.mend)
		if got := f.state(t); got != before {
			t.Errorf("%s: there is now\n%s\nwant\n%s", c.name, got, before)
		}
	}
	f.move(t, "moved 3 endpoints and 2 deliveries")
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
