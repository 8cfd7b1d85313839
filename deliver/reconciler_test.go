package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

// A refusing database does not take a marker at first.
type refusing struct {
	Store
	left    int
	written []uint64
}

// Mark is Store's.
func (r *refusing) Mark(_ context.Context, _ store.Fence, mark store.Mark) error {
	if r.left--; r.left >= 0 {
		return errors.New("refused")
	}
	r.written = append(r.written, mark.Seq)
	return nil
}

var small = schedule.Limits{ParkAfter: 500 * time.Millisecond, MaxInFlight: 8, EndpointInFlight: 2, Window: 32, MaxMemory: 1 << 20, Timeout: 10 * time.Second}

func TestMarkerIsWrittenInTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := schedule.New(schedule.Options{Limits: small})
		db := &refusing{left: 3}
		r := &reconciler{scheduler: w, store: db, recorder: &recorder{writer: newWriterLock()}, heartbeat: newHeartbeat("reconciler")}
		if err := r.writeMarker(t.Context()); err != nil {
			t.Fatal(err)
		}
		if taken := w.Number() - 1; len(db.written) != 1 || db.written[0] != taken {
			t.Errorf("written %v, want the number that was taken, %d", db.written, taken)
		}
	})
}

// An owing database has one event that is owed to very many endpoints, without a row.
// It answers no look at more than it can, takes no row of one endpoint, and ends an
// insertion that takes too long.
type owing struct {
	Store
	owed     int
	most     int       // of one look
	refusals int       // of looks, still to come
	unheard  int       // answers to Reconciled that are lost, likewise
	noted    time.Time // from when is to be compared, where not as the fence says
	looks    []store.Position
	refused  uuid.UUID
	rows     map[uuid.UUID]bool
	done     int
	waits    int           // for what was committed by a look
	perRow   time.Duration // that inserting takes
	slower   int           // by which factor, from when half of the rows are in
	slow     int           // transactions that took half a second
}

var (
	owingEvent = outbox.DeliveryID(outbox.TimeID(time.UnixMilli(1_000_000_000_000)), uuid.Nil)
	endpointOf = func(n int) uuid.UUID {
		return outbox.DeliveryID(owingEvent, uuid.UUID{byte(n >> 16), byte(n >> 8), byte(n)})
	}
)

// Missing is Store's.
func (o *owing) Missing(_ context.Context, from store.Position, _ uuid.UUID, limit int) (c store.Compared, err error) {
	o.looks = append(o.looks, from)
	if limit > o.most {
		return c, fmt.Errorf("a look at %d: %w", limit, context.DeadlineExceeded)
	}
	if o.refusals--; o.refusals >= 0 {
		return c, errors.New("refused")
	}
	for n := from.Owed + 1; n <= min(from.Owed+limit, o.owed); n++ {
		e := endpointOf(n)
		c.Missing = append(c.Missing, store.Candidate{ID: outbox.DeliveryID(owingEvent, e), EventID: owingEvent, EndpointID: e})
	}
	c.Upto, c.End = store.Position{Event: owingEvent, Owed: from.Owed + len(c.Missing)}, len(c.Missing) < limit
	return c, nil
}

// InsertMissing is Store's.
func (o *owing) InsertMissing(ctx context.Context, _ store.Fence, records []store.Record) (int, error) {
	took := time.Duration(len(records)) * o.perRow
	if 2*len(o.rows) > o.owed {
		took *= time.Duration(max(o.slower, 1))
	}
	if took > time.Second/2 {
		o.slow++
	}
	select {
	case <-time.After(took):
	case <-ctx.Done():
		return 0, fmt.Errorf("insert %d: %w", len(records), ctx.Err())
	}
	for _, r := range records {
		if r.EndpointID == o.refused {
			return 0, &pgconn.PgError{Code: "23514", ConstraintName: "the deployment's own"}
		}
	}
	for _, r := range records {
		o.rows[r.ID] = true
	}
	return len(records), nil
}

// Now is Store's.
func (o *owing) Now(context.Context) (time.Time, error) { return time.Now(), nil }

// InsertLSN is Store's.
func (o *owing) InsertLSN(context.Context) (pglogrepl.LSN, error) {
	o.waits++
	return 0, nil
}

// Mark is Store's.
func (o *owing) Mark(context.Context, store.Fence, store.Mark) error { return nil }

// AnyMissing is Store's.
func (o *owing) AnyMissing(context.Context, time.Time, time.Time) (bool, error) { return false, nil }

