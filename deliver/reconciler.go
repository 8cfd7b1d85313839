package deliver

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

const (
	// comparePageMax is how many owed deliveries one look takes in at most: about 50 ms
	// of PostgreSQL's time. A page is counted by what is owed, and not by events: one
	// event may be owed to 50,000 endpoints.
	comparePageMax = 16_000

	// comparePageSlow and comparePageQuick pace the looks: after one that took longer the
	// next is half as big, and only after one that was quicker it grows again. One that
	// did not come to its end is tried with a quarter.
	comparePageSlow  = 500 * time.Millisecond
	comparePageQuick = 200 * time.Millisecond

	// maxCandidates is how many candidates are collected before they are waited for:
	// 5 MiB. A wait is for all that the WAL has by then, inserted rows too, and on a
	// busy machine takes as long as inserting some thousand. Where nothing is missing all
	// that is in flight at one moment is fewer, so that the head is reached by one wait.
	maxCandidates = 64_000

	// insertMin and insertMax are how many rows one transaction inserts, at first
	// and where that is quick: some 30 ms and 100 ms of PostgreSQL's time. The recorder
	// has to wait for its end.
	insertMin = 2000
	insertMax = 8000

	// insertSlow and insertQuick pace the transactions, so that none takes a second:
	// after one that took longer the next is half as big, which helps as long as it is
	// the rows that take the time, and after one that was quicker twice as big. One that
	// did not come to its end is tried with a quarter.
	insertSlow  = 400 * time.Millisecond
	insertQuick = 150 * time.Millisecond

	// announceEvery is how often it is said that rows were inserted: it has all endpoints
	// walked, which takes PostgreSQL as long as inserting some thousand rows.
	announceEvery = 5 * time.Second

	// idSlack is how long before its row was inserted an event's id may have been
	// made, by an application that makes ids itself or a clock that was set.
	idSlack = time.Hour
)

// A reconcilerStore is what the reconciler asks of the database.
type reconcilerStore interface {
	Now(ctx context.Context) (time.Time, error)
	Missing(ctx context.Context, from store.Position, until uuid.UUID, limit int) (store.Compared, error)
	InsertMissing(ctx context.Context, fence store.Fence, records []store.Record) (inserted int, err error)
	AnyMissing(ctx context.Context, after, until time.Time) (bool, error)
	InsertLSN(ctx context.Context) (pglogrepl.LSN, error)
	Mark(ctx context.Context, fence store.Fence, mark store.Mark) error
	Reconciled(ctx context.Context, fence store.Fence) (since time.Time, err error)
}

// A reconciler finds owed deliveries that the stream will never bring: what was
// committed before the slot was made. One look cannot tell missing from in
// flight, so it takes two: it collects candidates, waits until everything that
// was committed by then has been recorded and confirmed, and inserts a pending row
// where there still is none.
//
// What becomes visible after a look was committed after the session began, and comes
// by the stream: so a look that finds fewer than it could take in is the last, and
// the head need not be caught up with.
type reconciler struct {
	scheduler *schedule.Scheduler
	store     reconcilerStore
	recorder  *recorder
	window    time.Duration // how far back it looks at most
	announce  func()        // rows were inserted: somebody should fetch them
	log       *slog.Logger
	wake      schedule.Signal
	heartbeat *heartbeat // that nobody checks: it may wait for as long as nothing is missing

	comparison comparison
	pageSize   int // of the next look
	insertSize int // rows of the next transaction
}

// A comparison is how far a reconciler is. It outlives a try that failed, and a session
// that was followed by another for the same cause.
type comparison struct {
	cause       schedule.Cause
	start, from time.Time // see reach
	upto        store.Position
	allVisible  bool // what is looked for was visible when it began: else it has to be looked for again
	inserted    int
	refused     int       // by a constraint or trigger of the deployment
	announced   time.Time // that rows were inserted
}

