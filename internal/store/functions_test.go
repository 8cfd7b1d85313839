package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

func newEndpoint(t testing.TB, q querier, organization string, eventTypes ...string) string {
	t.Helper()
	if eventTypes == nil {
		eventTypes = []string{"*"}
	}
	return query[string](t, q, `INSERT INTO webhook_endpoints (organization_id, url, event_types) VALUES ($1, 'https://example.com/hook', $2) RETURNING id::text`,
		organization, eventTypes)
}

func newEvent(t testing.TB, q querier, organization, eventType string) string {
	t.Helper()
	return query[string](t, q, `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ($1, $2, '{}') RETURNING id::text`, organization, eventType)
}

// newDelivery writes the row of a delivery that had one attempt, unless it is pending.
func newDelivery(t testing.TB, q querier, event, endpoint, status string) string {
	t.Helper()
	return query[string](t, q, `
		INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, next_attempt_at, duration_ms)
		SELECT webhook_delivery_id(o.id, $2::text::uuid), o.id, $2::text::uuid, o.organization_id, o.event_type, $3,
		       CASE WHEN $3 = 'pending' THEN 0 ELSE 1 END, CASE WHEN $3 IN ('pending', 'retrying') THEN now() END, 35
		FROM webhook_outbox o WHERE o.id = $1::text::uuid RETURNING id::text`, event, endpoint, status)
}

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

