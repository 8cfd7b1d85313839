package store_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

func TestExhausted(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	listener := newEndpoint(t, db.Pool, "org_1", outbox.TypeDeliveryExhausted)
	told := func() []string {
		return column[string](t, db.Pool, `SELECT id::text FROM webhook_outbox WHERE event_type = $1 ORDER BY id`, outbox.TypeDeliveryExhausted)
	}
	last := func(r webhook.Record, attempts int) webhook.Record {
		r = outcome(r, webhook.Failed, attempts, 503)
		r.Exhausted = true
		return r
	}
	rs := owed(t, db, endpoint, 4)

	r := last(rs[0], 1)
	for range 2 { // the second is a commit that was not heard of
		insert(t, st, fence, r)
		update(t, st, fence, r)
	}
	ids := told()
	if len(ids) != 1 {
		t.Fatalf("told %d times", len(ids))
	}
	var payload map[string]any
	if err := json.Unmarshal(query[[]byte](t, db.Pool, `SELECT payload FROM webhook_outbox WHERE id = $1`, ids[0]), &payload); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"deliveryId": r.ID.String(), "eventId": r.EventID.String(), "event": "payment.failed", "endpointId": endpoint,
		"attempts": 1.0, "statusCode": 503.0, "errorClass": "http_5xx", "error": "answered 503"} {
		if payload[key] != want {
			t.Errorf("%s: %v, want %v", key, payload[key], want)
		}
	}
	if got := query[string](t, db.Pool, `SELECT organization_id || array_to_string(endpoint_ids, ',') FROM webhook_outbox WHERE id = $1`, ids[0]); got != "org_1"+listener {
		t.Errorf("owed to %s", got)
	}
	if at := outbox.IDTime(uuid.MustParse(ids[0])); at.Sub(r.Attempt.EndedAt).Abs() > time.Second {
		t.Errorf("its id is from %s", at)
	}

	t.Run("is told again after a replay", func(t *testing.T) {
		exec(t, db.Pool, `SELECT webhook_replay($1)`, r.ID)
		update(t, st, fence, last(rs[0], 2))
		if n := len(told()); n != 2 {
			t.Errorf("told %d times in all, want 2", n)
		}
	})
	t.Run("is not told of what did not happen", func(t *testing.T) {
		rs[1].Status, rs[2].Status = webhook.Pending, webhook.Pending
		insert(t, st, fence, rs[1], rs[2], outcome(rs[3], webhook.Success, 1, 200))
		exec(t, db.Pool, `UPDATE webhook_deliveries SET status = 'cancelled', next_attempt_at = NULL WHERE id = $1`, rs[1].ID)
		tx := begin(t, db.Pool)
		exec(t, tx, `SELECT FROM webhook_deliveries WHERE id = $1 FOR UPDATE`, rs[2].ID)
		late := []webhook.Record{last(rs[1], 1), last(rs[2], 1), last(rs[3], 1)}
		if locked := update(t, st, fence, late...); len(locked) != 1 {
			t.Errorf("locked: %v", locked)
		}
		if n := len(told()); n != 2 {
			t.Errorf("a cancelled, a locked or a delivered one was told of: %d in all, want 2", n)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		update(t, st, fence, late...)
		if n := len(told()); n != 3 {
			t.Errorf("once it was free: %d in all, want 3", n)
		}
	})
	t.Run("is not told of walhook's own events", func(t *testing.T) {
		own := owedOf(t, db, endpoint, 1, outbox.TypeTest)
		insert(t, st, fence, last(own[0], 1))
		if n := len(told()); n != 3 {
			t.Errorf("%d in all, want 3", n)
		}
	})
}

