package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/outbox"
	"github.com/walhook/walhook/sign"
)

// A world is a database with a walhook beside it.
type world struct {
	t    *testing.T
	db   *pgtest.DB
	env  []string
	stop func() error // ends walhook gracefully, and returns what run returned

	ended func() bool // whether run has returned
	log   io.Writer
	fails bool // run may return an error
}

func newWorld(t *testing.T, env ...string) *world {
	t.Helper()
	t.Parallel()
	db := pgtest.New(t)
	return &world{t: t, db: db, log: t.Output(), env: append(env,
		"WALHOOK_DATABASE_URL="+db.URL, "WALHOOK_SLOT="+db.Slot, "WALHOOK_ADMIN_ADDR=",
		"WALHOOK_ALLOW_HTTP=true", "WALHOOK_ALLOW_NETS=127.0.0.0/8", "WALHOOK_TIMEOUT=3s", "WALHOOK_RETRY_SCHEDULE=200ms,200ms,200ms",
	)}
}

// run starts a walhook, and waits until somebody has the slot. One that is just being
// created is in use too, and what is inserted then comes by a comparison.
func (w *world) run(env ...string) {
	w.t.Helper()
	w.start(env...)
	w.eventually("the slot is in use", `SELECT active AND confirmed_flush_lsn IS NOT NULL FROM pg_replication_slots WHERE slot_name = $1`, w.db.Slot)
}

// start starts a walhook, which is stopped at the test's end at the latest.
func (w *world) start(env ...string) {
	w.t.Helper()
	cfg, err := config.Load(append(env, w.env...)) // the first of two counts
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var result error
	go func() {
		defer close(ended)
		result = run(ctx, cfg, slog.New(slog.NewTextHandler(w.log, nil)))
	}()
	w.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case <-ended:
			return result
		case <-time.After(20 * time.Second):
			return fmt.Errorf("walhook does not stop")
		}
	})
	w.ended = func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	}
	stop := w.stop
	w.t.Cleanup(func() {
		if err := stop(); err != nil && !w.fails {
			w.t.Errorf("run returned %v", err)
		}
	})
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.db.Pool.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

func query[T any](w *world, sql string, args ...any) T {
	w.t.Helper()
	var v T
	if err := w.db.Pool.QueryRow(w.t.Context(), sql, args...).Scan(&v); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// patience is no promise: the server is shared with other tests, whose open
// transactions some of what is waited for has to wait for too.
const patience = time.Minute

// eventually waits until a query answers true.
func (w *world) eventually(what, sql string, args ...any) {
	w.t.Helper()
	pgtest.Eventually(w.t, patience, what, func() bool {
		var v bool
		err := w.db.Pool.QueryRow(w.t.Context(), sql, args...).Scan(&v)
		return err == nil && v
	})
}

func (w *world) endpoint(url string, types ...string) (id uuid.UUID, secret string) {
	w.t.Helper()
	if len(types) == 0 {
		types = []string{"*"}
	}
	row := w.db.Pool.QueryRow(w.t.Context(), `SELECT * FROM webhook_create_endpoint('org_1', $1, $2)`, url, types)
	if err := row.Scan(&id, &secret); err != nil {
		w.t.Fatal(err)
	}
	return id, secret
}

func (w *world) insert(eventType string) uuid.UUID {
	w.t.Helper()
	return query[uuid.UUID](w, `INSERT INTO webhook_outbox (organization_id, event_type, payload)
		VALUES ('org_1', $1, '{"amount": 1}') RETURNING id`, eventType)
}

// A receiver answers as it is told, and keeps what it got.
type receiver struct {
	*httptest.Server
	mu   sync.Mutex
	got  []request
	next func(n int) int // the status of the n-th request, from 0
}

type request struct {
	header http.Header
	body   string
}

func newReceiver(t *testing.T, next func(n int) int) *receiver {
	r := &receiver{next: next}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		r.mu.Lock()
		n := len(r.got)
		r.got = append(r.got, request{req.Header, string(body)})
		r.mu.Unlock()
		w.WriteHeader(r.next(n))
		fmt.Fprint(w, "answer ", n)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) requests() []request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

func always(status int) func(int) int { return func(int) int { return status } }

func TestFromInsertToRow(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	id, secret := w.endpoint(rcv.URL+"/hook?token=1", "payment.*")
	w.run()

	tx, err := w.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.failed', '{}')`); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.insert("org.created") // not subscribed
	event := w.insert("payment.succeeded")
	w.eventually("the row", `SELECT count(*) = 1 FROM webhook_deliveries WHERE event_id = $1 AND status = 'success'`, event)

	if n := query[int](w, `SELECT count(*) FROM webhook_deliveries`); n != 1 {
		t.Errorf("%d rows, want the one delivery", n)
	}
	got := rcv.requests()
	if len(got) != 1 {
		t.Fatalf("%d requests, want 1: nothing that was rolled back, nothing that nobody subscribed to", len(got))
	}
	h := got[0].header
	delivery := outbox.DeliveryID(event, id).String()
	for name, want := range map[string]string{
		"X-Webhook-Event": "payment.succeeded", "X-Webhook-Delivery-ID": delivery, "X-Webhook-Retry": "0",
		"Webhook-Id": delivery, "User-Agent": "Fabrk-Webhooks/1.0", "Content-Type": "application/json",
	} {
		if h.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, h.Get(name), want)
		}
	}
	if err := sign.Verify(h, []byte(got[0].body), secret); err != nil {
		t.Errorf("the signature: %v", err)
	}
	created := query[time.Time](w, `SELECT created_at FROM webhook_outbox WHERE id = $1`, event).UTC()
	want := fmt.Sprintf(`{"id":%q,"event":"payment.succeeded","data":{"amount": 1},"organizationId":"org_1","timestamp":%q}`,
		event, created.Truncate(time.Millisecond).Format("2006-01-02T15:04:05.000Z"))
	if got[0].body != want {
		t.Errorf("body\n%s, want\n%s", got[0].body, want)
	}
	w.eventually("the slot moves past the event", `SELECT confirmed_flush_lsn >= durable_lsn AND durable_lsn IS NOT NULL
		FROM pg_replication_slots s JOIN webhook_state t ON t.slot = s.slot_name WHERE slot_name = $1`, w.db.Slot)
}

