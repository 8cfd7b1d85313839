package store_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

// owed enqueues n events for an endpoint and returns its deliveries, without a status.
func owed(t testing.TB, db *pgtest.DB, endpoint string, n int) []store.Record {
	t.Helper()
	return owedOf(t, db, endpoint, n, "payment.failed")
}

// owedOf is owed of a type. The events' ids are of now, or of these ages in turn.
func owedOf(t testing.TB, db *pgtest.DB, endpoint string, n int, eventType string, ages ...time.Duration) []store.Record {
	t.Helper()
	id := uuid.MustParse(endpoint)
	organization := query[string](t, db.Pool, `SELECT organization_id FROM webhook_endpoints WHERE id = $1`, id)
	records := make([]store.Record, n)
	tx := begin(t, db.Pool)
	for i := range records {
		var made uuid.UUID
		if len(ages) > 0 {
			made = outbox.DeliveryID(outbox.TimeID(time.Now().Add(-ages[i%len(ages)])), uuid.New())
		}
		event, err := outbox.Enqueue(t.Context(), tx, outbox.Event{
			ID: made, OrganizationID: organization, Type: eventType, Payload: fmt.Appendf(nil, `{"n": %d}`, i+1), EndpointIDs: []uuid.UUID{id}})
		if err != nil {
			t.Fatal(err)
		}
		records[i] = store.Record{ID: outbox.DeliveryID(event, id), EventID: event, EndpointID: id, OrganizationID: organization, EventType: eventType}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return records
}

func newAttempt(status int, response string) *store.Attempt {
	a := &store.Attempt{EndedAt: time.Now(), Duration: 35 * time.Millisecond, StatusCode: status, Response: response}
	switch {
	case status == 0:
		a.Class, a.Error = store.ErrConnect, "refused"
	case status >= 500:
		a.Class, a.Error = store.ErrHTTP5xx, fmt.Sprintf("answered %d", status)
	case status >= 400:
		a.Class, a.Error = store.ErrHTTP4xx, fmt.Sprintf("answered %d", status)
	}
	return a
}

// outcome is a record with an attempt's outcome.
func outcome(r store.Record, status store.Status, attempts, code int) store.Record {
	r.Status, r.Attempts, r.Attempt = status, attempts, newAttempt(code, "")
	if status == store.Retrying {
		r.Wait = time.Minute
	}
	return r
}

func insert(t testing.TB, st *store.Store, fence store.Fence, records ...store.Record) {
	t.Helper()
	if _, err := st.Insert(t.Context(), fence, store.Mark{}, records); err != nil {
		t.Fatal(err)
	}
}

// tell records what is known of endpoints, as a batch of outcomes does.
func tell(t testing.TB, st *store.Store, fence store.Fence, health ...store.EndpointHealth) {
	t.Helper()
	if err := st.Mark(t.Context(), fence, store.Mark{Health: health}); err != nil {
		t.Fatal(err)
	}
}

func update(t testing.TB, st *store.Store, fence store.Fence, records ...store.Record) (busy []uuid.UUID) {
	t.Helper()
	busy, _, err := st.Update(t.Context(), fence, store.Mark{}, records)
	if err != nil {
		t.Fatal(err)
	}
	return busy
}

func statusOf(t testing.TB, db *pgtest.DB, id uuid.UUID) string {
	t.Helper()
	return query[string](t, db.Pool, `SELECT status || ' ' || attempts FROM webhook_deliveries WHERE id = $1`, id)
}

func TestInsert(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")

	t.Run("writes every column", func(t *testing.T) {
		rs := owed(t, db, endpoint, 5)
		rs[0] = outcome(rs[0], store.Success, 1, 200)
		rs[0].Attempt.Response, rs[0].Attempt.EndedAt = "thanks: ü ✓", time.Now().Add(-10*time.Minute)
		rs[1] = outcome(rs[1], store.Retrying, 3, 0)
		rs[1].SeriesStart, rs[1].Wait, rs[1].Attempt.EndedAt = 2, time.Hour, time.Now().Add(-10*time.Minute)
		rs[2].Status, rs[2].Wait = store.Pending, -time.Minute
		rs[3].Status = store.Cancelled
		rs[4] = outcome(rs[4], store.Failed, 1, 503)
		rs[4].Attempt.Duration = 26 * 24 * time.Hour // more milliseconds than an int has: a process that was stopped
		fresh, err := st.Insert(t.Context(), fence, store.Mark{}, rs)
		if err != nil || !fresh {
			t.Fatalf("all new %t, %v", fresh, err)
		}
		const ago = `round(extract(epoch FROM now() - %s) / 60)`
		for i, want := range []string{
			`success|1|0|<NULL>|200|<NULL>|<NULL>|thanks: ü ✓|35|10|10`,
			`retrying|3|2|-50|<NULL>|connect|refused|<NULL>|35|10|<NULL>`,
			`pending|0|0|1|<NULL>|<NULL>|<NULL>|<NULL>|<NULL>|0|<NULL>`,
			`cancelled|0|0|<NULL>|<NULL>|<NULL>|<NULL>|<NULL>|<NULL>|0|0`,
			fmt.Sprintf(`failed|1|0|<NULL>|503|http_5xx|answered 503|<NULL>|%d|0|0`, math.MaxInt32),
		} {
			got := query[string](t, db.Pool, `SELECT array_to_string(ARRAY[status, attempts::text, series_start::text, `+fmt.Sprintf(ago, "next_attempt_at")+`::text,
				status_code::text, error_class, error, response, duration_ms::text, `+fmt.Sprintf(ago, "updated_at")+`::text, `+fmt.Sprintf(ago, "completed_at")+`::text], '|', '<NULL>')
				FROM webhook_deliveries WHERE id = $1`, rs[i].ID)
			if got != want {
				t.Errorf("%d: %s\nwant %s", i, got, want)
			}
			if !query[bool](t, db.Pool, `SELECT created_at = updated_at AND event_id = $2 AND endpoint_id = $3 AND organization_id = 'org_1' AND event_type = 'payment.failed' AND attempt_log IS NULL
				AND id = webhook_delivery_id(event_id, endpoint_id) FROM webhook_deliveries WHERE id = $1`, rs[i].ID, rs[i].EventID, rs[i].EndpointID) {
				t.Errorf("%d: ids, organization, type, log, or when it was made", i)
			}
		}
	})

	t.Run("leaves a row that is there as it is, and says so", func(t *testing.T) {
		rs := owed(t, db, endpoint, 2)
		rs[0].Status = store.Pending
		insert(t, st, fence, rs[0])
		rs[0], rs[1] = outcome(rs[0], store.Success, 1, 200), outcome(rs[1], store.Success, 1, 200)
		fresh, err := st.Insert(t.Context(), fence, store.Mark{}, rs)
		if err != nil || fresh {
			t.Errorf("all new %t, %v", fresh, err)
		}
		if got := statusOf(t, db, rs[0].ID); got != "pending 0" {
			t.Errorf("the one that was there: %s", got)
		}
		if got := statusOf(t, db, rs[1].ID); got != "success 1" {
			t.Errorf("the new one: %s", got)
		}
	})

	t.Run("takes no records, and many", func(t *testing.T) {
		if fresh, err := st.Insert(t.Context(), fence, store.Mark{}, nil); err != nil || !fresh {
			t.Errorf("none: all new %t, %v", fresh, err)
		}
		rs := make([]store.Record, 2000)
		for i := range rs {
			event := uuid.Must(uuid.NewV7())
			rs[i] = store.Record{ID: outbox.DeliveryID(event, uuid.MustParse(endpoint)), EventID: event, EndpointID: uuid.MustParse(endpoint), OrganizationID: "many", EventType: "t"}
			rs[i] = outcome(rs[i], store.Failed, 1, 500)
			rs[i].Attempt.Response = strings.Repeat("x", 4096)
		}
		if fresh, err := st.Insert(t.Context(), fence, store.Mark{}, rs); err != nil || !fresh {
			t.Errorf("many: all new %t, %v", fresh, err)
		}
	})

	t.Run("writes all of a batch or nothing", func(t *testing.T) {
		rs := owed(t, db, endpoint, 2)
		rs[0], rs[1] = outcome(rs[0], store.Success, 1, 200), outcome(rs[1], store.Success, 1, 200)
		before, err := st.State(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for what, spoil := range map[string]func(*store.Attempt){
			"a NUL":         func(a *store.Attempt) { a.Response = "a\x00b" },
			"invalid UTF-8": func(a *store.Attempt) { a.Error = "a\xffb" },
		} {
			rs[1].Attempt = newAttempt(200, "")
			spoil(rs[1].Attempt)
			_, err := st.Insert(t.Context(), fence, store.Mark{Seq: 9, Durable: 1 << 50}, rs)
			if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code[:2] != "22" {
				t.Errorf("%s: %v, want a data exception", what, err)
			}
		}
		if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_deliveries WHERE id = ANY($1)`, []uuid.UUID{rs[0].ID, rs[1].ID}); n != 0 {
			t.Errorf("%d rows of a refused batch", n)
		}
		if after, err := st.State(t.Context()); err != nil || after.DurableLSN != before.DurableLSN {
			t.Errorf("the position moved from %s to %s, %v", before.DurableLSN, after.DurableLSN, err)
		}
	})
}

// What fails as late as the commit has failed.
func TestInsertFailsAtCommit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	exec(t, db.Pool, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused at commit' USING ERRCODE = '23000'; END $$`)
	exec(t, db.Pool, `CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE ON webhook_deliveries DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()`)
	rs := owed(t, db, newEndpoint(t, db.Pool, "org_1"), 1)
	rs[0].Status = store.Pending
	fresh, err := st.Insert(t.Context(), fence, store.Mark{Seq: 2, Durable: 77}, rs)
	if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != "23000" {
		t.Errorf("all new %t, %v, want a refusal", fresh, err)
	}
	if state, err := st.State(t.Context()); err != nil || state.DurableLSN != 0 {
		t.Errorf("durable %s, %v", state.DurableLSN, err)
	}
}

func TestFencedWritesNothing(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, old := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1", "*", "webhook.*")
	rs := owed(t, db, endpoint, 6)
	for i := range rs[:3] {
		rs[i].Status = store.Pending
	}
	insert(t, st, old, rs[:3]...)
	exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES ($1, now() - interval '10 days')`, endpoint)
	acquire(t, st)
	snapshot := func() string {
		return query[string](t, db.Pool, `SELECT concat_ws('|', (SELECT string_agg(d::text, ',' ORDER BY id) FROM webhook_deliveries d), (SELECT string_agg(o::text, ',' ORDER BY id) FROM webhook_outbox o),
			(SELECT string_agg(e::text, ',') FROM webhook_endpoints e), (SELECT string_agg(f::text, ',') FROM webhook_endpoint_failures f), (SELECT string_agg(s::text, ',') FROM webhook_state s))`)
	}
	before := snapshot()
	bad := func(r store.Record, gone bool) store.Record {
		r = outcome(r, store.Failed, 1, 500)
		r.Exhausted, r.Gone = true, gone
		return r
	}
	mark := store.Mark{Seq: 5, Durable: 99, CommitAt: time.Now(), Health: []store.EndpointHealth{
		{EndpointID: rs[0].EndpointID, Recovered: true, Failing: true, Open: true, Look: true, At: time.Now()},
	}}
	for what, write := range map[string]func() error{
		"insert": func() error {
			_, err := st.Insert(t.Context(), old, mark, []store.Record{bad(rs[3], true), bad(rs[4], false)})
			return err
		},
		"update": func() error {
			_, _, err := st.Update(t.Context(), old, mark, []store.Record{bad(rs[0], true), bad(rs[1], false)})
			return err
		},
		"mark":           func() error { return st.Mark(t.Context(), old, mark) },
		"cancel orphans": func() error { return st.CancelOrphans(t.Context(), old, []uuid.UUID{rs[0].ID}) },
		"cancel rows": func() error {
			_, _, err := st.CancelRows(t.Context(), old, uuid.New(), "gone")
			return err
		},
	} {
		if err := write(); !errors.Is(err, store.ErrFenced) {
			t.Errorf("%s: %v, want %v", what, err, store.ErrFenced)
		}
		if after := snapshot(); after != before {
			t.Errorf("%s wrote:\n%s\n%s", what, before, after)
		}
	}
}

// With what pgoutput streams: the messages of a recording transaction that
// committed, and of no other.
func TestEchoesAreInTheWAL(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
	st, fence := acquired(t, db)
	rs := owed(t, db, newEndpoint(t, db.Pool, "org_1"), 3)
	for i := range rs {
		rs[i] = outcome(rs[i], store.Success, 1, 200)
	}
	write := func(mark store.Mark, r store.Record) {
		if _, err := st.Insert(t.Context(), fence, mark, []store.Record{r}); err != nil {
			t.Fatal(err)
		}
	}
	write(store.Mark{Seq: 2}, rs[0])
	write(store.Mark{}, rs[1]) // no echo
	rs[2].Attempt.Response = "\x00"
	if _, err := st.Insert(t.Context(), fence, store.Mark{Seq: 3}, rs[2:]); err == nil {
		t.Fatal("a NUL was stored")
	}
	if _, _, err := st.Update(t.Context(), fence, store.Mark{Seq: 4}, rs[:1]); err != nil {
		t.Fatal(err)
	}
	if err := st.Mark(t.Context(), fence, store.Mark{Seq: 5}); err != nil {
		t.Fatal(err)
	}
	acquire(t, st) // its marker is the newcomer's
	if err := st.Mark(t.Context(), fence, store.Mark{Seq: 6}); !errors.Is(err, store.ErrFenced) {
		t.Fatal(err)
	}

	var got []uint64
	others := 0
	for _, data := range column[[]byte](t, db.Pool, `SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'walhook', 'messages', 'true')`, db.Slot) {
		m, err := pglogrepl.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		message, ok := m.(*pglogrepl.LogicalDecodingMessage)
		if !ok {
			continue
		}
		if !message.Transactional || message.Prefix != store.MessagePrefix {
			t.Errorf("message %+v", message)
		}
		if seq, ours := fence.ParseEcho(string(message.Content)); ours {
			got = append(got, seq)
		} else {
			others++
		}
	}
	if want := []uint64{1, 2, 4, 5}; !slices.Equal(got, want) || others != 1 {
		t.Errorf("echoes %v, want %v; %d others, want 1", got, want, others)
	}
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")

	t.Run("applies only what is later than the row", func(t *testing.T) {
		for _, c := range []struct {
			row      string
			attempts int
			what     store.Status
			attempt  int
			want     string
		}{
			{"pending", 0, store.Success, 1, "success 1"},
			{"pending", 0, store.Pending, 0, "pending 0"}, // a lease says nothing new
			{"pending", 1, store.Success, 1, "pending 1"}, // a replay of what an old outcome tells
			{"pending", 1, store.Retrying, 2, "retrying 2"},
			{"retrying", 2, store.Retrying, 2, "retrying 2"},
			{"retrying", 2, store.Success, 1, "retrying 2"},
			{"retrying", 2, store.Failed, 3, "failed 3"},
			{"success", 1, store.Failed, 2, "success 1"},
			{"success", 1, store.Success, 2, "success 1"},
			{"failed", 3, store.Success, 4, "success 4"},
			{"failed", 3, store.Success, 3, "failed 3"},
			{"cancelled", 1, store.Failed, 2, "cancelled 2"},
			{"cancelled", 1, store.Retrying, 2, "cancelled 2"},
			{"cancelled", 1, store.Success, 2, "success 2"},
			{"cancelled", 0, store.Success, 1, "success 1"},
		} {
			r := owed(t, db, endpoint, 1)[0]
			newDelivery(t, db.Pool, r.EventID.String(), endpoint, c.row)
			exec(t, db.Pool, `UPDATE webhook_deliveries SET attempts = $2 WHERE id = $1`, r.ID, c.attempts)
			r = outcome(r, c.what, c.attempt, 500)
			if busy := update(t, st, fence, r); len(busy) != 0 {
				t.Errorf("%s %d, then %s %d: busy", c.row, c.attempts, c.what, c.attempt)
			}
			if got := statusOf(t, db, r.ID); got != c.want {
				t.Errorf("%s %d, then %s %d: %s, want %s", c.row, c.attempts, c.what, c.attempt, got, c.want)
			}
		}
	})

	t.Run("logs every attempt from the second on", func(t *testing.T) {
		r := owed(t, db, endpoint, 1)[0]
		insert(t, st, fence, outcome(r, store.Retrying, 1, 0))
		for n, code := range map[int]int{2: 503} {
			update(t, st, fence, outcome(r, store.Retrying, n, code))
		}
		third := outcome(r, store.Success, 3, 200)
		third.SeriesStart = 1
		update(t, st, fence, third)
		checkLog(t, db, r.ID, "1 connect 0 35", "2 http_5xx 503 35", "3  200 35")
		got := query[string](t, db.Pool, `SELECT concat_ws('|', status, attempts, series_start, next_attempt_at, status_code, error_class, error, duration_ms, completed_at = updated_at) FROM webhook_deliveries WHERE id = $1`, r.ID)
		if want := "success|3|1|200|35|t"; got != want {
			t.Errorf("row: %s, want %s", got, want)
		}
	})

	t.Run("keeps the newest hundred", func(t *testing.T) {
		r := owed(t, db, endpoint, 1)[0]
		insert(t, st, fence, outcome(r, store.Retrying, 1, 500))
		exec(t, db.Pool, `UPDATE webhook_deliveries SET attempts = 99, attempt_log = (SELECT jsonb_agg(jsonb_build_object('attempt', n)) FROM generate_series(1, 99) n) WHERE id = $1`, r.ID)
		for n := 100; n <= 102; n++ {
			update(t, st, fence, outcome(r, store.Retrying, n, 500))
		}
		if got := query[string](t, db.Pool, `SELECT jsonb_array_length(attempt_log) || ' ' || (attempt_log -> 0 ->> 'attempt') || ' ' || (attempt_log -> -1 ->> 'attempt') FROM webhook_deliveries WHERE id = $1`, r.ID); got != "100 3 102" {
			t.Errorf("length, first and last: %s", got)
		}
	})

	t.Run("is not held up by a log that is no list", func(t *testing.T) {
		for _, log := range []string{`{}`, `"x"`, `null`, `1`} {
			r := owed(t, db, endpoint, 1)[0]
			insert(t, st, fence, outcome(r, store.Retrying, 1, 500))
			exec(t, db.Pool, `UPDATE webhook_deliveries SET attempt_log = $2 WHERE id = $1`, r.ID, log)
			update(t, st, fence, outcome(r, store.Retrying, 2, 0))
			checkLog(t, db, r.ID, "1 http_5xx 500 35", "2 connect 0 35")
		}
	})

	t.Run("returns what someone else has locked, at once, and writes the rest", func(t *testing.T) {
		rs := owed(t, db, endpoint, 5)
		for i := range rs {
			rs[i] = outcome(rs[i], store.Retrying, 1, 500)
		}
		insert(t, st, fence, rs[:4]...)
		exec(t, db.Pool, `DELETE FROM webhook_deliveries WHERE id = $1`, rs[2].ID)
		tx := begin(t, db.Pool)
		exec(t, tx, `UPDATE webhook_deliveries SET next_attempt_at = now() WHERE id = $1`, rs[0].ID)
		exec(t, tx, `SELECT FROM webhook_deliveries WHERE id = $1 FOR SHARE`, rs[1].ID)
		for i := range rs {
			rs[i] = outcome(rs[i], store.Success, 2, 200)
		}
		began := time.Now()
		busy := update(t, st, fence, rs...)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %s", took)
		}
		if want := []uuid.UUID{rs[0].ID, rs[1].ID}; len(busy) != 2 || !slices.Contains(busy, want[0]) || !slices.Contains(busy, want[1]) {
			t.Errorf("busy: %v, want %v", busy, want)
		}
		if got := statusOf(t, db, rs[3].ID); got != "success 2" {
			t.Errorf("the free one: %s", got)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if busy := update(t, st, fence, rs...); len(busy) != 0 {
			t.Errorf("busy still: %v", busy)
		}
		for _, i := range []int{0, 1} {
			if got := statusOf(t, db, rs[i].ID); got != "success 2" {
				t.Errorf("afterwards: %s", got)
			}
		}
		if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_deliveries WHERE id IN ($1, $2)`, rs[2].ID, rs[4].ID); n != 0 {
			t.Errorf("%d rows came back", n)
		}
	})
}

