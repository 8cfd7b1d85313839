package deliver

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

const (
	// recordEvery is how long an outcome waits for others to share its transaction. It
	// does not delay deliveries, and saves a third of the CPU at low rates.
	recordEvery = 50 * time.Millisecond

	// lockedRetry is the wait before a row that another session has locked is tried
	// again: an operator's UPDATE may hold it for long.
	lockedRetry = 250 * time.Millisecond

	// refusedRetry is the wait before rows or consequences that the database refuses are
	// tried again: somebody has to fix the cause first.
	refusedRetry = 5 * time.Second
)

// A recorderStore has the recorder's statements.
type recorderStore interface {
	Insert(ctx context.Context, fence webhook.Fence, mark webhook.Mark, records []webhook.Record) (allNew bool, err error)
	Update(ctx context.Context, fence webhook.Fence, mark webhook.Mark, records []webhook.Record) (locked, replayed []uuid.UUID, err error)
	NoteMissing(ctx context.Context, fence webhook.Fence, from time.Time) (noted time.Time, err error)
	Mark(ctx context.Context, fence webhook.Fence, mark webhook.Mark) error
}

// A recorder writes outcomes and parked deliveries in batches, one transaction at a
// time, so that a batch is durable only if all batches before it are.
type recorder struct {
	writer
	store recorderStore
	lock  writerLock

	locked       []*schedule.Delivery // other sessions have locked their rows
	refused      []*schedule.Delivery // the database refuses their rows in every form
	refusedTried time.Time            // the last try of refused
	compare      func()               // starts a comparison of outbox and deliveries
}

// A writerLock is held while a numbered batch is written, from taking the number to
// the commit.
type writerLock struct{ free schedule.Signal }

func newWriterLock() writerLock {
	l := writerLock{free: schedule.NewSignal()}
	l.release()
	return l
}

// acquire waits for the lock, and returns false if the context ends first.
func (l writerLock) acquire(ctx context.Context, h *heartbeat) bool {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		switch h.wait(ctx, tick.C, l.free, nil) {
		case stopped:
			return false
		case firstSignal:
			return true
		}
	}
}

func (l writerLock) release() { l.free.Raise() }