func TestASecretOfOnesOwnSigns(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	const own, next = "4f6c1c1d1d9f5d6e2f3a0b9c8d7e6f5a4f6c1c1d1d9f5d6e2f3a0b9c8d7e6f5a", "the next secret of one's own"
	id := query[uuid.UUID](w, `SELECT endpoint_id FROM webhook_create_endpoint('org_1', $1, secret => $2)`, rcv.URL, own)
	w.run()
	signedWith := func(secret string) bool {
		event := w.insert("payment.succeeded")
		w.eventually("success", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, event)
		got := rcv.requests()
		r := got[len(got)-1]
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(r.body))
		return r.header.Get("X-Webhook-Signature") == hex.EncodeToString(mac.Sum(nil)) && sign.Verify(r.header, []byte(r.body), secret) == nil
	}
	if !signedWith(own) {
		t.Error("the first request is not signed with the endpoint's own secret")
	}
	w.exec(`SELECT webhook_set_secret($1, $2)`, id, next)
	pgtest.Eventually(t, patience, "signed with the secret that was set", func() bool { return signedWith(next) })
}

func TestWhatWaitsIsSentAtOnceWhenTheReceiverIsMended(t *testing.T) {
	w := newWorld(t)
	var mended atomic.Bool
	rcv := newReceiver(t, func(int) int {
		if mended.Load() {
			return 200
		}
		return 503
	})
	id, _ := w.endpoint(rcv.URL)
	w.run("WALHOOK_RETRY_SCHEDULE=1h,2h,3h")
	const first, more = 30, 20 // the breaker opens after 20 failures
	for range first {
		w.insert("payment.failed")
	}
	w.eventually("the breaker is open", `SELECT breaker = 'open' FROM webhook_endpoint_health WHERE endpoint_id = $1`, id)
	for range more {
		w.insert("payment.failed")
	}
	w.eventually("all wait", `SELECT count(*) = $1 FROM webhook_deliveries WHERE status IN ('pending', 'retrying')`, first+more)
	if reason := query[string](w, `SELECT reason FROM webhook_explain((SELECT max(id::text)::uuid FROM webhook_outbox))`); !strings.HasPrefix(reason, "owed: waiting for its first attempt (its breaker is open since ") ||
		strings.Contains(reason, "no walhook") {
		t.Errorf("webhook_explain says %q", reason)
	}
	probes := len(rcv.requests())
	pgtest.Eventually(t, patience, "three probes, so that the next is seconds away", func() bool { return len(rcv.requests()) >= probes+3 })

	mended.Store(true)
	asked := time.Now()
	if n := query[int](w, `SELECT webhook_retry_now($1)`, id); n != first+more {
		t.Errorf("webhook_retry_now: %d, want %d", n, first+more)
	}
	w.eventually("all are delivered", `SELECT count(*) = $1 FROM webhook_deliveries WHERE status = 'success'`, first+more)
	if took := time.Since(asked); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	w.eventually("the breaker is closed", `SELECT failing_since IS NULL FROM webhook_endpoint_health WHERE endpoint_id = $1`, id)
}

