package store_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

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
		"https://[1.2.3.4]/":                   "not an IPv6 address",
		"https://[::1.2.3]/":                   "not an IPv6 address",
		"https://[::1.2.3.04]/":                "not an IPv6 address",
		"https://[::1.2.3.256]/":               "not an IPv6 address",
		"https://[1.2.3.4::]/":                 "not an IPv6 address",
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
		"https://example.com", "http://example.com:8080/a/b?c=d&e=%20", "HTTPS://EXAMPLE.COM/", "https://[::1]:9/x", "https://[::ffff:192.0.2.1]/", "https://[1:2:3:4:5:6:255.0.10.9]/", "https://10.0.0.1/", "http://localhost:65535",
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
	for _, secret := range []string{"16 characters ok", strings.Repeat("x", 256), strings.Repeat("0a", 32), "sealed:v1:" + strings.Repeat("A", 1012) + "==", "sealed:v2:0123abcd:AAAA", "whsk_" + strings.Repeat("A", 43) + "=", "whsk_" + strings.Repeat("A", 86) + "=="} {
		exec(t, db.Pool, `DELETE FROM webhook_secrets WHERE endpoint_id = $1`, endpoint)
		exec(t, db.Pool, add, endpoint, secret)
	}
	exec(t, db.Pool, `DELETE FROM webhook_secrets WHERE endpoint_id = $1`, endpoint)
	for _, secret := range []string{"", "fifteen chars..", strings.Repeat("x", 257), "sixteen and a line\n", "sixteen and an ümlaut", "sealed:v1:!!!!!!!!!!!!!", "sealed:v2:AAAAAAAAAAAAAAA", "sealed:v1:" + strings.Repeat("A", 1015)} {
		refused(t, db.Pool, "webhook_secrets.secret is not usable", add, endpoint, secret)
	}
	exec(t, db.Pool, `INSERT INTO webhook_endpoints (id, organization_id, url, headers) VALUES (NULL, 'org_1', 'https://example.com', '{"Authorization": "hunter2"}')`)
	for sql, want := range map[string]string{
		`INSERT INTO webhook_secrets (id, endpoint_id, secret) SELECT NULL, id, 'hunter2 and more of it' FROM webhook_endpoints`: "id or endpoint_id is null",
		`UPDATE webhook_secrets SET id = NULL`:   "id or endpoint_id is null",
		`UPDATE webhook_endpoints SET id = NULL`: "cannot be changed", // as a constraint's error would show the row
	} {
		refused(t, db.Pool, want, sql)
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
		{"whpk_" + strings.Repeat("A", 43) + "=", "it is a public key"}, {"whsk_" + strings.Repeat("A", 40) + "=", "Ed25519 key of 32 or 64 bytes"}, {"whsk_" + strings.Repeat("A", 86) + "=", "Ed25519 key of 32 or 64 bytes"},
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

func TestEndpoints(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	plain, full, broken := newEndpoint(t, db.Pool, "org_1"), newEndpoint(t, db.Pool, "org_2"), newEndpoint(t, db.Pool, "org_3")
	exec(t, db.Pool, `UPDATE webhook_endpoints SET headers = '{"X-A": "ü"}', enabled = false, max_in_flight = 3, rate_per_second = 0.5 WHERE id = $1`, full)
	older := query[string](t, db.Pool, `SELECT secret FROM webhook_secrets WHERE endpoint_id = $1`, full)
	newer := query[string](t, db.Pool, `SELECT webhook_rotate_secret($1)`, full)
	exec(t, db.Pool, `INSERT INTO webhook_secrets (endpoint_id, secret, expires_at) VALUES ($1, 'an expired one, long enough', now() - interval '1 second')`, full)
	// A restore that goes past triggers.
	tx := begin(t, db.Pool)
	exec(t, tx, `SET LOCAL session_replication_role = replica`)
	exec(t, tx, `UPDATE webhook_endpoints SET headers = '{"X-A": 1}' WHERE id = $1`, broken)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}

	found, err := st.Endpoints(t.Context(), []uuid.UUID{uuid.MustParse(plain), uuid.New(), uuid.MustParse(full), uuid.MustParse(broken)})
	if err != nil {
		t.Fatal(err)
	}
	byID := map[string]webhook.Endpoint{}
	for _, e := range found {
		byID[e.ID.String()] = e
	}
	if e := byID[plain]; len(byID) != 3 || e.OrganizationID != "org_1" || e.URL != "https://example.com/hook" || !e.Enabled || len(e.Headers) != 0 ||
		e.MaxInFlight != 0 || e.RatePerSecond != 0 || len(e.Secrets) != 1 || e.Problem != "" {
		t.Errorf("of %d: %+v", len(byID), e)
	}
	if e := byID[full]; e.Enabled || e.Headers["X-A"] != "ü" || e.MaxInFlight != 3 || e.RatePerSecond != 0.5 ||
		!slices.Equal(e.Secrets, []webhook.Secret{webhook.Secret(older), webhook.Secret(newer)}) {
		t.Errorf("%+v", e)
	}
	if e := byID[broken]; !strings.Contains(e.Problem, "headers") {
		t.Errorf("one endpoint's headers: %+v", e)
	}
}
