package deliver

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/sabotage"
	"github.com/walhook/walhook/outbox"
)

const (
	// reconcilePage is how many events one look takes in: about 20 ms of
	// PostgreSQL's time, and 2 MiB of candidates when each is owed to ten endpoints.
	reconcilePage = 2000

	// idsBehind is how long before its row was inserted an event's id may have been
	// made, by an application that makes ids itself or a clock that was set.
	idsBehind = time.Hour
)

// A reconciler finds owed deliveries that the stream will never bring: what was
// committed before the slot was made. One look cannot tell missing from in
// flight, so it takes two: it collects candidates, waits until everything that
// was committed by then has been recorded and confirmed, and looks again. What
// is still missing is missing, and is inserted as a pending row.
type reconciler struct {
	window   *window
	store    Store
	recorder *recorder
	horizon  time.Duration // how far back it looks at most
	found    func()        // rows were inserted: somebody should fetch them
	log      *slog.Logger
	wake     signal
	pulse    *pulse // that nobody checks: it may wait for as long as nothing is missing
}

func (r *reconciler) run(ctx context.Context) error {
	for {
		if r.pulse.wait(ctx, nil, r.wake, nil) == over {
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
			r.log.Warn("cannot reconcile the outbox with its deliveries; trying again", "error", err)
			r.pulse.sleep(ctx, time.Second)
		}
	}
}

func (r *reconciler) reconcile(ctx context.Context) error {
	fence := r.fence()
	if !fence.Reconcile || sabotage.On(sabotage.NoReconciler) {
		return nil
	}
	now, err := r.store.Now(ctx)
	if err != nil {
		return err
	}
	start, from := r.reach(fence.ReconcileFrom, now)
	total := 0
	for after := outbox.TimeID(from); after != uuid.Nil; { // without an end: ids may be of a clock that was set back
		var candidates []outbox.Candidate
		var last uuid.UUID
		if err := bounded(ctx, func(ctx context.Context) (err error) {
			candidates, last, err = r.store.Missing(ctx, after, uuid.Max, reconcilePage)
			return err
		}); err != nil {
			return err
		}
		n, err := r.insertMissing(ctx, candidates)
		if err != nil {
			return err
		}
		total += n
		after = last
	}
	r.reportBeyond(ctx, start, from)
	if err := bounded(ctx, func(ctx context.Context) error { return r.store.Reconciled(ctx, fence) }); err != nil {
		return err
	}
	r.log.Info("reconciled the outbox with its deliveries", "from", from.UTC(), "inserted", total)
	return nil
}

// reach is from where events may be owed without a row, and from where they are
// compared. A time that is still to come, by a clock that was set back, says nothing.
func (r *reconciler) reach(since, now time.Time) (start, from time.Time) {
	if since.After(now) {
		since = time.Unix(0, 0)
	}
	start, from = since.Add(-idsBehind), now.Add(-r.horizon)
	if start.After(from) {
		from = start
	}
	return start, from
}

// reportBeyond says that the recovery window has cut the comparison short, where
// events that it has kept out are owed without a row. That may take longer to find
// out than a statement may: it is no reason to compare once more.
func (r *reconciler) reportBeyond(ctx context.Context, start, from time.Time) {
	if !start.Before(from) {
		return
	}
	var missing bool
	err := bounded(ctx, func(ctx context.Context) (err error) {
		missing, err = r.store.AnyMissing(ctx, start, from)
		return err
	})
	const query = `README, "Beyond the recovery window", has the query that finds them and how to have them delivered`
	switch {
	case ctx.Err() != nil:
	case err != nil:
		r.log.Warn("events that are older than WALHOOK_RECOVERY_WINDOW may have no deliveries, which could not be found out: "+query,
			"before", from.UTC(), "window", r.horizon.String(), "error", err)
	case missing:
		r.log.Warn("events that are older than WALHOOK_RECOVERY_WINDOW have no deliveries: "+query,
			"before", from.UTC(), "window", r.horizon.String())
	}
}

// insertMissing takes the second look and returns how many it inserted.
func (r *reconciler) insertMissing(ctx context.Context, candidates []outbox.Candidate) (int, error) {
	if len(candidates) == 0 {
		return 0, nil
	}
	if err := r.settled(ctx); err != nil {
		return 0, err
	}
	inserted := 0
	for chunk := range slices.Chunk(candidates, recordBatch) {
		known := map[uuid.UUID]bool{}
		ids := make([]uuid.UUID, len(chunk))
		for i, c := range chunk {
			ids[i] = c.ID
		}
		if err := bounded(ctx, func(ctx context.Context) error { return r.store.Existing(ctx, ids, known) }); err != nil {
			return inserted, err
		}
		var records []outbox.Record
		for _, c := range chunk {
			if !known[c.ID] {
				records = append(records, outbox.Record{ID: c.ID, EventID: c.EventID, EndpointID: c.EndpointID,
					OrganizationID: c.OrganizationID, EventType: c.EventType, Status: outbox.Pending, Wait: r.window.lease(c.ID)})
			}
		}
		if len(records) == 0 {
			continue
		}
		if err := bounded(ctx, func(ctx context.Context) error {
			_, err := r.store.Insert(ctx, r.fence(), outbox.Mark{}, records)
			return err
		}); err != nil {
			return inserted, err
		}
		inserted += len(records)
		r.window.mu.Lock()
		r.window.counts.Found += uint64(len(records))
		r.window.mu.Unlock()
		r.found()
	}
	return inserted, nil
}

// settled waits until everything that is committed by now is recorded and
// confirmed. A marker makes an idle database move.
func (r *reconciler) settled(ctx context.Context) error {
	lsn, err := r.store.InsertLSN(ctx)
	if err != nil {
		return err
	}
	if err := r.mark(ctx); err != nil {
		return err
	}
	session, confirmed := r.confirmed()
	for confirmed < lsn {
		if !r.pulse.sleep(ctx, parkEvery) {
			return ctx.Err()
		}
		now := session
		if now, confirmed = r.confirmed(); now != session {
			return errors.New("the stream began anew") // perhaps on a timeline where the LSN means nothing
		}
	}
	return nil
}

// mark tries until the marker is written: a number that was taken has to have an
// echo, or nothing is confirmed before there is another batch.
func (r *reconciler) mark(ctx context.Context) error {
	if !r.recorder.turn.take(ctx, r.pulse) {
		return ctx.Err()
	}
	defer r.recorder.turn.giveBack()
	r.window.mu.Lock()
	seq := r.window.ledger.take()
	r.window.mu.Unlock()
	for {
		err := bounded(ctx, func(ctx context.Context) error { return r.store.Mark(ctx, r.fence(), outbox.Mark{Seq: seq}) })
		if err == nil || errors.Is(err, outbox.ErrFenced) {
			return err
		}
		if !r.pulse.sleep(ctx, 4*retryPause) {
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

func (r *reconciler) fence() outbox.Fence {
	r.window.mu.Lock()
	defer r.window.mu.Unlock()
	return r.window.fence
}

func (r *reconciler) confirmed() (*outbox.Session, pglogrepl.LSN) {
	r.window.mu.Lock()
	defer r.window.mu.Unlock()
	return r.window.session, r.window.ledger.confirmed
}
