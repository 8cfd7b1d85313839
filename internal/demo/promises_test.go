package demo

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/oracle"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/outbox"
)

// Parts of the promises, by which the tests know them.
const (
	isThere = "outbox holds exactly"
	nowhere = "no receiver got what it is not owed"
	endWell = "has its row"
	took    = "took one attempt"
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

func TestPromises(t *testing.T) {
	t.Parallel()
	for _, p := range promises {
		v := &oracle.Verdict{Events: 1, Deliveries: 1, Requests: 1}
		if err := p.judge(v); err != nil {
			t.Errorf("nothing was broken, got %v", err)
		}
		if err := p.judge(&oracle.Verdict{}); !errors.Is(err, p) {
			t.Errorf("kept, with nothing to judge: %s", p.says)
		}
		for _, rule := range p.rules {
			v := *v
			for range problemsShown + 2 {
				v.Found(rule, "a case")
			}
			if err := p.judge(&v); !errors.Is(err, p) || !strings.HasSuffix(err.Error(), ": a case; a case; a case; and 2 more") {
				t.Errorf("%s: %v", rule, err)
			}
		}
	}
}

// Every rule belongs to a promise.
func TestPromisesHaveAllRules(t *testing.T) {
	t.Parallel()
	var rules []oracle.Rule
	for _, p := range promises {
		rules = append(rules, p.rules...)
	}
	for _, rule := range append(slices.Collect(maps.Keys(queries)), oracle.Rules...) {
		if !slices.Contains(rules, rule) {
			t.Errorf("no promise has the rule: %s", rule)
		}
	}
}

func TestEveryTypeIsCommitted(t *testing.T) {
	t.Parallel()
	var committed []string
	for _, tx := range transactions {
		if !tx.rollBack {
			committed = append(committed, tx.names()...)
		}
	}
	for _, one := range outbox.EventTypes {
		if !strings.HasPrefix(one.Name, "webhook.") && !slices.Contains(committed, one.Name) {
			t.Errorf("no %s is committed", one.Name)
		}
	}
}

func TestSubscriptionsCompare(t *testing.T) {
	t.Parallel()
	for _, s := range subscriptions {
		r := roleOf(roles, s.receiver)
		v := &oracle.Verdict{}
		s.compare(v, oracle.Row{Status: r.status, Attempts: r.attempts})
		if err := v.Err(); err != nil {
			t.Error(err)
		}
		s.compare(v, oracle.Row{Status: "retrying", Attempts: r.attempts + 1})
		if len(v.Problems(undeserved)) != 1 || len(v.Problems(miscounted)) != 1 {
			t.Errorf("the row of a %s delivery that has not ended: %v", s.receiver, v.Err())
		}
	}
}

// tables hide walhook's own, so that a test can write anything into them. One delivery
// failed after two attempts, one succeeded after one.
const tables = `
CREATE TEMP TABLE webhook_outbox (id uuid, event_type text, payload jsonb, endpoint_ids uuid[]);
CREATE TEMP TABLE webhook_deliveries (id uuid, event_id uuid, endpoint_id uuid, organization_id text, event_type text, status text, attempts int);
CREATE TEMP TABLE webhook_attempts (delivery_id uuid);
INSERT INTO webhook_deliveries SELECT gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'acme', 'org.created', status, attempts
	FROM (VALUES ('failed', 2), ('success', 1)) AS row (status, attempts);
INSERT INTO webhook_attempts SELECT id FROM webhook_deliveries, generate_series(1, attempts);
INSERT INTO webhook_outbox SELECT event_id, event_type, '{}', ARRAY[endpoint_id] FROM webhook_deliveries;
INSERT INTO webhook_outbox SELECT gen_random_uuid(), 'webhook.delivery.exhausted', jsonb_build_object('deliveryId', id), '{}'
	FROM webhook_deliveries WHERE status = 'failed'`

// withTables returns a connection on which the tables exist.
func withTables(t *testing.T) *pgx.Conn {
	t.Helper()
	db, err := pgx.Connect(t.Context(), pgtest.New(t).URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close(context.Background()) })
	run(t, db, tables)
	return db
}

func run(t *testing.T, db *pgx.Conn, sql string) {
	t.Helper()
	if _, err := db.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestQueries(t *testing.T) {
	t.Parallel()
	db := withTables(t)
	for _, c := range []struct {
		name, spoil string
		breaks      oracle.Rule
	}{
		{"all is well", ``, ""},
		{"an attempt is not listed", `DELETE FROM webhook_attempts WHERE ctid IN (SELECT min(ctid) FROM webhook_attempts)`, unlisted},
		{"no attempt is listed", `TRUNCATE webhook_attempts`, unlisted},
		{"an attempt is listed twice", `INSERT INTO webhook_attempts SELECT min(delivery_id::text)::uuid FROM webhook_attempts`, unlisted},
		{"nobody was told of a failure", `DELETE FROM webhook_outbox WHERE event_type = 'webhook.delivery.exhausted'`, untold},
		{"told twice of a failure", `INSERT INTO webhook_outbox SELECT * FROM webhook_outbox WHERE event_type = 'webhook.delivery.exhausted'`, untold},
		{"told of a success", `UPDATE webhook_deliveries SET status = 'success'`, untold},
		{"told of no delivery", `INSERT INTO webhook_outbox VALUES (gen_random_uuid(), 'webhook.delivery.exhausted', '{"deliveryId": "?"}', '{}')`, untold},
	} {
		t.Run(c.name, func(t *testing.T) {
			tx, err := db.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context())
			run(t, db, c.spoil)
			v := &oracle.Verdict{}
			if err := query(t.Context(), tx, v); err != nil {
				t.Fatal(err)
			}
			for rule := range queries {
				if broken := len(v.Problems(rule)) > 0; broken != (rule == c.breaks) {
					t.Errorf("broken %t: %s", broken, rule)
				}
			}
		})
	}
}

func TestAtRest(t *testing.T) {
	t.Parallel()
	db := withTables(t)
	for _, c := range []struct {
		spoil string
		rests bool
	}{
		{`DELETE FROM webhook_outbox WHERE endpoint_ids = '{}'`, true},
		{`UPDATE webhook_deliveries SET status = 'retrying' WHERE status = 'failed'`, false},
		{`DELETE FROM webhook_deliveries WHERE status = 'retrying'`, false},
	} {
		run(t, db, c.spoil)
		var rests bool
		if err := db.QueryRow(t.Context(), atRest).Scan(&rests); err != nil {
			t.Fatal(err)
		}
		if rests != c.rests {
			t.Errorf("at rest %t, after %s", rests, c.spoil)
		}
	}
}