func TestGoneDisables(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	listener := newEndpoint(t, db.Pool, "org_1", outbox.TypeEndpointDisabled)
	told := func(endpoint string) []string {
		return column[string](t, db.Pool, `SELECT array_to_string(endpoint_ids, ',') FROM webhook_outbox WHERE event_type = $1 AND payload ->> 'endpointId' = $2
			AND payload - 'endpointId' = '{"url": "https://example.com", "reason": "answered 410 Gone"}'`,
			outbox.TypeEndpointDisabled, endpoint)
	}
	enabled := func(endpoint string) bool {
		return query[bool](t, db.Pool, `SELECT enabled FROM webhook_endpoints WHERE id = $1`, endpoint)
	}
	gone := func(r webhook.Record) webhook.Record {
		r = outcome(r, webhook.Failed, 1, 410)
		r.Gone = true
		return r
	}

	t.Run("and tells once, but not the endpoint itself", func(t *testing.T) {
		endpoint := newEndpoint(t, db.Pool, "org_1", "*", "webhook.*")
		rs := owed(t, db, endpoint, 3)
		exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES ($1, now())`, endpoint)
		insert(t, st, fence, gone(rs[0]), gone(rs[1]))
		insert(t, st, fence, gone(rs[2]), gone(rs[0]))
		if got := told(endpoint); !slices.Equal(got, []string{listener}) {
			t.Errorf("told %q, want once, to %s", got, listener)
		}
		if got := query[string](t, db.Pool, `SELECT concat_ws('|', enabled, disabled_at IS NOT NULL, disabled_reason) FROM webhook_endpoints WHERE id = $1`, endpoint); got != "f|t|answered 410 Gone" {
			t.Errorf("endpoint: %s", got)
		}
		if query[bool](t, db.Pool, `SELECT EXISTS (SELECT FROM webhook_endpoint_failures WHERE endpoint_id = $1)`, endpoint) {
			t.Error("its failures will count once it is enabled again")
		}
	})
	t.Run("a failure after that does not count", func(t *testing.T) {
		endpoint := newEndpoint(t, db.Pool, "org_1")
		rs := owed(t, db, endpoint, 2)
		insert(t, st, fence, gone(rs[0]))
		recordHealth(t, st, fence, webhook.EndpointHealth{EndpointID: rs[1].EndpointID, Failing: true, At: time.Now()})
		if query[bool](t, db.Pool, `SELECT EXISTS (SELECT FROM webhook_endpoint_failures WHERE endpoint_id = $1)`, endpoint) {
			t.Error("it counts from before the endpoint is enabled again")
		}
	})
	t.Run("not while somebody has the endpoint's row", func(t *testing.T) {
		endpoint := newEndpoint(t, db.Pool, "org_1")
		rs := owed(t, db, endpoint, 2)
		tx := begin(t, db.Pool)
		exec(t, tx, `UPDATE webhook_endpoints SET description = 'mine' WHERE id = $1`, endpoint)
		insert(t, st, fence, gone(rs[0]))
		if got := statusOf(t, db, rs[0].ID); got != "failed 1" {
			t.Errorf("the outcome: %s", got)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !enabled(endpoint) || len(told(endpoint)) != 0 {
			t.Errorf("enabled %t, told %q", enabled(endpoint), told(endpoint))
		}
		insert(t, st, fence, gone(rs[1]))
		if enabled(endpoint) || len(told(endpoint)) != 1 {
			t.Errorf("afterwards: enabled %t, told %q", enabled(endpoint), told(endpoint))
		}
	})
	t.Run("for one of walhook's own events, without telling", func(t *testing.T) {
		endpoint := newEndpoint(t, db.Pool, "org_1")
		insert(t, st, fence, gone(owedOf(t, db, endpoint, 1, outbox.TypeTest)[0]))
		if enabled(endpoint) || len(told(endpoint)) != 0 {
			t.Errorf("enabled %t, told %q", enabled(endpoint), told(endpoint))
		}
	})
	t.Run("a deleted or disabled endpoint is left as it is", func(t *testing.T) {
		endpoint := newEndpoint(t, db.Pool, "org_1")
		rs := owed(t, db, endpoint, 2)
		exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = false, disabled_reason = 'by hand' WHERE id = $1`, endpoint)
		insert(t, st, fence, gone(rs[0]))
		if got := query[string](t, db.Pool, `SELECT disabled_reason FROM webhook_endpoints WHERE id = $1`, endpoint); got != "by hand" {
			t.Errorf("reason %q", got)
		}
		exec(t, db.Pool, `DELETE FROM webhook_endpoints WHERE id = $1`, endpoint)
		insert(t, st, fence, gone(rs[1]))
		if got := told(endpoint); len(got) != 0 {
			t.Errorf("told %q", got)
		}
	})
}

