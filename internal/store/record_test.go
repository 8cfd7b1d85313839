package store_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

func TestInsert(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")

	t.Run("writes every column", func(t *testing.T) {
		rs := owed(t, db, endpoint, 5)
		rs[0] = outcome(rs[0], webhook.Success, 1, 200)
		rs[0].Attempt.Response, rs[0].Attempt.EndedAt = "thanks: ü ✓", time.Now().Add(-10*time.Minute)
		rs[1] = outcome(rs[1], webhook.Retrying, 3, 0)
		rs[1].SeriesStart, rs[1].Wait, rs[1].Attempt.EndedAt = 2, time.Hour, time.Now().Add(-10*time.Minute)
		rs[2].Status, rs[2].Wait = webhook.Pending, -time.Minute
		rs[3].Status = webhook.Cancelled
		rs[4] = outcome(rs[4], webhook.Failed, 1, 503)
		rs[4].Attempt.Duration = 26 * 24 * time.Hour // more milliseconds than an int has: a process that was stopped
		fresh, err := st.Insert(t.Context(), fence, webhook.Mark{}, rs)
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
		rs[0].Status = webhook.Pending
		insert(t, st, fence, rs[0])
		rs[0], rs[1] = outcome(rs[0], webhook.Success, 1, 200), outcome(rs[1], webhook.Success, 1, 200)
		fresh, err := st.Insert(t.Context(), fence, webhook.Mark{}, rs)
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
		if fresh, err := st.Insert(t.Context(), fence, webhook.Mark{}, nil); err != nil || !fresh {
			t.Errorf("none: all new %t, %v", fresh, err)
		}
		rs := make([]webhook.Record, 2000)
		for i := range rs {
			event := uuid.Must(uuid.NewV7())
			rs[i] = webhook.Record{ID: outbox.DeliveryID(event, uuid.MustParse(endpoint)), EventID: event, EndpointID: uuid.MustParse(endpoint), OrganizationID: "many", EventType: "t"}
			rs[i] = outcome(rs[i], webhook.Failed, 1, 500)
			rs[i].Attempt.Response = strings.Repeat("x", 4096)
		}
		if fresh, err := st.Insert(t.Context(), fence, webhook.Mark{}, rs); err != nil || !fresh {
			t.Errorf("many: all new %t, %v", fresh, err)
		}
	})

	t.Run("writes all of a batch or nothing", func(t *testing.T) {
		rs := owed(t, db, endpoint, 2)
		rs[0], rs[1] = outcome(rs[0], webhook.Success, 1, 200), outcome(rs[1], webhook.Success, 1, 200)
		before, err := st.State(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for what, spoil := range map[string]func(*webhook.Attempt){
			"a NUL":         func(a *webhook.Attempt) { a.Response = "a\x00b" },
			"invalid UTF-8": func(a *webhook.Attempt) { a.Error = "a\xffb" },
		} {
			rs[1].Attempt = newAttempt(200, "")
			spoil(rs[1].Attempt)
			_, err := st.Insert(t.Context(), fence, webhook.Mark{Seq: 9, Durable: 1 << 50}, rs)
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

// A delivery that succeeds at once costs its row and its entry in the primary key.
func TestInsertCostsFewBytes(t *testing.T) {
	t.Parallel()
	const rows, most = 500, 270
	db := pgtest.New(t)
	st, plans := explaining(t, db, "auto")
	fence := acquire(t, st)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	fewest := math.MaxInt
	for range 5 { // a page's first change after a checkpoint writes the page
		rs := owed(t, db, endpoint, rows)
		for i := range rs {
			rs[i] = outcome(rs[i], webhook.Success, 1, 200)
		}
		insert(t, st, fence, rs...)
		for _, e := range plans.take(t, "INSERT INTO webhook_deliveries") {
			fewest = min(fewest, e.Plan.WALBytes/rows)
		}
	}
	if fewest > most {
		t.Errorf("%d bytes of WAL for a delivery, want %d at most", fewest, most)
	}
}

// What fails as late as the commit has failed.
func TestInsertFailsAtCommit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	exec(t, db.Pool, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused at commit' USING ERRCODE = '23000'; END $$`)
	exec(t, db.Pool, `CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE ON webhook_deliveries DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()`)
	rs := owed(t, db, newEndpoint(t, db.Pool, "org_1"), 1)
	rs[0].Status = webhook.Pending
	fresh, err := st.Insert(t.Context(), fence, webhook.Mark{Seq: 2, Durable: 77}, rs)
	if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != "23000" {
		t.Errorf("all new %t, %v, want a refusal", fresh, err)
	}
	if state, err := st.State(t.Context()); err != nil || state.DurableLSN != 0 {
		t.Errorf("durable %s, %v", state.DurableLSN, err)
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
			what     webhook.Status
			attempt  int
			want     string
		}{
			{"pending", 0, webhook.Success, 1, "success 1"},
			{"pending", 0, webhook.Pending, 0, "pending 0"}, // a lease says nothing new
			{"pending", 1, webhook.Success, 1, "pending 1"}, // a replay of what an old outcome tells
			{"pending", 1, webhook.Retrying, 2, "retrying 2"},
			{"retrying", 2, webhook.Retrying, 2, "retrying 2"},
			{"retrying", 2, webhook.Success, 1, "retrying 2"},
			{"retrying", 2, webhook.Failed, 3, "failed 3"},
			{"success", 1, webhook.Failed, 2, "success 1"},
			{"success", 1, webhook.Success, 2, "success 1"},
			{"failed", 3, webhook.Success, 4, "success 4"},
			{"failed", 3, webhook.Success, 3, "failed 3"},
			{"cancelled", 1, webhook.Failed, 2, "cancelled 2"},
			{"cancelled", 1, webhook.Retrying, 2, "cancelled 2"},
			{"cancelled", 1, webhook.Success, 2, "success 2"},
			{"cancelled", 0, webhook.Success, 1, "success 1"},
		} {
			r := owed(t, db, endpoint, 1)[0]
			newDelivery(t, db.Pool, r.EventID.String(), endpoint, c.row)
			exec(t, db.Pool, `UPDATE webhook_deliveries SET attempts = $2 WHERE id = $1`, r.ID, c.attempts)
			r = outcome(r, c.what, c.attempt, 500)
			if locked := update(t, st, fence, r); len(locked) != 0 {
				t.Errorf("%s %d, then %s %d: locked", c.row, c.attempts, c.what, c.attempt)
			}
			if got := statusOf(t, db, r.ID); got != c.want {
				t.Errorf("%s %d, then %s %d: %s, want %s", c.row, c.attempts, c.what, c.attempt, got, c.want)
			}
		}
	})

	t.Run("logs every attempt from the second on", func(t *testing.T) {
		r := owed(t, db, endpoint, 1)[0]
		insert(t, st, fence, outcome(r, webhook.Retrying, 1, 0))
		for n, code := range map[int]int{2: 503} {
			update(t, st, fence, outcome(r, webhook.Retrying, n, code))
		}
		third := outcome(r, webhook.Success, 3, 200)
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
		insert(t, st, fence, outcome(r, webhook.Retrying, 1, 500))
		exec(t, db.Pool, `UPDATE webhook_deliveries SET attempts = 99, attempt_log = (SELECT jsonb_agg(jsonb_build_object('attempt', n)) FROM generate_series(1, 99) n) WHERE id = $1`, r.ID)
		for n := 100; n <= 102; n++ {
			update(t, st, fence, outcome(r, webhook.Retrying, n, 500))
		}
		if got := query[string](t, db.Pool, `SELECT jsonb_array_length(attempt_log) || ' ' || (attempt_log -> 0 ->> 'attempt') || ' ' || (attempt_log -> -1 ->> 'attempt') FROM webhook_deliveries WHERE id = $1`, r.ID); got != "100 3 102" {
			t.Errorf("length, first and last: %s", got)
		}
	})

	t.Run("is not held up by a log that is no list", func(t *testing.T) {
		for _, log := range []string{`{}`, `"x"`, `null`, `1`} {
			r := owed(t, db, endpoint, 1)[0]
			insert(t, st, fence, outcome(r, webhook.Retrying, 1, 500))
			exec(t, db.Pool, `UPDATE webhook_deliveries SET attempt_log = $2 WHERE id = $1`, r.ID, log)
			update(t, st, fence, outcome(r, webhook.Retrying, 2, 0))
			checkLog(t, db, r.ID, "1 http_5xx 500 35", "2 connect 0 35")
		}
	})

	t.Run("returns what someone else has locked, at once, and writes the rest", func(t *testing.T) {
		rs := owed(t, db, endpoint, 5)
		for i := range rs {
			rs[i] = outcome(rs[i], webhook.Retrying, 1, 500)
		}
		insert(t, st, fence, rs[:4]...)
		exec(t, db.Pool, `DELETE FROM webhook_deliveries WHERE id = $1`, rs[2].ID)
		tx := begin(t, db.Pool)
		exec(t, tx, `UPDATE webhook_deliveries SET next_attempt_at = now() WHERE id = $1`, rs[0].ID)
		exec(t, tx, `SELECT FROM webhook_deliveries WHERE id = $1 FOR SHARE`, rs[1].ID)
		for i := range rs {
			rs[i] = outcome(rs[i], webhook.Success, 2, 200)
		}
		began := time.Now()
		locked := update(t, st, fence, rs...)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %s", took)
		}
		if want := []uuid.UUID{rs[0].ID, rs[1].ID}; len(locked) != 2 || !slices.Contains(locked, want[0]) || !slices.Contains(locked, want[1]) {
			t.Errorf("locked: %v, want %v", locked, want)
		}
		if got := statusOf(t, db, rs[3].ID); got != "success 2" {
			t.Errorf("the free one: %s", got)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if locked := update(t, st, fence, rs...); len(locked) != 0 {
			t.Errorf("locked still: %v", locked)
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
		rs[i] = outcome(rs[i], webhook.Retrying, 1, 500)
	}
	insert(t, st, fence, rs...)
	for i := range rs {
		rs[i] = outcome(rs[i], webhook.Retrying, 3, 503)
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
		locked, _, err := st.Update(t.Context(), fence, webhook.Mark{}, rs)
		if err != nil {
			t.Error(err)
		}
		done <- locked
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
	if locked := <-done; len(locked) != 0 {
		t.Errorf("locked: %v", locked)
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

// TestTheLaterWordCounts has an operator say what is to become of a delivery while
// its attempt is under way, and the attempt end after that.
func TestTheLaterWordCounts(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	const lease = 20 * time.Second
	due := func(t *testing.T, id uuid.UUID) (found webhook.Due) {
		t.Helper()
		page := webhook.Page{EndpointID: uuid.MustParse(endpoint), Limit: 100}
		if err := st.Due(t.Context(), []webhook.Page{page}, func(d *webhook.Due) {
			if d.ID == id {
				found = *d
			}
		}); err != nil || found.ID != id {
			t.Fatalf("the row is not due, error %v", err)
		}
		return found
	}
	leased := func(t *testing.T) webhook.Record {
		r := owed(t, db, endpoint, 1)[0]
		r.Status, r.Wait = webhook.Pending, lease
		insert(t, st, fence, r)
		r.Seen.Lease = lease
		return r
	}
	parked := func(t *testing.T) webhook.Record {
		r := owed(t, db, endpoint, 1)[0]
		r.Status, r.Wait = webhook.Pending, -webhook.ParkedDue
		insert(t, st, fence, r)
		r.Seen.Lease = lease // it was taken in before its row was there
		return r
	}
	fetched := func(t *testing.T) webhook.Record {
		r := owed(t, db, endpoint, 1)[0]
		first := outcome(r, webhook.Retrying, 1, 500)
		first.Wait = -1234567 * time.Microsecond
		insert(t, st, fence, first)
		d := due(t, r.ID)
		r.Attempts, r.Seen = d.Attempts, webhook.Seen{Status: d.Status, DueAt: d.DueAt}
		return r
	}
	early := func(t *testing.T) webhook.Record {
		r := owed(t, db, endpoint, 1)[0]
		insert(t, st, fence, outcome(r, webhook.Failed, 1, 500))
		exec(t, db.Pool, `UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = '-infinity' WHERE id = $1`, r.ID)
		d := due(t, r.ID)
		r.Attempts, r.Seen = d.Attempts, webhook.Seen{Status: d.Status, DueAt: d.DueAt}
		return r
	}
	rows := map[string]func(*testing.T) webhook.Record{"leased": leased, "parked": parked, "fetched": fetched, "due since ever": early}
	const replay, cancel, later, before = `status = 'pending', next_attempt_at = now()`, `status = 'cancelled', next_attempt_at = NULL`,
		`status = 'pending', next_attempt_at = now() + interval '1 hour'`, `status = 'pending', next_attempt_at = now() - interval '1 minute'`
	for _, c := range []struct {
		said    string
		outcome webhook.Status
		want    string // after how many attempts before
		waits   bool
	}{
		{"", webhook.Success, "success", false},
		{"", webhook.Failed, "failed", false},
		{"", webhook.Retrying, "retrying", false},
		{replay, webhook.Success, "pending", true},
		{replay, webhook.Failed, "pending", true},
		{replay, webhook.Retrying, "pending", true},
		{later, webhook.Success, "pending", true},
		{later, webhook.Failed, "pending", true},
		{before, webhook.Success, "success", false}, // the attempt was the replay's
		{cancel, webhook.Success, "success", false},
		{cancel, webhook.Failed, "cancelled", false},
		{cancel, webhook.Retrying, "cancelled", false},
		{`next_attempt_at = now()`, webhook.Success, "", false},
		{"haste", webhook.Success, "success", false},
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
				end := outcome(r, c.outcome, n, map[webhook.Status]int{webhook.Success: 200}[c.outcome])
				end.Exhausted = c.outcome == webhook.Failed
				_, replayed, err := st.Update(t.Context(), fence, webhook.Mark{}, []webhook.Record{end})
				if err != nil {
					t.Fatal(err)
				}
				if got := statusOf(t, db, r.ID); got != fmt.Sprint(want, " ", n) {
					t.Errorf("%s, want %s %d", got, want, n)
				}
				if waits := c.waits || c.want == "" && want == "pending"; (len(replayed) == 1) != waits {
					t.Errorf("replayed: %v, want %v", replayed, waits)
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
