package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// An opening is a session of a process that checks every few seconds and records.
type opening struct {
	t       *testing.T
	db      *pgtest.DB
	store   *store.Store
	session *webhook.Session
	fence   webhook.Fence
	passed  time.Duration // in the test's time
}

func newOpening(t *testing.T, db *pgtest.DB) *opening {
	t.Helper()
	o := &opening{t: t, db: db, store: store.New(db.Pool, db.Slot, 0)}
	o.session = o.start()
	o.claim()
	if _, err := o.store.Reconciled(t.Context(), o.fence); err != nil {
		t.Fatal(err)
	}
	return o
}

// start begins a session.
func (o *opening) start() *webhook.Session {
	o.t.Helper()
	session := &webhook.Session{SystemID: "system 1", Timeline: 1}
	if err := o.store.StartSession(o.t.Context(), session, 1<<60); err != nil {
		o.t.Fatal(err)
	}
	session.Start = 100 // it goes on
	return session
}

func (o *opening) claim() {
	o.t.Helper()
	var err error
	if o.fence, err = o.store.Acquire(o.t.Context(), uuid.New(), o.session, 1); err != nil {
		o.t.Fatal(err)
	}
}

func (o *opening) check() {
	o.t.Helper()
	if err := o.store.CheckSession(o.t.Context(), o.session); err != nil {
		o.t.Fatal(err)
	}
}

// record notes as durable what is committed by now, or up to lsn.
func (o *opening) record(lsn pglogrepl.LSN) {
	o.t.Helper()
	if err := o.store.Mark(o.t.Context(), o.fence, webhook.Mark{Durable: lsn, CommitAt: query[time.Time](o.t, o.db.Pool, `SELECT now()`)}); err != nil {
		o.t.Fatal(err)
	}
}

func (o *opening) now() pglogrepl.LSN {
	o.t.Helper()
	lsn, err := o.store.InsertLSN(o.t.Context())
	if err != nil {
		o.t.Fatal(err)
	}
	return lsn
}

// since is the bound in the table; zero: none.
func (o *opening) since() time.Time {
	o.t.Helper()
	return query[time.Time](o.t, o.db.Pool, `SELECT coalesce(open_since, 'epoch') FROM webhook_state WHERE slot = $1`, o.db.Slot)
}

// after waits until what the table says is later than at: other tests' transactions end.
func (o *opening) after(what string, at time.Time) time.Time {
	o.t.Helper()
	pgtest.Eventually(o.t, time.Minute, what, func() bool {
		o.write()
		o.check()
		o.record(o.now())
		return o.since().After(at)
	})
	return o.since()
}

// pass makes it later: what is open is that much older.
func (o *opening) pass(by time.Duration) {
	o.t.Helper()
	o.passed += by
	o.store.Age(by)
	exec(o.t, o.db.Pool, `UPDATE webhook_state SET open_since = open_since - $1 * interval '1 second' WHERE slot = $2`, by.Seconds(), o.db.Slot)
}

// goOn checks and records for some minutes.
func (o *opening) goOn() {
	o.t.Helper()
	for range 5 {
		o.pass(time.Minute) // the next sample is due
		o.write()
		o.check()
		o.record(o.now())
	}
}

// write is others' transactions.
func (o *opening) write() { exec(o.t, o.db.Pool, others) }

// others is as many transactions as make a sample due.
const others = `DO $$ BEGIN FOR i IN 1..70 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$`

// lose makes a new slot, and returns where the comparison starts.
func (o *opening) lose() time.Time {
	o.t.Helper()
	if err := o.store.AwaitSlot(o.t.Context()); err != nil {
		o.t.Fatal(err)
	}
	fence, err := o.store.Acquire(o.t.Context(), uuid.New(), &webhook.Session{SystemID: "system 1", Timeline: 1, SlotCreated: true}, 1)
	if err != nil || !fence.Reconcile {
		o.t.Fatalf("a lost slot: compare %t, %v", fence.Reconcile, err)
	}
	return fence.ReconcileFrom
}

