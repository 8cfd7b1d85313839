package store_test

import (
	"fmt"
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
		{`$.n * 2 > 5`, `{"n": 3}`, true},
		{`($.n - 1) % 2 == 0`, `{"n": 3}`, true},
		{`$.n.double() > 1`, `{"n": "1e400"}`, false},
		{`$.n + 1 > 1`, `{"n": {}}`, false},
		{`$.a[$.length] == 1`, `{"a": [1]}`, false},
		{`$.at.datetime() > "2026-01-01".datetime()`, `{"at": "2026-02-01"}`, true},
		{`$.at.datetime() > "2026-01-01".datetime()`, `{"at": "2026-02-01T00:00:00+02:00"}`, false}, // an error in spite of @@
		{`$.at.datetime() > "2026-01-01".datetime()`, `{"at": "yesterday"}`, false},
		{`$.at.datetime("no template") > "2026-01-01".datetime()`, `{"at": "2026-02-01"}`, false},
		{`($.n * 99999999999999999999) > 1`, `{"n": 1e131060}`, false},
		{`strict $.refunded > $.amount`, `{"amount": 5, "refunded": 6}`, true},
		{`strict $.refunded > $.amount`, `{"amount": 5, "refunded": 5}`, false},
		{`strict $.refunded > $.amount`, `{"amount": 5}`, false},
		{`strict $.refunded > $.amount`, `{"amount": [5], "refunded": [6]}`, false},
		{`strict $.items.size() != $.count`, `{"items": [1, 2], "count": 1}`, true},
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
		`$.a == -$.b`:                                  "it compares two values of the payload",
		`strict $.a / $.b > 0`:                         "it multiplies or divides two values of the payload",
		`$.a * ($.b + 1) > 0`:                          "it multiplies or divides two values of the payload",
		`exists($.a ? (@ % @ == 1))`:                   "it multiplies or divides two values of the payload",
		`strict $.a[*] == $.b`:                         "it compares two values of the payload",
		`strict $.a == $.b.*`:                          "it compares two values of the payload",
		`strict exists($.c[*] ? (@ == 1)) || $.a == 1`: "more than one $",
		`$.**` + strings.Repeat(`[*]`, 300) + ` == 2`:  "it costs 36",
		`exists($.a[*] ? (` + strings.Repeat(`1 == 2 || `, 80) + `@ == 2))`: "more than 512",
		`$.a like_regex "` + strings.Repeat(`(a|b)?`, 75) + `c"`:            "more than 512",
		strings.TrimSuffix(strings.Repeat(`$.a[*] == 2 || `, 16), "|| "):    "more than 512",
		`exists($[*] ? (exists($[*] ? (@ == 1))))`:                          "more than one $",
		`$.a == 1 && exists($.b ? (@ == 1))`:                                "more than one $",
		`exists($.b ? (@ == 1)) && $.a == 1`:                                "more than one $",
		`exists($.** ? (@.** == 1))`:                                        "** twice",
		`$[0, 0][0, 0] == 1`:                                                "list of subscripts",
		`$.keyvalue().keyvalue().value == 1`:                                "keyvalue()",
		`$.items[*] ? (@.sku == "A")`:                                       "needs exists(...) around it",
		`$.a like_regex "(a*)*\\1"`:                                         "looks back",
		`$.a like_regex "(?=.*a)b"`:                                         "looks back",
		`$.a like_regex "((a{1,200}){1,200}){1,9}"`:                         "",
		strings.Repeat(`$.a == 1 || `, 16) + `$.a == 2`:                     "it has more than 16 paths",
		`$.a == "` + strings.Repeat("x", 1024) + `"`:                        "it is longer than 1 KiB",
	} {
		refused(t, db.Pool, want, `UPDATE webhook_endpoints SET filter = $2::text::jsonpath WHERE id = $1`, endpoint, filter)
		refused(t, db.Pool, want, `INSERT INTO webhook_endpoints (organization_id, url, filter) VALUES ('o', 'https://example.com', $1::text::jsonpath)`, filter)
	}
}