func TestEndpointsRefuse(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)

	for url, want := range map[string]string{
		"":                                     "it is empty",
		"example.com":                          "does not start with",
		"ftp://example.com":                    "does not start with",
		"javascript://example.com":             "does not start with",
		"https://":                             "no host",
		"https:///path":                        "no host",
		"https://:443/":                        "no host",
		"https://[]/":                          "no host",
		"https://[::zz]/":                      "cannot be read",
		"https://[1:2]/":                       "not an IPv6 address",
		"https://::1/":                         "no host",
		"https://user@example.com/":            "user or password",
		"https://user:pw@example.com/":         "user or password",
		"https://example.com/#top":             "fragment",
		"https://exa mple.com/":                "blank",
		"https://example.com/\n":               "blank",
		"https://example.com/\x7f":             "blank",
		"https://exämple.com/":                 "beyond ASCII",
		"https://exam%70le.com/":               "not a host name",
		"https://a..b/":                        "not a host name",
		"https://example.com:0/":               "port",
		"https://example.com:65536/":           "port",
		"https://example.com:http/":            "port",
		"https://example.com:/":                "port",
		`https://example.com\@evil.com/`:       "percent-encoded",
		"https://example.com/%zz":              "percent-encoded",
		"https://" + strings.Repeat("a", 2048): "longer than 2048",
	} {
		refused(t, db.Pool, want, `INSERT INTO webhook_endpoints (organization_id, url) VALUES ('o', $1)`, url)
	}
	for _, url := range []string{
		"https://example.com", "http://example.com:8080/a/b?c=d&e=%20", "HTTPS://EXAMPLE.COM/", "https://[::1]:9/x", "https://10.0.0.1/", "http://localhost:65535",
		"https://my_host.internal./x", "https://xn--exmple-cua.com/~a/@b?u=x@y", "https://example.com?x",
	} {
		exec(t, db.Pool, `INSERT INTO webhook_endpoints (organization_id, url) VALUES ('o', $1)`, url)
	}

	many := map[string]string{}
	for i := range 33 {
		many[fmt.Sprint("X-", i)] = ""
	}
	encoded, _ := json.Marshal(many)
	for headers, want := range map[string]string{
		`[]`:                          "not a JSON object",
		`null`:                        "not a JSON object",
		`{"": "x"}`:                   "not a header name",
		`{"X Y": "x"}`:                "not a header name",
		`{"X:": "x"}`:                 "not a header name",
		`{"Ü": "x"}`:                  "not a header name",
		`{"Content-Type": "x"}`:       "set by walhook",
		`{"content-length": "1"}`:     "set by walhook",
		`{"USER-AGENT": "x"}`:         "set by walhook",
		`{"X-Webhook-Foo": "x"}`:      "set by walhook",
		`{"webhook-id": "x"}`:         "set by walhook",
		`{"Host": "x"}`:               "belongs to the connection",
		`{"Connection": "x"}`:         "belongs to the connection",
		`{"Keep-Alive": "x"}`:         "belongs to the connection",
		`{"Proxy-Authorization": ""}`: "belongs to the connection",
		`{"TE": "x"}`:                 "belongs to the connection",
		`{"Trailer": "x"}`:            "belongs to the connection",
		`{"Transfer-Encoding": "x"}`:  "belongs to the connection",
		`{"Upgrade": "x"}`:            "belongs to the connection",
		`{"X": 1}`:                    "the value of X is not text",
		`{"X": null}`:                 "the value of X is not text",
		`{"X": "a\r\nb"}`:             "control character",
		`{"X": "a\u007f"}`:            "control character",
		`{"X": "a", "x": "b"}`:        "there twice",
		`{"X": "` + strings.Repeat("a", 4096) + `"}`: "4 KiB",
		string(encoded): "more than 32",
	} {
		refused(t, db.Pool, want, `INSERT INTO webhook_endpoints (organization_id, url, headers) VALUES ('o', 'https://example.com', $1::text::jsonb)`, headers)
	}
	exec(t, db.Pool, `INSERT INTO webhook_endpoints (organization_id, url, headers) VALUES ('o', 'https://example.com', '{"Authorization": "Bearer ü", "X-Empty": ""}')`)

	for types, want := range map[string]string{
		`{}`:                  "event_types is null or empty",
		`{payment.suceeded}`:  "; known types: api_key.created, ",
		`{pay.*}`:             "'pay.*' matches nothing",
		`{payment*}`:          "'payment*' matches nothing",
		`{*.failed}`:          "'*.failed' matches nothing",
		`{payment.failed.*}`:  "'payment.failed.*' matches nothing",
		`{payment.failed,""}`: "'' matches nothing",
		`{NULL}`:              "a null entry matches nothing",
	} {
		refused(t, db.Pool, want, `INSERT INTO webhook_endpoints (organization_id, url, event_types) VALUES ('o', 'https://example.com', $1::text::text[])`, types)
	}
	refused(t, db.Pool, "event_types is null or empty", `INSERT INTO webhook_endpoints (organization_id, url, event_types) VALUES ('o', 'https://example.com', NULL)`)
	refused(t, db.Pool, "organization_id is null, empty", `INSERT INTO webhook_endpoints (organization_id, url) VALUES ('', 'https://example.com')`)
	for _, c := range []string{"max_in_flight = 0", "max_in_flight = 1001", "rate_per_second = 0", "rate_per_second = -1", "rate_per_second = 'NaN'", "rate_per_second = 'infinity'"} {
		refused(t, db.Pool, "is out of bounds", `UPDATE webhook_endpoints SET `+c)
	}

	refused(t, db.Pool, "is not usable", `UPDATE webhook_endpoints SET url = 'nonsense'`)
	refused(t, db.Pool, "are not usable", `UPDATE webhook_endpoints SET headers = '{"Host": "x"}'`)
	refused(t, db.Pool, "matches nothing", `UPDATE webhook_endpoints SET event_types = '{x}'`)
	refused(t, db.Pool, "cannot be changed", `UPDATE webhook_endpoints SET organization_id = 'other'`)
	refused(t, db.Pool, "cannot be changed", `UPDATE webhook_endpoints SET id = gen_random_uuid()`)
	refused(t, db.Pool, "webhook_event_types_names_of_walhook", `INSERT INTO webhook_event_types (name, category) VALUES ('webhook.mine', 'mine')`)
	refused(t, db.Pool, "webhook_event_types_name_is_dotted_words", `INSERT INTO webhook_event_types (name, category) VALUES ('payment.*', 'mine')`)

	t.Run("an old row can be disabled whatever the rules say today", func(t *testing.T) {
		endpoint := newEndpoint(t, db.Pool, "o", "payment.failed")
		exec(t, db.Pool, `DELETE FROM webhook_event_types WHERE name = 'payment.failed'`)
		exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = false WHERE id = $1`, endpoint)
	})
}

func TestEndpointState(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	state := func() string {
		return query[string](t, db.Pool, `SELECT format('%s %s %s', enabled, disabled_at IS NOT NULL, coalesce(disabled_reason, '-')) FROM webhook_endpoints WHERE id = $1`, endpoint)
	}
	for _, c := range []struct{ set, want string }{
		{`enabled = false`, "f t -"},
		{`disabled_reason = 'by hand'`, "f t by hand"},
		{`enabled = true`, "t f -"},
		{`enabled = false, disabled_at = '2026-01-01', disabled_reason = 'gone'`, "f t gone"},
		{`description = 'x'`, "f t gone"},
	} {
		exec(t, db.Pool, `UPDATE webhook_endpoints SET `+c.set)
		if got := state(); got != c.want {
			t.Errorf("after %s: got %s, want %s", c.set, got, c.want)
		}
	}
	if !query[bool](t, db.Pool, `SELECT disabled_at = '2026-01-01' AND updated_at > created_at FROM webhook_endpoints`) {
		t.Error("disabled_at was not kept, or updated_at not moved")
	}
}

func TestNotifications(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	event := newEvent(t, db.Pool, "org_1", "payment.failed")
	delivery := newDelivery(t, db.Pool, event, endpoint, "failed")

	exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
	const said = `SELECT count(*) FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'walhook', 'messages', 'true')
		WHERE encode(data, 'escape') LIKE '%walhook%` + store.Look + `'`
	for _, c := range []struct {
		sql  string
		want int
	}{
		{`UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now() WHERE id = '` + delivery + `'`, 1},
		{`BEGIN; SET LOCAL walhook.recording = 'on'; UPDATE webhook_deliveries SET attempts = 2; COMMIT`, 0},
		{`SELECT webhook_replay('` + delivery + `')`, 1},
		{`BEGIN; UPDATE webhook_deliveries SET status = 'failed'; ROLLBACK`, 0},
		{`UPDATE webhook_endpoints SET description = 'x'`, 0},
		{`UPDATE webhook_endpoints SET enabled = false`, 1},
		{`UPDATE webhook_endpoints SET enabled = false`, 0},
		{`UPDATE webhook_endpoints SET enabled = true`, 0},
		{`DELETE FROM webhook_endpoints`, 1},
	} {
		exec(t, db.Pool, c.sql)
		if got := query[int](t, db.Pool, said, db.Slot); got != c.want {
			t.Errorf("%s: said %d times, want %d", c.sql, got, c.want)
		}
	}
}

func TestSecrets(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	live := func() []string {
		return column[string](t, db.Pool, `SELECT secret FROM webhook_secrets WHERE endpoint_id = $1 AND (expires_at IS NULL OR expires_at > now()) ORDER BY created_at, id`, endpoint)
	}
	first := live()
	if len(first) != 1 || !regexp.MustCompile(`^whsec_[A-Za-z0-9+/]{43}=$`).MatchString(first[0]) {
		t.Fatalf("the secrets of a new endpoint: %q", first)
	}

	rotate := func(overlap string) string {
		return query[string](t, db.Pool, `SELECT webhook_rotate_secret($1, $2::text::interval)`, endpoint, overlap)
	}
	second := query[string](t, db.Pool, `SELECT webhook_rotate_secret($1)`, endpoint)
	if got := live(); !slices.Equal(got, []string{first[0], second}) {
		t.Errorf("after a rotation: %q", got)
	}
	if !query[bool](t, db.Pool, `SELECT expires_at BETWEEN now() + interval '23 hours' AND now() + interval '24 hours' FROM webhook_secrets WHERE secret = $1`, first[0]) {
		t.Error("the old secret does not live for the default overlap")
	}
	third := rotate("10 minutes")
	if got := live(); !slices.Equal(got, []string{second, third}) {
		t.Errorf("after a second rotation: %q", got)
	}
	fourth := rotate("0")
	if got := live(); !slices.Equal(got, []string{fourth}) {
		t.Errorf("after a rotation without overlap: %q", got)
	}
	refused(t, db.Pool, "there is no endpoint", `SELECT webhook_rotate_secret(gen_random_uuid())`)
	refused(t, db.Pool, "null or negative", `SELECT webhook_rotate_secret($1, '-1 second')`, endpoint)

	add := `INSERT INTO webhook_secrets (endpoint_id, secret) VALUES ($1, $2)`
	for _, secret := range []string{"16 characters ok", strings.Repeat("x", 256), strings.Repeat("0a", 32), "sealed:v1:" + strings.Repeat("A", 1012) + "=="} {
		exec(t, db.Pool, add, endpoint, secret)
	}
	for _, secret := range []string{"", "fifteen chars..", strings.Repeat("x", 257), "sixteen and a line\n", "sixteen and an ümlaut", "sealed:v1:!!!!!!!!!!!!!", "sealed:v2:AAAAAAAAAAAAAAA", "sealed:v1:" + strings.Repeat("A", 1015)} {
		refused(t, db.Pool, "webhook_secrets.secret is not usable", add, endpoint, secret)
	}
	exec(t, db.Pool, `DELETE FROM webhook_endpoints`)
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_secrets`); n != 0 {
		t.Errorf("%d secrets without their endpoint", n)
	}
}