// What is under way when an operator asks for what waits is not sent twice if it succeeds.
func TestWhatIsUnderWayIsNotSentOnceMore(t *testing.T) {
	w := newWorld(t)
	slow := make(chan struct{})
	rcv := newReceiver(t, func(n int) int {
		switch n {
		case 0: // a first attempt
			<-slow
			return 200
		case 1:
			return 500
		default: // its retry
			<-slow
			return 200
		}
	})
	id, _ := w.endpoint(rcv.URL)
	w.run() // what is older comes from the table and has no lease
	first := w.insert("payment.failed")
	w.eventually("its row has a lease", `SELECT count(*) = 1 FROM webhook_deliveries WHERE event_id = $1 AND next_attempt_at > now()`, first)
	w.insert("payment.failed")
	pgtest.Eventually(t, patience, "the second is tried again", func() bool { return len(rcv.requests()) == 3 })
	w.exec(`SELECT webhook_retry_now($1)`, id)
	close(slow)
	w.eventually("both are delivered", `SELECT count(*) = 2 FROM webhook_deliveries WHERE status = 'success'`)
	last := w.insert("payment.failed")
	w.eventually("a third is delivered", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, last)
	if n := len(rcv.requests()); n != 4 {
		t.Errorf("%d requests, want 4", n)
	}
}

// What an operator does in a prepared transaction is in force within a second of its commit.
func TestPreparedTransactions(t *testing.T) {
	server := pgtest.Server(t, postgres.Options{Settings: map[string]string{"max_prepared_transactions": "5", "wal_level": "logical"}})
	db := &pgtest.DB{URL: server.URL(), Slot: "walhook"}
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	db.Pool = pool
	w := &world{t: t, db: db, log: t.Output(), env: []string{"WALHOOK_DATABASE_URL=" + db.URL, "WALHOOK_ADMIN_ADDR=",
		"WALHOOK_ALLOW_HTTP=true", "WALHOOK_ALLOW_NETS=127.0.0.0/8", "WALHOOK_RETRY_SCHEDULE=1h"}}
	w.run()
	prepared := func(sql string) time.Time {
		t.Helper()
		w.exec(`BEGIN; ` + sql + `; PREPARE TRANSACTION 'x'`)
		time.Sleep(1500 * time.Millisecond) // a replay's time is long ago when it is committed: what is looked for begins a second ago
		w.exec(`COMMIT PREPARED 'x'`)
		return time.Now()
	}
	rcv := newReceiver(t, func(n int) int { return []int{500, 200}[min(n, 1)] })
	id, _ := w.endpoint(rcv.URL)
	event := w.insert("payment.failed")
	w.eventually("it waits", `SELECT status = 'retrying' FROM webhook_deliveries WHERE event_id = $1`, event)
	committed := prepared(`UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now()`)
	w.eventually("the replay is delivered", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, event)
	if took := time.Since(committed); took > 2*time.Second {
		t.Errorf("a replay took %s", took)
	}
	for _, sql := range []string{`UPDATE webhook_endpoints SET enabled = false`, `DELETE FROM webhook_endpoints`} {
		w.exec(`UPDATE webhook_endpoints SET enabled = true`)
		w.insert("payment.failed")
		w.eventually("delivered", `SELECT count(*) = 0 FROM webhook_deliveries WHERE status <> 'success'`)
		prepared(sql)
		time.Sleep(time.Second) // the promise
		n := len(rcv.requests())
		w.exec(`INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at)
			SELECT webhook_delivery_id(o.id, $1), o.id, $1, o.organization_id, o.event_type, 'pending', now() FROM webhook_outbox o ORDER BY id DESC LIMIT 1
			ON CONFLICT (id) DO UPDATE SET status = 'pending', next_attempt_at = now()`, id)
		w.eventually("it is cancelled", `SELECT count(*) = 1 FROM webhook_deliveries WHERE status = 'cancelled'`)
		if got := len(rcv.requests()); got != n {
			t.Errorf("after %s, %d requests", sql, got-n)
		}
		w.exec(`DELETE FROM webhook_deliveries WHERE status = 'cancelled'`)
	}
}

