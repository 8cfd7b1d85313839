package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

func TestReconcilingIsRememberedUntilItIsDone(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	acquire := func(start int) webhook.Fence {
		t.Helper()
		s := &webhook.Session{SystemID: "system 1", Timeline: 1, Start: 100, Confirmed: 100}
		if start == 0 {
			s.Start = 0
		}
		fence, err := st.Acquire(t.Context(), uuid.New(), s, 1)
		if err != nil {
			t.Fatal(err)
		}
		return fence
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, f webhook.Fence, reconcile bool, from time.Time) {
		t.Helper()
		if f.Reconcile != reconcile || reconcile && !f.ReconcileFrom.Equal(from) {
			t.Errorf("%s: %t from %v, want %t from %v", what, f.Reconcile, f.ReconcileFrom, reconcile, from)
		}
	}
	reconciled := func(what string, f webhook.Fence, since time.Time) {
		t.Helper()
		got, err := st.Reconciled(t.Context(), f)
		if err != nil || !got.Equal(since) {
			t.Errorf("%s: more to be compared since %v, %v; want %v", what, got, err, since)
		}
	}
	epoch := time.Unix(0, 0)
	commit := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	open := commit.Add(-4 * time.Hour)

	first := acquire(0)
	want("the first start", first, true, epoch)
	do(st.Mark(t.Context(), first, webhook.Mark{Durable: 200, CommitAt: commit}))
	exec(t, db.Pool, `UPDATE webhook_state SET open_since = $1`, open)
	second := acquire(100)
	want("the next process, after a crash before it was done", second, true, epoch)
	reconciled("a fenced process", first, time.Time{}) // it is not for that one to say
	want("which a fenced process cannot end", acquire(100), true, epoch)
	last := acquire(100)
	reconciled("the holder", last, time.Time{})
	reconciled("once more, where the answer was lost", last, time.Time{})
	want("after it was done", acquire(100), false, epoch)

	do(st.AwaitSlot(t.Context()))
	state, err := st.State(t.Context())
	if err != nil || state.DurableLSN != 0 {
		t.Errorf("durable %v, %v; want none: the new slot begins after it", state.DurableLSN, err)
	}
	anew := acquire(100)
	want("the process that finds the new slot", anew, true, open.Add(-time.Microsecond))
	do(st.AwaitSlot(t.Context())) // lost once more, while it compares
	reconciled("which it hears", anew, open.Add(-2*time.Microsecond))
	want("which does not count for the slot after it", acquire(100), true, open.Add(-2*time.Microsecond))
}