func (r *reconciler) run(ctx context.Context) error {
	for {
		if r.heartbeat.wait(ctx, nil, r.wake, nil) == stopped {
			return nil
		}
		for {
			err := r.reconcile(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if err == nil {
				break
			}
			r.log.Warn("cannot reconcile the outbox with its deliveries; trying again from where it was", "error", err)
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
		now, err := r.store.Now(ctx)
		if err != nil {
			return err
		}
		start, from := r.span(fence.ReconcileFrom, now)
		*c = comparison{cause: cause, start: start, from: from, upto: store.Position{Event: outbox.TimeID(from)}, allVisible: r.scheduler.Visible(fence)}
		r.pageSize, r.insertSize = comparePageMax, insertMin
	}
	for end := false; !end; {
		candidates, upto, last, err := r.collect(ctx)
		if err != nil {
			return err
		}
		if err := r.insertMissing(ctx, session, fence, candidates); err != nil {
			return err
		}
		r.comparison.upto, end = upto, last
	}
	if r.comparison.inserted > 0 {
		r.announce()
	}
	if !r.comparison.allVisible { // the retrier has it compared again
		r.log.Info("compared the outbox with its deliveries; once more when the transactions have ended that were open", "inserted", r.comparison.inserted)
		r.comparison = comparison{}
		return nil
	}
	r.reportBeyondWindow(ctx, r.comparison.start, r.comparison.from)
	var since time.Time
	err := bounded(ctx, func(ctx context.Context) (err error) {
		since, err = r.store.Reconciled(ctx, fence)
		return err
	})
	switch {
	case err != nil:
		return err
	case !since.IsZero():
		r.comparison = comparison{}
		if r.scheduler.CompareAgain(cause, since) {
			r.wake.Raise()
		}
		return nil
	}
	r.scheduler.Compared(cause)
	if n := r.comparison.refused; n > 0 {
		r.log.Error("deliveries that are owed cannot be stored: look at the constraints and triggers on webhook_deliveries, and have them compared again at the next start: "+
			"UPDATE webhook_state SET reconcile_from = 'epoch'", "count", n)
	}
	r.log.Info("reconciled the outbox with its deliveries", "from", r.comparison.from.UTC(), "inserted", r.comparison.inserted)
	r.comparison = comparison{}
	return nil
}

// collect looks on from where the comparison is, until there are enough candidates for
// one wait or it has come to the end.
func (r *reconciler) collect(ctx context.Context) (candidates []store.Candidate, upto store.Position, end bool, err error) {
	upto = r.comparison.upto
	for !end && len(candidates) < maxCandidates {
		began := time.Now()
		var c store.Compared
		err := bounded(ctx, func(ctx context.Context) (err error) {
			// Without an upper end: ids may be of a clock that was set back.
			c, err = r.store.Missing(ctx, upto, uuid.Max, r.pageSize)
			return err
		})
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
	}
	return candidates, upto, end, nil
}

// reach is from where events may be owed without a row, and from where they are
// compared. A time that is still to come, by a clock that was set back, says nothing.
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

// reportBeyondWindow says that the recovery window has cut the comparison short, where
// events that it has kept out are owed without a row. That may take longer to find
// out than a statement may: it is no reason to compare once more.
func (r *reconciler) reportBeyondWindow(ctx context.Context, start, from time.Time) {
	if !start.Before(from) {
		return
	}
	var missing bool
	err := bounded(ctx, func(ctx context.Context) (err error) {
		missing, err = r.store.AnyMissing(ctx, start, from)
		return err
	})
	const query = `docs/operations.md, "Beyond the recovery window", has the query that finds them and how to have them delivered`
	switch {
	case ctx.Err() != nil:
	case err != nil:
		r.log.Warn("events that are older than WALHOOK_RECOVERY_WINDOW may have no deliveries, which could not be found out: "+query,
			"before", from.UTC(), "window", r.window.String(), "error", err)
	case missing:
		r.log.Warn("events that are older than WALHOOK_RECOVERY_WINDOW have no deliveries: "+query,
			"before", from.UTC(), "window", r.window.String())
	}
}

// insertMissing takes the second look, which is the INSERT itself: it finds a row
// that is there, whatever its snapshot says.
func (r *reconciler) insertMissing(ctx context.Context, session *store.Session, fence store.Fence, candidates []store.Candidate) error {
	if len(candidates) == 0 {
		return nil
	}
	if err := r.awaitConfirmed(ctx, session); err != nil {
		return err
	}
	// As the recorder does: what can never be stored is found, said, and passed over.
	writer := &recorder{scheduler: r.scheduler, heartbeat: r.heartbeat, log: r.log}
	b := &batch{fence: fence, refused: map[uuid.UUID]bool{}, skip: func(context.Context, store.Record) error { return nil },
		send: func(_ context.Context, _ store.Mark, part []store.Record) error {
			return r.insert(ctx, fence, part) // which bounds each of its transactions
		}}
	records := make([]store.Record, 0, min(len(candidates), insertMax))
	for chunk := range slices.Chunk(candidates, insertMax) {
		// Of one endpoint after the other, one page of the index of lanes is filled after
		// the other.
		slices.SortFunc(chunk, func(a, b store.Candidate) int {
			return cmp.Or(schedule.CompareIDs(a.EndpointID, b.EndpointID), schedule.CompareIDs(a.ID, b.ID))
		})
		records = records[:0]
		for _, c := range chunk {
			records = append(records, store.Record{ID: c.ID, EventID: c.EventID, EndpointID: c.EndpointID,
				OrganizationID: c.OrganizationID, EventType: c.EventType, Status: store.Pending})
		}
		if err := writer.write(ctx, b, records); err != nil {
			return err
		}
	}
	r.comparison.refused += len(b.refused)
	if time.Since(r.comparison.announced) >= announceEvery {
		r.comparison.announced = time.Now()
		r.announce()
	}
	return nil
}

// insert writes rows in as many transactions as it takes for none to be long. A try
// that comes after one that failed passes over what that has inserted.
func (r *reconciler) insert(ctx context.Context, fence store.Fence, records []store.Record) error {
	for len(records) > 0 {
		part := records[:min(r.insertSize, len(records))]
		for i := range part {
			part[i].Wait = r.scheduler.Lease(part[i].ID)
		}
		began := time.Now()
		err := bounded(ctx, func(ctx context.Context) error {
			n, err := r.store.InsertMissing(ctx, fence, part)
			r.comparison.inserted += n
			r.scheduler.Reconciled(n)
			return err
		})
		switch took := time.Since(began); {
		case err != nil && store.TimedOut(err):
			r.insertSize = max(r.insertSize/4, 1)
		case took > insertSlow:
			r.insertSize = max(r.insertSize/2, min(r.insertSize, insertMin))
		case err == nil && took < insertQuick && len(part) == r.insertSize:
			r.insertSize = min(r.insertSize*2, insertMax)
		}
		if err != nil {
			return err
		}
		records = records[len(part):]
	}
	return nil
}

// settled waits until everything that is committed by now is recorded and
// confirmed. A marker makes an idle database move. What a slow receiver keeps from
// having an outcome is parked meanwhile. Of another session than that of the look the
// positions may mean something else.
func (r *reconciler) awaitConfirmed(ctx context.Context, session *store.Session) error {
	lsn, err := r.store.InsertLSN(ctx)
	if err != nil {
		return err
	}
	if err := r.writeMarker(ctx); err != nil {
		return err
	}
	for {
		now, confirmed := r.scheduler.Confirmed()
		if now != session {
			return errors.New("the stream began anew")
		}
		if confirmed >= lsn {
			return nil
		}
		if !r.heartbeat.sleep(ctx, schedule.ParkEvery) {
			return ctx.Err()
		}
	}
}

// mark tries until the marker is written: a number that was taken has to have an
// echo, or nothing is confirmed before there is another batch.
func (r *reconciler) writeMarker(ctx context.Context) error {
	if !r.recorder.writer.acquire(ctx, r.heartbeat) {
		return ctx.Err()
	}
	defer r.recorder.writer.release()
	seq := r.scheduler.Number()
	for {
		err := bounded(ctx, func(ctx context.Context) error { return r.store.Mark(ctx, r.scheduler.Fence(), store.Mark{Seq: seq}) })
		if err == nil || errors.Is(err, store.ErrFenced) {
			return err
		}
		if !r.heartbeat.sleep(ctx, 4*retryPause) {
			return ctx.Err()
		}
	}
}

// bounded runs a statement within statementTimeout.
func bounded(ctx context.Context, statement func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	return statement(ctx)
}