func TestSecretsOfOnesOwn(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	const own = "4f6c1c1d1d9f5d6e2f3a0b9c8d7e6f5a4f6c1c1d1d9f5d6e2f3a0b9c8d7e6f5a" // as openssl rand -hex 32 prints it
	endpoint := query[string](t, db.Pool, `SELECT endpoint_id::text FROM webhook_create_endpoint('org_1', 'https://example.com', secret => $1) WHERE secret = $1`, own)
	live := func() []string {
		t.Helper()
		endpoints, err := store.New(db.Pool, db.Slot, 0).Endpoints(t.Context(), []uuid.UUID{uuid.MustParse(endpoint)})
		if err != nil {
			t.Fatal(err)
		}
		var live []string
		for _, secret := range endpoints[0].Secrets {
			live = append(live, string(secret))
		}
		return live
	}
	if got := live(); !slices.Equal(got, []string{own}) {
		t.Fatalf("an endpoint that was created with a secret has %q, and its own alone is to sign", got)
	}

	set := func(args string) []string {
		t.Helper()
		exec(t, db.Pool, `SELECT webhook_set_secret('`+endpoint+`', `+args+`)`)
		return live()
	}
	const second, third = "the second secret", "the third secret"
	for _, c := range []struct {
		args string
		want []string // oldest first: the first makes X-Webhook-Signature
	}{
		{"'" + second + "'", []string{second}},
		{"'" + third + "', '1 hour'", []string{second, third}},
		{"'" + third + "', '1 hour'", []string{second, third}},  // once more
		{"'" + second + "', '1 hour'", []string{third, second}}, // and back
		{"'" + second + "'", []string{second}},
		{"'" + own + "', '0'", []string{own}}, // one that was used before
	} {
		if got := set(c.args); !slices.Equal(got, c.want) {
			t.Errorf("after webhook_set_secret(%s): %q, want %q", c.args, got, c.want)
		}
	}
	t.Run("the one before signs during the overlap, and then no more", func(t *testing.T) {
		exec(t, db.Pool, `UPDATE webhook_secrets SET created_at = now() + interval '1 day'`) // the clock was set back
		if got := set("'" + third + "', '1 hour'"); !slices.Equal(got, []string{own, third}) {
			t.Errorf("the clock was set back: %q", got)
		}
		exec(t, db.Pool, `UPDATE webhook_secrets SET expires_at = expires_at - interval '61 minutes'`)
		if got := live(); !slices.Equal(got, []string{third}) {
			t.Errorf("after the overlap: %q", got)
		}
	})

	long := strings.Repeat("x", 257)
	for _, c := range []struct{ secret, want string }{
		{"fifteen chars..", "not 16 to 256 printable ASCII"}, {long, "not 16 to 256 printable ASCII"}, {"sixteen and an ümlaut", "not 16 to 256 printable ASCII"},
		{"sixteen and a line\n", "not 16 to 256 printable ASCII"}, {"sealed:v1:AAAAAAAAAAAA", "begins with sealed:"}, {"", "not 16 to 256"},
	} {
		for _, sql := range []string{`SELECT webhook_set_secret('` + endpoint + `', $1)`, `SELECT webhook_create_endpoint('org_1', 'https://example.com', secret => $1)`} {
			_, err := db.Pool.Exec(t.Context(), sql, c.secret)
			checkRefusal(t, err, c.want, sql)
			pg, _ := errors.AsType[*pgconn.PgError](err)
			if text := fmt.Sprint(pg.Message, pg.Detail, pg.Hint, pg.Where, pg.InternalQuery); c.secret != "" && strings.Contains(text, c.secret) {
				t.Errorf("the secret is in the error: %s", text)
			}
		}
	}
	refused(t, db.Pool, "it is null", `SELECT webhook_set_secret($1, NULL)`, endpoint)
	refused(t, db.Pool, "null or negative", `SELECT webhook_set_secret($1, $2, '-1 second')`, endpoint, own)
	refused(t, db.Pool, "null or negative", `SELECT webhook_set_secret($1, $2, NULL)`, endpoint, own)
	refused(t, db.Pool, "there is no endpoint", `SELECT webhook_set_secret(gen_random_uuid(), $1)`, own)
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_endpoints`); n != 1 {
		t.Errorf("%d endpoints: one that was refused stays", n)
	}
}

func TestCreateEndpointAndSendTest(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var endpoint, secret string
	if err := db.Pool.QueryRow(t.Context(), `SELECT endpoint_id::text, secret FROM webhook_create_endpoint('org_1', 'https://example.com/x')`).Scan(&endpoint, &secret); err != nil {
		t.Fatal(err)
	}
	if got := query[string](t, db.Pool, `SELECT format('%s %s %s', e.organization_id, e.url, e.event_types) FROM webhook_endpoints e JOIN webhook_secrets s ON s.endpoint_id = e.id
		WHERE e.id = $1 AND s.secret = $2`, endpoint, secret); got != "org_1 https://example.com/x {*}" {
		t.Errorf("got %s", got)
	}
	exec(t, db.Pool, `SELECT webhook_create_endpoint(organization_id => 'org_1', url => 'https://example.com/x', event_types => '{org.*}')`)
	refused(t, db.Pool, "is not usable", `SELECT webhook_create_endpoint('org_1', 'x')`)

	test := query[string](t, db.Pool, `SELECT webhook_send_test($1)::text`, endpoint)
	if got := query[string](t, db.Pool, `SELECT format('%s %s %s', organization_id, event_type, endpoint_ids) FROM webhook_outbox WHERE id = $1`, test); got != "org_1 webhook.test {"+endpoint+"}" {
		t.Errorf("the test event: %s", got)
	}
	exec(t, db.Pool, `SELECT webhook_send_test($1, 'payment.failed')`, endpoint)
	refused(t, db.Pool, "not a known event type", `SELECT webhook_send_test($1, 'x')`, endpoint)
	refused(t, db.Pool, "there is no endpoint", `SELECT webhook_send_test(gen_random_uuid())`)
}

func TestDeliveriesReplay(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint, other := newEndpoint(t, db.Pool, "org_1"), newEndpoint(t, db.Pool, "org_1")
	deliver := func(status string) string {
		event := newEvent(t, db.Pool, "org_1", "payment.failed")
		newDelivery(t, db.Pool, event, other, status)
		return newDelivery(t, db.Pool, event, endpoint, status)
	}
	success, failed, cancelled, retrying := deliver("success"), deliver("failed"), deliver("cancelled"), deliver("retrying")
	old := query[string](t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status)
		VALUES (webhook_uuid_at(now() - interval '3 days'), webhook_uuidv7(), $1, 'o', 't', 'failed') RETURNING id::text`, endpoint)
	pending := func() []string {
		return column[string](t, db.Pool, `SELECT id::text FROM webhook_deliveries WHERE status = 'pending' AND next_attempt_at <= now() AND attempts + (id = $2)::int = 1 AND endpoint_id = $1 ORDER BY id`, endpoint, old)
	}

	if got := query[int64](t, db.Pool, `SELECT webhook_replay_failed($1, now() - interval '1 hour')`, endpoint); got != 2 {
		t.Errorf("replayed %d, want 2", got)
	}
	want := []string{failed, cancelled}
	slices.Sort(want)
	if got := pending(); !slices.Equal(got, want) {
		t.Errorf("pending %q, want %q", got, want)
	}
	if got := query[int64](t, db.Pool, `SELECT webhook_replay_failed($1, now() - interval '4 days', now() - interval '2 days')`, endpoint); got != 1 {
		t.Errorf("replayed %d of an old day, want 1", got)
	}
	for _, id := range []string{success, retrying} {
		if !query[bool](t, db.Pool, `SELECT webhook_replay($1)`, id) {
			t.Error("webhook_replay says false")
		}
	}
	if query[bool](t, db.Pool, `SELECT webhook_replay(gen_random_uuid())`) {
		t.Error("webhook_replay of nothing says true")
	}
	if got := pending(); len(got) != 5 {
		t.Errorf("pending %q, want all five", got)
	}

	exec(t, db.Pool, `UPDATE webhook_deliveries SET status = 'cancelled'`)
	exec(t, db.Pool, `UPDATE webhook_deliveries SET status = 'failed', next_attempt_at = NULL`)
	refused(t, db.Pool, "waiting_needs_next_attempt_at", `UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = NULL`)
	refused(t, db.Pool, "waiting_needs_next_attempt_at", `UPDATE webhook_deliveries SET status = 'retrying'`)
	refused(t, db.Pool, "webhook_deliveries_status", `UPDATE webhook_deliveries SET status = 'done'`)
	refused(t, db.Pool, "webhook_deliveries_attempts", `UPDATE webhook_deliveries SET attempts = -1`)
}

