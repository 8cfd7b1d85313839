package deliver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// A refusing database refuses the first markers.
type refusing struct {
	Store
	left    int
	written []uint64
}

// Mark is Store's.
func (r *refusing) Mark(_ context.Context, _ webhook.Fence, mark webhook.Mark) error {
	if r.left--; r.left >= 0 {
		return errors.New("refused")
	}
	r.written = append(r.written, mark.Seq)
	return nil
}

var small = schedule.Limits{ParkAfter: 500 * time.Millisecond, MaxInFlight: 8, EndpointInFlight: 2, Window: 32, MaxMemory: 1 << 20, Timeout: 10 * time.Second}

func TestMarkerIsRetriedUntilItIsWritten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := schedule.New(schedule.Options{Limits: small})
		db := &refusing{left: 3}
		r := &recorder{writer: writer{scheduler: w}, store: db, lock: newWriterLock()}
		if err := r.writeMarker(t.Context(), newHeartbeat("reconciler")); err != nil {
			t.Fatal(err)
		}
		if taken := w.NextSeq() - 1; len(db.written) != 1 || db.written[0] != taken {
			t.Errorf("written %v, want the number that was taken, %d", db.written, taken)
		}
	})
}

// An owing database has one event that is owed to very many endpoints, without rows. It
// refuses pages that are too large and the row of one endpoint, and cancels insertions
// that take too long.
type owing struct {
	Store
	owed     int
	most     int       // deliveries in one page
	refusals int       // of pages, still to come
	unheard  int       // answers to Reconciled that will be lost
	restarts int       // of the server, after it was compared, likewise
	noted    time.Time // reconcile_from, if it differs from the fence's
	pages    []store.Position
	refused  uuid.UUID
	rows     map[uuid.UUID]bool
	done     int
	waits    int           // for the confirmed position
	perRow   time.Duration // of inserting
	slower   int           // factor of perRow once half of the rows are in
	slow     int           // transactions of more than half a second
	fenced   bool          // another process holds the slot
	silent   []string      // calls whose first answer does not come: the server's address is another's now
}

// hear waits for an answer, which comes unless the call is silent.
func (o *owing) hear(ctx context.Context, call string) error {
	i := slices.Index(o.silent, call)
	if i < 0 {
		return nil
	}
	o.silent = slices.Delete(o.silent, i, i+1)
	<-ctx.Done()
	return ctx.Err()
}

var (
	owingEvent = outbox.DeliveryID(outbox.TimeID(time.UnixMilli(1_000_000_000_000)), uuid.Nil)
	endpointOf = func(n int) uuid.UUID {
		return outbox.DeliveryID(owingEvent, uuid.UUID{byte(n >> 16), byte(n >> 8), byte(n)})
	}
)