func TestFailingEndpoints(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	id := uuid.MustParse(endpoint)
	failing := webhook.EndpointHealth{EndpointID: id, Failing: true, At: time.Now()}
	still, open, recovered, again := failing, failing, webhook.EndpointHealth{EndpointID: id, Recovered: true}, failing
	still.CheckDisable, open.Open, again.Recovered = true, true, true
	age := func(by time.Duration) {
		exec(t, db.Pool, `UPDATE webhook_endpoint_failures SET failing_since = now() - $2 * interval '1 second',
			breaker_opened_at = breaker_opened_at - interval '1 hour' WHERE endpoint_id = $1`, endpoint, by.Seconds())
	}
	check := func(what, want string) {
		t.Helper()
		got := query[string](t, db.Pool, `SELECT concat_ws(' ',
			CASE WHEN failing_since > now() - interval '1 minute' THEN 'now' WHEN failing_since IS NOT NULL THEN 'long' ELSE 'not' END, breaker,
			CASE WHEN breaker_opened_at > now() - interval '1 minute' THEN 'now' WHEN breaker_opened_at IS NOT NULL THEN 'long' END)
			FROM webhook_endpoint_health WHERE endpoint_id = $1`, endpoint)
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}

	check("nothing told", "not closed")
	recordHealth(t, st, fence, failing)
	check("failing", "now closed")
	age(time.Hour)
	recordHealth(t, st, fence, failing)
	check("failing, from a process that did not know", "long closed")
	recordHealth(t, st, fence, open)
	check("its breaker opens", "long open now")
	age(time.Hour)
	still.Open = true
	recordHealth(t, st, fence, still)
	check("and stays open", "long open long")
	recordHealth(t, st, fence, failing)
	check("a process that knows of no open breaker", "long closed")
	recordHealth(t, st, fence, open)
	recordHealth(t, st, fence, again)
	check("recovered, and failing again", "now closed")
	recordHealth(t, st, fence, recovered)
	check("recovered", "not closed")
	recordHealth(t, st, fence, recovered)
	check("recovered again", "not closed")
	still.Open = false

	t.Run("each of a batch by itself", func(t *testing.T) {
		others := []string{newEndpoint(t, db.Pool, "org_2"), newEndpoint(t, db.Pool, "org_2")}
		a, b := open, recovered
		a.EndpointID, b.EndpointID = uuid.MustParse(others[0]), uuid.MustParse(others[1])
		exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES ($1, now())`, others[1])
		recordHealth(t, st, fence, failing, a, b)
		check("one of three", "now closed")
		if got := column[string](t, db.Pool, `SELECT breaker FROM webhook_endpoint_health WHERE failing_since IS NOT NULL ORDER BY 1`); !slices.Equal(got, []string{"closed", "open"}) {
			t.Errorf("failing: %q", got)
		}
	})

	t.Run("one that fails for longer than DISABLE_AFTER is disabled", func(t *testing.T) {
		exec(t, db.Pool, `DELETE FROM webhook_endpoint_failures`)
		enabled := func() bool {
			return query[bool](t, db.Pool, `SELECT enabled FROM webhook_endpoints WHERE id = $1`, endpoint)
		}
		told := func() int {
			return query[int](t, db.Pool, `SELECT count(*) FROM webhook_outbox WHERE event_type = $1 AND payload ->> 'endpointId' = $2`, outbox.TypeEndpointDisabled, endpoint)
		}
		recordHealth(t, st, fence, still)
		check("still failing, and nobody has said since when", "now closed")
		age(disableAfter - time.Minute)
		recordHealth(t, st, fence, still)
		if !enabled() {
			t.Fatal("disabled a minute early")
		}
		age(disableAfter + time.Minute)
		recordHealth(t, st, fence, failing)
		if !enabled() {
			t.Fatal("disabled at the first failure that a process sees")
		}
		stillAgain := still
		stillAgain.Recovered = true
		recordHealth(t, st, fence, stillAgain)
		if !enabled() {
			t.Fatal("disabled although it has recovered")
		}
		age(disableAfter + time.Minute)
		recordHealth(t, store.New(db.Pool, db.Slot, 0), fence, still)
		if !enabled() {
			t.Fatal("0 does not mean never")
		}
		recordHealth(t, st, fence, still)
		recordHealth(t, st, fence, still)
		if enabled() || told() != 1 {
			t.Fatalf("enabled %t, told %d times", enabled(), told())
		}
		exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = true WHERE id = $1`, endpoint)
		recordHealth(t, st, fence, failing)
		recordHealth(t, st, fence, still)
		if !enabled() {
			t.Error("enabled by hand, it was disabled at once, for what was before")
		}
		age(disableAfter + time.Minute)
		own := still
		own.Own, own.At = true, time.Now().Add(time.Second)
		recordHealth(t, st, fence, own)
		if enabled() || told() != 1 {
			t.Errorf("by one of walhook's own events: enabled %t, told %d times, want false and 1", enabled(), told())
		}
	})
}

