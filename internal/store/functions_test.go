package store_test

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

func TestNotifications(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	event := newEvent(t, db.Pool, "org_1", "payment.failed")
	delivery := newDelivery(t, db.Pool, event, endpoint, "failed")

	exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
	const said = `SELECT count(*) FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'walhook', 'messages', 'true')
		WHERE encode(data, 'escape') LIKE '%walhook%` + webhook.ChangeHint + `'`
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
	for _, since := range []string{`'-infinity', 'infinity'`, `'0001-01-01'`} { // the latter is the zero time of some languages
		exec(t, db.Pool, `UPDATE webhook_deliveries SET status = 'failed' WHERE id = $1`, old)
		if got := query[int64](t, db.Pool, `SELECT webhook_replay_failed($1, `+since+`)`, endpoint); got != 1 {
			t.Errorf("replayed %d since %s, want 1", got, since)
		}
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

func TestPause(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
	hints := func() int {
		return query[int](t, db.Pool, `SELECT count(*) FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'walhook', 'messages', 'true')
			WHERE get_byte(data, 0) = ascii('M')`, db.Slot)
	}
	endpoint := newEndpoint(t, db.Pool, "org_1")
	event := newEvent(t, db.Pool, "org_1", "payment.failed")
	newDelivery(t, db.Pool, event, endpoint, "pending")
	st := store.New(db.Pool, db.Slot, 0)
	look := func() webhook.Endpoint {
		t.Helper()
		found, err := st.Endpoints(t.Context(), []uuid.UUID{uuid.MustParse(endpoint)})
		if err != nil {
			t.Fatal(err)
		}
		return found[0]
	}
	overdue := func() (view, metric bool) {
		t.Helper()
		o, err := st.Overview(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return query[bool](t, db.Pool, `SELECT oldest_due_at IS NOT NULL FROM webhook_status`), *o.Overdue > 0
	}
	explained := func() string {
		return query[string](t, db.Pool, `SELECT reason FROM webhook_explain($1)`, event)
	}
	if view, metric := overdue(); !view || !metric {
		t.Errorf("overdue %t, %t", view, metric)
	}
	hints()
	for range 2 {
		exec(t, db.Pool, `SELECT webhook_pause($1)`, endpoint)
	}
	if n := hints(); n != 1 || !look().Paused {
		t.Errorf("paused %t, %d hints", look().Paused, n)
	}
	if view, metric := overdue(); view || metric {
		t.Errorf("what a pause holds is overdue: %t, %t", view, metric)
	}
	if got := explained(); !strings.Contains(got, "(the endpoint is paused since ") {
		t.Error(got)
	}
	if got := query[string](t, db.Pool, `SELECT format('%s %s', (SELECT waiting FROM webhook_endpoint_health WHERE paused_at IS NOT NULL), paused_endpoints) FROM webhook_status`); got != "1 1" {
		t.Errorf("health and status say %s", got)
	}
	for range 2 {
		exec(t, db.Pool, `SELECT webhook_resume($1)`, endpoint)
	}
	if n := hints(); n != 1 || look().Paused || strings.Contains(explained(), "paused") {
		t.Errorf("paused %t, %d hints, %s", look().Paused, n, explained())
	}
	exec(t, db.Pool, `UPDATE webhook_endpoints SET paused_at = now() + interval '1 hour' WHERE id = $1`, endpoint)
	if n := hints(); n != 1 || !look().Paused {
		t.Errorf("by UPDATE: paused %t, %d hints", look().Paused, n)
	}
	for _, f := range []string{"webhook_pause", "webhook_resume"} {
		refused(t, db.Pool, f+": there is no endpoint", `SELECT `+f+`(gen_random_uuid())`)
		refused(t, db.Pool, f+": there is no endpoint null", `SELECT `+f+`(NULL)`)
	}
}

func TestAnEndpointsOwnTimeoutAndScheduleAreRead(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	for _, c := range []struct {
		set, timeout, schedule string // as Go prints them
	}{
		{`timeout = NULL, retry_schedule = NULL`, "0s", "[]time.Duration(nil)"},
		{`timeout = '100 ms', retry_schedule = '{}'`, "100ms", "[]time.Duration{}"},
		{`timeout = '1 min', retry_schedule = '{1 s,250 ms,7 days}'`, "1m0s", "[]time.Duration{1000000000, 250000000, 604800000000000}"},
		{`timeout = '1 year -360 days', retry_schedule = '{2 years -720 days,-1 year 360 days}'`, "1m0s", "[]time.Duration{604800000000000, 0}"},
		{`timeout = '-1 year 360 days'`, "100ms", "[]time.Duration{604800000000000, 0}"},
	} {
		tx := begin(t, db.Pool)
		exec(t, tx, `SET LOCAL session_replication_role = replica`) // a restore that goes past triggers
		exec(t, tx, `UPDATE webhook_endpoints SET `+c.set)
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		found, err := store.New(db.Pool, db.Slot, 0).Endpoints(t.Context(), []uuid.UUID{uuid.MustParse(endpoint)})
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %v", c.set, err)
		}
		if e := found[0]; e.Timeout.String() != c.timeout || fmt.Sprintf("%#v", e.RetrySchedule) != c.schedule {
			t.Errorf("%s: %s, %#v", c.set, e.Timeout, e.RetrySchedule)
		}
	}
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
	look := func() webhook.Endpoint {
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

// Two operators who mend the same endpoint at the same time, each in a transaction of their own, do not wait for each other.
func TestRetryNowAndResumeInAnyOrder(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	const retry, resume = `SELECT webhook_retry_now($1)`, `SELECT webhook_resume($1)`
	for _, first := range [][]string{{retry, resume}, {resume, retry}} {
		for _, second := range [][]string{{retry, resume}, {resume, retry}} {
			exec(t, db.Pool, `UPDATE webhook_endpoints SET paused_at = now()`)
			exec(t, db.Pool, `INSERT INTO webhook_retries (endpoint_id, asked_at) VALUES ($1, now()) ON CONFLICT DO NOTHING`, endpoint)
			one := begin(t, db.Pool)
			exec(t, one, first[0], endpoint)
			ended := make(chan error, 1)
			pid := make(chan int, 1)
			go func() {
				ended <- pgx.BeginFunc(t.Context(), db.Pool, func(tx pgx.Tx) error {
					pid <- int(tx.Conn().PgConn().PID())
					for _, sql := range second {
						if _, err := tx.Exec(t.Context(), sql, endpoint); err != nil {
							return err
						}
					}
					return nil
				})
			}()
			other := <-pid
			pgtest.Eventually(t, time.Minute, "the second waits for the first", func() bool {
				return query[bool](t, db.Pool, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock')`, other)
			})
			exec(t, one, first[1], endpoint)
			if err := one.Commit(t.Context()); err != nil {
				t.Errorf("%q, before %q: %v", first, second, err)
			}
			if err := <-ended; err != nil {
				t.Errorf("%q, after %q: %v", second, first, err)
			}
		}
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
			`SELECT webhook_retry_now('` + endpoint + `')`, `SELECT webhook_pause('` + endpoint + `')`, `SELECT webhook_resume('` + endpoint + `')`, `SELECT webhook_forget('org_1')`, `SELECT webhook_drop_day('2020-01-01')`, `SELECT webhook_add_partition('webhook_outbox', '2020-01-01')`, `SELECT webhook_delete_old(now(), 1)`,
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
	source := query[string](t, tx, `SELECT substring(prosrc FROM 'ARRAY\((SELECT e.id FROM webhook_endpoints AS e[^;]*e\.event_types OPERATOR\(pg_catalog\.&&\) wanted[^;]*)\);') FROM pg_proc WHERE proname = 'webhook_outbox_before_insert'`)
	exec(t, tx, `PREPARE who (text, text[]) AS `+strings.NewReplacer("new.organization_id", "$1", "wanted", "$2", "new.payload", "'{}'::jsonb").Replace(source))
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