// run records until the context ends. Outcomes that are not recorded by then are lost;
// the next process sends those deliveries again. Each turn writes one batch: under load
// there is always another one, and what the tick brings must not wait for the end of that.
func (r *recorder) run(ctx context.Context) error {
	tick := time.NewTicker(lockedRetry)
	defer tick.Stop()
	for more := false; ; {
		var err error
		switch r.heartbeat.wait(ctx, tick.C, r.scheduler.ToRecord, nil) {
		case stopped:
			return nil
		case timerFired:
			err = r.retryWaiting(ctx)
		default:
			if !more { // what came while the last batch was written has waited
				r.waitForBatch(ctx)
			}
		}
		if more, _ = r.scheduler.Unwritten(); more && err == nil {
			err = r.recordOnce(ctx)
			r.scheduler.ToRecord.Raise()
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
	}
}

// waitForBatch waits for more outcomes, for at most recordEvery.
func (r *recorder) waitForBatch(ctx context.Context) {
	timer := time.NewTimer(recordEvery)
	defer timer.Stop()
	for {
		if _, now := r.scheduler.Unwritten(); now || r.heartbeat.wait(ctx, timer.C, r.scheduler.ToRecord, nil) != firstSignal {
			return
		}
	}
}

// retryWaiting requeues deliveries with locked rows, and every refusedRetry those with
// refused rows. It tries deferred consequences again.
func (r *recorder) retryWaiting(ctx context.Context) error {
	again := r.locked
	r.locked = nil
	if time.Since(r.refusedTried) >= refusedRetry {
		if r.refusedReported && len(r.refused) == 0 {
			r.refusedReported = false
			r.log.Info("refused outcomes are stored now")
			r.compare() // the note of missing rows is obsolete; a comparison clears it
		}
		again = append(again, r.refused...)
		r.refused, r.refusedTried = nil, time.Now()
	}
	r.scheduler.Requeue(again)
	if r.deferred.due() {
		return r.deferred.retry(ctx)
	}
	return nil
}

// recordOnce writes one batch of new rows and one of existing ones.
func (r *recorder) recordOnce(ctx context.Context) error {
	if !r.lock.acquire(ctx, r.heartbeat) {
		return ctx.Err()
	}
	defer r.lock.release()
	if err := r.recordNew(ctx); err != nil {
		return err
	}
	return r.recordExisting(ctx)
}

func (r *recorder) recordNew(ctx context.Context) error {
	taken := r.scheduler.TakeNew(!r.deferred.active)
	if taken == nil {
		return nil
	}
	b := &batch{mark: taken.Mark, fence: taken.Fence, refused: map[uuid.UUID]bool{}}
	allNew := true
	b.send = func(ctx context.Context, mark webhook.Mark, part []webhook.Record) error {
		fresh, err := r.store.Insert(ctx, b.fence, mark, part)
		allNew = allNew && fresh
		return err
	}
	b.skip = func(ctx context.Context, of webhook.Record) error {
		from, err := r.store.NoteMissing(ctx, b.fence, outbox.IDTime(of.ID))
		if err == nil {
			r.scheduler.NoteMissing(from)
		}
		return err
	}
	if err := r.write(ctx, b, taken.Records); err != nil {
		return err
	}
	r.refused = append(r.refused, r.scheduler.Inserted(taken, allNew, b.refused, time.Now())...)
	if allNew { // or the outcomes are written once more
		r.logAttempts(ctx, taken.Records, b.refused)
	}
	return nil
}

func (r *recorder) recordExisting(ctx context.Context) error {
	taken := r.scheduler.TakeExisting(!r.deferred.active)
	if taken == nil {
		return nil
	}
	b := &batch{mark: taken.Mark, fence: taken.Fence, refused: map[uuid.UUID]bool{}}
	isLocked, isReplayed := map[uuid.UUID]bool{}, map[uuid.UUID]bool{}
	b.send = func(ctx context.Context, mark webhook.Mark, part []webhook.Record) error {
		locked, replayed, err := r.store.Update(ctx, b.fence, mark, part)
		for _, id := range locked {
			isLocked[id] = true
		}
		for _, id := range replayed {
			isReplayed[id] = true
		}
		return err
	}
	b.skip = func(context.Context, webhook.Record) error { return nil } // the row is there
	if err := r.write(ctx, b, taken.Records); err != nil {
		return err
	}
	locked, refused := r.scheduler.Updated(taken, isLocked, b.refused, isReplayed, time.Now())
	r.locked, r.refused = append(r.locked, locked...), append(r.refused, refused...)
	maps.Copy(isLocked, b.refused)
	r.logAttempts(ctx, taken.Records, isLocked)
	return nil
}

// logAttempts logs a line for each attempt whose outcome is recorded, at debug.
func (r *recorder) logAttempts(ctx context.Context, records []webhook.Record, waiting map[uuid.UUID]bool) {
	if !r.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	for i := range records {
		d := &records[i]
		if d.Attempt == nil || waiting[d.ID] {
			continue
		}
		next := ""
		if d.Status == webhook.Retrying {
			next = d.Wait.String()
		}
		r.log.DebugContext(ctx, "attempt", "endpoint", d.EndpointID, "organization", d.OrganizationID, "delivery", d.ID, "event_type", d.EventType,
			"attempt", d.Attempts, "status_code", d.Attempt.StatusCode, "error_class", d.Attempt.Class, "duration", d.Attempt.Duration, "status", d.Status, "next_attempt_in", next)
	}
}

// writeMarker writes a batch without records for another loop. It retries until that is
// written: without an echo of its number, nothing is confirmed until the next batch.
func (r *recorder) writeMarker(ctx context.Context, h *heartbeat) error {
	if !r.lock.acquire(ctx, h) {
		return ctx.Err()
	}
	defer r.lock.release()
	seq := r.scheduler.NextSeq()
	for {
		attempt, cancel := h.statement(ctx)
		err := r.store.Mark(attempt, r.scheduler.Fence(), webhook.Mark{Seq: seq})
		cancel()
		if err == nil || errors.Is(err, store.ErrFenced) {
			return err
		}
		if !h.sleep(ctx, 4*retryPause) {
			return ctx.Err()
		}
	}
}
