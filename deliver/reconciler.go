package deliver

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

const (
	// comparePageMax bounds the owed deliveries in one page: about 50 ms of PostgreSQL's
	// time. A page counts deliveries and not events: one event may be owed to 50,000
	// endpoints.
	comparePageMax = 16_000

	// comparePageSlow and comparePageQuick adapt the page size: half after a slower page,
	// double after a quicker one. A page that timed out is tried again with a quarter.
	comparePageSlow  = 500 * time.Millisecond
	comparePageQuick = 200 * time.Millisecond

	// maxCandidates bounds the candidates that share one wait: 5 MiB. A wait is for
	// the whole WAL so far, inserted rows included; on a busy machine it takes as long as
	// inserting some thousand rows. Fewer deliveries are in flight at any moment, so if
	// nothing is missing, one wait is enough.
	maxCandidates = 64_000

	// announceEvery limits how often the retrier is told of inserted rows: it then scans
	// all endpoints, which takes PostgreSQL as long as inserting some thousand rows.
	announceEvery = 5 * time.Second

	// idSlack bounds how much older than its row an event's id may be: an application
	// may make ids itself, and a clock may have been set.
	idSlack = time.Hour
)

// A reconcilerStore has the reconciler's statements.
type reconcilerStore interface {
	Now(ctx context.Context) (time.Time, error)
	Missing(ctx context.Context, from store.Position, until uuid.UUID, limit int) (store.Compared, error)
	AnyMissing(ctx context.Context, after, until time.Time) (bool, error)
	Reconciled(ctx context.Context, fence webhook.Fence) (since time.Time, err error)
}

// A reconciler finds owed deliveries that the stream will never bring: their events
// were committed before the slot's position. One check cannot tell missing from in
// flight, so there are two. The reconciler collects candidates, waits until everything
// committed by then is recorded and confirmed, and inserts a pending row for each
// candidate that still has none.
//
// Events that become visible after a page was read were committed after the session
// began, and the stream brings them. So a page with room left is the last one, and the
// comparison does not chase the head.
type reconciler struct {
	scheduler *schedule.Scheduler
	store     reconcilerStore
	inserter  *inserter
	window    time.Duration                           // how far back a comparison reaches at most
	announce  func()                                  // tells the retrier that rows were inserted
	tell      func(context.Context, webhook.Progress) // nil: nobody asks
	log       *slog.Logger
	wake      schedule.Signal
	failure   failure
	heartbeat *heartbeat // not checked: the reconciler waits until a comparison is due

	comparison comparison
	pageSize   int // owed deliveries in the next page
}

// A comparison is a reconciler's progress. It survives a failed try, and a reconnect if
// the cause stays the same.
type comparison struct {
	cause       schedule.Cause
	start, from time.Time // of span
	upto        store.Position
	allVisible  bool      // all was visible when it began; else it is repeated
	announced   time.Time // the last announcement
	meter       webhook.Meter
	first, seen time.Time // the times of the first page's last event, and of the last page's
}

func (r *reconciler) run(ctx context.Context) error {
	for {
		if r.heartbeat.wait(ctx, nil, r.wake, nil) == stopped {
			return nil
		}
		for {
			begun := time.Now()
			err := r.reconcile(ctx)
			switch {
			case ctx.Err() != nil:
				return nil
			case errors.Is(err, store.ErrFenced):
				return err
			}
			r.failure.observe(r.log, begun, err, "cannot reconcile the outbox with its deliveries; retrying from where it stopped", "reconciling resumed")
			if err == nil {
				break
			}
			r.heartbeat.sleep(ctx, time.Second)
		}
	}
}

func (r *reconciler) reconcile(ctx context.Context) error {
	session, fence, cause := r.scheduler.Session()
	if !fence.Reconcile {
		return nil
	}
	if c := &r.comparison; c.from.IsZero() || c.cause != cause {
		attempt, cancel := r.heartbeat.statement(ctx)
		now, err := r.store.Now(attempt)
		cancel()
		if err != nil {
			return err
		}
		start, from := r.span(fence.ReconcileFrom, now)
		*c = comparison{cause: cause, start: start, from: from, upto: store.Position{Event: outbox.TimeID(from)}, allVisible: r.scheduler.ClaimVisible(fence)}
		r.pageSize = comparePageMax
		r.inserter.begin()
		r.inserter.waiting = r.progress
	}
	for end := false; !end; {
		candidates, upto, last, err := r.collect(ctx)
		if err != nil {
			return err
		}
		if err := r.insert(ctx, session, fence, candidates); err != nil {
			return err
		}
		r.comparison.upto, end = upto, last
	}
	if r.inserter.inserted > 0 {
		r.announce()
	}
	if !r.comparison.allVisible { // the retrier starts another comparison
		r.log.Info("compared the outbox with its deliveries; comparing again when open transactions have ended", "inserted", r.inserter.inserted)
		r.over(ctx)
		return nil
	}
	r.reportBeyondWindow(ctx, r.comparison.start, r.comparison.from)
	attempt, cancel := r.heartbeat.statement(ctx)
	since, err := r.store.Reconciled(attempt, fence)
	cancel()
	switch {
	case err != nil:
		return err
	case since.Equal(fence.ReconcileFrom):
		r.over(ctx)
		return errors.New("the server was restarted after it was compared")
	case !since.IsZero():
		r.over(ctx)
		if r.scheduler.CompareAgain(cause, since) {
			r.wake.Raise()
		}
		return nil
	}
	r.scheduler.Compared(cause)
	if n := r.inserter.refused; n > 0 {
		r.log.Error("the database refuses rows of owed deliveries: check the constraints and triggers on webhook_deliveries; to compare again at the next start: "+
			"UPDATE webhook_state SET reconcile_from = 'epoch'", "count", n)
	}
	r.log.Info("reconciled the outbox with its deliveries", "from", r.comparison.from.UTC(), "inserted", r.inserter.inserted)
	r.over(ctx)
	return nil
}

