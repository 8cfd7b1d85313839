package admin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/goleak"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// options are those of a process in which all is well, on a pool.
func options(t *testing.T, pool *pgxpool.Pool) Options {
	t.Helper()
	return Options{
		Version: "v1.2.3",
		Log:     slog.New(slog.DiscardHandler),
		Alive:   func() error { return nil },
		Ready:   func(context.Context) (string, error) { return "active", nil },
		Metrics: NewMetrics(func() uint64 { return 4 }),
		Stats:   func() schedule.Stats { return schedule.Stats{Window: 7} },
		Samples: NewSamples(func() schedule.Stats { return schedule.Stats{} }),
		Stream:  func() cdc.Status { return cdc.Status{Role: cdc.Streaming} },
		Store:   store.New(pool, "walhook", 0),
	}
}

// away returns a pool on a database that refuses connections.
func away(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/none?connect_timeout=1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// ask makes a request to localhost, with headers as "Name: value".
func ask(h http.Handler, method, path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://localhost:8080"+path, strings.NewReader(body))
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		if name == "Host" {
			r.Host = value
			continue
		}
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// reason reads {"error":"…"}.
func reason(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	var body map[string]string
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || len(body) != 1 || body["error"] == "" {
		t.Errorf("got the body %q, want an error as JSON", w.Body)
	}
	if got := w.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("content type %q", got)
	}
	return body["error"]
}

func TestHealth(t *testing.T) {
	t.Parallel()
	o := options(t, away(t))
	o.Tokens = []string{"t0ken", "t0ken-to-come"}
	h := New(o)
	if w := ask(h, "GET", "/healthz", ""); w.Code != http.StatusOK || w.Body.String() != "ok" {
		t.Errorf("healthz: %d %q", w.Code, w.Body)
	}
	if w := ask(h, "GET", "/readyz", "", "Host: 10.0.0.1"); w.Code != http.StatusOK || strings.TrimSpace(w.Body.String()) != `{"role":"active"}` {
		t.Errorf("readyz: %d %q", w.Code, w.Body)
	}

	const wedged, text = "the recorder has made no progress for 13s", "no route to db.internal for user walhook"
	o.Alive = func() error { return errors.New(wedged) }
	o.Ready = func(context.Context) (string, error) {
		return "", &Reason{Class: "database unreachable", Err: errors.New(text)}
	}
	h = New(o)
	for _, tt := range []struct {
		who, header    string
		health, notYet string
	}{
		{"everybody", "Host: walhook.internal", "not working", "database unreachable"},
		{"who asks on this machine, with a token elsewhere", "Host: localhost", "not working", "database unreachable"},
		{"a wrong token", "Authorization: Bearer t0kem", "not working", "database unreachable"},
		{"the token", "Authorization: Bearer t0ken", wedged, text},
		{"the token in a browser", "Authorization: Basic " + basic("me:t0ken-to-come"), wedged, text},
	} {
		if w := ask(h, "GET", "/healthz", "", tt.header); w.Code != http.StatusServiceUnavailable || w.Body.String() != tt.health {
			t.Errorf("healthz, wedged, to %s: %d %q, want %q", tt.who, w.Code, w.Body, tt.health)
		}
		if w := ask(h, "GET", "/readyz", "", tt.header); w.Code != http.StatusServiceUnavailable || reason(t, w) != tt.notYet {
			t.Errorf("readyz, not ready, to %s: %d %q, want %q", tt.who, w.Code, w.Body, tt.notYet)
		}
	}
	o.Tokens = nil
	for host, want := range map[string]int{"localhost:8080": http.StatusServiceUnavailable, "rebound.example:8080": http.StatusForbidden} {
		health, ready := ask(New(o), "GET", "/healthz", "", "Host: "+host), ask(New(o), "GET", "/readyz", "", "Host: "+host)
		if health.Code != want || ready.Code != want || strings.Contains(health.Body.String()+ready.Body.String(), "13s") || strings.Contains(ready.Body.String(), text) {
			t.Errorf("without a token, to %s: %d %q and %d %q, want %d and a class", host, health.Code, health.Body, ready.Code, ready.Body, want)
		}
	}
	o.Ready = func(context.Context) (string, error) { return "", errors.New(text) }
	if w := ask(New(o), "GET", "/readyz", ""); reason(t, w) != "not ready" {
		t.Errorf("readyz, for a reason that nobody has classed: %q", w.Body)
	}
}

// However many ask, the database is asked once a second, for all of them.
func TestHealthIsLookedUpOnceASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var looks atomic.Int32
		check := newCheckup(func(ctx context.Context) (string, error) {
			looks.Add(1)
			time.Sleep(2 * time.Second)
			return "active", ctx.Err()
		})
		gone, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = check.result(gone) })
		synctest.Wait()
		leave()
		for range 100 {
			wg.Go(func() {
				if role, err := check.result(t.Context()); role != "active" || err != nil {
					t.Errorf("got %q, %v, because the first one to ask has gone", role, err)
				}
			})
		}
		wg.Wait()
		if n := looks.Load(); n != 1 {
			t.Errorf("looked %d times for 101 at once", n)
		}
		time.Sleep(healthEvery)
		if _, err := check.result(t.Context()); err != nil || looks.Load() != 2 {
			t.Errorf("a second later: looked %d times, %v", looks.Load(), err)
		}
	})
}