// longTransaction inserts an event, and leaves open.
func longTransaction(t *testing.T, db *pgtest.DB) (tx pgx.Tx, inserted time.Time) {
	t.Helper()
	tx = begin(t, db.Pool)
	var id string
	if err := tx.QueryRow(t.Context(), `INSERT INTO webhook_outbox (organization_id, event_type, payload)
		VALUES ('org_1', 'payment.failed', '{}') RETURNING id::text`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return tx, outbox.IDTime(uuid.MustParse(id))
}

const hours = 3 * time.Hour

// Not beside other tests, whose transactions would hide what is wrong.
func TestALongTransactionIsLookedForFromItsBeginning(t *testing.T) {
	t.Run("while the same process looks on", func(t *testing.T) {
		o := newOpening(t, pgtest.New(t))
		o.after("something is known", time.Unix(1, 0))
		o.pass(2 * time.Minute)
		_, inserted := longTransaction(t, o.db)
		o.check() // a sample while no transaction of after it has ended
		o.pass(hours)
		o.goOn()
		if o.store.Samples() < 3 {
			t.Errorf("%d samples: nothing is shown", o.store.Samples())
		}
		if from := o.lose(); from.After(inserted.Add(-o.passed)) {
			t.Errorf("compared from %s, but an event of %s had not been committed", from, inserted.Add(-o.passed))
		}
	})
	t.Run("which has begun when it was open already", func(t *testing.T) {
		o := newOpening(t, pgtest.New(t))
		o.after("something is known", time.Unix(1, 0))
		_, inserted := longTransaction(t, o.db)
		o.pass(hours)
		passed := o.passed
		o = newOpening(t, o.db)
		o.passed = passed
		o.goOn()
		if from := o.lose(); from.After(inserted.Add(-o.passed)) || from.Unix() < 1 {
			t.Errorf("compared from %s, but an event of %s had not been committed", from, inserted.Add(-o.passed))
		}
	})
}

func TestAPreparedTransactionIsOpen(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t, postgres.Options{Settings: map[string]string{"max_prepared_transactions": "1"}})
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if err := apply(t.Context(), pool, readSchema(t)); err != nil {
		t.Fatal(err)
	}
	o := newOpening(t, &pgtest.DB{Pool: pool, URL: server.URL(), Slot: "walhook"})
	o.after("something is known", time.Unix(1, 0))
	tx, inserted := longTransaction(t, o.db)
	exec(t, tx, `PREPARE TRANSACTION 'one'`)
	o.pass(hours)
	o.goOn()
	if from := o.lose(); from.After(inserted.Add(-o.passed)) {
		t.Errorf("compared from %s, but an event of %s was only prepared", from, inserted.Add(-o.passed))
	}
}

func TestOpenSinceFollows(t *testing.T) {
	t.Parallel()

	t.Run("transactions that end", func(t *testing.T) {
		t.Parallel()
		o := newOpening(t, pgtest.New(t))
		o.after("something is known", time.Unix(1, 0))
		o.pass(hours)
		tx, inserted := longTransaction(t, o.db)
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		o.after("a sample of after it counts", inserted)
	})
	t.Run("what is durable, and not what is only seen", func(t *testing.T) {
		t.Parallel()
		o := newOpening(t, pgtest.New(t))
		o.after("something is known", time.Unix(1, 0))
		o.pass(hours)
		durable := o.now()
		o.record(durable)
		known := o.since()
		for range 3 {
			o.write()
			o.check()
			o.record(durable)
		}
		if at := o.since(); !at.Equal(known) {
			t.Errorf("since %s, want %s: the position has not moved", at, known)
		}
		o.after("it has moved", known)
	})
	t.Run("a cluster that was restored to when its ids were smaller", func(t *testing.T) {
		t.Parallel()
		o := newOpening(t, pgtest.New(t))
		known := o.after("something is known", time.Unix(1, 0))
		o.store.Renumber(1 << 40)
		o.after("what is sampled now counts", known)
		if n := o.store.Samples(); n != 1 {
			t.Errorf("%d samples, want the only one that means something", n)
		}
	})
	t.Run("positions of the session that was claimed", func(t *testing.T) {
		t.Parallel()
		o := newOpening(t, pgtest.New(t))
		durable := o.now() + 1<<40 // on a timeline that is gone
		next := o.start()
		for range 3 {
			o.write()
			if err := o.store.CheckSession(t.Context(), next); err != nil {
				t.Fatal(err)
			}
			o.record(durable) // of what was under way when the next began
		}
		if at := o.since(); at.Unix() != 0 {
			t.Errorf("since %s, by a position of the session before", at)
		}
		o.session = next
		o.claim()
		o.after("something is known by its own", time.Unix(1, 0))
	})
	t.Run("good checks only", func(t *testing.T) {
		t.Parallel()
		o := newOpening(t, pgtest.New(t))
		exec(t, o.db.Pool, `ALTER PUBLICATION walhook DROP TABLE webhook_outbox`)
		for range 5 {
			o.write()
			if err := o.store.CheckSession(t.Context(), o.session); err == nil {
				t.Fatal("an outbox that is not published is well")
			}
			o.record(o.now())
		}
		if at := o.since(); at.Unix() != 0 {
			t.Errorf("since %s, but what was not published may be lost", at)
		}
	})
	t.Run("nothing where nobody writes", func(t *testing.T) {
		t.Parallel()
		o := newOpening(t, pgtest.New(t))
		o.check()
		if o.store.Samples() != 1 {
			t.Errorf("%d samples after the first check, want 1", o.store.Samples())
		}
		for range 3 {
			o.check()
		}
		if o.store.Samples() != 1 {
			t.Errorf("%d samples within a minute, want 1", o.store.Samples())
		}
	})
}

