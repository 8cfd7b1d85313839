// Package fabrk moves the webhooks of an application made from Fabrk to walhook: see docs/from-fabrk.md.
package fabrk

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/languages"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/process"
	"github.com/walhook/walhook/internal/testkit"
	"github.com/walhook/walhook/sign"
)

const (
	secret  = "a3f2c8d9e0b14f5a6978b7c6d5e4f30112233445566778899aabbccddeeff001" // as Fabrk makes them: 32 bytes in hex
	another = "whsec_a secret that somebody has typed"

	patience = time.Minute // for walhook to start, and to deliver
)

// A fabrk is a database of an application made from Fabrk, in which walhook has a schema of its own.
type fabrk struct {
	db   *pgtest.DB
	urls *strings.Replacer // of what stands for URLs and secrets
}

// newFabrk returns one with the webhooks of two organizations, whose receivers are at these URLs.
func newFabrk(t *testing.T, first, second string) fabrk {
	t.Helper()
	f := fabrk{pgtest.Empty(t), strings.NewReplacer("URL1", first, "URL2", second, "SECRET", secret, "ANOTHER", another)}
	f.mustScript(t, `CREATE SCHEMA webhooks; ALTER DATABASE `+f.db.Slot+` SET search_path = "$user", public, webhooks`)
	f.mustScript(t, "SET search_path = webhooks;"+read(t, "../../schema.sql"))
	f.mustScript(t, read(t, "testdata/fabrk.sql"))
	f.mustScript(t, f.urls.Replace(`
		INSERT INTO "Organization" VALUES ('org_1', 'One'), ('org_2', 'Two');
		INSERT INTO "Webhook" ("id", "organizationId", "url", "secret", "events", "enabled", "updatedAt") VALUES
			('hook_1',        'org_1', 'URL1/hook_1',        'SECRET',  '{org.member.added,payment.succeeded}', true,  now()),
			('hook_2',        'org_2', 'URL2/hook_2',        'ANOTHER', '{payment.succeeded}',                  true,  now()),
			('hook_disabled', 'org_1', 'URL1/hook_disabled', 'SECRET',  '{payment.succeeded}',                  false, now()),
			('hook_nothing',  'org_1', 'URL1/hook_nothing',  'SECRET',  '{}',                                   true,  now()),
			('hook_null',     'org_1', 'URL1/hook_null',     'SECRET',  NULL,                                   true,  now());
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
    (SELECT string_agg(concat_ws(' ', e.organization_id, e.url, e.event_types, e.enabled, e.disabled_reason, s.secret), E'\n' ORDER BY split_part(e.url, '/', 4))
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

// A receiver is a receiver.mjs, which knows of Fabrk's documentation, and of walhook nothing.
type receiver struct {
	url     string
	printed testkit.Output
}

func newReceiver(t *testing.T, secret string) *receiver {
	t.Helper()
	node := languages.Program(t, "node")
	port, err := process.ForWalhook.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{url: fmt.Sprintf("http://127.0.0.1:%d", port)}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), node, "receiver.mjs") // Start ends it
	cmd.Env = append(os.Environ(), "WEBHOOK_SECRET="+secret, "PORT="+strconv.Itoa(port))
	cmd.Stdout, cmd.Stderr = &r.printed, t.Output()
	testkit.Start(t, cmd)
	pgtest.Eventually(t, patience, "the receiver listens", func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", r.url[len("http://"):])
		if err == nil {
			err = conn.Close()
		}
		return err == nil
	})
	return r
}

// took waits until the receiver has printed these lines, in any order, and no other.
func (r *receiver) took(t *testing.T, want ...string) {
	t.Helper()
	pgtest.Eventually(t, patience, "the receiver takes "+strings.Join(want, " and "), func() bool { return r.printed.Lines() >= len(want) })
	got := slices.Sorted(strings.Lines(r.printed.String()))
	slices.Sort(want)
	if text := strings.Join(got, ""); text != strings.Join(want, "\n")+"\n" {
		t.Errorf("the receiver took\n%swant\n%s", text, strings.Join(want, "\n"))
	}
}

// answers sends a request with the headers that are given by twos, and returns the status.
func (r *receiver) answers(t *testing.T, body string, headers ...string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for pair := range slices.Chunk(headers, 2) {
		request.Header.Set(pair[0], pair[1])
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if err := answer.Body.Close(); err != nil {
		t.Error(err)
	}
	return answer.StatusCode
}

func TestReceiver(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, secret)
	signer, err := sign.New(secret)
	if err != nil {
		t.Fatal(err)
	}
	const fabrks, walhooks = `{"event":"payment.succeeded","data":{"n":1},"organizationId":"org_1","timestamp":"T"}`,
		`{"id":"e1","event":"payment.succeeded","data":{"n": 2},"organizationId":"org_1","timestamp":"T"}`
	for _, c := range []struct {
		what, body, signature, delivery string
		want                            int
	}{
		{"Fabrk's", fabrks, signer.Body([]byte(fabrks)), "d1", http.StatusNoContent},
		{"Fabrk's, retried", fabrks, signer.Body([]byte(fabrks)), "d1", http.StatusNoContent},
		{"Fabrk's next", fabrks, signer.Body([]byte(fabrks)), "d2", http.StatusNoContent},
		{"walhook's", walhooks, signer.Body([]byte(walhooks)), "d3", http.StatusNoContent},
		{"walhook's, captured and given another id", walhooks, signer.Body([]byte(walhooks)), "d4", http.StatusNoContent},
		{"not signed", walhooks, "", "d5", http.StatusUnauthorized},
		{"cut", walhooks, signer.Body([]byte(walhooks))[:63], "d6", http.StatusUnauthorized},
		{"of another body", fabrks, signer.Body([]byte(walhooks)), "d7", http.StatusUnauthorized},
		{"of no JSON", "{", signer.Body([]byte("{")), "d8", http.StatusInternalServerError},
		{"too large", strings.Repeat(" ", 1<<20) + "{}", "", "d9", http.StatusRequestEntityTooLarge},
	} {
		if got := r.answers(t, c.body, sign.HeaderBodySignature, c.signature, "X-Webhook-Delivery-ID", c.delivery, "X-Webhook-Event", "payment.succeeded"); got != c.want {
			t.Errorf("%s: answered %d, want %d", c.what, got, c.want)
		}
	}
	r.took(t, `/ payment.succeeded org_1 T {"n":1}`, `/ payment.succeeded org_1 T {"n":1}`, `/ payment.succeeded org_1 T {"n":2}`)
}

const moved = `org_1 URL1/hook_1 {org.member.added,payment.succeeded} t SECRET
org_2 URL2/hook_2 {payment.succeeded} t ANOTHER
org_1 URL1/hook_disabled {payment.succeeded} f it was disabled in Fabrk SECRET
org_1 payment.succeeded {"paymentId": "crashed"} 2026-11-23 12:00:00.123 URL1/hook_1
org_1 payment.succeeded {"paymentId": "failed"} 2026-11-23 12:00:00.123 URL1/hook_1
crashed failed moved to walhook as event
failed failed moved to walhook as event
given_up failed
held_back failed retry
in_flight pending
succeeded success`

func TestMigrate(t *testing.T) {
	t.Parallel()
	one, two := newReceiver(t, secret), newReceiver(t, another)
	f := newFabrk(t, one.url, two.url)
	f.move(t, "moved 3 endpoints and 2 deliveries; 1 deliveries may be in flight", `"Webhook" hook_nothing subscribes to nothing, and is not moved`,
		`"Webhook" hook_null subscribes to nothing`, `"Webhook" hook_1 has an http:// URL: walhook sends there only with WALHOOK_ALLOW_HTTP=true`)
	want := f.urls.Replace(moved)
	if got := f.state(t); got != want {
		t.Fatalf("moved were\n%s\nwant\n%s", got, want)
	}
	f.move(t, "moved 0 endpoints and 0 deliveries; 1 deliveries may be in flight")
	if got := f.state(t); got != want {
		t.Fatalf("moved again were\n%s\nwant\n%s", got, want)
	}

	f.run(t)
	const moved = `/hook_1 payment.succeeded org_1 2026-11-23T12:00:00.123Z {"paymentId":`
	want1 := []string{moved + `"failed"}`, moved + `"crashed"}`}
	one.took(t, want1...)

	// The application now inserts its events itself, and what Fabrk had in flight has failed.
	f.mustScript(t, `INSERT INTO webhook_outbox (organization_id, event_type, payload, created_at) VALUES
		('org_1', 'org.member.added',  '{"memberId": "m_1"}', '2026-11-24 12:00:00Z'),
		('org_2', 'payment.succeeded', '{"amount": 5000}',    '2026-11-24 12:00:00Z')`)
	want1 = append(want1, `/hook_1 org.member.added org_1 2026-11-24T12:00:00.000Z {"memberId":"m_1"}`)
	one.took(t, want1...)
	two.took(t, `/hook_2 payment.succeeded org_2 2026-11-24T12:00:00.000Z {"amount":5000}`)
	f.mustScript(t, `UPDATE "WebhookDelivery" SET status = 'failed', "nextRetryAt" = now() WHERE id = 'in_flight'`)
	f.move(t, "moved 0 endpoints and 1 deliveries; 0 deliveries may be in flight")
	one.took(t, append(want1, moved+`"in_flight"}`)...)
}

// What cannot be moved is named, and nothing is moved.
func TestRefused(t *testing.T) {
	t.Parallel()
	f := newFabrk(t, "http://127.0.0.1:1", "http://127.0.0.1:2")
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
			"a large delivery", `UPDATE "WebhookDelivery" SET payload = jsonb_set(payload, '{data,paymentId}', to_jsonb(repeat('x', 262144))) WHERE id = 'failed'`,
			`these rows of Fabrk cannot be moved: "WebhookDelivery" failed: its "data" is longer than 256 KiB: nothing was moved`,
			`UPDATE "WebhookDelivery" SET payload = jsonb_set(payload, '{data,paymentId}', '"failed"') WHERE id = 'failed'`,
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