// Missing is Store's.
func (o *owing) Missing(ctx context.Context, from store.Position, _ uuid.UUID, limit int) (c store.Compared, err error) {
	if err := o.hear(ctx, "Missing"); err != nil {
		return c, err
	}
	o.pages = append(o.pages, from)
	if limit > o.most {
		return c, fmt.Errorf("a page of %d: %w", limit, context.DeadlineExceeded)
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
func (o *owing) InsertMissing(ctx context.Context, _ webhook.Fence, records []webhook.Record) (int, error) {
	took := time.Duration(len(records)) * o.perRow
	if 2*len(o.rows) > o.owed {
		took *= time.Duration(max(o.slower, 1))
	}
	if took > time.Second/2 {
		o.slow++
	}
	if err := o.hear(ctx, "InsertMissing"); err != nil {
		return 0, err
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
func (o *owing) Now(ctx context.Context) (time.Time, error) { return time.Now(), o.hear(ctx, "Now") }

// InsertLSN is Store's.
func (o *owing) InsertLSN(ctx context.Context) (pglogrepl.LSN, error) {
	o.waits++
	return 0, o.hear(ctx, "InsertLSN")
}

// Mark is Store's.
func (o *owing) Mark(ctx context.Context, _ webhook.Fence, _ webhook.Mark) error {
	if o.fenced {
		return store.ErrFenced
	}
	return o.hear(ctx, "Mark")
}

// AnyMissing is Store's.
func (o *owing) AnyMissing(ctx context.Context, _, _ time.Time) (bool, error) {
	return false, o.hear(ctx, "AnyMissing")
}

// Reconciled is Store's.
func (o *owing) Reconciled(ctx context.Context, fence webhook.Fence) (time.Time, error) {
	if err := o.hear(ctx, "Reconciled"); err != nil {
		return time.Time{}, err
	}
	o.done++
	if o.unheard--; o.unheard >= 0 {
		return time.Time{}, errors.New("the answer is lost")
	}
	if o.restarts--; o.restarts >= 0 {
		return fence.ReconcileFrom, nil
	}
	if !o.noted.IsZero() && !o.noted.Equal(fence.ReconcileFrom) {
		return o.noted, nil
	}
	return time.Time{}, nil
}

func newReconciler(db Store) *reconciler {
	s := schedule.New(schedule.Options{Limits: small})
	s.BeginSession(&webhook.Session{}, webhook.Fence{Epoch: 1, Reconcile: true, ReconcileFrom: time.Unix(0, 0)}, 0, time.Now())
	log, heartbeat := slog.New(slog.DiscardHandler), newHeartbeat("reconciler")
	return &reconciler{scheduler: s, store: db, heartbeat: heartbeat, announce: func() {}, log: log, wake: schedule.NewSignal(), window: time.Hour,
		inserter: &inserter{scheduler: s, store: db, recorder: &recorder{writer: writer{scheduler: s}, store: db, lock: newWriterLock()}, heartbeat: heartbeat, log: log}}
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
			t.Errorf("%d rows, %d counted; want all of %d but the refused one", len(db.rows), r.scheduler.Stats(time.Now()).Found, owed)
		}
		if db.done != 1 || r.scheduler.Fence().Reconcile {
			t.Errorf("noted %d times as done, pending %t", db.done, r.scheduler.Fence().Reconcile)
		}
		if n := len(db.pages); n < owed/db.most || n > 5*owed/db.most {
			t.Errorf("%d pages of at most %d for %d deliveries", n, db.most, owed)
		}
	})
}

// If millions of rows are missing, only their insertion takes time, and no transaction is
// so long that it delays the recorder.
func TestComparisonInsertsVeryManyRows(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		owed   int
		perRow time.Duration
		slower int
		slow   int // transactions allowed
		within time.Duration
	}{
		{"a quick database", 200_000, 12 * time.Microsecond, 1, 0, 3 * time.Second},
		{"one that becomes slow", 200_000, 12 * time.Microsecond, 10, 1, 20 * time.Second},
		{"one that is overloaded", 5000, 6 * time.Millisecond, 1, 11, time.Minute},
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
					t.Errorf("it waited %d times for the confirmed position", db.waits)
				}
			})
		})
	}
}

// A server that is gone without a word, as after a failover, may answer nothing for as long
// as TCP tries. A comparison does not wait for that.
func TestComparisonGoesOnWhereAnAnswerDoesNotCome(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"Now", "Missing", "InsertLSN", "Mark", "InsertMissing", "AnyMissing", "Reconciled"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				db := &owing{owed: 10, most: comparePageMax, rows: map[uuid.UUID]bool{}, silent: []string{call}}
				r := newReconciler(db)
				ctx, stop := context.WithTimeout(t.Context(), 3*statementTimeout)
				defer stop()
				r.wake.Raise()
				if err := r.run(ctx); err != nil || len(db.silent) > 0 {
					t.Fatal(err, db.silent)
				}
				if db.done != 1 || len(db.rows) != db.owed {
					t.Errorf("noted %d times as done, with %d rows, want %d", db.done, len(db.rows), db.owed)
				}
			})
		})
	}
}