func TestRetriesUntilItWorks(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, func(n int) int { return []int{500, 302, 204}[min(n, 2)] })
	w.endpoint(rcv.URL)
	w.run()
	event := w.insert("payment.succeeded")
	w.eventually("success", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, event)

	got := rcv.requests()
	if len(got) != 3 {
		t.Fatalf("%d requests, want 3", len(got))
	}
	for i, r := range got {
		if r.header.Get("X-Webhook-Retry") != fmt.Sprint(i) || r.body != got[0].body || r.header.Get("X-Webhook-Delivery-ID") != got[0].header.Get("X-Webhook-Delivery-ID") {
			t.Errorf("request %d: retry %s, or another body or id than the first", i, r.header.Get("X-Webhook-Retry"))
		}
	}
	rows := query[string](w, `SELECT string_agg(attempt || ' ' || status_code || ' ' || coalesce(error_class, ''), ', ' ORDER BY attempt)
		FROM webhook_attempts WHERE event_id = $1`, event)
	if want := "1 500 http_5xx, 2 302 redirect, 3 204 "; rows != want {
		t.Errorf("attempts %q, want %q", rows, want)
	}
}

func TestTheLastAttemptFails(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(503))
	watcher := newReceiver(t, always(200))
	w.endpoint(rcv.URL, "payment.*")
	w.endpoint(watcher.URL, outbox.TypeDeliveryExhausted)
	w.run()
	event := w.insert("payment.failed")
	w.eventually("failed", `SELECT status = 'failed' AND attempts = 4 AND next_attempt_at IS NULL AND completed_at IS NOT NULL
		FROM webhook_deliveries WHERE event_id = $1`, event)
	pgtest.Eventually(t, patience, "the organization is told", func() bool { return len(watcher.requests()) == 1 })
	if body := watcher.requests()[0].body; !strings.Contains(body, event.String()) {
		t.Errorf("told %s, which does not name the event", body)
	}
	if n := query[int](w, `SELECT count(*) FROM webhook_outbox WHERE event_type = $1`, outbox.TypeDeliveryExhausted); n != 1 {
		t.Errorf("%d events about it, want 1", n)
	}

	w.exec(`UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now() WHERE event_id = $1`, event)
	w.eventually("a replay is a new series", `SELECT status = 'failed' AND attempts = 8 AND series_start = 4 FROM webhook_deliveries WHERE event_id = $1`, event)
}

