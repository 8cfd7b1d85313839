package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/outbox"
)

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

// An endpoint may give its receiver longer than WALHOOK_TIMEOUT, and a stop waits no longer than that. The attempt that it cuts
// does not count, not even where it is the only one of the schedule: the next process makes it.
func TestAnAttemptThatAStopCutsDoesNotCount(t *testing.T) {
	for name, park := range map[string]string{"its delivery has a row with a lease": "WALHOOK_PARK_AFTER=0", "and one that was written meanwhile": "WALHOOK_PARK_AFTER=100ms", "and none": "WALHOOK_PARK_AFTER=1m"} {
		t.Run(name, func(t *testing.T) {
			const timeout = time.Second
			w := newWorld(t, "WALHOOK_TIMEOUT="+timeout.String(), park)
			hold := make(chan struct{})
			rcv := newReceiver(t, func(n int) int {
				if n == 0 {
					<-hold
				}
				return 200
			})
			t.Cleanup(func() { close(hold) })
			id, _ := w.endpoint(rcv.URL)
			w.exec(`UPDATE webhook_endpoints SET timeout = '60 s', retry_schedule = '{}' WHERE id = $1`, id)
			w.run()
			event := w.insert("payment.succeeded")
			pgtest.Eventually(t, patience, "the attempt is under way", func() bool { return len(rcv.requests()) == 1 })
			if park != "WALHOOK_PARK_AFTER=1m" {
				w.eventually("it has a row", `SELECT count(*) = 1 FROM webhook_deliveries WHERE event_id = $1`, event)
			}
			begun := time.Now()
			if err := w.stop(); err != nil {
				t.Errorf("stop: %v", err)
			}
			if took := time.Since(begun); took > timeout+5*time.Second {
				t.Errorf("the stop took %s", took)
			}
			if row := query[string](w, `SELECT coalesce(string_agg(concat_ws(' ', status, attempts, error, next_attempt_at <= now()), ', '), '') FROM webhook_deliveries WHERE event_id = $1`, event); row != "" && row != "pending 0 t" {
				t.Errorf("the row is %q", row)
			}
			w.run()
			w.eventually("the next process delivers it", `SELECT count(*) = 1 FROM webhook_deliveries WHERE event_id = $1 AND status = 'success' AND attempts = 1`, event)
			if got := rcv.requests(); len(got) != 2 || got[1].header.Get("X-Webhook-Retry") != "0" {
				t.Errorf("%d requests, %v", len(got), got[len(got)-1].header)
			}
		})
	}
}
