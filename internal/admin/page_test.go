package admin

import (
	"html"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/webhook"
)

// A shop is a database in which much goes wrong, and the ids of what does.
type shop struct {
	db                                *pgtest.DB
	failing, healthy, disabled        uuid.UUID
	retrying, failed, success, orphan uuid.UUID
}

// hostile is what a receiver may answer: markup, an escape sequence, a change of direction.
const hostile = "<script>alert(1)</script><img src=//evil.example/x onerror=alert(2)>\"'>\x1b[31mred \u202egnp.exe\nsecond line"

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{db: pgtest.New(t)}
	endpoint := func(organization, url string) uuid.UUID {
		return one[uuid.UUID](t, s.db, `INSERT INTO webhook_endpoints (organization_id, url, event_types) VALUES ($1, $2, '{*}') RETURNING id`, organization, url)
	}
	s.failing = endpoint("org_1", "https://hooks.example.com:8443/in?token=hunter2")
	s.healthy = endpoint("org_1", "https://good.example.com/hook")
	s.disabled = endpoint("org_<b>2</b>", "https://gone.example.com/hook")
	one[string](t, s.db, `UPDATE webhook_endpoints SET description = $2 WHERE id = $1 RETURNING ''`, s.failing, hostile)
	one[string](t, s.db, `UPDATE webhook_endpoints SET enabled = false, disabled_reason = $2 WHERE id = $1 RETURNING ''`, s.disabled, hostile)
	one[string](t, s.db, `INSERT INTO webhook_endpoint_failures (endpoint_id, failing_since, breaker_opened_at) VALUES ($1, now() - interval '3 hours', now() - interval '2 hours') RETURNING ''`, s.failing)
	delivery := func(endpoint uuid.UUID, status string, attempts int, next, payload string) uuid.UUID {
		for before := time.Now().UnixMilli(); time.Now().UnixMilli() == before; { // ids of one millisecond have no order
		}
		return one[uuid.UUID](t, s.db, `WITH event AS (
			INSERT INTO webhook_outbox (organization_id, event_type, payload, endpoint_ids) VALUES ('org_1', 'payment.failed', $5::text::jsonb, ARRAY[$1::uuid]) RETURNING id)
			INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, next_attempt_at, status_code, error_class, response, duration_ms)
			SELECT webhook_delivery_id(event.id, $1), event.id, $1, 'org_1', 'payment.failed', $2, $3, $4::text::timestamptz,
			       CASE $2 WHEN 'success' THEN 200 WHEN 'pending' THEN NULL ELSE 503 END, CASE WHEN $2 NOT IN ('success', 'pending') THEN 'http_5xx' END, $6, 31 FROM event RETURNING id`,
			endpoint, status, attempts, nullable(next), payload, hostile)
	}
	s.retrying = delivery(s.failing, "retrying", 3, time.Now().Add(time.Hour).Format(time.RFC3339), `{"amount": 12, "note": "a\u202eb"}`)
	s.failed = delivery(s.failing, "failed", 1, "", `{}`)
	s.success = delivery(s.healthy, "success", 1, "", `{}`)
	s.orphan = delivery(s.failing, "cancelled", 1, "", `{}`)
	one[string](t, s.db, `UPDATE webhook_deliveries SET attempt_log = '[{"attempt": 1, "at": "2026-01-02T03:04:05Z", "error_class": "timeout", "error": "no answer in 15 s", "duration_ms": 15000},
		{"attempt": 2, "at": "2026-01-02T03:05:05Z", "status_code": 503, "error_class": "http_5xx", "duration_ms": 31}]' WHERE id = $1 RETURNING ''`, s.retrying)
	return s
}