// What cannot be found out makes a bound earlier. It is no reason to say that
// something is wrong with the session.
func TestACheckDoesNotNeedOpenSince(t *testing.T) {
	t.Parallel()
	t.Run("without a sample", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		o := newOpening(t, &pgtest.DB{Pool: newPool(t, db, asRole(roleWithGrants(t, db))), URL: db.URL, Slot: db.Slot})
		known := o.after("something is known", time.Unix(1, 0))
		exec(t, db.Pool, `REVOKE EXECUTE ON FUNCTION pg_current_xact_id() FROM PUBLIC`)
		exec(t, db.Pool, `UPDATE webhook_state SET open_since = NULL WHERE slot = $1`, db.Slot)
		o.store.Age(2 * time.Minute) // the next is due
		exec(t, db.Pool, others)
		o.session = o.start()
		o.claim()
		o.check()
		o.record(o.now())
		if at := o.since(); at.Unix() == 0 || at.After(known) {
			t.Errorf("since %s, want what the sample of before says", at)
		}
	})
	t.Run("in time", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		exec(t, db.Pool, `CREATE SCHEMA slow`)
		exec(t, db.Pool, `CREATE FUNCTION slow.pg_current_snapshot() RETURNS pg_snapshot LANGUAGE sql AS 'SELECT pg_catalog.pg_current_snapshot() FROM pg_sleep(60)'`)
		o := newOpening(t, db)
		st := store.New(newPool(t, db, func(c *pgxpool.Config) {
			c.ConnConfig.RuntimeParams["search_path"] = "slow, public, pg_catalog"
		}), db.Slot, 0)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // as cdc gives a check
		defer cancel()
		if err := st.CheckSession(ctx, o.session); err != nil {
			t.Errorf("a session that is well: %v", err)
		}
	})
}

// The clock was three hours ahead, and is right again.
func TestAClockThatWasSetBack(t *testing.T) {
	t.Parallel()
	ahead := func(t *testing.T) *opening {
		t.Helper()
		o := newOpening(t, pgtest.New(t))
		o.after("something is known", time.Unix(1, 0))
		o.pass(-hours)
		return o
	}
	inPast := func(t *testing.T, what string, at time.Time) {
		t.Helper()
		if at.After(time.Now()) {
			t.Errorf("%s: compared from %s, which is still to come", what, at)
		}
	}
	t.Run("and then the slot is lost", func(t *testing.T) {
		t.Parallel()
		for _, column := range []string{"open_since", "durable_at"} {
			o := newOpening(t, pgtest.New(t))
			exec(t, o.db.Pool, `UPDATE webhook_state SET durable_at = now(), open_since = now() WHERE slot = $1`, o.db.Slot)
			exec(t, o.db.Pool, `UPDATE webhook_state SET `+column+` = now() + interval '3 hours' WHERE slot = $1`, o.db.Slot)
			fence, err := o.store.Acquire(t.Context(), uuid.New(), &webhook.Session{SystemID: "system 1", Timeline: 1, SlotCreated: true}, 1)
			if err != nil || !fence.Reconcile || fence.ReconcileFrom.Unix() > 0 {
				t.Errorf("%s is still to come: compared from %s (%t, %v), want from the beginning", column, fence.ReconcileFrom, fence.Reconcile, err)
			}
			if from := o.lose(); from.Unix() > 0 {
				t.Errorf("%s is still to come: compared from %s, want from the beginning", column, from)
			}
		}
	})
	t.Run("before the next check", func(t *testing.T) {
		t.Parallel()
		o := ahead(t)
		o.record(o.now())
		inPast(t, "what was noted", o.since())
	})
	t.Run("and goes on", func(t *testing.T) {
		t.Parallel()
		o := ahead(t)
		for range 5 {
			o.write()
			o.check()
			o.record(o.now())
		}
		inPast(t, "what is noted", o.since())
		inPast(t, "what is lost", o.lose())
	})
	t.Run("and is passed by later", func(t *testing.T) {
		t.Parallel()
		o := ahead(t)
		exec(t, begin(t, o.db.Pool), `SELECT pg_current_xact_id()`) // stays open: no later bound is known
		o.check()
		_, inserted := longTransaction(t, o.db)
		o.pass(2 * hours) // what was noted ahead of time would be in the past now
		o.goOn()
		if from := o.lose(); from.After(inserted.Add(-2 * hours)) {
			t.Errorf("compared from %s, but an event of %s had not been committed", from, inserted.Add(-2*hours))
		}
	})
}