func TestAnotherPublicationIsNoticed(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	begin := func() *webhook.Session {
		t.Helper()
		s := &webhook.Session{SystemID: "system 1", Timeline: 1}
		if err := st.StartSession(t.Context(), s, 1<<40); err != nil {
			t.Fatal(err)
		}
		s.Start = 100 // it goes on
		return s
	}
	claim := func(s *webhook.Session) webhook.Fence {
		t.Helper()
		fence, err := st.Acquire(t.Context(), uuid.New(), s, 1)
		if err != nil {
			t.Fatal(err)
		}
		return fence
	}
	reconciled := func(f webhook.Fence) {
		t.Helper()
		if _, err := st.Reconciled(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	reconciled(claim(begin()))
	for _, sql := range [][]string{
		{`ALTER PUBLICATION walhook DROP TABLE webhook_outbox`, `ALTER PUBLICATION walhook ADD TABLE webhook_outbox`},
		{`ALTER PUBLICATION walhook SET (publish = 'update')`, `ALTER PUBLICATION walhook SET (publish = 'insert')`},
		{`ALTER PUBLICATION walhook RENAME TO other`, `ALTER PUBLICATION other RENAME TO walhook`},
		{`DROP PUBLICATION walhook`, `CREATE PUBLICATION walhook FOR TABLE webhook_outbox WITH (publish = 'insert', publish_via_partition_root = true)`},
	} {
		s := begin()
		if f := claim(s); f.Reconcile {
			t.Errorf("before %s: reconcile from %s", sql[0], f.ReconcileFrom)
		}
		if err := st.CheckSession(t.Context(), s); err != nil {
			t.Errorf("before %s: %v", sql[0], err)
		}
		for _, statement := range sql {
			exec(t, db.Pool, statement)
			if err := st.CheckSession(t.Context(), s); !errors.Is(err, store.ErrRepublished) {
				t.Errorf("after %s: %v, want %v", statement, err, store.ErrRepublished)
			}
		}
		f := claim(begin())
		if !f.Reconcile {
			t.Errorf("%s, while nobody was there to see it: nothing is looked for", sql[0])
		}
		reconciled(f)
	}

	// What is inserted into an unlogged table is not in the WAL.
	s := begin()
	for _, sql := range []string{`ALTER TABLE webhook_outbox_default SET UNLOGGED`, `ALTER TABLE webhook_outbox_default SET LOGGED`} {
		exec(t, db.Pool, sql)
		if err := st.CheckSession(t.Context(), s); !errors.Is(err, store.ErrRepublished) {
			t.Errorf("after %s: %v, want %v", sql, err, store.ErrRepublished)
		}
		s = begin()
		f := claim(s)
		if !f.Reconcile {
			t.Errorf("after %s nothing is looked for", sql)
		}
		reconciled(f)
	}
}

func TestASlotThatSomebodyElseHasMovedIsReconciled(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		confirmed, told int
		moved           bool
	}{
		"where it was left":                        {confirmed: 100},
		"behind that, after a crash of PostgreSQL": {confirmed: 50},
		"beyond that, as this process told it":     {confirmed: 300, told: 300},
		"beyond what this process told it":         {confirmed: 301, told: 300, moved: true},
		"beyond what is recorded":                  {confirmed: 101, moved: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			st := store.New(db.Pool, db.Slot, 0)
			claim := func(s *webhook.Session) webhook.Fence {
				t.Helper()
				s.SystemID, s.Timeline = "system 1", 1
				f, err := st.Acquire(t.Context(), uuid.New(), s, 1)
				if err != nil {
					t.Fatal(err)
				}
				return f
			}
			before := claim(&webhook.Session{SlotCreated: true})
			at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
			if err := st.Mark(t.Context(), before, webhook.Mark{Durable: 100, CommitAt: at}); err != nil {
				t.Fatal(err)
			}
			if _, err := st.Reconciled(t.Context(), before); err != nil {
				t.Fatal(err)
			}
			exec(t, db.Pool, `UPDATE webhook_state SET open_since = $1`, at)
			f := claim(&webhook.Session{Start: 100, Confirmed: pglogrepl.LSN(c.confirmed), Reported: pglogrepl.LSN(c.told)})
			if f.Moved != c.moved || f.Reconcile != c.moved {
				t.Errorf("moved %t, reconcile %t, want %t", f.Moved, f.Reconcile, c.moved)
			}
			if c.moved && at.Sub(f.ReconcileFrom) > time.Second {
				t.Errorf("from %s, want %s", f.ReconcileFrom, at)
			}
		})
	}
}

func TestTransactionsThatWereOpenWhenTheSlotWasClaimedAreWaitedFor(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	open, err := db.Pool.Begin(t.Context()) // as a commit that waits for a synchronous standby
	if err != nil {
		t.Fatal(err)
	}
	defer open.Rollback(context.WithoutCancel(t.Context()))
	if _, err := open.Exec(t.Context(), `SELECT pg_current_xact_id()`); err != nil {
		t.Fatal(err)
	}
	claim := func(s *webhook.Session) webhook.Fence {
		t.Helper()
		s.SystemID, s.Timeline = "system 1", 1
		f, err := st.Acquire(t.Context(), uuid.New(), s, 1)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	settled := func(f webhook.Fence) bool {
		t.Helper()
		settled, err := st.ClaimVisible(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		return settled
	}
	if !settled(claim(&webhook.Session{SlotCreated: true})) {
		t.Error("whoever makes a slot has waited for them")
	}
	moved := claim(&webhook.Session{Start: 100, Confirmed: 101})
	first := claim(&webhook.Session{Confirmed: 101}) // nothing is recorded, and the slot was made long before
	if err := st.AwaitSlot(t.Context()); err != nil {
		t.Fatal(err)
	}
	strangers := claim(&webhook.Session{Confirmed: 101}) // somebody else was faster, and may have moved it since
	if settled(moved) || settled(first) || settled(strangers) {
		t.Errorf("settled while a transaction is open: moved %t, first %t, made by somebody else %t", settled(moved), settled(first), settled(strangers))
	}
	if err := open.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, time.Minute, "other tests' transactions have ended too", func() bool { return settled(moved) && settled(first) && settled(strangers) })
}

func TestASessionThatHasEndedClaimsNothing(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	ended := &webhook.Session{SystemID: "system 1", Timeline: 1, PID: 1}
	if _, err := st.Acquire(t.Context(), uuid.New(), ended, 1); !errors.Is(err, store.ErrSessionOver) {
		t.Errorf("%v, want %v", err, store.ErrSessionOver)
	}
	if state, err := st.State(t.Context()); err != nil || state.Epoch != 0 {
		t.Errorf("epoch %d, %v: the rightful holder would be fenced", state.Epoch, err)
	}
}
