package store_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

const disableAfter = 5 * 24 * time.Hour

var testSession = &store.Session{SystemID: "system 1", Timeline: 1}

// acquired returns a store and the fence of a process that has just taken the slot.
func acquired(t testing.TB, db *pgtest.DB) (*store.Store, store.Fence) {
	t.Helper()
	st := store.New(db.Pool, db.Slot, disableAfter)
	return st, acquire(t, st)
}

func acquire(t testing.TB, st *store.Store) store.Fence {
	t.Helper()
	fence, err := st.Acquire(t.Context(), uuid.New(), testSession, 1)
	if err != nil {
		t.Fatal(err)
	}
	return fence
}

// newPool is another pool on the test's database.
func newPool(t testing.TB, db *pgtest.DB, change func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	change(config)
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// waiting waits until so many sessions of the test's database wait for a lock.
func waiting(t testing.TB, db *pgtest.DB, n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	pgtest.Eventually(t, 10*time.Second, strconv.Itoa(n)+" sessions wait for a lock", func() bool {
		return query[int](t, conn, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == n
	})
}

func TestAcquire(t *testing.T) {
	t.Parallel()

	t.Run("raises the epoch only for another process", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		st := store.New(db.Pool, db.Slot, disableAfter)
		if err := st.ClaimEnvironment(t.Context(), "production", false); err != nil {
			t.Fatal(err)
		}
		a, b := uuid.New(), uuid.New()
		for i, step := range []struct {
			holder uuid.UUID
			epoch  int64
			wrote  bool // the last holder
		}{{a, 1, false}, {a, 1, true}, {b, 2, true}, {b, 2, true}, {a, 3, true}} {
			before := query[time.Time](t, db.Pool, `SELECT updated_at FROM webhook_state`)
			fence, err := st.Acquire(t.Context(), step.holder, testSession, 7)
			if err != nil {
				t.Fatal(err)
			}
			if fence.Holder != step.holder || fence.Epoch != step.epoch {
				t.Errorf("step %d: holder %s, epoch %d, want %s, %d", i, fence.Holder, fence.Epoch, step.holder, step.epoch)
			}
			if step.wrote && !fence.LastWrite.Equal(before) || !step.wrote && !fence.LastWrite.IsZero() {
				t.Errorf("step %d: the last write was %s, want %s (%t)", i, fence.LastWrite, before, step.wrote)
			}
		}
		if got := query[string](t, db.Pool, `SELECT environment FROM webhook_state`); got != "production" {
			t.Errorf("environment %q", got)
		}
	})

	t.Run("takes back a position that was noted beyond where the session begins", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		st := store.New(db.Pool, db.Slot, disableAfter)
		holder := uuid.New()
		session := &store.Session{SystemID: "system 1", Timeline: 1}
		for _, c := range []struct{ noted, begins, want pglogrepl.LSN }{{0x100, 0, 0}, {0x200, 0x100, 0x100}, {0x200, 0x200, 0x200}, {0x200, 0x300, 0x200}} {
			fence, err := st.Acquire(t.Context(), holder, session, 1)
			if err != nil {
				t.Fatal(err)
			}
			if err := st.Mark(t.Context(), fence, store.Mark{Durable: c.noted, CommitAt: time.Now()}); err != nil {
				t.Fatal(err)
			}
			begins := &store.Session{SystemID: "system 1", Timeline: 1, Start: c.begins}
			if _, err := st.Acquire(t.Context(), holder, begins, 2); err != nil {
				t.Fatal(err)
			}
			if state, err := st.State(t.Context()); err != nil || state.DurableLSN != c.want {
				t.Errorf("%s was noted, the session begins at %s: %s (%v), want %s", c.noted, c.begins, state.DurableLSN, err, c.want)
			}
		}
	})

	t.Run("is for one slot, and fences the former holder", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		st, old := acquired(t, db)
		other := store.New(db.Pool, db.Slot+"_2", 0)
		elsewhere := acquire(t, other)
		acquire(t, st)
		if err := st.Mark(t.Context(), old, store.Mark{Seq: 2}); !errors.Is(err, store.ErrFenced) {
			t.Errorf("the former holder: %v, want %v", err, store.ErrFenced)
		}
		if err := other.Mark(t.Context(), elsewhere, store.Mark{Seq: 2}); err != nil {
			t.Errorf("the holder of another slot: %v", err)
		}
		// Neither half of a fence is enough.
		for _, f := range []store.Fence{{Holder: old.Holder, Epoch: old.Epoch + 1}, {Holder: uuid.New(), Epoch: old.Epoch + 1}} {
			if err := st.Mark(t.Context(), f, store.Mark{}); !errors.Is(err, store.ErrFenced) {
				t.Errorf("%+v: %v, want %v", f, err, store.ErrFenced)
			}
		}
	})

	t.Run("is seen by a write that waits for it", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		st, old := acquired(t, db)
		records := owed(t, db, newEndpoint(t, db.Pool, "org_1"), 1)
		tx := begin(t, db.Pool)
		exec(t, tx, `UPDATE webhook_state SET epoch = epoch + 1, holder = gen_random_uuid()`)
		done := make(chan error, 1)
		go func() {
			_, err := st.Insert(t.Context(), old, store.Mark{Seq: 2, Durable: 9}, records)
			done <- err
		}()
		waiting(t, db, 1)
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, store.ErrFenced) {
			t.Errorf("%v, want %v", err, store.ErrFenced)
		}
		if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_deliveries`); n != 0 {
			t.Errorf("%d rows were written", n)
		}
	})

	t.Run("terminates a former holder that froze inside its transaction, and nobody else", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		st, old := acquired(t, db)
		acquire(t, store.New(db.Pool, db.Slot+"_2", 0))
		for _, hold := range []string{
			`UPDATE webhook_state SET updated_at = now() WHERE slot = $1`,
			`SELECT FROM webhook_state WHERE slot = $1 FOR UPDATE`, // a takeover that froze half way
		} {
			bystander, frozen := begin(t, db.Pool), begin(t, db.Pool)
			exec(t, bystander, `UPDATE webhook_state SET updated_at = now() WHERE slot = $1`, db.Slot+"_2")
			exec(t, frozen, hold, db.Slot)
			fence, err := st.Acquire(t.Context(), uuid.New(), testSession, 1)
			if err != nil || fence.Epoch != old.Epoch+1 {
				t.Fatalf("%s: epoch %d, %v; want %d", hold, fence.Epoch, err, old.Epoch+1)
			}
			old = fence
			if _, err := frozen.Exec(t.Context(), `SELECT`); err == nil {
				t.Errorf("%s: the former holder is alive", hold)
			}
			if _, err := bystander.Exec(t.Context(), `SELECT`); err != nil {
				t.Errorf("%s: the holder of another slot was terminated: %v", hold, err)
			}
			_ = bystander.Rollback(t.Context())
			_ = frozen.Rollback(t.Context())
		}
	})

	t.Run("leaves whoever has locked the table alone", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		st, _ := acquired(t, db)
		tx := begin(t, db.Pool)
		exec(t, tx, `LOCK TABLE webhook_state`)
		began := time.Now()
		if _, err := st.Acquire(t.Context(), uuid.New(), testSession, 1); err == nil {
			t.Error("it was acquired")
		}
		if took := time.Since(began); took > 6*time.Second {
			t.Errorf("it waited for %s", took)
		}
		exec(t, tx, `SELECT`)
	})
}

func TestStartSession(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, disableAfter)
	start := func(system string, timeline int32, flushed pglogrepl.LSN) pglogrepl.LSN {
		t.Helper()
		session := &store.Session{SystemID: system, Timeline: timeline}
		if err := st.StartSession(t.Context(), session, flushed); err != nil {
			t.Fatal(err)
		}
		return session.Start
	}
	if got := start("system 1", 1, 1<<40); got != 0 {
		t.Errorf("a slot that was never acquired begins at %s", got)
	}
	fence := acquire(t, st)
	if got := start("system 1", 1, 1<<40); got != 0 {
		t.Errorf("before anything was recorded: %s", got)
	}
	const durable = pglogrepl.LSN(0x1_0000_0010)
	commit := time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	if err := st.Mark(t.Context(), fence, store.Mark{Durable: durable, CommitAt: commit}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what     string
		system   string
		timeline int32
		flushed  pglogrepl.LSN
		want     pglogrepl.LSN
	}{
		{"the same cluster", "system 1", 1, durable, durable},
		{"another cluster", "system 2", 1, 1 << 40, 0},
		{"another timeline", "system 1", 2, 1 << 40, 0},
		{"a position in the future", "system 1", 1, durable - 1, 0},
	} {
		if got := start(c.system, c.timeline, c.flushed); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}

	t.Run("forgets the position of another cluster or slot, and keeps the time", func(t *testing.T) {
		for _, other := range []*store.Session{{SystemID: "system 1", Timeline: 1, SlotCreated: true}, {SystemID: "system 1", Timeline: 2}, {SystemID: "system 2", Timeline: 2}} {
			if err := st.Mark(t.Context(), fence, store.Mark{Durable: durable, CommitAt: commit}); err != nil {
				t.Fatal(err)
			}
			var err error
			if fence, err = st.Acquire(t.Context(), fence.Holder, other, 1); err != nil {
				t.Fatal(err)
			}
			state, err := st.State(t.Context())
			if err != nil || state.DurableLSN != 0 || !state.DurableAt.Equal(commit) || state.SystemID != other.SystemID || state.Timeline != other.Timeline {
				t.Errorf("%+v, %v", state, err)
			}
		}
	})
}

// What a process knows to be recorded holds for the server that it was recorded by:
// another start may be that of a snapshot of its disk.
func TestMarkOfAnotherStart(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	if err := st.Mark(t.Context(), fence, store.Mark{Durable: 10}); err != nil {
		t.Fatal(err)
	}
	fence.Server = fence.Server.Add(-time.Microsecond)
	if err := st.Mark(t.Context(), fence, store.Mark{Durable: 20, CommitAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if state, err := st.State(t.Context()); err != nil || state.DurableLSN != 10 || !state.DurableAt.Equal(time.Unix(0, 0)) {
		t.Errorf("%s at %s, %v; want what was noted before", state.DurableLSN, state.DurableAt, err)
	}
}

func TestMark(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	at := func(minutes int) time.Time { return time.Date(2026, 1, 2, 3, minutes, 0, 0, time.UTC) }
	for i, c := range []struct {
		mark store.Mark
		lsn  pglogrepl.LSN
		at   time.Time
	}{
		{store.Mark{CommitAt: at(1)}, 0, time.Unix(0, 0)}, // a time without a position tells nothing
		{store.Mark{Durable: 10}, 10, time.Unix(0, 0)},
		{store.Mark{Durable: 30, CommitAt: at(3)}, 30, at(3)},
		{store.Mark{Durable: 20, CommitAt: at(2)}, 30, at(3)}, // it never goes back
		{store.Mark{Durable: 30, CommitAt: at(5)}, 30, at(3)},
		{store.Mark{}, 30, at(3)},
		{store.Mark{Durable: 40}, 40, at(3)}, // a keepalive's position has no time
		{store.Mark{Durable: 0xFFFFFFFF_FFFFFFF0, CommitAt: at(6)}, 0xFFFFFFFF_FFFFFFF0, at(6)},
	} {
		if err := st.Mark(t.Context(), fence, c.mark); err != nil {
			t.Fatal(err)
		}
		state, err := st.State(t.Context())
		if err != nil || state.DurableLSN != c.lsn || !state.DurableAt.Equal(c.at) {
			t.Errorf("step %d: %s at %s, %v; want %s at %s", i, state.DurableLSN, state.DurableAt, err, c.lsn, c.at)
		}
	}
	lsn, err := st.InsertLSN(t.Context())
	if err != nil || lsn == 0 {
		t.Errorf("InsertLSN: %s, %v", lsn, err)
	}
}

func FuzzParseEcho(f *testing.F) {
	fence := store.Fence{Holder: uuid.MustParse("0189d0d0-0000-7000-8000-000000000001"), Epoch: 12}
	for _, m := range []string{"", "/", fence.Echo(0), fence.Echo(1<<64 - 1), fence.Echo(7) + " ", fence.Holder.String() + "/12/+7",
		fence.Holder.String() + "/12/007", fence.Holder.String() + "/12/7/8", fence.Holder.String() + "/1/27", strings.ToUpper(fence.Echo(3)),
		fence.Holder.String() + "/12/18446744073709551616", fence.Holder.String() + "/12/-1"} {
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, message string) {
		seq, ours := fence.ParseEcho(message)
		if ours != (fence.Echo(seq) == message) {
			t.Errorf("%q: batch %d, ours %t", message, seq, ours)
		}
	})
}

func TestParseEcho(t *testing.T) {
	t.Parallel()
	fence := store.Fence{Holder: uuid.New(), Epoch: 12}
	for _, want := range []uint64{0, 1, 1<<64 - 1} {
		if got, ours := fence.ParseEcho(fence.Echo(want)); got != want || !ours {
			t.Errorf("%d, %t, want %d", got, ours, want)
		}
	}
	for _, m := range []string{
		"", fence.Echo(7) + "x", fence.Echo(7) + "/1", fence.Holder.String() + "/12/007", fence.Holder.String() + "/12/+7", fence.Holder.String() + "/12/",
		store.Fence{Holder: fence.Holder, Epoch: 11}.Echo(7), store.Fence{Holder: fence.Holder, Epoch: 1}.Echo(27), store.Fence{Holder: uuid.New(), Epoch: 12}.Echo(7),
	} {
		if seq, ours := fence.ParseEcho(m); ours {
			t.Errorf("%q counts as batch %d", m, seq)
		}
	}
}

func TestAnEchoCannotBeForged(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	fence, err := st.Acquire(t.Context(), uuid.New(), testSession, 1)
	if err != nil {
		t.Fatal(err)
	}
	if seq, ours := fence.ParseEcho(fence.Echo(7)); !ours || seq != 7 {
		t.Errorf("its own: %d, %t", seq, ours)
	}
	var holder uuid.UUID
	var epoch int64
	if err := db.Pool.QueryRow(t.Context(), `SELECT holder, epoch FROM webhook_state`).Scan(&holder, &epoch); err != nil {
		t.Fatal(err)
	}
	if forged := (store.Fence{Holder: holder, Epoch: epoch}).Echo(7); holder != fence.Holder || epoch != fence.Epoch {
		t.Errorf("holder %s, epoch %d", holder, epoch)
	} else if _, ours := fence.ParseEcho(forged); ours {
		t.Errorf("%q, made of what webhook_state tells, counts", forged)
	}
	var told bool
	if err := db.Pool.QueryRow(t.Context(), `SELECT to_jsonb(s)::text LIKE '%' || $1 || '%' FROM webhook_state s`, strings.Split(fence.Echo(7), "/")[2]).Scan(&told); err != nil || told {
		t.Errorf("webhook_state tells the nonce: %t, %v", told, err)
	}
	another, err := store.New(db.Pool, db.Slot, 0).Acquire(t.Context(), holder, testSession, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, ours := another.ParseEcho(fence.Echo(7)); ours || another.Epoch != fence.Epoch {
		t.Errorf("another process's echo counts (epochs %d and %d)", fence.Epoch, another.Epoch)
	}
}

// Whatever way of sending a query the database's URL asks for: with a pooler it
// cannot be prepared statements.
func TestQueryModes(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			pool := newPool(t, db, func(c *pgxpool.Config) {
				c.MaxConns = 1
				c.ConnConfig.DefaultQueryExecMode = mode
			})
			st := store.New(pool, db.Slot, disableAfter)
			everyStatement(t, db, st)
			if n := query[int](t, pool, `SELECT count(*) FROM pg_prepared_statements`); n > 0 && mode != pgx.QueryExecModeCacheStatement {
				t.Errorf("%d prepared statements", n)
			}
			// What a transaction set for itself has ended with it: the next user of a shared connection has its own.
			for _, setting := range []string{"enable_seqscan", "enable_sort", "jit", "enable_hashjoin"} {
				if got := query[bool](t, pool, `SELECT setting = reset_val FROM pg_settings WHERE name = $1`, setting); !got {
					t.Errorf("%s is changed for the session", setting)
				}
			}
			if got := query[string](t, pool, `SELECT coalesce(current_setting('walhook.recording', true), '')`); got != "" {
				t.Errorf("walhook.recording is %q in the session", got)
			}
		})
	}
}

// everyStatement runs each of the store's statements, and checks that it did something.
func everyStatement(t *testing.T, db *pgtest.DB, st *store.Store) {
	t.Helper()
	ok := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	ok("check the schema", st.CheckSchema(t.Context()))
	ok("claim the environment", st.ClaimEnvironment(t.Context(), "production", false))
	fence := acquire(t, st)
	endpoint := newEndpoint(t, db.Pool, "org_1", "*", "webhook.*")
	records := owed(t, db, endpoint, 6)
	parked, failed, gone, orphan := &records[0], &records[1], &records[2], &records[3]

	c, err := st.Missing(t.Context(), store.Position{Event: outbox.TimeID(time.Now().Add(-time.Hour))}, outbox.TimeID(time.Now().Add(time.Hour)), 10)
	if ok("missing", err); len(c.Missing) != len(records) || c.Upto.Event == uuid.Nil {
		t.Errorf("%d are missing, the last event is %s", len(c.Missing), c.Upto.Event)
	}
	missing, err := st.InsertMissing(t.Context(), fence, nil)
	if ok("insert missing", err); missing != 0 {
		t.Errorf("inserted %d of nothing", missing)
	}
	parked.Status, parked.Wait = store.Pending, -time.Minute
	failed.Status, failed.Wait, failed.Attempts = store.Retrying, -10*time.Second, 1
	failed.Attempt = newAttempt(503, `a "b" {c} \d 'é`)
	gone.Status, gone.Attempts, gone.Attempt = store.Failed, 1, newAttempt(500, "no")
	gone.Exhausted = true
	orphan.Status = store.Pending
	records[4].Status, records[4].Attempts, records[4].Attempt = store.Success, 1, newAttempt(200, "yes")
	records[5].Status = store.Cancelled
	fresh, err := st.Insert(t.Context(), fence, store.Mark{Seq: 2, Durable: 3, CommitAt: time.Now()}, records)
	if ok("insert", err); !fresh {
		t.Error("they were not new")
	}
	if got := query[string](t, db.Pool, `SELECT response FROM webhook_deliveries WHERE id = $1`, failed.ID); got != failed.Attempt.Response {
		t.Errorf("response %q, want %q", got, failed.Attempt.Response)
	}
	failed.Attempts, failed.Wait = 2, -10*time.Second
	health := store.EndpointHealth{EndpointID: uuid.MustParse(endpoint), Recovered: true, Failing: true, Open: true, Look: true, At: time.Now()}
	busy, _, err := st.Update(t.Context(), fence, store.Mark{Health: []store.EndpointHealth{health}}, []store.Record{*failed})
	if ok("update", err); len(busy) != 0 {
		t.Errorf("%d are busy", len(busy))
	}
	known := map[uuid.UUID]bool{}
	ok("existing", st.Existing(t.Context(), []uuid.UUID{failed.ID, uuid.New()}, known))
	if len(known) != 1 || !known[failed.ID] {
		t.Errorf("existing: %v", known)
	}
	now, err := st.Now(t.Context())
	ok("now", err)
	due, _, _, err := st.NewlyDue(t.Context(), now.Add(-time.Hour))
	if ok("newly due", err); len(due) != 1 || due[0].String() != endpoint {
		t.Errorf("newly due: %v", due)
	}
	walked, err := st.Waiting(t.Context(), uuid.Nil, 10)
	if ok("waiting", err); len(walked) != 1 || walked[0].EndpointID.String() != endpoint || !walked[0].Enabled {
		t.Errorf("waiting: %v", walked)
	}
	exec(t, db.Pool, `DELETE FROM webhook_outbox WHERE id = $1`, orphan.EventID)
	settled(t, db)
	var pages []store.Due
	id := uuid.MustParse(endpoint)
	take := func(d *store.Due) { pages = append(pages, *d) }
	ok("due", st.Due(t.Context(), []store.Page{{EndpointID: id, Limit: 1}}, take))
	ok("due", st.Due(t.Context(), []store.Page{{EndpointID: id, After: pages[0].End(), Limit: 10}}, take))
	if len(pages) != 3 || pages[0].ID != parked.ID || pages[1].ID != failed.ID || !pages[2].Orphaned || string(pages[1].Event.Payload) != `{"n": 2}` {
		t.Errorf("due: %+v", pages)
	}
	ok("cancel orphans", st.CancelOrphans(t.Context(), fence, []uuid.UUID{orphan.ID}))
	found, err := st.Endpoints(t.Context(), []uuid.UUID{id})
	if ok("endpoints", err); len(found) != 1 || len(found[0].Secrets) != 1 || found[0].Headers == nil || !found[0].BreakerOpen {
		t.Errorf("endpoints: %+v", found)
	}
	parked.Status, parked.Attempts, parked.Attempt, parked.Gone = store.Failed, 1, newAttempt(410, ""), true
	_, _, err = st.Update(t.Context(), fence, store.Mark{Seq: 3}, []store.Record{*parked})
	ok("update", err)
	pgtest.Eventually(t, 30*time.Second, "its row is cancelled", func() bool {
		n, _, err := st.CancelRows(t.Context(), fence, id, "disabled")
		ok("cancel rows", err)
		return n == 1
	})
	got := column[string](t, db.Pool, `SELECT status || ' ' || attempts FROM webhook_deliveries WHERE event_type NOT LIKE 'webhook.%' ORDER BY event_id`)
	if want := []string{"failed 1", "cancelled 2", "failed 1", "cancelled 0", "success 1", "cancelled 0"}; !slices.Equal(got, want) {
		t.Errorf("in the end: %q, want %q", got, want)
	}
	if got := column[string](t, db.Pool, `SELECT event_type FROM webhook_outbox WHERE event_type LIKE 'webhook.%' ORDER BY 1`); !slices.Equal(got, []string{outbox.TypeDeliveryExhausted, outbox.TypeEndpointDisabled}) {
		t.Errorf("own events: %q", got)
	}
	for range 7 { // generic plans of the prepared ones
		ok("existing", st.Existing(t.Context(), []uuid.UUID{failed.ID}, known))
		_, _, err := st.Update(t.Context(), fence, store.Mark{}, []store.Record{*failed})
		ok("update", err)
	}
	session := &store.Session{SystemID: "system 1", Timeline: 1}
	ok("start", st.StartSession(t.Context(), session, 1<<40))
	ok("check the session", st.CheckSession(t.Context(), session))
	_, err = st.InsertLSN(t.Context())
	ok("insert LSN", err)
}

