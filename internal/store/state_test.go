package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

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
		session := &webhook.Session{SystemID: "system 1", Timeline: 1}
		for _, c := range []struct{ noted, begins, want pglogrepl.LSN }{{0x100, 0, 0}, {0x200, 0x100, 0x100}, {0x200, 0x200, 0x200}, {0x200, 0x300, 0x200}} {
			fence, err := st.Acquire(t.Context(), holder, session, 1)
			if err != nil {
				t.Fatal(err)
			}
			if err := st.Mark(t.Context(), fence, webhook.Mark{Durable: c.noted, CommitAt: time.Now()}); err != nil {
				t.Fatal(err)
			}
			begins := &webhook.Session{SystemID: "system 1", Timeline: 1, Start: c.begins}
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
		if err := st.Mark(t.Context(), old, webhook.Mark{Seq: 2}); !errors.Is(err, store.ErrFenced) {
			t.Errorf("the former holder: %v, want %v", err, store.ErrFenced)
		}
		if err := other.Mark(t.Context(), elsewhere, webhook.Mark{Seq: 2}); err != nil {
			t.Errorf("the holder of another slot: %v", err)
		}
		// Neither half of a fence is enough.
		for _, f := range []webhook.Fence{{Holder: old.Holder, Epoch: old.Epoch + 1}, {Holder: uuid.New(), Epoch: old.Epoch + 1}} {
			if err := st.Mark(t.Context(), f, webhook.Mark{}); !errors.Is(err, store.ErrFenced) {
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
			_, err := st.Insert(t.Context(), old, webhook.Mark{Seq: 2, Durable: 9}, records)
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
		session := &webhook.Session{SystemID: system, Timeline: timeline}
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
	if err := st.Mark(t.Context(), fence, webhook.Mark{Durable: durable, CommitAt: commit}); err != nil {
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
		for _, other := range []*webhook.Session{{SystemID: "system 1", Timeline: 1, SlotCreated: true}, {SystemID: "system 1", Timeline: 2}, {SystemID: "system 2", Timeline: 2}} {
			if err := st.Mark(t.Context(), fence, webhook.Mark{Durable: durable, CommitAt: commit}); err != nil {
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
	if err := st.Mark(t.Context(), fence, webhook.Mark{Durable: 10}); err != nil {
		t.Fatal(err)
	}
	fence.Server = fence.Server.Add(-time.Microsecond)
	if err := st.Mark(t.Context(), fence, webhook.Mark{Durable: 20, CommitAt: time.Now()}); err != nil {
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
		mark webhook.Mark
		lsn  pglogrepl.LSN
		at   time.Time
	}{
		{webhook.Mark{CommitAt: at(1)}, 0, time.Unix(0, 0)}, // a time without a position tells nothing
		{webhook.Mark{Durable: 10}, 10, time.Unix(0, 0)},
		{webhook.Mark{Durable: 30, CommitAt: at(3)}, 30, at(3)},
		{webhook.Mark{Durable: 20, CommitAt: at(2)}, 30, at(3)}, // it never goes back
		{webhook.Mark{Durable: 30, CommitAt: at(5)}, 30, at(3)},
		{webhook.Mark{}, 30, at(3)},
		{webhook.Mark{Durable: 40}, 40, at(3)}, // a keepalive's position has no time
		{webhook.Mark{Durable: 0xFFFFFFFF_FFFFFFF0, CommitAt: at(6)}, 0xFFFFFFFF_FFFFFFF0, at(6)},
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

func TestFencedWritesNothing(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, old := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1", "*", "webhook.*")
	rs := owed(t, db, endpoint, 6)
	for i := range rs[:3] {
		rs[i].Status = webhook.Pending
	}
	insert(t, st, old, rs[:3]...)
	exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES ($1, now() - interval '10 days')`, endpoint)
	acquire(t, st)
	snapshot := func() string {
		return query[string](t, db.Pool, `SELECT concat_ws('|', (SELECT string_agg(d::text, ',' ORDER BY id) FROM webhook_deliveries d), (SELECT string_agg(o::text, ',' ORDER BY id) FROM webhook_outbox o),
			(SELECT string_agg(e::text, ',') FROM webhook_endpoints e), (SELECT string_agg(f::text, ',') FROM webhook_endpoint_failures f), (SELECT string_agg(s::text, ',') FROM webhook_state s))`)
	}
	before := snapshot()
	bad := func(r webhook.Record, gone bool) webhook.Record {
		r = outcome(r, webhook.Failed, 1, 500)
		r.Exhausted, r.Gone = true, gone
		return r
	}
	mark := webhook.Mark{Seq: 5, Durable: 99, CommitAt: time.Now(), Health: []webhook.EndpointHealth{
		{EndpointID: rs[0].EndpointID, Recovered: true, Failing: true, Open: true, CheckDisable: true, At: time.Now()},
	}}
	for what, write := range map[string]func() error{
		"insert": func() error {
			_, err := st.Insert(t.Context(), old, mark, []webhook.Record{bad(rs[3], true), bad(rs[4], false)})
			return err
		},
		"update": func() error {
			_, _, err := st.Update(t.Context(), old, mark, []webhook.Record{bad(rs[0], true), bad(rs[1], false)})
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

func TestOwe(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	if _, err := st.Reconciled(t.Context(), fence); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	for i, from := range []time.Time{at, at.Add(time.Minute), at.Add(-time.Minute)} {
		noted, err := st.NoteMissing(t.Context(), fence, from)
		if err != nil || !noted.Before(at) || !noted.Before(from) || noted.Before(at.Add(-2*time.Minute)) {
			t.Errorf("%d: noted %v of %v, error %v", i, noted, from, err)
		}
		if got := query[time.Time](t, db.Pool, `SELECT reconcile_from FROM webhook_state`); !got.Equal(noted) {
			t.Errorf("%d: noted %v, and %v is there", i, noted, got)
		}
	}
	fence.Holder = uuid.New()
	if _, err := st.NoteMissing(t.Context(), fence, at); !errors.Is(err, store.ErrFenced) {
		t.Errorf("of another holder: %v", err)
	}
}
