package demo

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/outbox"
)

// Words of the promises, by which the tests know them.
const (
	isThere     = "is in the outbox"
	isNowhere   = "rolled back"
	subscribers = "who subscribes"
	endWell     = "has its row"
	attempts    = "took one attempt"
	duplicates  = "came again"
	signatures  = "signatures"
	sameBytes   = "same bytes"
	apart       = "another's event"
	told        = "was told so"
)

// wantBroken wants exactly the promises with these words to be broken.
func wantBroken(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, p := range promises {
		want := slices.ContainsFunc(words, func(word string) bool { return strings.Contains(p.says, word) })
		if got := errors.Is(err, p); got != want {
			t.Errorf("broken %t, want %t: %s", got, want, p.says)
		}
	}
	if t.Failed() {
		t.Logf("the error: %v", err)
	}
}

// tables stand in front of walhook's own, so that anything can be written into them.
const tables = `
CREATE TEMP TABLE webhook_outbox (id uuid, organization_id text, event_type text, payload jsonb, endpoint_ids uuid[]);
CREATE TEMP TABLE webhook_deliveries (id uuid, event_id uuid, endpoint_id uuid, organization_id text, event_type text, status text, attempts int);
CREATE TEMP TABLE webhook_attempts (delivery_id uuid)`

// happen is what committed events do when all goes well: what is owed, rows,
// attempts, requests, and the events of those that failed.
const happen = `
INSERT INTO webhook_outbox SELECT id, organization, event_type, '{"demo": true}' FROM enqueued WHERE NOT rolled_back;
INSERT INTO webhook_outbox SELECT webhook_uuidv7(), o.organization_id, 'webhook.delivery.exhausted', jsonb_build_object('deliveryId', webhook_delivery_id(o.id, x.endpoint_id))
	FROM webhook_outbox AS o JOIN expected AS x ON x.organization = o.organization_id AND pg_temp.wants(x.types, o.event_type) WHERE x.status = 'failed';
UPDATE webhook_outbox AS o SET endpoint_ids = ARRAY (
	SELECT x.endpoint_id FROM expected AS x WHERE x.organization = o.organization_id AND pg_temp.wants(x.types, o.event_type));
INSERT INTO webhook_deliveries SELECT webhook_delivery_id(o.id, x.endpoint_id), o.id, x.endpoint_id, o.organization_id, o.event_type, x.status, x.attempts
	FROM webhook_outbox AS o JOIN expected AS x ON x.endpoint_id = ANY (o.endpoint_ids);
INSERT INTO webhook_attempts SELECT id FROM webhook_deliveries, generate_series(1, attempts);
INSERT INTO arrived SELECT nth, d.endpoint_id, d.id, nth, o.id, o.event_type, o.organization_id, o.payload::text, o.payload::text,
	CASE WHEN nth = d.attempts - 1 AND d.status = 'success' THEN 204 ELSE 500 END
	FROM webhook_deliveries AS d JOIN webhook_outbox AS o ON o.id = d.event_id, generate_series(0, d.attempts - 1) AS nth`

// ideal is what everyone knows when all went well.
func ideal(t *testing.T) *pgx.Conn {
	t.Helper()
	db, err := pgx.Connect(t.Context(), pgtest.New(t).URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close(context.Background()) })
	run(t, db, tables)
	run(t, db, remember)
	for _, s := range subscriptions {
		r := roles[slices.IndexFunc(roles, func(r role) bool { return r.name == s.receiver })]
		run(t, db, `INSERT INTO expected VALUES ($1, $2, $3, $4, $5, $6)`, uuid.New(), s.organization, s.receiver, s.types, r.status, r.attempts)
	}
	for _, tx := range transactions {
		for _, name := range tx.names() {
			run(t, db, `INSERT INTO enqueued VALUES ($1, $2, $3, $4)`, uuid.Must(uuid.NewV7()), tx.organization, name, tx.rollBack)
		}
	}
	run(t, db, happen)
	return db
}