// newRole makes a role that is no superuser, and drops it with all that it owns.
func newRole(t testing.TB, db *pgtest.DB) string {
	t.Helper()
	role := strings.Replace(db.Slot, "test", "role", 1)
	exec(t, db.Pool, `CREATE ROLE `+role+` LOGIN REPLICATION PASSWORD '`+role+`'`)
	t.Cleanup(func() {
		for _, sql := range []string{`REASSIGN OWNED BY ` + role + ` TO CURRENT_USER`, `DROP OWNED BY ` + role, `DROP ROLE ` + role} {
			if _, err := db.Pool.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	return role
}

// runGrants are what a role needs for `walhook run` that does not own the tables.
var runGrants = []string{
	`SELECT, INSERT, UPDATE ON webhook_deliveries, webhook_state`,
	`SELECT, INSERT ON webhook_outbox`,
	`SELECT, UPDATE ON webhook_endpoints, webhook_secrets`,
	`SELECT, INSERT, UPDATE, DELETE ON webhook_endpoint_failures`,
	`SELECT ON webhook_retries`,
	`SELECT ON webhook_outbox_default, webhook_deliveries_default`,
	`EXECUTE ON FUNCTION webhook_add_partition, webhook_drop_day, webhook_delete_old`,
}

func roleWithGrants(t testing.TB, db *pgtest.DB) string {
	t.Helper()
	role := newRole(t, db)
	for _, grant := range runGrants {
		exec(t, db.Pool, `GRANT `+grant+` TO `+role)
	}
	return role
}

// The grants of version 1 are not enough for version 2, and that is said at the
// start, not when the first failure cannot be recorded.
func TestGrantsOfVersion1AreRefused(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	role := roleWithGrants(t, db)
	st := store.New(newPool(t, db, asRole(role)), db.Slot, disableAfter)
	if err := st.CheckSchema(t.Context()); err != nil {
		t.Fatalf("with all grants: %v", err)
	}
	exec(t, db.Pool, `REVOKE UPDATE ON webhook_endpoint_failures FROM `+role)
	if err := st.CheckSchema(t.Context()); !errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), "GRANT UPDATE") {
		t.Errorf("without UPDATE: %v, want %v that names the grant", err, store.ErrNotPrepared)
	}
}

// asRole makes a pool's connections those of a role.
func asRole(role string) func(*pgxpool.Config) {
	return func(c *pgxpool.Config) {
		c.MaxConns = 3
		c.ConnConfig.User, c.ConnConfig.Password = role, role
	}
}

// The role of `walhook run` is no superuser: it may replicate, and it owns the
// tables or has been granted what it needs.
func TestRoleOfRun(t *testing.T) {
	t.Parallel()
	run := func(t *testing.T, db *pgtest.DB, pool *pgxpool.Pool) {
		if query[bool](t, pool, `SELECT rolsuper FROM pg_roles WHERE rolname = session_user`) {
			t.Fatal("it is a superuser")
		}
		st := store.New(pool, db.Slot, disableAfter)
		everyStatement(t, db, st)
		upkeep(t, store.NewPartitions(st, 24*time.Hour))
		sealer, err := store.NewSealer(make([]byte, 32), nil)
		if err != nil {
			t.Fatal(err)
		}
		st.Sealing(sealer)
		if n, err := st.SealSecrets(t.Context()); err != nil || n == 0 {
			t.Errorf("sealed %d, %v", n, err)
		}
		exec(t, pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
		if n := query[int](t, pool, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, db.Slot); n != 1 {
			t.Error("it does not see its slot")
		}
		frozen := begin(t, pool)
		exec(t, frozen, `SELECT FROM webhook_state FOR UPDATE`)
		acquire(t, st)
		if _, err := frozen.Exec(t.Context(), `SELECT`); err == nil {
			t.Error("its own frozen writer was not terminated")
		}
		_ = frozen.Rollback(t.Context())
		if dropped, err := st.DropSlot(t.Context()); err != nil || !dropped {
			t.Errorf("drop the slot: %t, %v", dropped, err)
		}
	}
	t.Run("as the owner", func(t *testing.T) {
		t.Parallel()
		db := pgtest.Empty(t)
		role := newRole(t, db)
		pool := newPool(t, db, asRole(role))
		exec(t, db.Pool, `GRANT CREATE ON DATABASE `+db.Slot+` TO `+role)
		exec(t, db.Pool, `GRANT CREATE, USAGE ON SCHEMA public TO `+role)
		if err := apply(t.Context(), pool, readSchema(t)); err != nil {
			t.Fatal(err)
		}
		run(t, db, pool)
		if err := store.New(pool, db.Slot, 0).DropTables(t.Context(), readSchema(t)); err != nil {
			t.Error(err)
		}
	})
	t.Run("with grants", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		run(t, db, newPool(t, db, asRole(roleWithGrants(t, db))))
	})
}

// What a role's, a database's or a URL's settings may be.
func TestSessionDefaults(t *testing.T) {
	t.Parallel()
	for _, settings := range []map[string]string{
		{"timezone": "Asia/Kolkata", "datestyle": "SQL, DMY", "intervalstyle": "sql_standard", "bytea_output": "escape", "extra_float_digits": "-15"},
		{"default_transaction_isolation": "serializable", "plan_cache_mode": "force_generic_plan"},
		{"standard_conforming_strings": "on", "jit": "on", "jit_above_cost": "0", "lock_timeout": "1ms", "transform_null_equals": "on"},
	} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			pool := newPool(t, db, func(c *pgxpool.Config) {
				maps.Copy(c.ConnConfig.RuntimeParams, settings)
			})
			everyStatement(t, db, store.New(pool, db.Slot, disableAfter))
			if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_attempts WHERE at NOT BETWEEN now() - interval '1 minute' AND now()`); n != 0 {
				t.Errorf("%d attempts were at another time", n)
			}
		})
	}

	t.Run("never leave a commit less than locally durable", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		exec(t, db.Pool, `CREATE TABLE seen (setting text)`)
		exec(t, db.Pool, `CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$`)
		exec(t, db.Pool, `CREATE TRIGGER see AFTER INSERT ON webhook_deliveries EXECUTE FUNCTION see()`)
		_, fence := acquired(t, db)
		endpoint := newEndpoint(t, db.Pool, "org_1")
		for _, setting := range []string{"off", "local", "remote_write", "on", "remote_apply"} {
			pool := newPool(t, db, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["synchronous_commit"] = setting })
			st := store.New(pool, db.Slot, 0)
			insert(t, st, fence, outcome(owed(t, db, endpoint, 1)[0], store.Success, 1, 200))
		}
		if got, want := column[string](t, db.Pool, `SELECT setting FROM seen`), []string{"local", "local", "remote_write", "on", "remote_apply"}; !slices.Equal(got, want) {
			t.Errorf("recorded with %q, want %q", got, want)
		}
	})
}
