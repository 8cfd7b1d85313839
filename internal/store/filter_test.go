package store_test

import (
	"strings"
	"testing"

	"github.com/walhook/walhook/internal/postgres/pgtest"
)

// Each is decided in the transaction of the application, whatever it is.
func TestFilterDecidesWhoIsOwed(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	plain := newEndpoint(t, db.Pool, "org_1")
	for _, c := range []struct {
		filter, payload string
		want            bool
	}{
		{`$.amount > 1000`, `{"amount": 1001}`, true},
		{`$.amount > 1000`, `{"amount": 1000}`, false},
		{`$.amount > 1000`, `{"amount": "many"}`, false},
		{`$.amount > 1000`, `{}`, false},
		{`$.amount > 1000`, `[]`, false},
		{`$.amount > 1000`, `null`, false},
		{`$.amount > 1000`, `{"amount": [5, 2000]}`, true},
		{`$.amount > 1000 && $.currency == "EUR"`, `{"amount": 2000, "currency": "EUR"}`, true},
		{`$.amount > 1000 && $.currency == "EUR"`, `{"amount": 2000, "currency": "USD"}`, false},
		{`!($.plan == "free") || $.seats >= 10`, `{"plan": "pro"}`, true},
		{`exists($.items[*] ? (@.sku == "A" && @.count > 1))`, `{"items": [{"sku": "B"}, {"sku": "A", "count": 2}]}`, true},
		{`exists($.items[*] ? (@.sku == "A" && @.count > 1))`, `{"items": [{"sku": "A", "count": 1}]}`, false},
		{`$.name starts with "A"`, `{"name": "Ada"}`, true},
		{`$.name like_regex "^a.*$" flag "i"`, `{"name": "Ada"}`, true},
		{`$.live`, `{"live": true}`, true},
		{`$.live`, `{"live": 1}`, false},
		{`$.**.deep == 1`, `{"a": {"b": {"deep": 1}}}`, true},
		{`strict $.a.b == 1`, `{}`, false},
		{`1 / $.n > 0`, `{"n": 0}`, false},
		{`$.n.double() > 1`, `{"n": "1e400"}`, false},
		{`$.n + 1 > 1`, `{"n": {}}`, false},
		{`$.a[$.length] == 1`, `{"a": [1]}`, false},
		{`$.at.datetime() > "2026-01-01".datetime()`, `{"at": "2026-02-01"}`, true},
		{`$.at.datetime() > "2026-01-01".datetime()`, `{"at": "2026-02-01T00:00:00+02:00"}`, false}, // an error in spite of @@
		{`$.at.datetime() > "2026-01-01".datetime()`, `{"at": "yesterday"}`, false},
		{`$.at.datetime("no template") > "2026-01-01".datetime()`, `{"at": "2026-02-01"}`, false},
		{`($.n * 99999999999999999999) > 1`, `{"n": 1e131060}`, false},
		{`$.** == 7`, strings.Repeat("[", 4000) + "7" + strings.Repeat("]", 4000), true},
	} {
		exec(t, db.Pool, `UPDATE webhook_endpoints SET filter = $2::text::jsonpath WHERE id = $1`, endpoint, c.filter)
		event := query[string](t, db.Pool, `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.failed', $1::text::jsonb) RETURNING id::text`, c.payload)
		owed := func(id string) bool {
			return query[bool](t, db.Pool, `SELECT $2::text::uuid = ANY (endpoint_ids) FROM webhook_outbox WHERE id::text = $1`, event, id)
		}
		if got := owed(endpoint); got != c.want || !owed(plain) {
			t.Errorf("%s of %s: owed %t, want %t, and the one without a filter %t", c.filter, c.payload[:min(len(c.payload), 60)], got, c.want, owed(plain))
		}
		why := query[string](t, db.Pool, `SELECT reason FROM webhook_explain($1::text::uuid) WHERE endpoint_id = $2`, event, endpoint)
		if (why == "not owed: the filter does not match") == c.want {
			t.Errorf("%s of %s: explained by %q", c.filter, c.payload[:min(len(c.payload), 60)], why)
		}
	}

	t.Run("but not of a test webhook to one endpoint", func(t *testing.T) {
		exec(t, db.Pool, `UPDATE webhook_endpoints SET filter = '$.never == true' WHERE id = $1`, endpoint)
		if n := query[int](t, db.Pool, `SELECT cardinality(endpoint_ids) FROM webhook_outbox WHERE id = $1::text::uuid`, query[string](t, db.Pool, `SELECT webhook_send_test($1)::text`, endpoint)); n != 1 {
			t.Errorf("owed to %d", n)
		}
	})
}