func run(t *testing.T, db *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if len(args) == 0 {
		args = []any{pgx.QueryExecModeSimpleProtocol} // several statements
	}
	if _, err := db.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestPromises(t *testing.T) {
	t.Parallel()
	const (
		one   = ` = (SELECT d.id FROM webhook_deliveries AS d JOIN expected AS x USING (endpoint_id) WHERE x.receiver = `
		limit = ` ORDER BY d.id LIMIT 1)`
	)
	db := ideal(t)
	broken := map[string]bool{}
	for _, c := range []struct {
		name, spoil string
		breaks      []string
	}{
		{"all is well", ``, nil},
		{"nothing happened", `TRUNCATE enqueued, expected, arrived, webhook_outbox, webhook_deliveries, webhook_attempts`,
			[]string{isThere, isNowhere, subscribers, endWell, attempts, duplicates, signatures, sameBytes, apart, told}},
		{"a committed event is gone", `INSERT INTO enqueued VALUES (gen_random_uuid(), 'acme', 'org.created', false)`, []string{isThere}},
		{"an event of nobody", `INSERT INTO webhook_outbox VALUES (gen_random_uuid(), 'other', 'org.created', '{}', '{}')`, []string{isThere}},
		{"an event of another type", `UPDATE enqueued SET event_type = 'org.deleted' WHERE event_type = 'org.created'`, []string{isThere}},
		{"a rolled back event has a row", `UPDATE webhook_deliveries SET event_id = (SELECT id FROM enqueued WHERE rolled_back LIMIT 1)
			WHERE id` + one + `'steady'` + limit, []string{isNowhere, endWell, attempts, duplicates}},
		{"a rolled back event arrived", `INSERT INTO arrived SELECT 0, endpoint_id, gen_random_uuid(), 0, e.id, e.event_type, e.organization, '{}', '{}', 204
			FROM enqueued AS e JOIN expected USING (organization) WHERE rolled_back LIMIT 1`, []string{isNowhere, duplicates, sameBytes}},
		{"owed to too few", `UPDATE webhook_outbox SET endpoint_ids = endpoint_ids[2:] WHERE event_type = 'org.created'`, []string{subscribers, endWell, duplicates}},
		{"owed to a stranger", `UPDATE webhook_outbox SET endpoint_ids = endpoint_ids || gen_random_uuid() WHERE event_type = 'org.created'`, []string{subscribers}},
		{"owed to the other organization", `UPDATE webhook_outbox SET endpoint_ids = endpoint_ids || (SELECT endpoint_id FROM expected
			WHERE organization = 'acme' AND receiver = 'steady') WHERE event_type = 'org.created'`, []string{subscribers, endWell, attempts}},
		{"a row is missing", `DELETE FROM webhook_deliveries WHERE id` + one + `'steady'` + limit, []string{endWell, attempts, duplicates}},
		{"a row too many", `INSERT INTO webhook_deliveries SELECT gen_random_uuid(), gen_random_uuid(), endpoint_id, organization_id, event_type, status, attempts
			FROM webhook_deliveries WHERE id` + one + `'steady'` + limit, []string{endWell}},
		{"a row of another id", `UPDATE webhook_deliveries SET id = gen_random_uuid() WHERE id` + one + `'steady'` + limit, []string{endWell}},
		{"a row still retries", `UPDATE webhook_deliveries SET status = 'retrying' WHERE id` + one + `'flaky'` + limit, []string{endWell}},
		{"an attempt was not counted", `DELETE FROM webhook_attempts WHERE ctid IN (SELECT min(ctid) FROM webhook_attempts WHERE delivery_id` + one + `'flaky'` + limit + `);
			UPDATE webhook_deliveries SET attempts = attempts - 1 WHERE id` + one + `'flaky'` + limit, []string{attempts, duplicates}},
		{"an attempt is not listed", `DELETE FROM webhook_attempts WHERE delivery_id` + one + `'steady'` + limit, []string{attempts}},
		{"a delivery came twice", `INSERT INTO arrived SELECT * FROM arrived WHERE delivery_id` + one + `'steady'` + limit, []string{duplicates}},
		{"a delivery came again after its success", `UPDATE arrived SET status = 204 WHERE retry = 1 AND delivery_id` + one + `'flaky'` + limit, []string{duplicates}},
		{"a retry says that it is the first", `UPDATE arrived SET retry = 0 WHERE retry = 2 AND delivery_id` + one + `'silent'` + limit, []string{duplicates}},
		{"a request to nowhere", `INSERT INTO arrived (n, delivery_id) VALUES (0, gen_random_uuid())`, []string{duplicates}},
		{"a wrong signature", `UPDATE arrived SET problem = 'no signature matches' WHERE retry = 0 AND delivery_id` + one + `'silent'` + limit, []string{signatures}},
		{"other data", `UPDATE arrived SET data = '{}' WHERE delivery_id` + one + `'steady'` + limit, []string{sameBytes}},
		{"other bytes in a retry", `UPDATE arrived SET body = body || ' ' WHERE retry = 1 AND delivery_id` + one + `'flaky'` + limit, []string{sameBytes}},
		{"another's event", `UPDATE arrived SET endpoint_id = (SELECT endpoint_id FROM expected WHERE organization = 'globex' LIMIT 1)
			WHERE organization = 'acme'`, []string{apart}},
		{"a row at another's endpoint", `UPDATE webhook_deliveries SET organization_id = 'other' WHERE id` + one + `'steady'` + limit, []string{apart}},
		{"nobody was told of a failure", `UPDATE webhook_outbox AS o SET payload = (SELECT payload FROM webhook_outbox AS p
			WHERE p.event_type = o.event_type AND p.id <> o.id LIMIT 1) WHERE id = (SELECT max(id::text)::uuid FROM webhook_outbox
			WHERE event_type = 'webhook.delivery.exhausted')`, []string{told, sameBytes}},
		{"told of no failure", `INSERT INTO webhook_outbox VALUES (gen_random_uuid(), 'other', 'webhook.delivery.exhausted', '{"deliveryId": "?"}', '{}')`, []string{told}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tx, err := db.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context())
			run(t, db, c.spoil)
			var errs []error
			for _, p := range promises {
				_, err := p.judge(t.Context(), tx)
				errs = append(errs, err)
			}
			wantBroken(t, errors.Join(errs...), c.breaks...)
		})
		for _, word := range c.breaks {
			broken[word] = broken[word] || c.name != "nothing happened"
		}
	}
	for word, alone := range broken {
		if !alone {
			t.Errorf("nothing here breaks: %s", word)
		}
	}
	if len(broken) != len(promises) {
		t.Errorf("%d of %d promises are tried", len(broken), len(promises))
	}
}

