package deliver

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

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

	// statementTimeout bounds every statement, so that each loop beats within wedgedAfter.
	statementTimeout = 8 * time.Second

	// retryPause and retryPauseMax bound the pause before a failed statement is tried
	// again.
	retryPause    = 50 * time.Millisecond
	retryPauseMax = time.Second
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
	scheduler *schedule.Scheduler
	store     recorderStore
	heartbeat *heartbeat
	log       *slog.Logger
	lock      writerLock
	failure   failure

	locked          []*schedule.Delivery // other sessions have locked their rows
	refused         []*schedule.Delivery // the database refuses their rows in every form
	refusedTried    time.Time            // the last try of refused
	refusedReported bool                 // refused rows were logged
	compare         func()               // starts a comparison of outbox and deliveries
	deferred        deferred
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
// the next process sends those deliveries again.
func (r *recorder) run(ctx context.Context) error {
	tick := time.NewTicker(lockedRetry)
	defer tick.Stop()
	for {
		switch r.heartbeat.wait(ctx, tick.C, r.scheduler.ToRecord, nil) {
		case stopped:
			return nil
		case timerFired:
			r.retryWaiting()
			if r.deferred.due() {
				if err := r.deferred.retry(ctx); err != nil {
					return err
				}
			}
		default:
			r.waitForBatch(ctx)
		}
		for some, _ := r.scheduler.Unwritten(); some; some, _ = r.scheduler.Unwritten() {
			if err := r.recordOnce(ctx); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
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
// refused rows.
func (r *recorder) retryWaiting() {
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
	return nil
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
		err := bounded(ctx, func(ctx context.Context) error { return r.store.Mark(ctx, r.scheduler.Fence(), webhook.Mark{Seq: seq}) })
		if err == nil || errors.Is(err, store.ErrFenced) {
			return err
		}
		if !h.sleep(ctx, 4*retryPause) {
			return ctx.Err()
		}
	}
}

// A batch is a set of records that is being written.
type batch struct {
	mark    webhook.Mark
	fence   webhook.Fence
	send    func(context.Context, webhook.Mark, []webhook.Record) error // writes records in one transaction
	skip    func(context.Context, webhook.Record) error                 // notes that a delivery stays without a row
	refused map[uuid.UUID]bool                                          // deliveries that the database refuses
}

// write retries until the records are written, however long the database is away,
// read-only or full. If the database will never accept a batch, write bisects it down
// to the poison row. That row is stripped of the receiver's response, and then of all
// but its status. A row that is refused even so is passed over. So no row can hold the
// slot. The mark goes with the last part, whose commit means that all are written.
func (r *recorder) write(ctx context.Context, b *batch, records []webhook.Record) error {
	return r.writePart(ctx, b, records, true, 0)
}

func (r *recorder) writePart(ctx context.Context, b *batch, part []webhook.Record, last bool, stripped int) error {
	m := webhook.Mark{}
	if last {
		m = b.mark
	}
	pause, begun := retryPause, time.Now()
	for tries := 1; ; tries++ {
		err := r.try(ctx, b, m, part)
		switch {
		case err == nil:
			if r.failure.clear(); tries > 1 {
				r.log.Info("recording outcomes resumed", "tries", tries)
			}
			return nil
		case errors.Is(err, store.ErrFenced), ctx.Err() != nil:
			return err
		case isPoison(err) && len(part) > 1:
			half := len(part) / 2
			if err := r.writePart(ctx, b, part[:half], false, 0); err != nil {
				return err
			}
			return r.writePart(ctx, b, part[half:], last, 0)
		case isPoison(err) && len(part) > 0 && stripped < bareRecord:
			less := strip(part[0], err, stripped+1)
			if err := r.writePart(ctx, b, []webhook.Record{less}, last, stripped+1); err != nil {
				return err
			}
			if stripped == 0 && !b.refused[less.ID] {
				r.log.Error("the database refused a delivery's outcome; stored without the response", "delivery", less.ID, "error", err)
			}
			return nil
		case isPoison(err) && len(part) > 0:
			if err := r.passOver(ctx, b, part[0], err); err != nil {
				return err
			}
			if !last {
				return nil
			}
			part = nil // the mark must still be written
			continue
		case tries == 1:
			r.log.Warn("cannot record outcomes; retrying", "error", err)
		}
		r.failure.note(begun, err)
		if !r.heartbeat.sleep(ctx, pause+time.Duration(r.scheduler.Jitter()*float64(pause))) {
			return ctx.Err()
		}
		pause = min(2*pause, retryPauseMax)
	}
}

// try writes a part once, with its consequences. If the database refuses that, it
// writes the rows alone and defers the consequences.
func (r *recorder) try(ctx context.Context, b *batch, mark webhook.Mark, part []webhook.Record) error {
	send := func(mark webhook.Mark) error {
		r.heartbeat.beat()
		return bounded(ctx, func(ctx context.Context) error { return b.send(ctx, mark, part) })
	}
	consequences := store.Consequences(mark.Health, part)
	var refused error
	if !r.deferred.active {
		if refused = send(mark); refused == nil || len(consequences) == 0 || !isRefusal(refused) {
			return refused
		}
	}
	mark.Alone = true
	if err := send(mark); err != nil {
		return err
	}
	return r.deferred.add(ctx, consequences, refused)
}

// passOver lets a batch commit without a row that the database refuses in every form.
// The outcome waits in memory until it is accepted. If there is no row yet, the next
// process would miss the delivery, so the state row first notes that a comparison is due.
func (r *recorder) passOver(ctx context.Context, b *batch, of webhook.Record, cause error) error {
	if !r.refusedReported {
		r.refusedReported = true
		r.log.Error("the database refuses a delivery's outcome; kept in memory, and retried: check the constraints and triggers on webhook_deliveries",
			"delivery", of.ID, "error", cause)
	}
	b.refused[of.ID] = true
	for {
		r.heartbeat.beat()
		err := bounded(ctx, func(ctx context.Context) error { return b.skip(ctx, of) })
		switch {
		case errors.Is(err, store.ErrFenced), ctx.Err() != nil:
			return err
		case err != nil:
			if !r.heartbeat.sleep(ctx, 4*retryPause) {
				return ctx.Err()
			}
			continue
		}
		break
	}
	for _, c := range store.Consequences(nil, []webhook.Record{of}) {
		if len(c.Endpoints()) > 0 {
			return r.deferred.add(ctx, []store.Consequence{c}, cause)
		}
	}
	return nil
}

// isPoison reports whether the database will never accept these rows: a data
// exception, a violated constraint, a program limit, a duplicate row, a trigger's
// exception. A violated constraint without a name is a partition's bound and not
// poison: the row's partition was attached a moment ago, and the next try finds it.
func isPoison(err error) bool {
	if _, connecting := errors.AsType[*pgconn.ConnectError](err); connecting { // the rows were not sent
		return false
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || len(pg.Code) != 5 || pg.Code == "23514" && pg.ConstraintName == "" {
		return false
	}
	switch pg.Code[:2] {
	case "21", "22", "23", "54", "P0":
		return true
	}
	return false
}

// isRefusal reports whether the server refuses the statement itself. A shutdown (57), a
// lack of resources (53, 58) and a conflict with another transaction (40) are temporary.
func isRefusal(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || len(pg.Code) != 5 {
		return false
	}
	switch pg.Code[:2] {
	case "40", "53", "57", "58":
		return false
	}
	return true
}

// bareRecord is the last level of strip.
const bareRecord = 2

// strip removes the response from a record at level 1, and at bareRecord all but its
// status and times.
func strip(r webhook.Record, cause error, level int) webhook.Record {
	if r.Attempt == nil {
		return r
	}
	a := *r.Attempt
	a.Response, a.Error = "", "walhook could not store the response"
	if pg, ok := errors.AsType[*pgconn.PgError](cause); ok {
		a.Error += ": SQLSTATE " + pg.Code
	}
	if level == bareRecord {
		a = webhook.Attempt{EndedAt: a.EndedAt, Duration: a.Duration} // which decide whether a later change stands
	}
	r.Attempt = &a
	return r
}