// The worst filters that are not refused, with the worst payloads: without the rules they take minutes to years.
func TestFilterTakesABoundedTime(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	tx := begin(t, db.Pool)
	exec(t, tx, `SET LOCAL statement_timeout = '1min'`)
	const endpoints = `INSERT INTO webhook_endpoints (organization_id, url, filter) SELECT $1, 'https://example.com', $2::text::jsonpath FROM generate_series(1, $3::int)`
	const event = `INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT $1, 'payment.failed', `
	const chains = `(SELECT jsonb_agg((repeat('[', 300) || repeat(']', 300))::jsonb) FROM generate_series(1, 430))`
	repeat := strings.Repeat
	worst := `exists($.** ? (` + repeat(`@[*] == 2 || `, 6) + `@[*] == 2))`
	for i, filter := range []string{
		worst,
		strings.TrimSuffix(repeat(`$.a[*] == 2 || `, 7), "|| "),
		strings.TrimSuffix(repeat(`$.a[*] like_regex "(a|aa)+b" || `, 3), "|| "),
		`$.a like_regex "` + repeat(`(a|b)?`, 16) + `c"`,
		strings.TrimSuffix(repeat(`$.a == 2 || `, 16), "|| "),
		repeat(`-`, 36) + `$.a[*] == 2`,
		`exists($.**` + repeat(`[*] ? (exists(@`, 4) + `[*]` + repeat(`))`, 4) + `)`,
		`exists($.a[*] ? (` + repeat(`1 == 2 || `, 7) + `@ == 2))`,
		`$.**` + repeat(`[*]`, 36) + ` == 2`,
		`$.**` + repeat(`.type()`, 16) + ` == "x"`,
	} {
		organization := fmt.Sprint("org_", i)
		exec(t, tx, endpoints, organization, filter, 1)
		for _, payload := range []string{
			`jsonb_build_object('a', (SELECT jsonb_agg(1) FROM generate_series(1, 85000)))`,
			`jsonb_build_object('a', (SELECT jsonb_agg('a'::text) FROM generate_series(1, 50000)))`,
			chains,
			`(repeat('[', 5000) || '1' || repeat(']', 5000))::jsonb`,
			`jsonb_build_object('a', repeat('a', 260000))`,
		} {
			exec(t, tx, event+payload, organization)
		}
	}
	// As often as one organization can have it: some seconds, on a machine that does nothing else.
	exec(t, tx, endpoints, "org_full", worst, 4096/query[int](t, tx, `SELECT webhook_filter_cost($1::text::jsonpath)`, worst))
	exec(t, tx, event+chains, "org_full")
}

// An organization's filters are bounded together: a hundred ordinary ones fit.
func TestFiltersOfAnOrganization(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	const some = `INSERT INTO webhook_endpoints (organization_id, url, filter) SELECT $1, 'https://example.com', $2::text::jsonpath FROM generate_series(1, $3::int)`
	const ordinary, costly = `$.amount > 1000 && $.currency == "EUR"`, `exists($.items[*] ? (@.sku == "A" && @.count > 1))`
	const full = "the filters of organization 'org_1' cost"
	exec(t, db.Pool, some, "org_1", ordinary, 100)
	cost := query[int](t, db.Pool, `SELECT sum(webhook_filter_cost(filter)) FROM webhook_endpoints`)
	left := 4096 - cost
	refused(t, db.Pool, full, some, "org_1", ordinary, left/(cost/100)+1)
	exec(t, db.Pool, some, "org_1", ordinary, left/(cost/100))
	refused(t, db.Pool, full, some, "org_1", ordinary, 1)
	refused(t, db.Pool, full, `UPDATE webhook_endpoints SET filter = $1::text::jsonpath WHERE id = (SELECT id FROM webhook_endpoints LIMIT 1)`, costly)
	exec(t, db.Pool, some, "org_1", nil, 1)
	exec(t, db.Pool, some, "org_2", costly, 25)

	t.Run("as they are, they can be changed for cheaper ones, and everything else too", func(t *testing.T) {
		exec(t, db.Pool, `UPDATE webhook_endpoints SET url = 'https://example.org', enabled = NOT enabled`)
		exec(t, db.Pool, `UPDATE webhook_endpoints SET filter = '$.amount > 2000 && $.currency == "USD"' WHERE organization_id = 'org_1' AND filter IS NOT NULL`)
	})
	t.Run("what was restored stays, and can be reduced", func(t *testing.T) {
		tx := begin(t, db.Pool)
		exec(t, tx, `SET LOCAL session_replication_role = replica`)
		exec(t, tx, some, "org_1", costly, 50)
		exec(t, tx, `SET LOCAL session_replication_role = origin`)
		exec(t, tx, `UPDATE webhook_endpoints SET enabled = NOT enabled WHERE organization_id = 'org_1'`)
		exec(t, tx, `UPDATE webhook_endpoints SET filter = NULL WHERE id = (SELECT id FROM webhook_endpoints WHERE organization_id = 'org_1' AND filter IS NOT NULL LIMIT 1)`)
		exec(t, tx, `UPDATE webhook_endpoints SET filter = '$.amount > 1' WHERE id = (SELECT id FROM webhook_endpoints WHERE organization_id = 'org_1' AND webhook_filter_cost(filter) > 50 LIMIT 1)`)
		refused(t, tx, full, some, "org_1", `$.a == 1`, 1)
	})
}