// Reconciled is Store's.
func (o *owing) Reconciled(_ context.Context, fence store.Fence) (time.Time, error) {
	o.done++
	if o.unheard--; o.unheard >= 0 {
		return time.Time{}, errors.New("the answer is lost")
	}
	if !o.noted.IsZero() && !o.noted.Equal(fence.ReconcileFrom) {
		return o.noted, nil
	}
	return time.Time{}, nil
}

func newReconciler(db Store) *reconciler {
	s := schedule.New(schedule.Options{Limits: small})
	s.Begin(&store.Session{}, store.Fence{Epoch: 1, Reconcile: true, ReconcileFrom: time.Unix(0, 0)}, 0, time.Now())
	return &reconciler{scheduler: s, store: db, recorder: &recorder{writer: newWriterLock()}, heartbeat: newHeartbeat("reconciler"),
		announce: func() {}, log: slog.New(slog.DiscardHandler), wake: schedule.NewSignal(), window: time.Hour}
}

func TestComparisonOfOneEventForVeryMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const owed = 50_000
		db := &owing{owed: owed, most: 5000, rows: map[uuid.UUID]bool{}, refused: endpointOf(33_333)}
		r := newReconciler(db)
		if err := r.reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(db.rows) != owed-1 || r.scheduler.Stats(time.Now()).Found != owed-1 {
			t.Errorf("%d rows, %d are counted; want all %d but the one that nobody can store", len(db.rows), r.scheduler.Stats(time.Now()).Found, owed)
		}
		if db.done != 1 || r.scheduler.Fence().Reconcile {
			t.Errorf("noted %d times as done, pending %t", db.done, r.scheduler.Fence().Reconcile)
		}
		if n := len(db.looks); n < owed/db.most || n > 5*owed/db.most {
			t.Errorf("%d looks of at most %d at %d", n, db.most, owed)
		}
	})
}

// Where very much is missing, what takes time is to be the insertion, and no
// transaction of it so long that the recorder would feel it.
func TestComparisonInsertsVeryManyRows(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		owed   int
		perRow time.Duration
		slower int
		slow   int // transactions that may be
		within time.Duration
	}{
		{"a quick database", 200_000, 12 * time.Microsecond, 1, 0, 3 * time.Second},
		{"one that becomes slow", 200_000, 12 * time.Microsecond, 10, 1, 20 * time.Second},
		{"one that is on its knees", 5000, 6 * time.Millisecond, 1, 11, time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				db := &owing{owed: c.owed, most: comparePageMax, rows: map[uuid.UUID]bool{}, perRow: c.perRow, slower: c.slower}
				began := time.Now()
				if err := newReconciler(db).reconcile(t.Context()); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took > c.within || db.slow > c.slow {
					t.Errorf("it took %s, with %d long transactions; want at most %s and %d", took, db.slow, c.within, c.slow)
				}
				if len(db.rows) != c.owed {
					t.Errorf("%d rows, want %d", len(db.rows), c.owed)
				}
				if db.waits > 1+c.owed/50_000 {
					t.Errorf("it waited %d times for what was committed by a look", db.waits)
				}
			})
		})
	}
}

func TestComparisonGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := &owing{owed: 100_000, most: comparePageMax, rows: map[uuid.UUID]bool{}}
		r := newReconciler(db)
		again := func(what string, want bool) {
			t.Helper()
			reached := r.comparison.upto
			db.refusals = 1
			if err := r.reconcile(t.Context()); err == nil {
				t.Fatal("a look that is refused is no error")
			}
			if got := db.looks[len(db.looks)-1] == reached; got != want {
				t.Errorf("%s: it looks at %v, and had come to %v", what, db.looks[len(db.looks)-1], reached)
			}
		}
		again("at first", false) // at the beginning of the window
		r.comparison.upto = store.Position{Event: owingEvent, Owed: 20_000}
		again("the same session", true)
		fence := r.scheduler.Fence()
		r.scheduler.Begin(&store.Session{Start: 1}, fence, 0, time.Now())
		again("another session, for the same cause", true)
		fence.ReconcileFrom = fence.ReconcileFrom.Add(-time.Microsecond)
		r.scheduler.Begin(&store.Session{Start: 1}, fence, 0, time.Now())
		again("another cause", false)
	})
}