func TestGoneDisablesTheEndpoint(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(410))
	watcher := newReceiver(t, always(200))
	id, _ := w.endpoint(rcv.URL, "payment.*")
	w.endpoint(watcher.URL, outbox.TypeEndpointDisabled)
	w.exec(`UPDATE webhook_endpoints SET max_in_flight = 1 WHERE id = $1`, id)
	w.run()
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 20)`)
	w.eventually("disabled, and the rest cancelled", `SELECT count(*) FILTER (WHERE status = 'failed') = 1 AND count(*) FILTER (WHERE status = 'cancelled') = 19
		FROM webhook_deliveries WHERE endpoint_id = $1`, id)
	if n := len(rcv.requests()); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
	if reason := query[string](w, `SELECT disabled_reason FROM webhook_endpoints WHERE id = $1 AND NOT enabled`, id); !strings.Contains(reason, "410") {
		t.Errorf("disabled because of %q", reason)
	}
	pgtest.Eventually(t, patience, "the organization is told", func() bool { return len(watcher.requests()) == 1 })
}

// WALHOOK_DISABLE_AFTER is kept to where it is short, and by a process that finds
// an endpoint failing.
func TestWhatOnlyFailsIsDisabled(t *testing.T) {
	w := newWorld(t, "WALHOOK_DISABLE_AFTER=3s", "WALHOOK_RETRY_SCHEDULE="+strings.Repeat("500ms,", 59)+"500ms")
	endpoint, _ := w.endpoint(newReceiver(t, always(500)).URL)
	w.run()
	w.insert("payment.succeeded")
	w.eventually("it fails", `SELECT count(*) = 1 FROM webhook_endpoint_failures`)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.run()
	const within = 20 * time.Second // 3 s, by a machine that is busy
	pgtest.Eventually(t, within, "it is disabled", func() bool {
		return query[bool](w, `SELECT NOT enabled FROM webhook_endpoints WHERE id = $1`, endpoint)
	})
}

// One delivery in memory is slow, and delivers all the same.
func TestTheSmallestWindow(t *testing.T) {
	w := newWorld(t, "WALHOOK_WINDOW=1", "WALHOOK_RETRY_SCHEDULE=500ms,500ms,500ms")
	w.endpoint(newReceiver(t, always(200)).URL)
	w.endpoint(newReceiver(t, always(500)).URL)
	w.run()
	for range 20 {
		w.insert("payment.succeeded")
	}
	w.eventually("all have ended", `SELECT count(*) FILTER (WHERE status = 'success') = 20 AND count(*) FILTER (WHERE status = 'failed') = 20 FROM webhook_deliveries
		WHERE event_type = 'payment.succeeded'`)
}

func TestDisablingCancelsRetries(t *testing.T) {
	w := newWorld(t, "WALHOOK_RETRY_SCHEDULE=1h")
	rcv := newReceiver(t, always(500))
	id, _ := w.endpoint(rcv.URL)
	w.run()
	event := w.insert("payment.succeeded")
	w.eventually("retrying", `SELECT status = 'retrying' AND next_attempt_at > now() + interval '59 minutes' FROM webhook_deliveries WHERE event_id = $1`, event)
	w.exec(`UPDATE webhook_endpoints SET enabled = false WHERE id = $1`, id)
	w.eventually("cancelled", `SELECT status = 'cancelled' AND error IS NOT NULL FROM webhook_deliveries WHERE event_id = $1`, event)
	w.exec(`UPDATE webhook_endpoints SET enabled = true WHERE id = $1`, id)
	w.exec(`UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now() WHERE event_id = $1`, event)
	pgtest.Eventually(t, patience, "a replay is sent", func() bool { return len(rcv.requests()) == 2 })
}

func TestABreakerHoldsBackUntilAProbeSucceeds(t *testing.T) {
	for _, parkAfter := range []string{"500ms", "0"} {
		t.Run("WALHOOK_PARK_AFTER="+parkAfter, func(t *testing.T) {
			w := newWorld(t, "WALHOOK_RETRY_SCHEDULE=1h,1h", "WALHOOK_PARK_AFTER="+parkAfter)
			var up atomic.Bool
			rcv := newReceiver(t, func(int) int {
				if up.Load() {
					return 200
				}
				return 503
			})
			w.endpoint(rcv.URL)
			w.run()
			w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 200)`)
			w.eventually("its breaker is open", `SELECT breaker = 'open' AND breaker_opened_at IS NOT NULL FROM webhook_endpoint_health`)
			w.eventually("the rest waits, and no attempt is counted", `SELECT count(*) FILTER (WHERE status = 'pending' AND attempts = 0) > 100
				AND count(*) = 200 AND sum(attempts) < 100 FROM webhook_deliveries`)
			if err := w.stop(); err != nil {
				t.Fatal(err)
			}
			before := len(rcv.requests())
			w.run() // the next process knows
			w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 200)`)
			w.eventually("all wait", `SELECT count(*) = 400 FROM webhook_deliveries`)
			if n := len(rcv.requests()) - before; n > 5 {
				t.Errorf("%d requests of a new process, want a probe or two", n)
			}
			up.Store(true)
			w.eventually("what waited is delivered", `SELECT count(*) FILTER (WHERE status = 'pending') = 0 FROM webhook_deliveries`)
			w.eventually("the breaker is closed", `SELECT breaker = 'closed' AND failing_since IS NULL FROM webhook_endpoint_health`)
		})
	}
}

func TestANewRateIsInForceWithoutARestart(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	id, _ := w.endpoint(rcv.URL)
	w.exec(`UPDATE webhook_endpoints SET rate_per_second = 0.5 WHERE id = $1`, id)
	w.run()
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 50)`)
	w.eventually("what is beyond the rate waits in the table", `SELECT count(*) FILTER (WHERE status = 'pending') > 40 FROM webhook_deliveries`)
	if n := len(rcv.requests()); n > 10 {
		t.Errorf("%d requests within seconds at one in two seconds", n)
	}
	w.exec(`UPDATE webhook_endpoints SET rate_per_second = NULL WHERE id = $1`, id)
	w.eventually("all are delivered", `SELECT count(*) FILTER (WHERE status = 'success') = 50 FROM webhook_deliveries`)
}