// What is due is told from what will be, and nothing from all is well.
func TestWhatIsDue(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	h := New(options(t, s.db.Pool))
	shows := func(want map[string]string) {
		t.Helper()
		for path, part := range want {
			if body := ask(h, "GET", path, "").Body.String(); !strings.Contains(body, part) {
				t.Errorf("%s: there is no %q in %s", path, part, body)
			}
		}
	}
	ofFailing, ofRetrying := "/endpoints/"+s.failing.String(), "/deliveries/"+s.retrying.String()
	shows(map[string]string{"/": `>next <time`, ofFailing: `the first is due <time`, ofRetrying: `<th>Next attempt</th><td><time`})
	one[string](t, s.db, `UPDATE webhook_deliveries SET next_attempt_at = now() - interval '1 minute' WHERE id = $1 RETURNING ''`, s.retrying)
	shows(map[string]string{"/": `>due <time`, ofFailing: `the first was due <time`, ofRetrying: `<th>Next attempt</th><td>due <time`})
	one[string](t, s.db, `WITH gone AS (DELETE FROM webhook_endpoints RETURNING id) SELECT ''`)
	h = New(options(t, s.db.Pool)) // one that remembers nothing that took long to read
	shows(map[string]string{"/": "None yet"})
}

func nullable(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// one reads one value.
func one[T any](t *testing.T, db *pgtest.DB, sql string, args ...any) (v T) {
	t.Helper()
	if err := db.Pool.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// tokenFor finds the token of a form for an action in a page.
func tokenFor(t *testing.T, page, action string) string {
	t.Helper()
	m := regexp.MustCompile(`<form method="post" action="` + regexp.QuoteMeta(action) + `"><input type="hidden" name="token" value="([0-9a-f]{64})">`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("there is no form for %s in %s", action, page)
	}
	return m[1]
}

const formType = "Content-Type: application/x-www-form-urlencoded"

// An operators' endpoint is marked wherever it stands, and others are not.
func TestOperatorsAreMarked(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	id := one[uuid.UUID](t, s.db, `INSERT INTO webhook_endpoints (organization_id, url, all_organizations, enabled) VALUES ('ops', 'https://ops.example.com/hook', true, false) RETURNING id`)
	h := New(options(t, s.db.Pool))
	for path, want := range map[string]int{"/": 1, "/endpoints/" + id.String(): 1, "/endpoints/" + s.failing.String(): 0} {
		body := ask(h, "GET", path, "").Body.String()
		if got := strings.Count(body, ">for operators</span>"); got != want {
			t.Errorf("%s: %d are marked, want %d: %s", path, got, want, body)
		}
	}
	if body := ask(h, "GET", "/", "").Body.String(); strings.Index(body, id.String()) > strings.Index(body, s.failing.String()) {
		t.Error("it is not the first of those in trouble")
	}
}

// Every button does what it says, and nobody else's form does.
func TestButtons(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	o := options(t, s.db.Pool)
	o.Tokens = []string{"t0ken"}
	h := New(o)
	const auth = "Authorization: Bearer t0ken"
	for _, tt := range []struct {
		name, page, action string
		before, after      string // the same statement's value
		sql                string
		shows              string
	}{
		{"retry now", "/", "/endpoints/" + s.failing.String() + "/retry", "false", "true",
			`SELECT (next_attempt_at <= now())::text FROM webhook_deliveries WHERE id = '` + s.retrying.String() + `'`, "is due now: 1 delivery."},
		{"replay of a list", "/?status=failed", "/deliveries/" + s.failed.String() + "/replay", "failed", "pending",
			`SELECT status FROM webhook_deliveries WHERE id = '` + s.failed.String() + `'`, "This delivery is sent again."},
		{"replay", "/deliveries/" + s.success.String(), "/deliveries/" + s.success.String() + "/replay", "success", "pending",
			`SELECT status FROM webhook_deliveries WHERE id = '` + s.success.String() + `'`, "This delivery is sent again."},
		{"replay all", "/endpoints/" + s.failing.String(), "/endpoints/" + s.failing.String() + "/replay", "cancelled", "pending",
			`SELECT status FROM webhook_deliveries WHERE id = '` + s.orphan.String() + `'`, "Sent again: 1 delivery."},
		{"enable", "/", "/endpoints/" + s.disabled.String() + "/enable", "false", "true",
			`SELECT enabled::text FROM webhook_endpoints WHERE id = '` + s.disabled.String() + `'`, "This endpoint is enabled"},
		{"pause", "/", "/endpoints/" + s.failing.String() + "/pause", "false", "true",
			`SELECT (paused_at IS NOT NULL)::text FROM webhook_endpoints WHERE id = '` + s.failing.String() + `'`, "This endpoint is paused"},
		{"resume", "/", "/endpoints/" + s.failing.String() + "/resume", "true", "false",
			`SELECT (paused_at IS NOT NULL)::text FROM webhook_endpoints WHERE id = '` + s.failing.String() + `'`, "gets what it is owed again"},
		{"test", "/endpoints/" + s.healthy.String(), "/endpoints/" + s.healthy.String() + "/test", "0", "1",
			`SELECT count(*)::text FROM webhook_outbox WHERE event_type = 'webhook.test' AND endpoint_ids = ARRAY['` + s.healthy.String() + `'::uuid]`, "A test event is on its way"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			form := "since=1+day&token=" + tokenFor(t, ask(h, "GET", tt.page, "", auth).Body.String(), tt.action)
			other := "since=1+day&token=" + tokenFor(t, ask(h, "GET", "/endpoints/"+s.healthy.String(), "", auth).Body.String(), "/endpoints/"+s.healthy.String()+"/retry")
			for _, no := range []struct {
				what    string
				status  int
				body    string
				headers []string
			}{
				{"without WALHOOK_ADMIN_TOKEN", http.StatusUnauthorized, form, []string{formType}},
				{"from another site", http.StatusForbidden, form, []string{formType, auth, "Sec-Fetch-Site: cross-site"}},
				{"from another origin", http.StatusForbidden, form, []string{formType, auth, "Origin: https://evil.example"}},
				{"without the form's token", http.StatusForbidden, "", []string{formType, auth}},
				{"with another form's token", http.StatusForbidden, other, []string{formType, auth}},
			} {
				if w := ask(h, "POST", tt.action, no.body, no.headers...); w.Code != no.status {
					t.Errorf("%s: %d %s", no.what, w.Code, w.Body)
				}
				if got := one[string](t, s.db, tt.sql); got != tt.before {
					t.Fatalf("%s: it is %s", no.what, got)
				}
			}
			audited := one[int](t, s.db, `SELECT count(*) FROM webhook_audit`)
			w := ask(h, "POST", tt.action, form, formType, auth)
			if w.Code != http.StatusSeeOther {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			if got := one[string](t, s.db, tt.sql); got != tt.after {
				t.Errorf("afterwards it is %s, want %s", got, tt.after)
			}
			if one[int](t, s.db, `SELECT count(*) FROM webhook_audit`) <= audited {
				t.Error("webhook_audit has no row of it")
			}
			if next := ask(h, "GET", w.Header().Get("Location"), "", auth); next.Code != http.StatusOK || !strings.Contains(next.Body.String(), tt.shows) {
				t.Errorf("then it shows %d %s", next.Code, next.Body)
			}
		})
	}
}

// A form of something that was deleted in between is told so.
func TestButtonsOfWhatIsGone(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	h := New(options(t, s.db.Pool))
	at := "/endpoints/" + s.healthy.String()
	body := ask(h, "GET", at, "").Body.String()
	if off := ask(h, "GET", "/endpoints/"+s.disabled.String(), "").Body.String(); strings.Count(off, `action="/endpoints/`) != 1 || !strings.Contains(off, "/enable") {
		t.Errorf("a disabled endpoint, to which nothing is sent, has buttons beside the one that enables it: %s", off)
	}
	one[string](t, s.db, `DELETE FROM webhook_endpoints WHERE id = $1 RETURNING ''`, s.healthy)
	one[string](t, s.db, `DELETE FROM webhook_deliveries WHERE id = $1 RETURNING ''`, s.success)
	if w := ask(h, "POST", at+"/replay", "since=1000+years&token="+tokenFor(t, body, at+"/replay"), formType); w.Code != http.StatusBadRequest {
		t.Errorf("a time that the form does not have: %d %s", w.Code, w.Body)
	}
	for _, action := range []string{at + "/retry", at + "/test", at + "/pause"} {
		if w := ask(h, "POST", action, "token="+tokenFor(t, body, action), formType); w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "Nothing was changed") {
			t.Errorf("%s: %d %s", action, w.Code, w.Body)
		}
	}
}

// What receivers answer, and what applications write, stays text.
func TestHostileText(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	h := New(options(t, s.db.Pool))
	markup := regexp.MustCompile(`<script>|<img|org_<b>|\x1b|\x{202e}`)
	for path, want := range map[string][]string{
		"/":                                 {` href="/endpoints/` + s.failing.String() + `"><bdi>https://hooks.example.com:8443</bdi>`, `org_&lt;b&gt;2&lt;/b&gt;`, `\x1b[31mred \u202egnp.exe\nsecond line`},
		"/live":                             {`breaker open`, `disabled`},
		"/endpoints/" + s.failing.String():  {`https://hooks.example.com:8443`, "\\x1b[31mred \\u202egnp.exe\nsecond line"},
		"/endpoints/" + s.disabled.String(): {`\x1b[31mred \u202egnp.exe\nsecond line`},
		"/deliveries/" + s.retrying.String(): {"\\x1b[31mred \\u202egnp.exe\nsecond line", `timeout: no answer in 15 s`, `answered 503 (http_5xx)`, `15 s`, `a\u202eb`,
			`&lt;script&gt;alert(1)&lt;/script&gt;`},
		"/?organization=%3Cscript%3E":         {`Endpoints of &lt;script&gt;`, `value="&lt;script&gt;"`},
		"/?status=%3Cscript%3E":               {`is none; take one of the list`},
		"/?endpoint=%3Cscript%3E":             {`is no id of an endpoint`},
		"/?until=%3Cscript%3E":                {`is no time`},
		"/?before=%22%3E%3Cscript%3E":         {`is no id of a delivery`},
		"/?done=%3Cscript%3E&n=%3Cscript%3E":  {`Deliveries`},
		"/?done=retry&n=%3Cscript%3E":         {`Deliveries`},
		"/?done=test&delivery=%3Cscript%3Ex1": {`Deliveries`},
	} {
		w := ask(h, "GET", path, "")
		body := w.Body.String()
		if w.Code != http.StatusOK {
			t.Errorf("%s: %d %s", path, w.Code, body)
		}
		for _, part := range want {
			if !strings.Contains(html.UnescapeString(body), part) && !strings.Contains(body, part) {
				t.Errorf("%s: there is no %q in %s", path, part, body)
			}
		}
		if found := markup.FindString(body); found != "" || strings.Contains(body, "hunter2") {
			t.Errorf("%s: it holds %q, or a credential: %s", path, found, body)
		}
		policy := w.Header().Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'; ") || strings.Contains(policy, "unsafe") || !strings.Contains(policy, "frame-ancestors 'none'") {
			t.Errorf("%s: policy %q", path, policy)
		}
	}
	for _, path := range []string{"/deliveries/x", "/endpoints/x", "/deliveries/" + uuid.NewString(), "/endpoints/" + uuid.NewString()} {
		if w := ask(h, "GET", path, ""); w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "There is no such") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

// The lists show what is asked for.
func TestFilters(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	h := New(options(t, s.db.Pool))
	all := map[string]uuid.UUID{"retrying": s.retrying, "failed": s.failed, "success": s.success, "cancelled": s.orphan}
	for query, want := range map[string]string{
		"":               "retrying failed",
		"status=all":     "retrying failed success cancelled",
		"status=success": "success",
		"status=failed&endpoint=" + s.failing.String():             "failed",
		"status=cancelled&endpoint=" + s.failing.String():          "cancelled",
		"status=retrying&endpoint=" + s.failing.String():           "retrying",
		"status=all&endpoint=" + s.healthy.String():                "success",
		"status=all&type=payment.failed":                           "retrying failed success cancelled",
		"status=all&type=payment.succeeded":                        "",
		"status=all&organization=org_1":                            "retrying failed success cancelled",
		"status=all&organization=org_2":                            "",
		"status=all&until=2020-01-01T00:00":                        "",
		"status=all&before=" + s.failed.String():                   "retrying",
		"status=failed&endpoint=" + s.failing.String() + "&type=x": "",
	} {
		body := ask(h, "GET", "/?"+query, "").Body.String()
		_, list, _ := strings.Cut(body, `<h2 id="deliveries">`)
		for status, id := range all {
			if got, want := strings.Contains(list, "/deliveries/"+id.String()+"/replay"), strings.Contains(want, status); got != want {
				t.Errorf("%s: the %s one is there: %t", query, status, got)
			}
		}
	}
	body := ask(h, "GET", "/?organization=org_1", "").Body.String()
	for id, want := range map[uuid.UUID]bool{s.failing: true, s.healthy: true, s.disabled: false} {
		if got := strings.Contains(body, "/endpoints/"+id.String()+"/test"); got != want {
			t.Errorf("endpoint %s is among those of org_1: %t", id, got)
		}
	}
}

// A list longer than a page is read page by page, to its end, each delivery once.
func TestPaging(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	h := New(options(t, s.db.Pool))
	one[string](t, s.db, `WITH made AS (
		INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, next_attempt_at)
		SELECT webhook_delivery_id(webhook_uuid_at(now() - n * interval '3 hours'), gen_random_uuid()), webhook_uuidv7(), $1, 'org_3', 'a.b', CASE WHEN n % 2 = 0 THEN 'failed' ELSE 'retrying' END, 1, now()
		FROM generate_series(1, 120) AS n RETURNING id) SELECT count(*)::text FROM made`, s.failing)
	next := regexp.MustCompile(`<a href="(/\?[^"]+)">(?:Older deliveries|Look further back)`)
	for query, want := range map[string]int{"organization=org_3": 120, "organization=org_3&status=failed&endpoint=" + s.failing.String(): 60, "organization=org_3&status=retrying&endpoint=" + s.failing.String(): 60} {
		seen, pages := map[string]int{}, 0
		for path := "/?" + query; path != ""; pages++ {
			body := ask(h, "GET", path, "").Body.String()
			_, list, _ := strings.Cut(body, `<h2 id="deliveries">`)
			for _, m := range regexp.MustCompile(`id="replay-([0-9a-f-]+)"`).FindAllStringSubmatch(list, -1) {
				seen[m[1]]++
			}
			path = ""
			if m := next.FindStringSubmatch(list); m != nil {
				path, _, _ = strings.Cut(html.UnescapeString(m[1]), "#")
			}
			if pages > 20 {
				t.Fatalf("%s: it has no end", query)
			}
		}
		for id, times := range seen {
			if times != 1 {
				t.Errorf("%s: %s is there %d times", query, id, times)
			}
		}
		if len(seen) != want {
			t.Errorf("%s: %d deliveries on %d pages, want %d", query, len(seen), pages, want)
		}
	}
}

// The charts are of what was counted between two samples.
func TestSamples(t *testing.T) {
	t.Parallel()
	var stats schedule.Stats
	s := NewSamples(func() schedule.Stats { return stats })
	now := time.Now()
	tick := func(delivered, failed uint64) {
		now = now.Add(sampleEvery)
		stats.Delivered, stats.Errors = delivered, map[webhook.ErrorClass]uint64{webhook.ErrTimeout: failed}
		stats.ToAttempt.Add(3 * time.Millisecond)
		s.take(now)
	}
	tick(1000, 10)
	if n := len(s.last()); n != 0 {
		t.Errorf("%d samples of one look", n)
	}
	tick(1050, 15)
	tick(1070, 20)
	got := s.last()
	if len(got) != 2 || got[0].delivered != 10 || got[0].failed != 1 || got[1].delivered != 4 || got[1].failed != 1 {
		t.Errorf("%+v", got)
	}
	for i := range uint64(2 * samplesKept) {
		tick(1070+i*500, 20)
	}
	if got := s.last(); len(got) != samplesKept || got[samplesKept-1].delivered != 100 {
		t.Errorf("%d samples, the last is %+v", len(got), got[len(got)-1])
	}
	c := throughput(s.last())
	if c.Lines[0].Now != "100" || c.Top != "100" || len(c.Lines[0].Parts) != 1 || len(latency(s.last()).Lines[0].Parts) != 1 {
		t.Errorf("%+v", c)
	}
}
