package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/postgres/pgtest"
)

func TestOutboxRefuses(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	newEndpoint(t, db.Pool, "org_2")

	for _, c := range []struct{ want, columns, values string }{
		{"is not a UUIDv7", "id", `NULL`},
		{"is not a UUIDv7", "id", `gen_random_uuid()`},
		{"is not a UUIDv7", "id", `overlay(webhook_uuidv7()::text placing 'c' from 20)::uuid`},
		{"more than an hour ahead", "id", `overlay(webhook_uuid_at(now() + interval '61 minutes')::text placing '7000-8' from 15)::uuid`},
		{"organization_id is null, empty", "organization_id", `NULL`},
		{"organization_id is null, empty", "organization_id", `''`},
		{"organization_id is null, empty", "organization_id", `'  '`},
		{"organization_id is null, empty", "organization_id", `repeat('x', 513)`},
		{"event_type 'payment.suceeded' is not a known event type", "event_type", `'payment.suceeded'`},
		{"event_type null is not a known event type", "event_type", `NULL`},
		{"event_type '*' is not a known event type", "event_type", `'*'`},
		{"payload is null", "payload", `NULL`},
		{"payload is 262145 bytes as text", "payload", `to_jsonb(repeat('x', 262143))`},
		{"bytes as text, more than 256 KiB", "payload", `to_jsonb((SELECT array_agg(1e100000::numeric) FROM generate_series(1, 3)))`},
		{"created_at infinity is not a time", "created_at", `'infinity'`},
		{"is not a time that can be sent", "created_at", `'-infinity'`},
		{"is not an endpoint of organization 'org_1'", "endpoint_ids", `ARRAY(SELECT id FROM webhook_endpoints)`},
		{"is not an endpoint of organization 'org_1'", "endpoint_ids", `ARRAY[gen_random_uuid()]`},
		{"null is not an endpoint of organization", "endpoint_ids", `ARRAY[NULL, '` + endpoint + `']::uuid[]`},
	} {
		values := map[string]string{"organization_id": `'org_1'`, "event_type": `'payment.failed'`, "payload": `'{}'`}
		values[c.columns] = c.values
		var names, texts []string
		for name, text := range values {
			names, texts = append(names, name), append(texts, text)
		}
		refused(t, db.Pool, c.want, fmt.Sprintf(`INSERT INTO webhook_outbox (%s) VALUES (%s)`, strings.Join(names, ", "), strings.Join(texts, ", ")))
	}
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_outbox`); n != 0 {
		t.Errorf("%d refused events are in the outbox", n)
	}

	event := newEvent(t, db.Pool, "org_1", "payment.failed")
	refused(t, db.Pool, "an event cannot be changed", `UPDATE webhook_outbox SET payload = '[]'`)
	refused(t, db.Pool, "an event cannot be changed", `UPDATE webhook_outbox SET id = webhook_uuidv7()`)
	partition := query[string](t, db.Pool, `SELECT tableoid::regclass::text FROM webhook_outbox WHERE id = $1`, event)
	refused(t, db.Pool, "an event cannot be changed", `UPDATE `+partition+` SET payload = '[]'`)
	exec(t, db.Pool, `DELETE FROM webhook_outbox WHERE id = $1`, event)
}

func TestOutboxAccepts(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)

	for what, sql := range map[string]string{
		"the largest payload":     `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('o', 'payment.failed', to_jsonb(repeat('x', 262142)))`,
		"any JSON":                `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('o', 'payment.failed', 'null'), ('o', 'payment.failed', '1')`,
		"nulls where we decide":   `INSERT INTO webhook_outbox (organization_id, event_type, payload, created_at, endpoint_ids, shard) VALUES ('o', 'payment.failed', '{}', NULL, NULL, NULL)`,
		"defaults where mappers":  `INSERT INTO webhook_outbox (id, organization_id, event_type, payload, created_at, endpoint_ids, shard) VALUES (DEFAULT, 'o', 'payment.failed', '{}', DEFAULT, DEFAULT, DEFAULT)`,
		"an id of the past":       `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ('01800000-0000-7000-8000-000000000000', 'o', 'payment.failed', '{}')`,
		"an id of half an hour":   `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES (overlay(webhook_uuid_at(now() + interval '30 minutes')::text placing '7000-b' from 15)::uuid, 'o', 'payment.failed', '{}')`,
		"a type of one's own":     `WITH t AS (INSERT INTO webhook_event_types VALUES ('invoice.paid', 'invoice')) SELECT`,
		"an event of that":        `INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'o', 'payment.failed', '{}'`,
		"nothing where it exists": `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) SELECT id, 'o', 'payment.failed', '{}' FROM webhook_outbox ON CONFLICT (id) DO NOTHING`,
	} {
		if _, err := db.Pool.Exec(t.Context(), sql); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	newEvent(t, db.Pool, "o", "invoice.paid")

	for _, replica := range []bool{false, true} {
		tx := begin(t, db.Pool)
		endpoint := newEndpoint(t, tx, "copied")
		if replica {
			exec(t, tx, `SET LOCAL session_replication_role = replica`)
		}
		n, err := tx.CopyFrom(t.Context(), pgx.Identifier{"webhook_outbox"}, []string{"organization_id", "event_type", "payload"},
			pgx.CopyFromRows([][]any{{"copied", "org.created", "{}"}, {"copied", "api_key.rotated", "[]"}}))
		if err != nil || n != 2 {
			t.Fatalf("COPY: %d, %v", n, err)
		}
		got := column[[]string](t, tx, `SELECT endpoint_ids::text[] FROM webhook_outbox WHERE organization_id = 'copied'`)
		if len(got) != 2 || !slices.Equal(got[0], []string{endpoint}) || !slices.Equal(got[1], []string{endpoint}) {
			t.Errorf("COPY, replica %t: owed to %q, want %s", replica, got, endpoint)
		}
		if _, err = tx.CopyFrom(t.Context(), pgx.Identifier{"webhook_outbox"}, []string{"organization_id", "event_type", "payload"},
			pgx.CopyFromRows([][]any{{"copied", "typo", "{}"}})); err == nil {
			t.Errorf("COPY, replica %t: an unknown type was accepted", replica)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhoIsOwed(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db.Pool, `INSERT INTO webhook_event_types (name, category) VALUES ('paymentx', 'x'), ('payment', 'x'), ('payment.failed.twice', 'payment'), ('internal.ping', 'webhook')`)

	subscriptions := []string{"*", "payment.*", "payment.failed", "payment", "org.*", "org.member.*", "org.member.added", "webhook.*", "webhook.test", "internal.ping"}
	endpoints := map[string]string{}
	for _, s := range subscriptions {
		endpoints[newEndpoint(t, db.Pool, "org_1", s)] = s
	}
	newEndpoint(t, db.Pool, "org_2")
	exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = false WHERE id::text = $1`, newEndpoint(t, db.Pool, "org_1"))

	for event, want := range map[string][]string{
		"payment.failed":       {"*", "payment.*", "payment.failed"},
		"payment.failed.twice": {"*", "payment.*"},
		"payment":              {"*", "payment"},
		"paymentx":             {"*"},
		"org.created":          {"*", "org.*"},
		"org.member.added":     {"*", "org.*", "org.member.*", "org.member.added"},
		"api_key.created":      {"*"},
		"webhook.test":         {"webhook.*", "webhook.test"},
		"internal.ping":        {"internal.ping"},
	} {
		var got []string
		for _, id := range query[[]string](t, db.Pool, `SELECT endpoint_ids::text[] FROM webhook_outbox WHERE id = $1`, newEvent(t, db.Pool, "org_1", event)) {
			got = append(got, endpoints[id])
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s is owed to %q, want %q", event, got, want)
		}
	}

	nobody := newEvent(t, db.Pool, "org_3", "payment.failed")
	if got := query[string](t, db.Pool, `SELECT endpoint_ids::text FROM webhook_outbox WHERE id = $1`, nobody); got != "{}" {
		t.Errorf("an organization without endpoints: %s", got)
	}

	// Named by the application: no subscription needed, not even enabled; once each.
	for id := range endpoints {
		exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = false WHERE id::text = $1`, id)
		if got := query[string](t, db.Pool, `INSERT INTO webhook_outbox (organization_id, event_type, payload, endpoint_ids)
			VALUES ('org_1', 'webhook.test', '{}', ARRAY[$1, $1]::text[]::uuid[]) RETURNING endpoint_ids::text`, id); got != "{"+id+"}" {
			t.Errorf("named twice %s: %s", id, got)
		}
	}

	if bad := query[int](t, db.Pool, `SELECT count(*) FROM webhook_outbox WHERE shard NOT BETWEEN 0 AND 1023`); bad != 0 {
		t.Errorf("%d rows with a shard out of range", bad)
	}
	if n := query[int](t, db.Pool, `SELECT count(DISTINCT shard) FROM webhook_outbox WHERE organization_id = 'org_1'`); n != 1 {
		t.Errorf("one organization in %d shards", n)
	}
}

func TestOwnEventTypesStay(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db.Pool, `INSERT INTO webhook_event_types (name, category) VALUES ('invoice.paid', 'invoice')`)
	for _, sql := range []string{
		`DELETE FROM webhook_event_types`,
		`DELETE FROM webhook_event_types WHERE name = 'webhook.endpoint.disabled'`,
		`UPDATE webhook_event_types SET name = 'webhook.off' WHERE name = 'webhook.endpoint.disabled'`,
		`UPDATE webhook_event_types SET name = 'off', category = 'mine' WHERE category = 'webhook'`,
		`TRUNCATE webhook_event_types`,
	} {
		if _, err := db.Pool.Exec(t.Context(), sql); err == nil || !strings.Contains(err.Error(), "webhook_event_types") {
			t.Errorf("%s: %v", sql, err)
		}
	}
	exec(t, db.Pool, `UPDATE webhook_event_types SET description = 'of mine' WHERE category = 'webhook'`)
	exec(t, db.Pool, `DELETE FROM webhook_event_types WHERE category <> 'webhook'`)
}