func TestReplayOfWhatWasCancelledMeanwhile(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	id, _ := w.endpoint(rcv.URL)
	w.exec(`UPDATE webhook_endpoints SET rate_per_second = 0.001 WHERE id = $1`, id)
	w.run()
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 20)`)
	w.eventually("all but one wait", `SELECT count(*) FILTER (WHERE status = 'pending') = 19 FROM webhook_deliveries`)
	w.exec(`UPDATE webhook_endpoints SET enabled = false WHERE id = $1`, id)
	w.eventually("cancelled", `SELECT count(*) FILTER (WHERE status = 'cancelled' AND error LIKE '%disabled%') = 19 FROM webhook_deliveries`)
	w.exec(`UPDATE webhook_endpoints SET enabled = true, rate_per_second = NULL WHERE id = $1`, id)
	event := w.insert("payment.failed")
	w.eventually("a new event is delivered", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, event)
	if n := len(rcv.requests()); n != 2 {
		t.Errorf("%d requests, want 2: enabling an endpoint sends nothing again", n)
	}
	if n := query[int](w, `SELECT webhook_replay_failed($1, now() - interval '1 hour')`, id); n != 19 {
		t.Errorf("%d are replayed, want 19", n)
	}
	w.eventually("the replay is delivered", `SELECT count(*) FILTER (WHERE status = 'success' AND attempts = 1) = 21 FROM webhook_deliveries`)
}

func TestNothingIsSignedWithAClockThatIsOff(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	// In this database, PostgreSQL's clock is another than walhook's.
	w.exec(`SET allow_system_table_mods = on;
		ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO true_clock_timestamp;
		CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql RETURN pg_catalog.true_clock_timestamp() + interval '10 minutes';
		RESET allow_system_table_mods`)
	w.run("WALHOOK_ADMIN_ADDR=127.0.0.1:0")
	event := w.insert("payment.succeeded")
	w.eventually("it waits", `SELECT status = 'pending' AND attempts = 0 FROM webhook_deliveries WHERE event_id = $1`, event)
	if n := len(rcv.requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
	w.exec(`SET allow_system_table_mods = on;
		CREATE OR REPLACE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql RETURN pg_catalog.true_clock_timestamp() - interval '1 minute';
		RESET allow_system_table_mods`)
	w.eventually("it is sent when the clock is right", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, event)
}

func TestADeletedEventIsCancelled(t *testing.T) {
	w := newWorld(t, "WALHOOK_RETRY_SCHEDULE=1h")
	rcv := newReceiver(t, always(500))
	w.endpoint(rcv.URL)
	w.run()
	event := w.insert("payment.succeeded")
	w.eventually("retrying", `SELECT status = 'retrying' FROM webhook_deliveries WHERE event_id = $1`, event)
	w.exec(`DELETE FROM webhook_outbox WHERE id = $1`, event)
	w.exec(`UPDATE webhook_deliveries SET next_attempt_at = now() WHERE event_id = $1`, event)
	w.eventually("cancelled", `SELECT status = 'cancelled' FROM webhook_deliveries WHERE event_id = $1`, event)
}

func TestWhatWaitedBeforeTheSlotIsDelivered(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 3000)`)
	w.run()
	w.eventually("all delivered", `SELECT count(*) = 3000 FROM webhook_deliveries WHERE status = 'success'`)
	if n := len(rcv.requests()); n != 3000 {
		t.Errorf("%d requests for 3000 deliveries", n)
	}
}