func TestWhoMayAsk(t *testing.T) {
	t.Parallel()
	const tooFar, fine = http.StatusForbidden, http.StatusOK
	open := New(options(t, away(t)))
	o := options(t, away(t))
	o.Tokens = []string{"t0ken", "t0ken-to-come"}
	closed := New(o)
	for _, tt := range []struct {
		what    string
		h       http.Handler
		headers []string
		want    int
	}{
		{"localhost", open, nil, fine},
		{"an address of loopback", open, []string{"Host: 127.0.0.2:8080"}, fine},
		{"IPv6", open, []string{"Host: [::1]:8080"}, fine},
		{"IPv6 without a port", open, []string{"Host: [::1]"}, fine},
		{"no name, as HTTP/1.0 may have it", open, []string{"Host: "}, fine},
		{"a name that was rebound", open, []string{"Host: rebound.example:8080"}, tooFar},
		{"a name that looks like it", open, []string{"Host: localhost.example"}, tooFar},
		{"another address", open, []string{"Host: 10.0.0.1:8080"}, tooFar},
		{"no token", closed, nil, http.StatusUnauthorized},
		{"a wrong token", closed, []string{"Authorization: Bearer t0kem"}, http.StatusUnauthorized},
		{"half a token", closed, []string{"Authorization: Bearer t0k"}, http.StatusUnauthorized},
		{"another scheme", closed, []string{"Authorization: Digest t0ken"}, http.StatusUnauthorized},
		{"Basic without a password", closed, []string{"Authorization: Basic t0ken"}, http.StatusUnauthorized},
		{"the token as the user of Basic", closed, []string{"Authorization: Basic " + basic("t0ken:")}, http.StatusUnauthorized},
		{"the token as the password of Basic", closed, []string{"Authorization: Basic " + basic(":t0ken")}, fine},
		{"with any user", closed, []string{"Authorization: Basic " + basic("operator:t0ken")}, fine},
		{"an empty password", closed, []string{"Authorization: Basic " + basic("operator:")}, http.StatusUnauthorized},
		{"the token to come", closed, []string{"Authorization: Bearer t0ken-to-come"}, fine},
		{"both at once", closed, []string{"Authorization: Bearer t0ken,t0ken-to-come"}, http.StatusUnauthorized},
		{"the token", closed, []string{"Authorization: Bearer t0ken", "Host: walhook.internal"}, fine},
		{"the token, in other case", closed, []string{"Authorization: bearer t0ken"}, fine},
	} {
		for _, path := range []string{"/", "/metrics"} {
			if w := ask(tt.h, "GET", path, "", tt.headers...); w.Code != tt.want {
				t.Errorf("%s: GET %s answers %d, want %d", tt.what, path, w.Code, tt.want)
			}
		}
		want := tt.want
		if want == fine {
			want = http.StatusBadRequest // it was asked, and found no event
		}
		if w := ask(tt.h, "POST", "/api/test-webhook", "{}", tt.headers...); w.Code != want || reason(t, w) == "" {
			t.Errorf("%s: POST answers %d, want %d", tt.what, w.Code, want)
		}
	}
}