// Rows that change between the snapshot of the recording statement and its locks:
// it is held where it looks at the fence, which is before it comes to the first row.
func TestUpdateDecidesByTheNewestVersion(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	rs := owed(t, db, newEndpoint(t, db.Pool, "org_1"), 5)
	for i := range rs {
		rs[i] = outcome(rs[i], store.Retrying, 1, 500)
	}
	insert(t, st, fence, rs...)
	for i := range rs {
		rs[i] = outcome(rs[i], store.Retrying, 3, 503)
	}
	const key = 42
	exec(t, db.Pool, fmt.Sprintf(`CREATE FUNCTION hold() RETURNS boolean LANGUAGE plpgsql SET lock_timeout = '1min' AS $$
		BEGIN IF current_query() LIKE '%%webhook_deliveries%%' THEN PERFORM pg_advisory_xact_lock_shared(%d); END IF; RETURN true; END $$`, key))
	exec(t, db.Pool, `ALTER TABLE webhook_state RENAME TO webhook_state_rows`)
	exec(t, db.Pool, `CREATE VIEW webhook_state AS SELECT * FROM webhook_state_rows WHERE hold()`)

	gate, tx := begin(t, db.Pool), begin(t, db.Pool)
	exec(t, gate, `SELECT pg_advisory_xact_lock($1)`, key)
	done := make(chan []uuid.UUID, 1)
	go func() {
		busy, _, err := st.Update(t.Context(), fence, store.Mark{}, rs)
		if err != nil {
			t.Error(err)
		}
		done <- busy
	}()
	waiting(t, db, 1)
	exec(t, tx, `UPDATE webhook_deliveries SET status = 'success', attempts = 2, next_attempt_at = NULL WHERE id = $1`, rs[1].ID)
	exec(t, tx, `UPDATE webhook_deliveries SET status = 'cancelled', next_attempt_at = NULL WHERE id = $1`, rs[2].ID)
	exec(t, tx, `UPDATE webhook_deliveries SET attempts = 2, status_code = 418 WHERE id = $1`, rs[3].ID)
	exec(t, tx, `DELETE FROM webhook_deliveries WHERE id = $1`, rs[4].ID)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := gate.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if busy := <-done; len(busy) != 0 {
		t.Errorf("busy: %v", busy)
	}
	for i, want := range []string{"retrying 3", "success 2", "cancelled 3", "retrying 3"} {
		if got := statusOf(t, db, rs[i].ID); got != want {
			t.Errorf("%d: %s, want %s", i, got, want)
		}
	}
	checkLog(t, db, rs[3].ID, "2 http_5xx 418 35", "3 http_5xx 503 35")
}