// What could make an application wait is refused, with what to write instead.
func TestFilterIsRefused(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	for filter, want := range map[string]string{
		`$.a >>> 1`:             "syntax error",
		`$.a == $x`:             "it has a variable",
		`$.a == "x" && @ == 1`:  "@ is not allowed in root expressions",
		`$.name like_regex "("`: "invalid regular expression",
		`$.a == $.b`:            "it compares two values of the payload",
		`$.a[*] == $.b."== 1 "`: "it compares two values of the payload",
		`exists($ ? ((@.a[*] ? (@ > 1 && 1 == 1)) == (@.b[*])))`: "it compares two values of the payload",
		`$.a == -$.b`: "it compares two values of the payload",
		`exists($[*] ? (exists($[*] ? (@ == 1))))`:      "more than one $",
		`$.a == 1 && exists($.b ? (@ == 1))`:            "more than one $",
		`exists($.b ? (@ == 1)) && $.a == 1`:            "more than one $",
		`exists($.** ? (@.** == 1))`:                    "** twice",
		`$[0, 0][0, 0] == 1`:                            "list of subscripts",
		`$.keyvalue().keyvalue().value == 1`:            "keyvalue()",
		`$.items[*] ? (@.sku == "A")`:                   "needs exists(...) around it",
		`$.a like_regex "(a*)*\\1"`:                     "looks back",
		`$.a like_regex "(?=.*a)b"`:                     "looks back",
		`$.a like_regex "((a{1,200}){1,200}){1,9}"`:     "",
		strings.Repeat(`$.a == 1 || `, 16) + `$.a == 2`: "it has more than 16 paths",
		`$.a == "` + strings.Repeat("x", 1024) + `"`:    "it is longer than 1 KiB",
	} {
		refused(t, db.Pool, want, `UPDATE webhook_endpoints SET filter = $2::text::jsonpath WHERE id = $1`, endpoint, filter)
		refused(t, db.Pool, want, `INSERT INTO webhook_endpoints (organization_id, url, filter) VALUES ('o', 'https://example.com', $1::text::jsonpath)`, filter)
	}
}

// The worst filters that are not refused, with the worst payloads: without the rules they take minutes to years.
func TestFilterTakesABoundedTime(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	tx := begin(t, db.Pool)
	exec(t, tx, `SET LOCAL statement_timeout = '1min'`)
	for _, payload := range []string{
		`jsonb_build_object('a', (SELECT jsonb_agg(1) FROM generate_series(1, 85000)))`,
		`(repeat('[', 5000) || '1' || repeat(']', 5000))::jsonb`,
		`jsonb_build_object('a', repeat('a', 260000))`,
	} {
		for _, filter := range []string{
			strings.TrimSuffix(strings.Repeat(`$.a[*] == 2 || `, 16), "|| "),
			strings.TrimSuffix(strings.Repeat(`$.a[*] like_regex "(a|aa)+b" || `, 16), "|| "),
			`exists($.**` + strings.Repeat(`[*] ? (exists(@`, 15) + `[*]` + strings.Repeat(`))`, 15) + `)`,
			`$.**` + strings.Repeat(`[*]`, 300) + ` == 2`,
		} {
			exec(t, tx, `UPDATE webhook_endpoints SET filter = $2::text::jsonpath WHERE id = $1`, endpoint, filter)
			exec(t, tx, `INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.failed', `+payload)
		}
	}
}