// A process that has lost the slot may have nothing to record, and then only its comparison
// learns of it. It would go on for ever, and never be confirmed.
func TestComparisonOfAFormerHolderEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newReconciler(&owing{owed: 1, most: comparePageMax, fenced: true})
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		r.wake.Raise()
		if err := r.run(ctx); !errors.Is(err, store.ErrFenced) {
			t.Errorf("it ends with %v", err)
		}
	})
}

// An outage is logged when it begins, and when it ends.
func TestComparisonLogsAnOutageOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := newReconciler(&owing{owed: 1, most: comparePageMax, rows: map[uuid.UUID]bool{}, refusals: 30})
		r.log = slog.New(slog.NewTextHandler(&log, nil))
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		r.wake.Raise()
		if err := r.run(ctx); err != nil {
			t.Fatal(err)
		}
		if text := log.String(); strings.Count(text, "level=WARN") != 1 || strings.Count(text, "reconciling resumed") != 1 {
			t.Error(text)
		}
	})
}

func TestComparisonContinuesWhereItStopped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := &owing{owed: 100_000, most: comparePageMax, rows: map[uuid.UUID]bool{}}
		r := newReconciler(db)
		again := func(what string, want bool) {
			t.Helper()
			reached := r.comparison.upto
			db.refusals = 1
			if err := r.reconcile(t.Context()); err == nil {
				t.Fatal("a refused page is no error")
			}
			if got := db.pages[len(db.pages)-1] == reached; got != want {
				t.Errorf("%s: it reads from %v, and had reached %v", what, db.pages[len(db.pages)-1], reached)
			}
		}
		again("at first", false) // at the beginning of the window
		r.comparison.upto = store.Position{Event: owingEvent, Owed: 20_000}
		again("the same session", true)
		fence := r.scheduler.Fence()
		r.scheduler.BeginSession(&webhook.Session{Start: 1}, fence, 0, time.Now())
		again("another session, for the same cause", true)
		fence.ReconcileFrom = fence.ReconcileFrom.Add(-time.Microsecond)
		r.scheduler.BeginSession(&webhook.Session{Start: 1}, fence, 0, time.Now())
		again("another cause", false)
	})
}

// A comparison was noted as done, and the answer was lost. If nothing has been recorded
// since, the next cause has the same reconcile_from.
func TestAnotherCauseOfTheSameTimeIsComparedFromTheBeginning(t *testing.T) {
	t.Parallel()
	restarted := time.Unix(1, 0)
	for name, tc := range map[string]struct {
		session *webhook.Session
		change  func(*webhook.Fence)
		again   bool
	}{
		"the same slot":               {&webhook.Session{Start: 1}, func(*webhook.Fence) {}, false},
		"the slot was made":           {&webhook.Session{Start: 1, SlotCreated: true}, func(*webhook.Fence) {}, true},
		"from the slot's position":    {&webhook.Session{}, func(*webhook.Fence) {}, true},
		"somebody has moved the slot": {&webhook.Session{Start: 1}, func(f *webhook.Fence) { f.Moved = true }, true},
		"another publication":         {&webhook.Session{Start: 1, Published: "less"}, func(*webhook.Fence) {}, true},
		"the server was restarted":    {&webhook.Session{Start: 1}, func(f *webhook.Fence) { f.Server = restarted }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				db := &owing{owed: 1, most: comparePageMax, rows: map[uuid.UUID]bool{}, unheard: 1}
				r := newReconciler(db)
				if err := r.reconcile(t.Context()); err == nil {
					t.Fatal("a lost answer is no error")
				}
				first := db.pages[0]
				fence := r.scheduler.Fence()
				tc.change(&fence)
				r.scheduler.BeginSession(tc.session, fence, 0, time.Now())
				if err := r.reconcile(t.Context()); err != nil {
					t.Fatal(err)
				}
				if again := slices.Contains(db.pages[1:], first); again != tc.again {
					t.Errorf("compared from the beginning: %t, want %t; it read from %v", again, tc.again, db.pages)
				}
			})
		})
	}
}