func TestAtRest(t *testing.T) {
	t.Parallel()
	db := ideal(t)
	rests := func() (yes bool) {
		if err := db.QueryRow(t.Context(), atRest).Scan(&yes); err != nil {
			t.Fatal(err)
		}
		return yes
	}
	if !rests() {
		t.Error("the end is not at rest")
	}
	run(t, db, `UPDATE webhook_deliveries SET status = 'retrying' WHERE status = 'failed'`)
	if rests() {
		t.Error("a retry is at rest")
	}
	run(t, db, `DELETE FROM webhook_deliveries WHERE status = 'retrying'`)
	if rests() {
		t.Error("a delivery without a row is at rest")
	}
}

func TestWants(t *testing.T) {
	t.Parallel()
	db := ideal(t)
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*", "org.created", true},
		{"*", outbox.TypeTest, false},
		{"org.*", "org.member.added", true},
		{"org.member.*", "org.created", false},
		{"org.created", "org.created", true},
		{"webhook.*", outbox.TypeTest, true},
	} {
		var got bool
		if err := db.QueryRow(t.Context(), `SELECT pg_temp.wants(ARRAY[$1], $2)`, c.pattern, c.name).Scan(&got); err != nil {
			t.Fatal(err)
		}
		if got != c.want {
			t.Errorf("%s wants %s: %t", c.pattern, c.name, got)
		}
	}
}