func TestALostSlotLosesNothing(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	w.run()
	w.insert("payment.succeeded")
	w.eventually("the first is delivered", `SELECT count(*) = 1 FROM webhook_deliveries WHERE status = 'success'`)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.exec(`SELECT pg_drop_replication_slot($1)`, w.db.Slot)
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 50)`)
	w.run()
	w.eventually("what the new slot does not bring is delivered", `SELECT count(*) = 51 FROM webhook_deliveries WHERE status = 'success'`)
	w.eventually("and need not be looked for again", `SELECT reconcile_from IS NULL FROM webhook_state`)
	if n := len(rcv.requests()); n != 51 {
		t.Errorf("%d requests for 51 deliveries", n)
	}
}

// What is committed while the outbox is not published never comes by the stream,
// and nobody says so: PostgreSQL confirms that there was nothing.
func TestATableThatWasNotPublishedForAMomentLosesNothing(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	blink := func() {
		w.exec(`ALTER PUBLICATION walhook DROP TABLE webhook_outbox`)
		w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 50)`)
		w.exec(`ALTER PUBLICATION walhook ADD TABLE webhook_outbox`)
	}
	w.run()
	w.insert("payment.succeeded")
	w.eventually("the first is delivered, and nothing has to be looked for", `SELECT count(*) = 1 FROM webhook_deliveries, webhook_state
		WHERE status = 'success' AND reconcile_from IS NULL`)
	blink()
	w.eventually("what was not published is delivered", `SELECT count(*) = 51 FROM webhook_deliveries WHERE status = 'success'`)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	blink()
	w.run()
	w.eventually("also where nobody was there to see it", `SELECT count(*) = 101 FROM webhook_deliveries WHERE status = 'success'`)
	w.eventually("and need not be looked for again", `SELECT reconcile_from IS NULL FROM webhook_state`)
	if n := len(rcv.requests()); n != 101 {
		t.Errorf("%d requests for 101 deliveries", n)
	}
}

func TestARestartRepeatsNothing(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	for round := range 4 {
		w.run()
		w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 300)`)
		pgtest.Eventually(t, patience, "some are sent", func() bool { return len(rcv.requests()) > round*300+50 })
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
	}
	w.run()
	w.eventually("all delivered", `SELECT count(*) = 1200 FROM webhook_deliveries WHERE status = 'success'`)
	if n := len(rcv.requests()); n != 1200 {
		t.Errorf("%d requests for 1200 deliveries", n)
	}
}

func TestAHangingEndpointIsParked(t *testing.T) {
	for _, parkAfter := range []string{"100ms", "0"} {
		t.Run("WALHOOK_PARK_AFTER="+parkAfter, func(t *testing.T) {
			w := newWorld(t, "WALHOOK_PARK_AFTER="+parkAfter, "WALHOOK_TIMEOUT=1s")
			release := make(chan struct{})
			hang := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				select {
				case <-release:
				case <-r.Context().Done():
				}
			}))
			t.Cleanup(hang.Close)
			healthy := newReceiver(t, always(200))
			slow, _ := w.endpoint(hang.URL)
			w.endpoint(healthy.URL)
			w.run()
			w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 200)`)
			w.eventually("the healthy endpoint has all, and the slot moves on",
				`SELECT (SELECT count(*) FROM webhook_deliveries WHERE status = 'success') = 200
				AND (SELECT count(*) FROM webhook_deliveries WHERE endpoint_id = $1 AND status IN ('pending', 'retrying')) = 200
				AND (SELECT confirmed_flush_lsn >= durable_lsn FROM pg_replication_slots s JOIN webhook_state t ON t.slot = s.slot_name WHERE slot_name = $2)`, slow, w.db.Slot)
			close(release)
			w.eventually("in the end all", `SELECT count(*) = 400 FROM webhook_deliveries WHERE status = 'success'`)
			if n := len(healthy.requests()); n != 200 {
				t.Errorf("%d requests to the healthy endpoint, want 200", n)
			}
		})
	}
}

func TestAStandbyTakesOver(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	w.run()
	first := w.stop
	w.run() // waits: the slot is in use
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 100)`)
	w.eventually("the first delivers", `SELECT count(*) = 100 FROM webhook_deliveries WHERE status = 'success'`)
	if err := first(); err != nil {
		t.Fatal(err)
	}
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 100)`)
	w.eventually("the second delivers", `SELECT count(*) = 200 FROM webhook_deliveries WHERE status = 'success'`)
	if n := len(rcv.requests()); n != 200 {
		t.Errorf("%d requests for 200 deliveries", n)
	}
	if epoch := query[int](w, `SELECT epoch FROM webhook_state`); epoch != 2 {
		t.Errorf("epoch %d after a takeover, want 2", epoch)
	}
}

func TestTheEnvironmentHoldsACopyBack(t *testing.T) {
	w := newWorld(t)
	w.run("WALHOOK_ENVIRONMENT=production")
	w.eventually("it is remembered", `SELECT environment = 'production' FROM webhook_state`)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(w.env)
	if err != nil {
		t.Fatal(err)
	}
	if code := exitCode(run(t.Context(), cfg, slog.New(slog.DiscardHandler))); code != exitHeldBack {
		t.Errorf("exit code %d, want %d", code, exitHeldBack)
	}
}