// A comparison was noted as done, of which the answer was lost. What the slot is lost
// for after that is noted with the same time, where nothing was recorded meanwhile.
func TestAnotherCauseOfTheSameTimeIsComparedFromTheBeginning(t *testing.T) {
	t.Parallel()
	restarted := time.Unix(1, 0)
	for name, tc := range map[string]struct {
		session *store.Session
		change  func(*store.Fence)
		again   bool
	}{
		"the same slot":               {&store.Session{Start: 1}, func(*store.Fence) {}, false},
		"the slot was made":           {&store.Session{Start: 1, SlotCreated: true}, func(*store.Fence) {}, true},
		"from the slot's position":    {&store.Session{}, func(*store.Fence) {}, true},
		"somebody has moved the slot": {&store.Session{Start: 1}, func(f *store.Fence) { f.Moved = true }, true},
		"another publication":         {&store.Session{Start: 1, Published: "less"}, func(*store.Fence) {}, true},
		"the server was restarted":    {&store.Session{Start: 1}, func(f *store.Fence) { f.Server = restarted }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				db := &owing{owed: 1, most: comparePageMax, rows: map[uuid.UUID]bool{}, unheard: 1}
				r := newReconciler(db)
				if err := r.reconcile(t.Context()); err == nil {
					t.Fatal("a lost answer is no error")
				}
				first := db.looks[0]
				fence := r.scheduler.Fence()
				tc.change(&fence)
				r.scheduler.Begin(tc.session, fence, 0, time.Now())
				if err := r.reconcile(t.Context()); err != nil {
					t.Fatal(err)
				}
				if again := slices.Contains(db.looks[1:], first); again != tc.again {
					t.Errorf("compared from the beginning: %t, want %t; it looked at %v", again, tc.again, db.looks)
				}
			})
		})
	}
}

// A comparison says nothing of a cause that comes while it is noted as done.
func TestWhatIsDoneIsTheCauseThatWasCompared(t *testing.T) {
	t.Parallel()
	r := newReconciler(&owing{})
	_, fence, of := r.scheduler.Session()
	r.scheduler.Begin(&store.Session{SlotCreated: true}, fence, 0, time.Now())
	if r.scheduler.Compared(of); !r.scheduler.Fence().Reconcile {
		t.Error("what the new slot does not bring is not looked for")
	}
	_, _, of = r.scheduler.Session()
	if r.scheduler.Compared(of); r.scheduler.Fence().Reconcile {
		t.Error("what was compared is looked for again")
	}
}

// A process that was about to make the slot has noted so when another had it already.
func TestACauseThatSomebodyElseHasNotedIsComparedToo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := &owing{owed: 1, most: comparePageMax, rows: map[uuid.UUID]bool{}}
		r := newReconciler(db)
		db.noted = r.scheduler.Fence().ReconcileFrom.Add(-time.Microsecond)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.run(ctx) }()
		r.wake.Raise()
		synctest.Wait()
		if len(db.looks) != 2 || db.done != 2 || r.scheduler.Fence().Reconcile {
			t.Errorf("%d looks, noted %d times as done, pending %t; want the other cause compared too", len(db.looks), db.done, r.scheduler.Fence().Reconcile)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// What is in flight is new at every look, for ever: it is no reason for another one.
func TestComparisonDoesNotChaseTheHead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := &owing{owed: 15, most: comparePageMax, rows: map[uuid.UUID]bool{}}
		if err := newReconciler(db).reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(db.looks) != 1 {
			t.Errorf("%d looks, want one: it had room for more", len(db.looks))
		}
	})
}

func TestPoisonIsWhatCanNeverBeStored(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  *pgconn.PgError
		want bool
	}{
		{&pgconn.PgError{Code: "23514", ConstraintName: "webhook_deliveries_status"}, true},
		{&pgconn.PgError{Code: "23514"}, false}, // the partition was attached meanwhile
		{&pgconn.PgError{Code: "22021"}, true},
		{&pgconn.PgError{Code: "53100"}, false},
	} {
		if got := isPoison(c.err); got != c.want {
			t.Errorf("%s of constraint %q: %t, want %t", c.err.Code, c.err.ConstraintName, got, c.want)
		}
	}
}

func TestReconcilerReach(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000_000, 0)
	r := &reconciler{window: 72 * time.Hour}
	for _, c := range []struct {
		since, from time.Time
	}{
		{time.Unix(0, 0), now.Add(-72 * time.Hour)},
		{now.Add(-100 * time.Hour), now.Add(-72 * time.Hour)},
		{now.Add(-5 * time.Hour), now.Add(-6 * time.Hour)},
		{now, now.Add(-time.Hour)},
		{now.Add(time.Second), now.Add(-72 * time.Hour)}, // the clock was set back
		{now.Add(5 * time.Hour), now.Add(-72 * time.Hour)},
	} {
		start, from := r.span(c.since, now)
		if !from.Equal(c.from) {
			t.Errorf("since %s: compared from %s, want %s", c.since, from, c.from)
		}
		if start.After(from) {
			t.Errorf("since %s: it starts at %s, after %s", c.since, start, from)
		}
	}
}