// A comparison does not cover a cause that arises while it is noted as done.
func TestOnlyTheComparedCauseIsDone(t *testing.T) {
	t.Parallel()
	r := newReconciler(&owing{})
	_, fence, cause := r.scheduler.Session()
	r.scheduler.BeginSession(&webhook.Session{SlotCreated: true}, fence, 0, time.Now())
	if r.scheduler.Compared(cause); !r.scheduler.Fence().Reconcile {
		t.Error("the new slot's comparison was dropped")
	}
	_, _, cause = r.scheduler.Session()
	if r.scheduler.Compared(cause); r.scheduler.Fence().Reconcile {
		t.Error("a finished comparison is still due")
	}
}

// A standby may note a comparison after another process has made and claimed the slot.
func TestACauseNotedByAnotherProcessIsComparedToo(t *testing.T) {
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
		if len(db.pages) != 2 || db.done != 2 || r.scheduler.Fence().Reconcile {
			t.Errorf("%d pages, noted %d times as done, pending %t; want the other cause compared too", len(db.pages), db.done, r.scheduler.Fence().Reconcile)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Every page finds new deliveries in flight. That is no reason to read another one.
func TestComparisonDoesNotChaseTheHead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := &owing{owed: 15, most: comparePageMax, rows: map[uuid.UUID]bool{}}
		if err := newReconciler(db).reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(db.pages) != 1 {
			t.Errorf("%d pages, want one: it had room left", len(db.pages))
		}
	})
}

func TestPoisonCanNeverBeStored(t *testing.T) {
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

func TestReconcilerSpan(t *testing.T) {
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

// A server that was restored after it was compared may lack rows that were inserted: it is
// compared again from the beginning, and not at once, for a new session is about to come.
func TestAServerThatWasRestartedIsComparedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := &owing{owed: 1, most: comparePageMax, rows: map[uuid.UUID]bool{}, restarts: 1}
		r := newReconciler(db)
		if err := r.reconcile(t.Context()); err == nil {
			t.Fatal("it is taken for compared, or compared again without a pause")
		}
		pages := len(db.pages)
		if err := r.reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(db.pages) == pages || db.pages[pages] != db.pages[0] || r.scheduler.Fence().Reconcile {
			t.Errorf("it pages at %v, then at %v, pending %t", db.pages[:pages], db.pages[pages:], r.scheduler.Fence().Reconcile)
		}
	})
}

// A paging database takes a second for each page, which has a minute of events.
type paging struct{ owing }

// Missing is Store's.
func (p *paging) Missing(_ context.Context, from store.Position, _ uuid.UUID, _ int) (store.Compared, error) {
	time.Sleep(time.Second)
	next := outbox.IDTime(from.Event).Add(time.Minute)
	return store.Compared{Upto: store.Position{Event: outbox.TimeID(next)}, End: next.After(time.Now())}, nil
}

func TestALongComparisonTellsHowFarItIs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newReconciler(&paging{}) // of an hour
		began, end := time.Now(), time.Time{}
		var told []webhook.Progress
		var left []time.Duration
		r.tell = func(_ context.Context, p webhook.Progress) {
			told, left = append(told, p), append(left, time.Since(began)+time.Duration(p.Left)*time.Second)
			if end = time.Now(); !p.Ended && len(told) > 1 && p.Percent <= told[len(told)-2].Percent {
				t.Errorf("%d %% after %d %%", p.Percent, told[len(told)-2].Percent)
			}
		}
		if err := r.reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		took := end.Sub(began)
		if n := len(told); n < 5 || n > 8 || !told[n-1].Ended || told[0].Task != webhook.Reconciling {
			t.Fatalf("told %d times in %s: %+v", n, took, told)
		}
		for i, p := range told[:len(told)-1] {
			if p.Position.IsZero() || (left[i]-took).Abs() > 5*time.Second {
				t.Errorf("told %+v: an end after %s; it took %s", p, left[i], took)
			}
		}
	})
}