func checkLog(t testing.TB, db *pgtest.DB, id uuid.UUID, want ...string) {
	t.Helper()
	var log []struct {
		Attempt    int       `json:"attempt"`
		At         time.Time `json:"at"`
		Status     int       `json:"status_code"`
		Class      string    `json:"error_class"`
		DurationMS int       `json:"duration_ms"`
	}
	if err := json.Unmarshal(query[[]byte](t, db.Pool, `SELECT attempt_log FROM webhook_deliveries WHERE id = $1`, id), &log); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range log {
		got = append(got, fmt.Sprintf("%d %s %d %d", a.Attempt, a.Class, a.Status, a.DurationMS))
		if time.Since(a.At).Abs() > time.Minute {
			t.Errorf("attempt %d was at %s", a.Attempt, a.At)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("log: %q, want %q", got, want)
	}
}

func TestExhausted(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	listener := newEndpoint(t, db.Pool, "org_1", outbox.TypeDeliveryExhausted)
	told := func() []string {
		return column[string](t, db.Pool, `SELECT id::text FROM webhook_outbox WHERE event_type = $1 ORDER BY id`, outbox.TypeDeliveryExhausted)
	}
	last := func(r store.Record, attempts int) store.Record {
		r = outcome(r, store.Failed, attempts, 503)
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
		rs[1].Status, rs[2].Status = store.Pending, store.Pending
		insert(t, st, fence, rs[1], rs[2], outcome(rs[3], store.Success, 1, 200))
		exec(t, db.Pool, `UPDATE webhook_deliveries SET status = 'cancelled', next_attempt_at = NULL WHERE id = $1`, rs[1].ID)
		tx := begin(t, db.Pool)
		exec(t, tx, `SELECT FROM webhook_deliveries WHERE id = $1 FOR UPDATE`, rs[2].ID)
		late := []store.Record{last(rs[1], 1), last(rs[2], 1), last(rs[3], 1)}
		if busy := update(t, st, fence, late...); len(busy) != 1 {
			t.Errorf("busy: %v", busy)
		}
		if n := len(told()); n != 2 {
			t.Errorf("a cancelled, a busy or a delivered one was told of: %d in all, want 2", n)
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
		return column[string](t, db.Pool, `SELECT array_to_string(endpoint_ids, ',') FROM webhook_outbox WHERE event_type = $1 AND payload ->> 'endpointId' = $2 AND payload ->> 'reason' LIKE '%410%'`,
			outbox.TypeEndpointDisabled, endpoint)
	}
	enabled := func(endpoint string) bool {
		return query[bool](t, db.Pool, `SELECT enabled FROM webhook_endpoints WHERE id = $1`, endpoint)
	}
	gone := func(r store.Record) store.Record {
		r = outcome(r, store.Failed, 1, 410)
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
		tell(t, st, fence, store.EndpointHealth{EndpointID: rs[1].EndpointID, Failing: true, At: time.Now()})
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
	failing := store.EndpointHealth{EndpointID: id, Failing: true, At: time.Now()}
	still, open, recovered, again := failing, failing, store.EndpointHealth{EndpointID: id, Recovered: true}, failing
	still.Look, open.Open, again.Recovered = true, true, true
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
	tell(t, st, fence, failing)
	check("failing", "now closed")
	age(time.Hour)
	tell(t, st, fence, failing)
	check("failing, from a process that did not know", "long closed")
	tell(t, st, fence, open)
	check("its breaker opens", "long open now")
	age(time.Hour)
	still.Open = true
	tell(t, st, fence, still)
	check("and stays open", "long open long")
	tell(t, st, fence, failing)
	check("a process that knows of no open breaker", "long closed")
	tell(t, st, fence, open)
	tell(t, st, fence, again)
	check("recovered, and failing again", "now closed")
	tell(t, st, fence, recovered)
	check("recovered", "not closed")
	tell(t, st, fence, recovered)
	check("recovered again", "not closed")
	still.Open = false

	t.Run("each of a batch by itself", func(t *testing.T) {
		others := []string{newEndpoint(t, db.Pool, "org_2"), newEndpoint(t, db.Pool, "org_2")}
		a, b := open, recovered
		a.EndpointID, b.EndpointID = uuid.MustParse(others[0]), uuid.MustParse(others[1])
		exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES ($1, now())`, others[1])
		tell(t, st, fence, failing, a, b)
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
		tell(t, st, fence, still)
		check("still failing, and nobody has said since when", "now closed")
		age(disableAfter - time.Minute)
		tell(t, st, fence, still)
		if !enabled() {
			t.Fatal("disabled a minute early")
		}
		age(disableAfter + time.Minute)
		tell(t, st, fence, failing)
		if !enabled() {
			t.Fatal("disabled at the first failure that a process sees")
		}
		stillAgain := still
		stillAgain.Recovered = true
		tell(t, st, fence, stillAgain)
		if !enabled() {
			t.Fatal("disabled although it has recovered")
		}
		age(disableAfter + time.Minute)
		tell(t, store.New(db.Pool, db.Slot, 0), fence, still)
		if !enabled() {
			t.Fatal("0 does not mean never")
		}
		tell(t, st, fence, still)
		tell(t, st, fence, still)
		if enabled() || told() != 1 {
			t.Fatalf("enabled %t, told %d times", enabled(), told())
		}
		exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = true WHERE id = $1`, endpoint)
		tell(t, st, fence, failing)
		tell(t, st, fence, still)
		if !enabled() {
			t.Error("enabled by hand, it was disabled at once, for what was before")
		}
		age(disableAfter + time.Minute)
		own := still
		own.Own, own.At = true, time.Now().Add(time.Second)
		tell(t, st, fence, own)
		if enabled() || told() != 1 {
			t.Errorf("by one of walhook's own events: enabled %t, told %d times, want false and 1", enabled(), told())
		}
	})
}

// While somebody has the table locked, no statement waits for longer than the
// lock timeout, nor does it keep the state row from others for longer.
func TestLockedTable(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool := newPool(t, db, func(c *pgxpool.Config) { c.MaxConns = 1 })
	st := store.New(pool, db.Slot, disableAfter)
	everyStatement(t, db, st) // prepares them all
	fence := acquire(t, st)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	rs := owed(t, db, endpoint, 2)
	rs[0], rs[1] = outcome(rs[0], store.Retrying, 1, 500), outcome(rs[1], store.Success, 1, 200)
	insert(t, st, fence, rs[0])

	tx := begin(t, db.Pool)
	exec(t, tx, `LOCK TABLE webhook_deliveries`)
	for what, run := range map[string]func() error{
		"insert": func() error {
			_, err := st.Insert(t.Context(), fence, store.Mark{Seq: 2, Durable: 99}, rs[1:])
			return err
		},
		"update": func() error {
			_, _, err := st.Update(t.Context(), fence, store.Mark{}, rs[:1])
			return err
		},
		"due": func() error {
			return st.Due(t.Context(), []store.Page{{EndpointID: rs[0].EndpointID, Limit: 1}}, func(*store.Due) {})
		},
		"existing": func() error { return st.Existing(t.Context(), []uuid.UUID{rs[0].ID}, map[uuid.UUID]bool{}) },
		"newly due": func() error {
			_, _, _, err := st.NewlyDue(t.Context(), time.Now())
			return err
		},
		"waiting": func() error {
			_, err := st.Waiting(t.Context(), uuid.Nil, 1)
			return err
		},
		"cancel rows": func() error {
			_, _, err := st.CancelRows(t.Context(), fence, rs[0].EndpointID, "x")
			return err
		},
		"cancel orphans": func() error { return st.CancelOrphans(t.Context(), fence, []uuid.UUID{rs[0].ID}) },
		"missing": func() error {
			_, err := st.Missing(t.Context(), store.Position{Event: outbox.TimeID(time.Now().Add(-time.Hour))}, outbox.TimeID(time.Now().Add(time.Hour)), 10)
			return err
		},
	} {
		began := time.Now()
		err := run()
		if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != "55P03" {
			t.Errorf("%s: %v, want lock_not_available", what, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s waited %s", what, took)
		}
	}
	for what, run := range map[string]func() error{ // these go on
		"mark": func() error { return st.Mark(t.Context(), fence, store.Mark{Seq: 3}) },
		"endpoints": func() error {
			_, err := st.Endpoints(t.Context(), []uuid.UUID{rs[0].EndpointID})
			return err
		},
		"check the schema": func() error { return st.CheckSchema(t.Context()) },
	} {
		if err := run(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if state, err := st.State(t.Context()); err != nil || state.DurableLSN == 99 {
		t.Errorf("durable %s, %v: the position of a batch that was not written", state.DurableLSN, err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	insert(t, st, fence, rs[1])
}

// Everybody at once: the recorder's two kinds of batches, the sweep, the
// reconciler and operators who update the same rows in whatever order.
func TestNoDeadlocks(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool := newPool(t, db, func(c *pgxpool.Config) { c.MaxConns = 8 })
	st := store.New(pool, db.Slot, disableAfter)
	fence := acquire(t, st)
	a, b := newEndpoint(t, db.Pool, "org_1", "*", "webhook.*"), newEndpoint(t, db.Pool, "org_1", "*", "webhook.*")
	rs := slices.Concat(owed(t, db, a, 200), owed(t, db, b, 200))
	for i := range rs {
		rs[i] = outcome(rs[i], store.Retrying, 1, 500)
	}
	insert(t, st, fence, rs...)
	const rounds = 25
	shuffled := func(attempts int) []store.Record {
		batch := slices.Clone(rs)
		rand.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
		for i := range batch {
			batch[i] = outcome(batch[i], store.Failed, attempts, 500)
			batch[i].Exhausted = i%50 == 0
			batch[i].Gone = rand.N(5) == 0
		}
		return batch
	}
	news := func() []store.EndpointHealth {
		health := make([]store.EndpointHealth, 2)
		for i, endpoint := range []uuid.UUID{rs[0].EndpointID, rs[200].EndpointID} {
			health[i] = store.EndpointHealth{EndpointID: endpoint, Recovered: rand.N(2) == 0, Failing: rand.N(2) == 0, Open: rand.N(2) == 0, Look: rand.N(2) == 0, At: time.Now()}
		}
		rand.Shuffle(2, func(i, j int) { health[i], health[j] = health[j], health[i] })
		return health
	}
	var wg sync.WaitGroup
	run := func(what string, once func(round int) error) {
		wg.Go(func() {
			for round := range rounds {
				if err := once(round); err != nil {
					t.Errorf("%s: %v", what, err)
					return
				}
			}
		})
	}
	run("update", func(round int) error {
		_, _, err := st.Update(t.Context(), fence, store.Mark{Seq: 1, Health: news()}, shuffled(round+2))
		return err
	})
	run("insert", func(round int) error {
		_, err := st.Insert(t.Context(), fence, store.Mark{Seq: 1, Health: news()}, shuffled(round+2))
		return err
	})
	run("cancel", func(round int) error {
		_, _, err := st.CancelRows(t.Context(), fence, rs[round%2*200].EndpointID, "x")
		return err
	})
	run("orphans", func(round int) error {
		return st.CancelOrphans(t.Context(), fence, []uuid.UUID{rs[round].ID, rs[399-round].ID})
	})
	for _, order := range []string{"id", "id DESC"} { // an operator's are allowed to wait for each other, and so to deadlock
		run("operator", func(int) error {
			_, err := pool.Exec(t.Context(), `WITH o AS (SELECT id FROM webhook_deliveries ORDER BY `+order+` FOR UPDATE SKIP LOCKED)
				UPDATE webhook_deliveries d SET status = 'pending', next_attempt_at = now() FROM o WHERE d.id = o.id`)
			return err
		})
	}
	run("operator of endpoints", func(round int) error {
		_, err := pool.Exec(t.Context(), `UPDATE webhook_endpoints SET enabled = true WHERE id = $1`, rs[round%2*200].EndpointID)
		return err
	})
	wg.Wait()
}

// TestTheLaterWordCounts has an operator say what is to become of a delivery while
// its attempt is under way, and the attempt end after that.
func TestTheLaterWordCounts(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	const lease = 20 * time.Second
	due := func(t *testing.T, id uuid.UUID) (found store.Due) {
		t.Helper()
		page := store.Page{EndpointID: uuid.MustParse(endpoint), Limit: 100}
		if err := st.Due(t.Context(), []store.Page{page}, func(d *store.Due) {
			if d.ID == id {
				found = *d
			}
		}); err != nil || found.ID != id {
			t.Fatalf("the row is not due, error %v", err)
		}
		return found
	}
	leased := func(t *testing.T) store.Record {
		r := owed(t, db, endpoint, 1)[0]
		r.Status, r.Wait = store.Pending, lease
		insert(t, st, fence, r)
		r.Seen.Lease = lease
		return r
	}
	parked := func(t *testing.T) store.Record {
		r := owed(t, db, endpoint, 1)[0]
		r.Status, r.Wait = store.Pending, -store.ParkedDue
		insert(t, st, fence, r)
		r.Seen.Lease = lease // it was taken in before its row was there
		return r
	}
	fetched := func(t *testing.T) store.Record {
		r := owed(t, db, endpoint, 1)[0]
		first := outcome(r, store.Retrying, 1, 500)
		first.Wait = -1234567 * time.Microsecond
		insert(t, st, fence, first)
		d := due(t, r.ID)
		r.Attempts, r.Seen = d.Attempts, store.Seen{Status: d.Status, DueAt: d.DueAt}
		return r
	}
	early := func(t *testing.T) store.Record {
		r := owed(t, db, endpoint, 1)[0]
		insert(t, st, fence, outcome(r, store.Failed, 1, 500))
		exec(t, db.Pool, `UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = '-infinity' WHERE id = $1`, r.ID)
		d := due(t, r.ID)
		r.Attempts, r.Seen = d.Attempts, store.Seen{Status: d.Status, DueAt: d.DueAt}
		return r
	}
	rows := map[string]func(*testing.T) store.Record{"leased": leased, "parked": parked, "fetched": fetched, "due since ever": early}
	const replay, cancel, later, before = `status = 'pending', next_attempt_at = now()`, `status = 'cancelled', next_attempt_at = NULL`,
		`status = 'pending', next_attempt_at = now() + interval '1 hour'`, `status = 'pending', next_attempt_at = now() - interval '1 minute'`
	for _, c := range []struct {
		said    string
		outcome store.Status
		want    string // after how many attempts before
		waits   bool
	}{
		{"", store.Success, "success", false},
		{"", store.Failed, "failed", false},
		{"", store.Retrying, "retrying", false},
		{replay, store.Success, "pending", true},
		{replay, store.Failed, "pending", true},
		{replay, store.Retrying, "pending", true},
		{later, store.Success, "pending", true},
		{later, store.Failed, "pending", true},
		{before, store.Success, "success", false}, // the attempt was the replay's
		{cancel, store.Success, "success", false},
		{cancel, store.Failed, "cancelled", false},
		{cancel, store.Retrying, "cancelled", false},
		{`next_attempt_at = now()`, store.Success, "", false},
		{"haste", store.Success, "success", false},
	} {
		for name, row := range rows {
			t.Run(fmt.Sprintf("%s, %q, %s", name, c.said, c.outcome), func(t *testing.T) {
				r := row(t)
				switch c.said {
				case "":
				case "haste": // an attempt that is under way is what he asks for
					exec(t, db.Pool, `SELECT webhook_retry_now($1)`, endpoint)
				default:
					exec(t, db.Pool, `UPDATE webhook_deliveries SET `+c.said+` WHERE id = $1`, r.ID)
				}
				said := query[string](t, db.Pool, `SELECT coalesce(next_attempt_at::text, '') FROM webhook_deliveries WHERE id = $1`, r.ID)
				want := c.want
				if want == "" { // no replay where it was not pending, but haste
					if want = "success"; name != "fetched" {
						want = "pending"
					}
				}
				n := r.Attempts + 1
				end := outcome(r, c.outcome, n, map[store.Status]int{store.Success: 200}[c.outcome])
				end.Exhausted = c.outcome == store.Failed
				_, again, err := st.Update(t.Context(), fence, store.Mark{}, []store.Record{end})
				if err != nil {
					t.Fatal(err)
				}
				if got := statusOf(t, db, r.ID); got != fmt.Sprint(want, " ", n) {
					t.Errorf("%s, want %s %d", got, want, n)
				}
				if waits := c.waits || c.want == "" && want == "pending"; (len(again) == 1) != waits {
					t.Errorf("again: %v, want %v", again, waits)
				}
				if want == "pending" {
					if got := query[string](t, db.Pool, `SELECT next_attempt_at::text FROM webhook_deliveries WHERE id = $1 AND series_start = attempts`, r.ID); got != said {
						t.Errorf("due at %s, and the operator said %s", got, said)
					}
				}
				if logged := query[int](t, db.Pool, `SELECT count(*) FROM webhook_attempts WHERE delivery_id = $1 AND attempt = $2`, r.ID, n); logged != 1 {
					t.Errorf("the attempt is logged %d times", logged)
				}
				told := query[int](t, db.Pool, `SELECT count(*) FROM webhook_outbox WHERE event_type = $1 AND payload ->> 'deliveryId' = $2::uuid::text`, outbox.TypeDeliveryExhausted, r.ID)
				if (told == 1) != (want == "failed") {
					t.Errorf("told of the last attempt %d times, and it is %s", told, want)
				}
			})
		}
	}
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
		rs[i] = outcome(rs[i], store.Failed, 1, 410)
		rs[i].Gone = i < 2
		rs[i].Exhausted = i == 2
	}
	health := []store.EndpointHealth{{EndpointID: uuid.MustParse(other), Failing: true, Open: true, At: time.Now()}}
	exec(t, db.Pool, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not here'; END $$`)
	exec(t, db.Pool, `CREATE TRIGGER refuse BEFORE INSERT ON webhook_outbox FOR EACH ROW WHEN (starts_with(new.event_type, 'webhook.')) EXECUTE FUNCTION refuse()`)
	if _, err := st.Insert(t.Context(), fence, store.Mark{Health: health}, rs); err == nil {
		t.Fatal("what they mean was not refused")
	}
	if _, err := st.Insert(t.Context(), fence, store.Mark{Health: health, Alone: true}, rs); err != nil {
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
		more, err := st.Tell(t.Context(), fence, c)
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
			if more, err := st.Tell(t.Context(), fence, c); err != nil || len(more) != 0 {
				t.Errorf("error %v, and %d more", err, len(more))
			}
		}
	}
	got := column[string](t, db.Pool, `SELECT event_type || ' ' || coalesce(payload ->> 'endpointId', '') || ' ' || coalesce(payload ->> 'reason', payload ->> 'deliveryId')
		FROM webhook_outbox WHERE starts_with(event_type, 'webhook.') ORDER BY 1`)
	want := []string{fmt.Sprint(outbox.TypeDeliveryExhausted, " ", other, " ", rs[2].ID), fmt.Sprint(outbox.TypeEndpointDisabled, " ", endpoint, " answered 410 Gone")}
	if !slices.Equal(got, want) {
		t.Errorf("told: %q, want %q", got, want)
	}
	if _, err := st.Tell(t.Context(), store.Fence{Holder: uuid.New(), Epoch: 1}, store.Consequences(health, nil)[0]); !errors.Is(err, store.ErrFenced) {
		t.Errorf("of another holder: %v", err)
	}
}

func TestOwe(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	if _, err := st.Reconciled(t.Context(), fence); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	for i, from := range []time.Time{at, at.Add(time.Minute), at.Add(-time.Minute)} {
		noted, err := st.Owe(t.Context(), fence, from)
		if err != nil || !noted.Before(at) || !noted.Before(from) || noted.Before(at.Add(-2*time.Minute)) {
			t.Errorf("%d: noted %v of %v, error %v", i, noted, from, err)
		}
		if got := query[time.Time](t, db.Pool, `SELECT reconcile_from FROM webhook_state`); !got.Equal(noted) {
			t.Errorf("%d: noted %v, and %v is there", i, noted, got)
		}
	}
	fence.Holder = uuid.New()
	if _, err := st.Owe(t.Context(), fence, at); !errors.Is(err, store.ErrFenced) {
		t.Errorf("of another holder: %v", err)
	}
}