func TestRetryNow(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint, other := newEndpoint(t, db.Pool, "org_1"), newEndpoint(t, db.Pool, "org_1")
	for i, status := range []string{"pending", "retrying", "retrying", "success", "failed", "cancelled"} {
		event := newEvent(t, db.Pool, "org_1", "payment.failed")
		newDelivery(t, db.Pool, event, other, status)
		exec(t, db.Pool, `UPDATE webhook_deliveries SET next_attempt_at = now() + $2 * interval '1 hour', attempts = 3, series_start = 1 WHERE id = $1 AND next_attempt_at IS NOT NULL`,
			newDelivery(t, db.Pool, event, endpoint, status), i)
	}
	exec(t, db.Pool, `UPDATE webhook_deliveries SET next_attempt_at = now() + interval '1 hour' WHERE endpoint_id = $1 AND next_attempt_at IS NOT NULL`, other)
	exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES ($1, now(), now())`, endpoint)
	look := func() store.Endpoint {
		t.Helper()
		found, err := store.New(db.Pool, db.Slot, 0).Endpoints(t.Context(), []uuid.UUID{uuid.MustParse(endpoint)})
		if err != nil {
			t.Fatal(err)
		}
		return found[0]
	}
	if e := look(); !e.BreakerOpen || e.RetriedAt.After(time.Unix(0, 0)) {
		t.Errorf("before: %+v", e)
	}

	// An operator's transaction holds nothing that recording waits for.
	tx := begin(t, db.Pool)
	if n := query[int64](t, tx, `SELECT webhook_retry_now($1)`, endpoint); n != 3 {
		t.Errorf("%d deliveries are due at once, want 3", n)
	}
	if held := column[string](t, tx, `SELECT format('%s %s', relation::regclass, mode) FROM pg_locks WHERE pid = pg_backend_pid() AND mode NOT IN ('AccessShareLock', 'RowShareLock')
		AND relation::regclass::text ~ '^webhook_(endpoint_failures|state)$'`); len(held) > 0 {
		t.Errorf("it holds %q", held)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := query[string](t, db.Pool, `SELECT string_agg(format('%s %s %s', status, attempts, series_start), ', ' ORDER BY status)
		FROM webhook_deliveries WHERE endpoint_id = $1 AND status IN ('pending', 'retrying') AND next_attempt_at <= now()`, endpoint); got != "pending 3 1, retrying 3 1, retrying 3 1" {
		t.Errorf("due: %s", got)
	}
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_deliveries WHERE endpoint_id = $1 AND next_attempt_at <= now()`, other); n != 0 {
		t.Errorf("%d of another endpoint are due", n)
	}
	first := look()
	if first.BreakerOpen || first.RetriedAt.Before(time.Unix(1, 0)) {
		t.Errorf("afterwards: %+v", first)
	}
	if n := query[int64](t, db.Pool, `SELECT webhook_retry_now($1)`, endpoint); n != 3 || !look().RetriedAt.After(first.RetriedAt) {
		t.Errorf("once more: %d", n)
	}
	exec(t, db.Pool, `UPDATE webhook_endpoint_failures SET breaker_opened_at = clock_timestamp()`)
	if !look().BreakerOpen {
		t.Error("a breaker that has opened since is closed")
	}
	refused(t, db.Pool, "there is no endpoint", `SELECT webhook_retry_now(gen_random_uuid())`)
	exec(t, db.Pool, `UPDATE webhook_retries SET asked_at = now() - interval '25 hours'`)
	exec(t, db.Pool, `SELECT webhook_delete_old(now() - interval '30 days', 10)`)
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_retries`); n != 0 {
		t.Errorf("%d calls of yesterday are kept", n)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	want := map[string]string{}
	all := func(reason string) string {
		id := newEndpoint(t, db.Pool, "org_1")
		want[id] = reason
		return id
	}
	none := all("owed: no outcome yet: its first attempt is under way or waits to be read from the WAL (no walhook is connected to the slot)")
	success, failed, pending, retrying, cancelled, replayed := all("owed: success"), all("owed: failed for good after attempt 1 (http_5xx 503)"),
		all("owed: waiting for its first attempt (no walhook is connected to the slot)"), all("owed: attempt 1 failed (timeout), the next is due at 2030-01-01 00:00:00+00 (its breaker is open since 2026-11-01 00:00:00+00: one probe at a time) (it gets at most 2.5 requests per second) (no walhook is connected to the slot)"),
		all("owed: cancelled, the endpoint was disabled or deleted (the endpoint is deleted)"), all("owed: waiting to be replayed (no walhook is connected to the slot)")
	want[newEndpoint(t, db.Pool, "org_1", "org.*")] = "not owed: not subscribed to payment.failed"
	disabled, enabledSince := all("not owed: disabled when the event was inserted"),
		all("not owed: disabled when the event was inserted, or not subscribed to payment.failed then, or the event named other endpoints")
	exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = false WHERE id = ANY ($1::text[]::uuid[])`, []string{disabled, enabledSince})

	event := newEvent(t, db.Pool, "org_1", "payment.failed")
	exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = true WHERE id = $1`, enabledSince)
	all("not owed: the endpoint was created after the event")
	newEndpoint(t, db.Pool, "org_2")
	for endpoint, status := range map[string]string{success: "success", failed: "failed", pending: "pending", retrying: "retrying", cancelled: "cancelled", replayed: "failed"} {
		newDelivery(t, db.Pool, event, endpoint, status)
	}
	exec(t, db.Pool, `UPDATE webhook_deliveries SET error_class = 'http_5xx', status_code = 503 WHERE status = 'failed'`)
	exec(t, db.Pool, `UPDATE webhook_deliveries SET error_class = 'timeout', next_attempt_at = '2030-01-01 00:00:00+00' WHERE status = 'retrying'`)
	exec(t, db.Pool, `SELECT webhook_replay(webhook_delivery_id($1, $2))`, event, replayed)
	exec(t, db.Pool, `DELETE FROM webhook_endpoints WHERE id = $1`, cancelled)
	exec(t, db.Pool, `UPDATE webhook_endpoints SET rate_per_second = 2.5 WHERE id IN ($1, $2)`, retrying, success)
	exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES ($1, '2026-11-01 00:00:00+00', '2026-11-01 00:00:00+00'), ($2, now(), now())`, retrying, success)
	if got := query[string](t, db.Pool, `SELECT array_to_string(proconfig, ' ') FROM pg_proc WHERE proname = 'webhook_explain'`); !strings.Contains(got, "jit=off") {
		t.Errorf("settings %q: with a million deliveries the JIT takes a second", got)
	}

	tx := begin(t, db.Pool)
	exec(t, tx, `SET LOCAL TimeZone = 'UTC'`)
	rows, err := tx.Query(t.Context(), `SELECT endpoint_id::text, reason, delivery_id IS NOT DISTINCT FROM CASE WHEN reason LIKE 'owed%' THEN webhook_delivery_id($1, endpoint_id) END,
		coalesce(url, '-'), coalesce(status, '-') FROM webhook_explain($1)`, event)
	if err != nil {
		t.Fatal(err)
	}
	var endpoint, reason, url, status string
	var ids bool
	n := 0
	if _, err := pgx.ForEachRow(rows, []any{&endpoint, &reason, &ids, &url, &status}, func() error {
		n++
		if reason != want[endpoint] {
			t.Errorf("got %q, want %q", reason, want[endpoint])
		}
		if !ids {
			t.Errorf("%s: a wrong delivery_id", reason)
		}
		if (url == "-") != (endpoint == cancelled) || (status == "-") != (endpoint == none || strings.HasPrefix(reason, "not")) {
			t.Errorf("%s: url %s, status %s", reason, url, status)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n != len(want) {
		t.Errorf("%d rows, want %d", n, len(want))
	}
}

func TestStats(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	for i, status := range []string{"success", "success", "success", "failed", "cancelled", "pending", "retrying"} {
		newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), endpoint, status)
		newDelivery(t, db.Pool, newEvent(t, db.Pool, fmt.Sprint("other_", i), "payment.failed"), newEndpoint(t, db.Pool, fmt.Sprint("other_", i)), status)
	}
	exec(t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at, created_at)
		VALUES (webhook_uuid_at(now() - interval '3 days'), webhook_uuidv7(), $1, 'org_1', 't', 'pending', now(), '2026-01-01 00:00:00+00')`, endpoint)
	if got := query[string](t, db.Pool, `SELECT (s.*)::text FROM webhook_stats('org_1') s`); !strings.HasPrefix(got, `(7,7,3,1,1,1,1,0.7500,3,"2026-01-01 `) && !strings.HasPrefix(got, `(7,7,3,1,1,1,1,0.7500,3,"2025-12-31 `) {
		t.Errorf("got %s", got)
	}
	if got := query[string](t, db.Pool, `SELECT (s.*)::text FROM webhook_stats('nobody') s`); got != `(0,0,0,0,0,0,0,,0,)` {
		t.Errorf("an unknown organization: %s", got)
	}
}

func TestViews(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	if got := query[string](t, db.Pool, `SELECT concat_ws(' ', slot, slot_exists, slot_active, pending, retrying, oldest_due_at, outbox_default_rows, deliveries_default_rows, safe_wal_bytes) FROM webhook_status`); got != "f f 0 0 0 0" {
		t.Errorf("webhook_status of a new database: %s", got)
	}

	endpoint := newEndpoint(t, db.Pool, "org_1")
	one := newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), endpoint, "failed")
	three := newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), endpoint, "retrying")
	newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), endpoint, "pending")
	exec(t, db.Pool, `UPDATE webhook_deliveries SET error_class = 'timeout', updated_at = '2026-01-01 00:00:01+00' WHERE id = $1`, one)
	exec(t, db.Pool, `UPDATE webhook_deliveries SET attempts = 3, attempt_log = '[{"attempt": 2, "at": "2026-01-01T00:00:00+00:00", "status_code": 500, "error_class": "http_5xx", "duration_ms": 7},
		{"attempt": 3, "at": "2026-01-02T00:00:00+00:00", "status_code": 404, "error_class": "http_4xx", "duration_ms": 8}]' WHERE id = $1`, three)
	attempts := func(delivery string) string {
		return query[string](t, db.Pool, `SELECT coalesce(string_agg(concat_ws(' ', attempt, extract(epoch FROM at)::float8, status_code, error_class, duration_ms), ', ' ORDER BY attempt), '')
			FROM webhook_attempts WHERE delivery_id::text = $1`, delivery)
	}
	if got := attempts(one); got != "1 1767225600.965 timeout 35" {
		t.Errorf("a first attempt: %s", got)
	}
	if got := attempts(three); got != "2 1767225600 500 http_5xx 7, 3 1767312000 404 http_4xx 8" {
		t.Errorf("a log: %s", got)
	}
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_attempts`); n != 3 {
		t.Errorf("%d attempts in all, want 3", n)
	}

	exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES ($1, '2026-01-01')`, endpoint)
	if got := query[string](t, db.Pool, `SELECT concat_ws(' ', organization_id, url, enabled, failing_since = '2026-01-01', waiting, oldest_due_at <= now()) FROM webhook_endpoint_health WHERE endpoint_id = $1`, endpoint); got != "org_1 https://example.com/hook t t 2 t" {
		t.Errorf("webhook_endpoint_health: %s", got)
	}

	exec(t, db.Pool, `INSERT INTO webhook_state (slot, epoch, environment) VALUES ($1, 4, 'production')`, db.Slot)
	exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
	if got := query[string](t, db.Pool, `SELECT concat_ws(' ', slot = $1, epoch, environment, slot_exists, slot_active, lag_bytes >= 0, wal_status, pending, retrying) FROM webhook_status`, db.Slot); got != "t 4 production t f t reserved 1 1" {
		t.Errorf("webhook_status: %s", got)
	}
}