// basic encodes user and password.
func basic(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// A browser asks for a password where it is told of Basic.
func TestABrowserIsAskedForThePassword(t *testing.T) {
	t.Parallel()
	o := options(t, away(t))
	o.Tokens = []string{"t0ken"}
	w := ask(New(o), "GET", "/", "")
	got := w.Header().Values("WWW-Authenticate")
	if w.Code != http.StatusUnauthorized || len(got) != 2 || !strings.HasPrefix(got[0], "Basic realm=") || !strings.HasPrefix(got[1], "Bearer") {
		t.Errorf("%d %q", w.Code, got)
	}
	post := ask(New(o), "POST", "/api/test-webhook", "{}", "Authorization: Basic "+basic(":t0ken"), "Sec-Fetch-Site: cross-site")
	if post.Code != http.StatusForbidden {
		t.Errorf("another origin's page posts with the browser's password: %d", post.Code)
	}
}

// A page that the operator's browser shows must not send test webhooks.
func TestOtherOriginsMayNotPost(t *testing.T) {
	t.Parallel()
	h := New(options(t, away(t)))
	for header, want := range map[string]int{
		"Sec-Fetch-Site: cross-site":    http.StatusForbidden,
		"Sec-Fetch-Site: same-site":     http.StatusForbidden,
		"Sec-Fetch-Site: same-origin":   http.StatusBadRequest,
		"Origin: https://evil.example":  http.StatusForbidden,
		"Origin: null":                  http.StatusForbidden,
		"Origin: http://localhost:8080": http.StatusBadRequest,
	} {
		if w := ask(h, "POST", "/api/test-webhook", "{}", header, "Content-Type: text/plain"); w.Code != want || reason(t, w) == "" {
			t.Errorf("%s: %d, want %d", header, w.Code, want)
		}
	}
}

func TestTestWebhook(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	h := New(options(t, db.Pool))
	post := func(body string) *httptest.ResponseRecorder {
		return ask(h, "POST", "/api/test-webhook", body, "Content-Type: application/x-www-form-urlencoded")
	}
	endpoint := func(organization string) (id uuid.UUID) {
		t.Helper()
		const sql = `INSERT INTO webhook_endpoints (organization_id, url) VALUES ($1, 'https://example.com/hook') RETURNING id`
		if err := db.Pool.QueryRow(t.Context(), sql, organization).Scan(&id); err != nil {
			t.Fatal(err)
		}
		return id
	}
	// accepted posts, and checks the answer against the outbox.
	accepted := func(body string, endpoints ...uuid.UUID) {
		t.Helper()
		w := post(body)
		var got testResponse
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != http.StatusAccepted {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
			return
		}
		var owed []uuid.UUID
		if err := db.Pool.QueryRow(t.Context(), `SELECT endpoint_ids FROM webhook_outbox WHERE id = $1`, got.EventID).Scan(&owed); err != nil {
			t.Fatal(err)
		}
		var want []uuid.UUID
		for _, e := range endpoints {
			want = append(want, outbox.DeliveryID(got.EventID, e))
		}
		if !slices.Equal(owed, endpoints) || !slices.Equal(got.DeliveryIDs, want) {
			t.Errorf("%s: owed to %v with deliveries %v, want %v and %v", body, owed, got.DeliveryIDs, endpoints, want)
		}
	}
	refused := func(status int, says, body string) {
		t.Helper()
		if w := post(body); w.Code != status || !strings.Contains(reason(t, w), says) {
			t.Errorf("%.100s: %d %s, want %d and %q", body, w.Code, w.Body, status, says)
		}
	}

	refused(http.StatusBadRequest, "none has endpoints: organizationId is required", `{"event":"payment.succeeded"}`)
	one := endpoint("org_1")
	accepted(`{"event":"payment.succeeded"}`, one)
	accepted(`{"event":"payment.succeeded","organizationId":null,"endpointId":null,"data":null}`, one)
	accepted(`{"event":"payment.succeeded","organizationId":"org_1","data":{"a":[1,2]}}`, one)
	accepted(`{"event":"webhook.test"}`) // nobody names it
	if w := post(`{"event":"webhook.test"}`); !strings.Contains(w.Body.String(), `"deliveryIds":[]`) {
		t.Errorf("no deliveries have to be an empty list: %s", w.Body)
	}
	two := endpoint("org_1")
	accepted(`{"event":"webhook.test","endpointId":"`+two.String()+`"}`, two)

	refused(http.StatusBadRequest, "the body is empty", ``)
	refused(http.StatusBadRequest, "event is required", `{}`)
	refused(http.StatusBadRequest, "event is required", `null`)
	refused(http.StatusBadRequest, "not an object", `["payment.succeeded"]`)
	refused(http.StatusBadRequest, "event has to be a string, not a number", `{"event":1}`)
	refused(http.StatusBadRequest, `unknown field "events"`, `{"event":"payment.succeeded","events":1}`)
	refused(http.StatusBadRequest, "not as expected", `{"event":`)
	refused(http.StatusBadRequest, "not as expected", `event=payment.succeeded`)
	refused(http.StatusBadRequest, "nothing else", `{"event":"payment.succeeded"} {}`)
	refused(http.StatusBadRequest, "a UUID", `{"event":"payment.succeeded","endpointId":"1"}`)
	refused(http.StatusBadRequest, "a UUID", `{"event":"payment.succeeded","endpointId":"00000000-0000-0000-0000-000000000000"}`)
	refused(http.StatusUnprocessableEntity, "'payment.won' is not a known event type: ", `{"event":"payment.won"}`)
	refused(http.StatusUnprocessableEntity, "is not an endpoint of organization 'org_1'", `{"event":"payment.succeeded","endpointId":"`+uuid.NewString()+`"}`)
	refused(http.StatusUnprocessableEntity, "unsupported Unicode escape", `{"event":"payment.succeeded","data":"\u0000"}`)
	refused(http.StatusUnprocessableEntity, "byte sequence", "{\"event\":\"payment.succeeded\",\"data\":\"\xff\"}")
	refused(http.StatusUnprocessableEntity, "byte sequence", `{"event":"payment\u0000"}`)
	refused(http.StatusUnprocessableEntity, "more than 256 KiB", `{"event":"payment.succeeded","data":"`+strings.Repeat("x", outbox.MaxPayloadBytes)+`"}`)
	refused(http.StatusRequestEntityTooLarge, "larger than 320 KiB", `{"event":"payment.succeeded","data":"`+strings.Repeat("x", maxTestBody)+`"}`)
	if w := ask(h, "GET", "/api/test-webhook", ""); w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "POST" || reason(t, w) == "" {
		t.Errorf("GET: %d %s", w.Code, w.Body)
	}
	accepted(`{"event":"payment.succeeded","endpointId":"`+one.String()+`","data":"`+strings.Repeat("x", outbox.MaxPayloadBytes-2)+`"}`, one)

	endpoint("org_2")
	refused(http.StatusBadRequest, "several have endpoints: organizationId is required", `{"event":"payment.succeeded"}`)
}

func TestWithoutADatabase(t *testing.T) {
	t.Parallel()
	h := New(options(t, away(t)))
	if w := ask(h, "POST", "/api/test-webhook", `{"event":"payment.succeeded"}`); w.Code != http.StatusServiceUnavailable || reason(t, w) == "" {
		t.Errorf("test webhook: %d %s", w.Code, w.Body)
	}
	if w := ask(h, "GET", "/", ""); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "connection refused") {
		t.Errorf("status page: %d %s", w.Code, w.Body)
	}
	if w := ask(h, "GET", "/metrics", ""); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "\nwalhook_database_up 0\n") ||
		strings.Contains(w.Body.String(), "walhook_slot_lag_bytes") {
		t.Errorf("metrics: %d %s", w.Code, w.Body)
	}
}