func TestOneRowCannotHoldTheSlot(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	w.exec(`ALTER TABLE webhook_deliveries ADD CONSTRAINT poison CHECK (response NOT IN ('answer 7', 'answer 8'))`)
	w.run()
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 50)`)
	w.eventually("all recorded, two of them without what the receiver said",
		`SELECT count(*) = 50 AND count(*) FILTER (WHERE response IS NULL AND error LIKE '%23514%') = 2 FROM webhook_deliveries WHERE status = 'success'`)
	w.eventually("the slot moves on", `SELECT confirmed_flush_lsn >= durable_lsn AND durable_lsn IS NOT NULL
		FROM pg_replication_slots s JOIN webhook_state t ON t.slot = s.slot_name WHERE slot_name = $1`, w.db.Slot)
	if n := len(rcv.requests()); n != 50 {
		t.Errorf("%d requests for 50 deliveries", n)
	}
}

func TestAnOperatorsLongUpdateHoldsNobodyUp(t *testing.T) {
	w := newWorld(t, "WALHOOK_RETRY_SCHEDULE=1s,1s,1s,1s,1s,1s,1s,1s")
	rcv := newReceiver(t, func(n int) int {
		if n < 20 {
			return 500
		}
		return 200
	})
	w.endpoint(rcv.URL)
	w.run()
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.failed', '{}' FROM generate_series(1, 20)`)
	w.eventually("all failed once", `SELECT count(*) = 20 FROM webhook_deliveries WHERE status = 'retrying'`)

	tx, err := w.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now() WHERE status = 'retrying'`); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, patience, "the retries are made", func() bool { return len(rcv.requests()) == 40 })
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, 100)`)
	w.eventually("fresh events are recorded meanwhile", `SELECT count(*) = 100 FROM webhook_deliveries WHERE event_type = 'payment.succeeded' AND status = 'success'`)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.eventually("and the retries' outcomes as soon as they can be", `SELECT count(*) = 20 FROM webhook_deliveries WHERE event_type = 'payment.failed' AND status = 'success'`)
}

func TestAFencedProcessBeginsAnew(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	w.run()
	w.eventually("it holds the epoch", `SELECT epoch = 1 FROM webhook_state`)
	w.exec(`UPDATE webhook_state SET epoch = epoch + 1, holder = gen_random_uuid()`)
	event := w.insert("payment.succeeded")
	w.eventually("it delivers with another epoch", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, event)
	if epoch := query[int](w, `SELECT epoch FROM webhook_state`); epoch != 3 {
		t.Errorf("epoch %d, want 3: it wrote with an old one", epoch)
	}
	if w.ended() {
		t.Error("it has ended")
	}
	if err := w.stop(); err != nil {
		t.Errorf("run returned %v", err)
	}
}

// A walsender that has seen rows come into a table before that became a partition of
// the outbox must not go on passing over it: PostgreSQL 14's does.
func TestEventsOfAPartitionThatHadRowsBefore(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	w.run()
	delivered := func(what string, n int) {
		t.Helper()
		w.insert("payment.failed")
		w.eventually(what, `SELECT count(*) = $1 FROM webhook_deliveries WHERE status = 'success'`, n)
	}
	today := query[string](w, `SELECT 'webhook_outbox_p' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')`)
	w.eventually("there are partitions", `SELECT to_regclass($1) IS NOT NULL`, today)
	w.exec(`DROP TABLE ` + today)
	delivered("an event in the DEFAULT partition", 1)
	w.exec(`SELECT webhook_add_partition('webhook_outbox', (now() AT TIME ZONE 'UTC')::date)`)
	w.eventually("it was moved", `SELECT count(*) = 1 FROM `+today)
	delivered("an event of the day that was moved", 2)

	bounds := query[string](w, `SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = $1::regclass`, today)
	w.exec(`CREATE TABLE by_hand (LIKE webhook_outbox INCLUDING ALL)`)
	w.exec(`INSERT INTO by_hand SELECT * FROM webhook_outbox`)
	w.exec(`DROP TABLE ` + today)
	w.exec(`ALTER TABLE webhook_outbox ATTACH PARTITION by_hand ` + bounds)
	delivered("an event of a partition that was attached by hand", 3)
}