// over ends the comparison.
func (r *reconciler) over(ctx context.Context) {
	if r.tell != nil {
		r.tell(ctx, webhook.Progress{Task: webhook.Reconciling, Ended: true})
	}
	r.comparison = comparison{}
}

// progress tells how far the comparison is. An id's time says where its event is between the
// first page and now; an outbox that is younger than the recovery window begins late.
func (r *reconciler) progress(ctx context.Context) {
	c, now := &r.comparison, time.Now()
	if r.tell == nil || !c.meter.Due(now) {
		return
	}
	p := c.meter.Progress(webhook.Reconciling, now, float64(c.seen.Sub(c.first))/float64(now.Sub(c.first)))
	p.Position, p.Inserted = c.seen.UTC(), r.inserter.inserted
	r.tell(ctx, p)
}

// collect reads pages from where the comparison stopped, until it has maxCandidates or
// reaches the end.
func (r *reconciler) collect(ctx context.Context) (candidates []store.Candidate, upto store.Position, end bool, err error) {
	upto = r.comparison.upto
	for !end && len(candidates) < maxCandidates {
		began := time.Now()
		attempt, cancel := r.heartbeat.statement(ctx)
		// No upper end: a clock that was set back may have made later ids.
		c, err := r.store.Missing(attempt, upto, uuid.Max, r.pageSize)
		cancel()
		if err != nil {
			if store.TimedOut(err) && ctx.Err() == nil && r.pageSize > 1 {
				r.pageSize = max(r.pageSize/4, 1)
				continue
			}
			return nil, upto, false, err
		}
		switch took := time.Since(began); {
		case took > comparePageSlow:
			r.pageSize = max(r.pageSize/2, 1)
		case took < comparePageQuick:
			r.pageSize = min(r.pageSize*2, comparePageMax)
		}
		candidates, upto, end = append(candidates, c.Missing...), c.Upto, c.End
		r.comparison.seen = outbox.IDTime(upto.Event)
		if r.comparison.first.IsZero() {
			r.comparison.first = r.comparison.seen
		}
		r.progress(ctx)
	}
	return candidates, upto, end, nil
}

// span returns where events may be without rows, and where the comparison begins: the
// recovery window may cut it short. A time in the future is from a clock that was set
// back, and counts as unknown.
func (r *reconciler) span(since, now time.Time) (start, from time.Time) {
	if since.After(now) {
		since = time.Unix(0, 0)
	}
	start, from = since.Add(-idSlack), now.Add(-r.window)
	if start.After(from) {
		from = start
	}
	return start, from
}

// reportBeyondWindow warns if the recovery window has kept events without rows out of the
// comparison. If that check fails or times out, it warns that there may be some: that is
// no reason to compare again.
func (r *reconciler) reportBeyondWindow(ctx context.Context, start, from time.Time) {
	if !start.Before(from) {
		return
	}
	attempt, cancel := r.heartbeat.statement(ctx)
	missing, err := r.store.AnyMissing(attempt, start, from)
	cancel()
	const query = `docs/operations.md, "Beyond the recovery window", has the query that finds them and how to have them delivered`
	switch {
	case ctx.Err() != nil:
	case err != nil:
		r.log.Warn("events that are older than WALHOOK_RECOVERY_WINDOW may have no deliveries; the check failed: "+query,
			"before", from.UTC(), "window", r.window.String(), "error", err)
	case missing:
		r.log.Warn("events that are older than WALHOOK_RECOVERY_WINDOW have no deliveries: "+query,
			"before", from.UTC(), "window", r.window.String())
	}
}

// insert has the inserter insert what is still missing, and tells the retrier.
func (r *reconciler) insert(ctx context.Context, session *webhook.Session, fence webhook.Fence, candidates []store.Candidate) error {
	if len(candidates) == 0 {
		return nil
	}
	if err := r.inserter.insert(ctx, session, fence, candidates); err != nil {
		return err
	}
	if time.Since(r.comparison.announced) >= announceEvery {
		r.comparison.announced = time.Now()
		r.announce()
	}
	return nil
}