// However many ask, the pool's other connections are left to deliveries.
func TestOneConnectionForAllThatAsk(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	config := db.Pool.Config()
	config.MaxConns = 8
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	h := New(options(t, pool))
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { ask(h, "GET", "/", "") })
		wg.Go(func() { ask(h, "GET", "/metrics", "") })
		wg.Go(func() { ask(h, "POST", "/api/test-webhook", `{"event":"webhook.test"}`) })
	}
	wg.Wait()
	if n := pool.Stat().TotalConns(); n != 1 {
		t.Errorf("%d connections were made, want 1", n)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	o := options(t, db.Pool)
	o.Stats = func() schedule.Stats {
		return schedule.Stats{
			Counts: schedule.Counts{Events: 5, Delivered: 3, Errors: map[webhook.ErrorClass]uint64{webhook.ErrTimeout: 2},
				Finished: map[webhook.Status]uint64{webhook.Failed: 1}},
			Window: 7,
		}
	}
	o.Metrics.Observe("payment.failed", webhook.Attempt{Duration: 20 * time.Millisecond})
	o.Metrics.Observe("payment.failed", webhook.Attempt{Duration: 2 * time.Second, Class: webhook.ErrTimeout})
	w := ask(New(o), "GET", "/metrics", "")
	got := w.Body.String()
	for _, line := range []string{
		"walhook_events_total 5",
		"walhook_requests_resent_total 4",
		`walhook_attempts_total{class="success"} 3`,
		`walhook_attempts_total{class="timeout"} 2`,
		`walhook_attempts_total{class="dns"} 0`,
		`walhook_attempt_duration_seconds_bucket{outcome="success",le="0.025"} 1`,
		`walhook_attempt_duration_seconds_bucket{outcome="failure",le="1"} 0`,
		`walhook_commit_to_attempt_seconds_bucket{le="0.00025"} 0`,
		`walhook_commit_to_attempt_seconds_bucket{le="262.144"} 0`,
		"walhook_commit_to_recorded_seconds_count 0",
		`walhook_deliveries_finished_total{status="failed"} 1`,
		`walhook_deliveries_finished_total{status="success"} 0`,
		`walhook_endpoints{state="ok"} 0`,
		`walhook_endpoints{state="open"} 0`,
		`walhook_endpoints{state="paused"} 0`,
		"walhook_window_deliveries 7",
		`walhook_role{role="active"} 1`,
		`walhook_role{role="standby"} 0`,
		"walhook_database_up 1",
		"walhook_slot_lag_bytes 0",
		"walhook_slot_safe_wal_bytes +Inf",
		"walhook_deliveries_pending 0",
		"walhook_overdue_seconds 0",
		"walhook_stray_rows 0",
		`walhook_build_info{version="v1.2.3"} 1`,
	} {
		if !strings.Contains(got, "\n"+line+"\n") {
			t.Errorf("there is no line %s", line)
		}
	}
	for line := range strings.Lines(got) {
		if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "walhook_") {
			t.Errorf("a name that is not ours: %s", line)
		}
		if strings.Contains(line, "endpoint=") || strings.Contains(line, "endpoint_id=") {
			t.Errorf("a label per endpoint: %s", line)
		}
	}
	problems, err := promlint.New(strings.NewReader(got)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if !strings.HasPrefix(p.Metric, "walhook_go_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// Rows that are due at no time, and tables that somebody has locked, take away what
// they are about and nothing else.
func TestMetricsOfTheDatabaseAreIndependent(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	has := func(o Options, name string) bool {
		return strings.Contains(ask(New(o), "GET", "/metrics", "").Body.String(), "\n"+name)
	}
	o := options(t, db.Pool)
	for _, at := range []string{"infinity", "-infinity"} {
		if _, err := db.Pool.Exec(t.Context(), `WITH e AS (INSERT INTO webhook_endpoints (organization_id, url) VALUES ('o', 'https://example.com') RETURNING id)
			INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at)
			SELECT webhook_uuidv7(), webhook_uuidv7(), e.id, 'o', 't', 'pending', $1::text::timestamptz FROM e`, at); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"walhook_database_up 1", "walhook_slot_lag_bytes", "walhook_deliveries_pending", "walhook_overdue_seconds", "walhook_stray_rows"} {
			if !has(o, name) {
				t.Errorf("next_attempt_at %s: there is no %s", at, name)
			}
		}
	}
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `LOCK TABLE webhook_deliveries IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"walhook_database_up 1": true, "walhook_slot_lag_bytes": true, "walhook_deliveries_pending": false, "walhook_overdue_seconds": false} {
		if has(o, name) != want {
			t.Errorf("with webhook_deliveries locked, %s is there: %t", name, !want)
		}
	}
}

func TestStatusPage(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	o := options(t, db.Pool)
	o.Stream = func() cdc.Status { return cdc.Status{Role: cdc.Standby, Err: `<script>alert("x")</script>`} }
	o.Stats = func() schedule.Stats {
		return schedule.Stats{Counts: schedule.Counts{Errors: map[webhook.ErrorClass]uint64{webhook.ErrTimeout: 2}}, Bytes: 3 << 20}
	}
	w := ask(New(o), "GET", "/", "")
	page := w.Body.String()
	for _, part := range []string{"walhook v1.2.3: standby", "&lt;script&gt;", "3.0 MiB", "failed: timeout</th><td>2<"} {
		if !strings.Contains(page, part) {
			t.Errorf("there is no %q in %s", part, page)
		}
	}
	if strings.Contains(page, "<script>") {
		t.Error("the page is not escaped")
	}
	if w := ask(New(o), "GET", "/nothing", ""); w.Code != http.StatusNotFound {
		t.Errorf("another path: %d", w.Code)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	entered := make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done() // hangs until its connection is closed
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, nil, h, slog.New(slog.DiscardHandler)) }()
	answered := make(chan error, 1)
	client := &http.Client{Transport: &http.Transport{}}
	go func() {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+l.Addr().String(), nil)
		if err != nil {
			answered <- err
			return
		}
		resp, err := client.Do(req)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			err = errors.Join(err, resp.Body.Close())
		}
		answered <- err
	}()
	<-entered
	start := time.Now()
	stop()
	if err := <-ended; err != nil {
		t.Errorf("got %v, want nil", err)
	}
	if took := time.Since(start); took > stopPatience+3*time.Second {
		t.Errorf("a request that hangs held the end up for %s", took)
	}
	if err := <-answered; err == nil {
		t.Error("the request that hung was answered")
	}
	client.CloseIdleConnections()
}

func TestServeSaysWhyItFailed(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Serve(t.Context(), l, nil, http.NotFoundHandler(), slog.New(slog.DiscardHandler)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want net.ErrClosed", err)
	}
}

// Operators find every metric in docs/operations.md.
func TestOperationsListsTheMetrics(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	db := pgtest.New(t)
	o := options(t, db.Pool)
	o.Metrics.Observe("", webhook.Attempt{})
	ours := map[string]bool{}
	for line := range strings.Lines(ask(New(o), "GET", "/metrics", "").Body.String()) {
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, _, _ = strings.Cut(name, " ")
			ours[name] = true
			runtime := strings.HasPrefix(name, "walhook_go_") || strings.HasPrefix(name, "walhook_process_")
			if !runtime && !strings.Contains(string(page), "`"+name+"`") {
				t.Errorf("docs/operations.md does not list %s", name)
			}
		}
	}
	roles, err := os.ReadFile("../../roles.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range regexp.MustCompile(`\('(walhook_[a-z]+)'(?:::text)?, '(?:NO)?LOGIN'`).FindAllStringSubmatch(string(roles), -1) {
		ours[role[1]] = true // the page names roles too
	}
	for _, name := range regexp.MustCompile("`(walhook_[a-z_]+[a-z])`").FindAllStringSubmatch(string(page), -1) {
		if !ours[name[1]] {
			t.Errorf("docs/operations.md lists %s, which does not exist", name[1])
		}
	}
}