// An organization is told where its breaker opened and closed, with no more of the URL than
// operators see.
func TestBreakerEvents(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	exec(t, db.Pool, `UPDATE webhook_endpoints SET url = 'https://u.example:8443/hunter2?token=hunter2' WHERE id = $1`, endpoint)
	listener := newEndpoint(t, db.Pool, "org_1", outbox.TypeEndpointFailing, outbox.TypeEndpointRecovered)
	at := time.Now()
	open := webhook.EndpointHealth{EndpointID: uuid.MustParse(endpoint), Failing: true, Open: true, Tell: true, At: at, Class: webhook.ErrConnect}
	recordHealth(t, st, fence, open)
	recordHealth(t, st, fence, webhook.EndpointHealth{EndpointID: open.EndpointID, Recovered: true, At: at, Class: webhook.ErrTimeout}) // of a probe in the same batch
	since := query[string](t, db.Pool, `SELECT payload ->> 'since' FROM webhook_outbox WHERE event_type = $1`, outbox.TypeEndpointFailing)
	if began, err := time.Parse("2006-01-02T15:04:05.000Z", since); err != nil || time.Since(began) > time.Hour {
		t.Errorf("since %q: %v", since, err)
	}
	got := column[string](t, db.Pool, `SELECT format('%s %s %s %s', event_type, organization_id, endpoint_ids, payload) FROM webhook_outbox WHERE event_type LIKE 'webhook.%' ORDER BY 1`)
	want := []string{
		fmt.Sprintf(`%s org_1 {%s} {"url": "https://u.example:8443", "since": "%s", "endpointId": "%s", "errorClass": "connect"}`, outbox.TypeEndpointFailing, listener, since, endpoint),
		fmt.Sprintf(`%s org_1 {%s} {"url": "https://u.example:8443", "since": "%s", "endpointId": "%s"}`, outbox.TypeEndpointRecovered, listener, since, endpoint),
	}
	if !slices.Equal(got, want) {
		t.Errorf("told\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// The time of a pause does not count for WALHOOK_DISABLE_AFTER.
func TestAPausedEndpointIsNotDisabled(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	still := webhook.EndpointHealth{EndpointID: uuid.MustParse(endpoint), Failing: true, CheckDisable: true, At: time.Now()}
	long := func() {
		exec(t, db.Pool, `UPDATE webhook_endpoint_failures SET failing_since = failing_since - $1 * interval '1 second'`, (disableAfter + time.Minute).Seconds())
	}
	enabled := func(want bool, when string) {
		t.Helper()
		if got := query[bool](t, db.Pool, `SELECT enabled FROM webhook_endpoints WHERE id = $1`, endpoint); got != want {
			t.Errorf("%s: enabled %t", when, got)
		}
	}
	recordHealth(t, st, fence, still)
	exec(t, db.Pool, `SELECT webhook_pause($1)`, endpoint)
	long()
	recordHealth(t, st, fence, still) // by an attempt that was under way
	enabled(true, "paused")
	exec(t, db.Pool, `SELECT webhook_resume($1)`, endpoint)
	recordHealth(t, st, fence, still)
	enabled(true, "just resumed")
	exec(t, db.Pool, `SELECT webhook_delete_old(now() - interval '30 days', 10)`)
	recordHealth(t, st, fence, still)
	enabled(true, "after the upkeep")
	exec(t, db.Pool, `UPDATE webhook_retries SET resumed_at = resumed_at - $1 * interval '1 second'`, (disableAfter + time.Minute).Seconds())
	recordHealth(t, st, fence, still)
	enabled(false, "failing for as long since")
}

// TestRowsAlone has what outcomes mean refused: the rows are written without it, and
// it is told when that can be, an endpoint disabled whether or not anybody can be told.
func TestRowsAlone(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint, other := newEndpoint(t, db.Pool, "org_1"), newEndpoint(t, db.Pool, "org_1")
	rs := append(owed(t, db, endpoint, 2), owed(t, db, other, 1)...)
	for i := range rs {
		rs[i] = outcome(rs[i], webhook.Failed, 1, 410)
		rs[i].Gone = i < 2
		rs[i].Exhausted = i == 2
	}
	health := []webhook.EndpointHealth{{EndpointID: uuid.MustParse(other), Failing: true, Open: true, At: time.Now()}}
	exec(t, db.Pool, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not here'; END $$`)
	exec(t, db.Pool, `CREATE TRIGGER refuse BEFORE INSERT ON webhook_outbox FOR EACH ROW WHEN (starts_with(new.event_type, 'webhook.')) EXECUTE FUNCTION refuse()`)
	if _, err := st.Insert(t.Context(), fence, webhook.Mark{Health: health}, rs); err == nil {
		t.Fatal("what they mean was not refused")
	}
	if _, err := st.Insert(t.Context(), fence, webhook.Mark{Health: health, Alone: true}, rs); err != nil {
		t.Fatal(err)
	}
	off := func(id string) bool {
		return query[bool](t, db.Pool, `SELECT NOT enabled FROM webhook_endpoints WHERE id = $1`, id)
	}
	if off(endpoint) || query[int](t, db.Pool, `SELECT count(*) FROM webhook_endpoint_failures`) != 0 {
		t.Error("rows alone were not alone")
	}
	var rest []store.Consequence
	for _, c := range store.Consequences(health, rs) {
		more, err := st.WriteConsequence(t.Context(), fence, c)
		if gone := len(c.Endpoints()) > 0; (err == nil) != (gone || len(c.Health) > 0) {
			t.Errorf("error %v of %d endpoints and %d states", err, len(c.Endpoints()), len(c.Health))
		}
		if rest = append(rest, more...); err != nil {
			rest = append(rest, c)
		}
	}
	if !off(endpoint) || off(other) || query[int](t, db.Pool, `SELECT count(*) FROM webhook_endpoint_failures WHERE breaker_opened_at IS NOT NULL`) != 1 {
		t.Error("an endpoint is not disabled, or its health not noted, because nobody can be told")
	}
	exec(t, db.Pool, `DROP TRIGGER refuse ON webhook_outbox`)
	for range 2 { // the second is a commit that was not heard of
		for _, c := range rest {
			if more, err := st.WriteConsequence(t.Context(), fence, c); err != nil || len(more) != 0 {
				t.Errorf("error %v, and %d more", err, len(more))
			}
		}
	}
	got := column[string](t, db.Pool, `SELECT event_type || ' ' || coalesce(payload ->> 'endpointId', '') || ' ' || coalesce((payload ->> 'url') || ' ' || (payload ->> 'reason'), payload ->> 'deliveryId')
		FROM webhook_outbox WHERE starts_with(event_type, 'webhook.') ORDER BY 1`)
	want := []string{fmt.Sprint(outbox.TypeDeliveryExhausted, " ", other, " ", rs[2].ID), fmt.Sprint(outbox.TypeEndpointDisabled, " ", endpoint, " https://example.com answered 410 Gone")}
	if !slices.Equal(got, want) {
		t.Errorf("told: %q, want %q", got, want)
	}
	if _, err := st.WriteConsequence(t.Context(), webhook.Fence{Holder: uuid.New(), Epoch: 1}, store.Consequences(health, nil)[0]); !errors.Is(err, store.ErrFenced) {
		t.Errorf("of another holder: %v", err)
	}
}