func TestRoles(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	as := func(t *testing.T, grants string) pgx.Tx {
		tx := begin(t, db.Pool)
		role := `"role_` + db.Slot + `"`
		exec(t, tx, `CREATE ROLE `+role)
		exec(t, tx, strings.ReplaceAll(grants, "ROLE", role))
		exec(t, tx, `SET LOCAL ROLE `+role)
		return tx
	}
	denied := func(t *testing.T, tx pgx.Tx, sql string) {
		t.Helper()
		sub, err := tx.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		refused(t, sub, "permission denied", sql)
		if err := sub.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("an application needs INSERT and SELECT (id) on the outbox", func(t *testing.T) {
		tx := as(t, `GRANT INSERT, SELECT (id) ON webhook_outbox TO ROLE`)
		event := newEvent(t, tx, "org_1", "payment.failed")
		if _, err := outbox.Enqueue(t.Context(), tx, outbox.Event{OrganizationID: "org_1", Type: "payment.failed", Payload: []byte(`{}`)}); err != nil {
			t.Error(err)
		}
		for _, sql := range []string{
			`SELECT payload FROM webhook_outbox`, `SELECT FROM webhook_endpoints`, `SELECT FROM webhook_secrets`, `SELECT FROM webhook_deliveries`, `DELETE FROM webhook_outbox`,
			`SELECT webhook_create_endpoint('org_1', 'https://example.com')`, `SELECT webhook_rotate_secret('` + endpoint + `')`,
			`SELECT webhook_set_secret('` + endpoint + `', 'a secret of sixteen')`, `SELECT webhook_replace_secret('` + endpoint + `', 'a secret of sixteen', '0')`,
			`SELECT webhook_retry_now('` + endpoint + `')`, `SELECT webhook_drop_day('2020-01-01')`, `SELECT webhook_add_partition('webhook_outbox', '2020-01-01')`, `SELECT webhook_delete_old(now(), 1)`,
			`SELECT webhook_send_test('` + endpoint + `')`,
		} {
			denied(t, tx, sql)
		}
		exec(t, tx, `RESET ROLE`)
		if got := query[string](t, tx, `SELECT endpoint_ids::text FROM webhook_outbox WHERE id = $1`, event); got != "{"+endpoint+"}" {
			t.Errorf("owed to %s", got)
		}
	})

	t.Run("a mapper's RETURNING * needs SELECT on the outbox", func(t *testing.T) {
		tx := as(t, `GRANT INSERT, SELECT ON webhook_outbox TO ROLE`)
		exec(t, tx, `INSERT INTO webhook_outbox (organization_id, event_type, payload, shard) VALUES ('org_1', 'payment.failed', '{}', DEFAULT) RETURNING *`)
		denied(t, tx, `SELECT FROM webhook_endpoints`)
	})

	t.Run("a reader sees everything but secrets", func(t *testing.T) {
		tx := as(t, `GRANT SELECT ON webhook_outbox, webhook_deliveries, webhook_endpoints, webhook_event_types,
			webhook_state, webhook_endpoint_failures, webhook_attempts, webhook_endpoint_health, webhook_status TO ROLE`)
		newer := query[string](t, db.Pool, `SELECT $1 || ''`, newEvent(t, db.Pool, "org_1", "payment.failed"))
		for _, sql := range []string{
			`SELECT * FROM webhook_attempts`, `SELECT * FROM webhook_endpoint_health`, `SELECT * FROM webhook_status`,
			`SELECT * FROM webhook_explain('` + newer + `')`, `SELECT * FROM webhook_stats('org_1')`,
		} {
			exec(t, tx, sql)
		}
		denied(t, tx, `SELECT secret FROM webhook_secrets`)
		denied(t, tx, `SELECT webhook_rotate_secret('`+endpoint+`')`)
		denied(t, tx, `SELECT webhook_replay(gen_random_uuid())`)
	})

	t.Run("a backend manages endpoints without reading secrets", func(t *testing.T) {
		tx := as(t, `GRANT INSERT, UPDATE, DELETE, SELECT ON webhook_endpoints TO ROLE; GRANT EXECUTE ON FUNCTION webhook_create_endpoint, webhook_rotate_secret, webhook_set_secret TO ROLE`)
		id := newEndpoint(t, tx, "org_1", "payment.*")
		exec(t, tx, `SELECT webhook_rotate_secret($1)`, id)
		exec(t, tx, `SELECT webhook_set_secret($1, 'a secret of sixteen')`, id)
		exec(t, tx, `SELECT webhook_create_endpoint('org_1', 'https://example.com')`)
		exec(t, tx, `UPDATE webhook_endpoints SET enabled = false`)
		denied(t, tx, `SELECT secret FROM webhook_secrets`)
		exec(t, tx, `DELETE FROM webhook_endpoints`)
	})

	t.Run("default privileges hand out nothing", func(t *testing.T) {
		empty := pgtest.Empty(t)
		role := `"default_` + empty.Slot + `"`
		exec(t, empty.Pool, `CREATE ROLE `+role)
		t.Cleanup(func() {
			_, _ = empty.Pool.Exec(context.Background(), `DROP OWNED BY `+role)
			_, _ = empty.Pool.Exec(context.Background(), `DROP ROLE `+role)
		})
		exec(t, empty.Pool, `ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO `+role+`, PUBLIC`)
		if err := apply(t.Context(), empty.Pool, readSchema(t)); err != nil {
			t.Fatal(err)
		}
		tx := begin(t, empty.Pool)
		exec(t, tx, `SET LOCAL ROLE `+role)
		denied(t, tx, `SELECT * FROM webhook_deliveries`)
		denied(t, tx, `SELECT * FROM webhook_secrets`)
	})
}

// plan returns the plan of a statement as text.
func plan(t testing.TB, q querier, sql string, args ...any) string {
	t.Helper()
	return strings.Join(column[string](t, q, `EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) `+sql, args...), "\n")
}

func TestPlans(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	tx := begin(t, db.Pool)
	exec(t, tx, `ALTER TABLE webhook_endpoints DISABLE TRIGGER USER`)
	exec(t, tx, `INSERT INTO webhook_endpoints (organization_id, url) SELECT 'org_' || n / 2, 'https://example.com' FROM generate_series(1, 100000) n`)
	exec(t, tx, `ANALYZE webhook_endpoints`)
	source := query[string](t, tx, `SELECT substring(prosrc FROM 'ARRAY\((SELECT e.id FROM webhook_endpoints AS e[^;]*e\.event_types OPERATOR\(pg_catalog\.&&\) wanted)\)') FROM pg_proc WHERE proname = 'webhook_outbox_before_insert'`)
	exec(t, tx, `PREPARE who (text, text[]) AS `+strings.NewReplacer("new.organization_id", "$1", "wanted", "$2").Replace(source))
	for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
		exec(t, tx, `SET LOCAL plan_cache_mode = `+mode)
		if got := plan(t, tx, `EXECUTE who('org_77', '{*}')`); strings.Contains(got, "Seq Scan") || !strings.Contains(got, "webhook_endpoints_organization_idx") {
			t.Errorf("who is owed, %s:\n%s", mode, got)
		}
	}

	exec(t, tx, `SELECT webhook_add_partition(p, current_date - n) FROM generate_series(2, 21) n, unnest('{webhook_outbox,webhook_deliveries}'::text[]) p`)
	exec(t, tx, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at)
		SELECT webhook_uuid_at(now() - n % 20 * interval '1 day' - n * interval '1 millisecond'), gen_random_uuid(), e.id, e.organization_id, 't',
		       CASE WHEN n % 10 = 0 THEN 'pending' WHEN n % 10 = 1 THEN 'failed' ELSE 'success' END, now()
		FROM (SELECT row_number() OVER () AS n, e.* FROM webhook_endpoints e) e`)
	exec(t, tx, `ANALYZE webhook_deliveries`)

	// The statements of the functions, as their bodies have them.
	body := func(function string) string {
		return query[string](t, tx, `SELECT prosrc FROM pg_proc WHERE proname = $1`, function)
	}
	exec(t, tx, `PREPARE stats (text) AS `+strings.ReplaceAll(body("webhook_stats"), "webhook_stats.organization_id", "$1"))
	got := plan(t, tx, `EXECUTE stats('org_77')`)
	if byTime := regexp.MustCompile(`on webhook_(outbox|deliveries)_p\d+ .*\n.*organization_id`).FindAllString(got, -1); len(byTime) > 6 {
		t.Errorf("webhook_stats reads the whole history:\n%s", got)
	}
	if strings.Contains(got, "next_attempt_at_idx") && !strings.Contains(got, "endpoint_id_next_attempt_at_id_idx") {
		t.Errorf("webhook_stats reads what waits for others:\n%s", got)
	}
	exec(t, tx, `PREPARE explained (uuid) AS `+strings.ReplaceAll(body("webhook_explain"), "webhook_explain.event_id", "$1"))
	event := newEvent(t, tx, "org_77", "payment.failed")
	for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
		exec(t, tx, `SET LOCAL plan_cache_mode = `+mode)
		got := plan(t, tx, `EXECUTE explained('`+event+`')`)
		for line := range strings.SplitSeq(got, "\n") {
			if strings.Contains(line, "on webhook_deliveries_p") && !strings.Contains(line, "never executed") && !strings.Contains(line, time.Now().UTC().Format("20060102")) {
				t.Errorf("webhook_explain, %s, looks into another day:\n%s", mode, got)
				break
			}
			if strings.Contains(line, "Seq Scan on webhook_deliveries") && !strings.Contains(line, "never executed") {
				t.Errorf("webhook_explain, %s:\n%s", mode, got)
				break
			}
		}
	}
	exec(t, tx, `SET LOCAL enable_seqscan = on`)
	if got := plan(t, tx, `SELECT count(*) FROM webhook_attempts WHERE delivery_id = webhook_uuid_at(now())`); strings.Count(got, "webhook_deliveries_p") > 4 {
		t.Errorf("webhook_attempts of one delivery:\n%s", got)
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
