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
	"github.com/walhook/walhook/outbox"
)

const (
	// recordEvery is how long an outcome waits for others to share its transaction.
	// It adds nothing to a delivery's latency, and at low rates saves a third of the CPU.
	recordEvery = 50 * time.Millisecond

	// lockedRetry is how long the outcome of a row that someone else has locked waits aside.
	lockedRetry = 250 * time.Millisecond

	// refusedRetry is how long something waits aside that the database refuses, a row
	// or what outcomes mean: until somebody has mended the cause.
	refusedRetry = 5 * time.Second

	// maxDeferred bounds what is kept of the news that cannot be told: some 100 bytes each.
	maxDeferred = 16 << 10

	// maxConsequenceTries bounds the statements of one try to find out which of it is refused,
	// so that recording goes on meanwhile.
	maxConsequenceTries = 64

	// statementTimeout bounds every statement, so that each loop turns.
	statementTimeout = 8 * time.Second

	// retryPause and retryPauseMax bound the pause before a statement that the
	// database refused is tried again.
	retryPause    = 50 * time.Millisecond
	retryPauseMax = time.Second
)

// A recorderStore is what the recorder asks of the database.
type recorderStore interface {
	Insert(ctx context.Context, fence store.Fence, mark store.Mark, records []store.Record) (allNew bool, err error)
	Update(ctx context.Context, fence store.Fence, mark store.Mark, records []store.Record) (busy, again []uuid.UUID, err error)
	Owe(ctx context.Context, fence store.Fence, from time.Time) (noted time.Time, err error)
	Tell(ctx context.Context, fence store.Fence, c store.Consequence) (rest []store.Consequence, err error)
	Mark(ctx context.Context, fence store.Fence, mark store.Mark) error
}

// A recorder writes outcomes and parked deliveries, in batches, one transaction
// at a time: the n-th batch is durable only if all before it are.
type recorder struct {
	scheduler *schedule.Scheduler
	store     recorderStore
	heartbeat *heartbeat
	log       *slog.Logger
	writer    writerLock
	failure   failure

	locked          []*schedule.Delivery // whose rows someone else had locked
	refused         []*schedule.Delivery // whose rows the database refuses, whatever is left out
	refusedTried    time.Time            // they were tried
	refusedReported bool                 // that there are some
	compare         func()               // has the outbox compared with its deliveries

	deferring     bool                // what outcomes mean is refused, and told apart from them
	deferred      []store.Consequence // of that, what is not told
	deferredTried time.Time           // it was tried
	dropped       bool                // some of it
}

// A turn is held by whoever writes a numbered batch, from taking the number to
// the commit.
type writerLock struct{ free schedule.Signal }

func newWriterLock() writerLock {
	l := writerLock{free: schedule.NewSignal()}
	l.release()
	return l
}

// take waits for the turn, for as long as the context lives.
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

// run records until the context ends. What it holds then is lost to this
// process, and repeated by the next.
func (r *recorder) run(ctx context.Context) error {
	tick := time.NewTicker(lockedRetry)
	defer tick.Stop()
	for {
		switch r.heartbeat.wait(ctx, tick.C, r.scheduler.ToRecord, nil) {
		case stopped:
			return nil
		case timerFired:
			r.retryWaiting()
			if r.deferring && time.Since(r.deferredTried) >= refusedRetry {
				if err := r.writeDeferred(ctx); err != nil {
					return err
				}
			}
		default:
			r.waitForBatch(ctx)
		}
		for r.scheduler.Unwritten() {
			if err := r.recordOnce(ctx); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
		}
	}
}

// gather gives outcomes recordEvery to become a batch.
func (r *recorder) waitForBatch(ctx context.Context) {
	timer := time.NewTimer(recordEvery)
	defer timer.Stop()
	for {
		if r.scheduler.BatchReady() || r.heartbeat.wait(ctx, timer.C, r.scheduler.ToRecord, nil) != firstSignal {
			return
		}
	}
}

// retryWaiting lines up again what was busy, and now and then what was refused.
func (r *recorder) retryWaiting() {
	again := r.locked
	r.locked = nil
	if time.Since(r.refusedTried) >= refusedRetry {
		if r.refusedReported && len(r.refused) == 0 {
			r.refusedReported = false
			r.log.Info("what could not be stored is stored")
			r.compare() // the note that it was missing is of no use any more
		}
		again = append(again, r.refused...)
		r.refused, r.refusedTried = nil, time.Now()
	}
	r.scheduler.Requeue(again)
}

// recordOnce writes one batch of new rows and one of existing ones.
func (r *recorder) recordOnce(ctx context.Context) error {
	if !r.writer.acquire(ctx, r.heartbeat) {
		return ctx.Err()
	}
	defer r.writer.release()
	if err := r.recordNew(ctx); err != nil {
		return err
	}
	return r.recordExisting(ctx)
}

func (r *recorder) recordNew(ctx context.Context) error {
	taken := r.scheduler.TakeNew(!r.deferring)
	if taken == nil {
		return nil
	}
	b := &batch{mark: taken.Mark, fence: taken.Fence, refused: map[uuid.UUID]bool{}}
	allNew := true
	b.send = func(ctx context.Context, mark store.Mark, part []store.Record) error {
		fresh, err := r.store.Insert(ctx, b.fence, mark, part)
		allNew = allNew && fresh
		return err
	}
	b.skip = func(ctx context.Context, of store.Record) error {
		from, err := r.store.Owe(ctx, b.fence, outbox.IDTime(of.ID))
		if err == nil {
			r.scheduler.Owe(from)
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
	taken := r.scheduler.TakeExisting(!r.deferring)
	if taken == nil {
		return nil
	}
	b := &batch{mark: taken.Mark, fence: taken.Fence, refused: map[uuid.UUID]bool{}}
	busy, again := map[uuid.UUID]bool{}, map[uuid.UUID]bool{}
	b.send = func(ctx context.Context, mark store.Mark, part []store.Record) error {
		locked, waiting, err := r.store.Update(ctx, b.fence, mark, part)
		for _, id := range locked {
			busy[id] = true
		}
		for _, id := range waiting {
			again[id] = true
		}
		return err
	}
	b.skip = func(context.Context, store.Record) error { return nil } // its row waits
	if err := r.write(ctx, b, taken.Records); err != nil {
		return err
	}
	locked, refused := r.scheduler.Updated(taken, busy, b.refused, again, time.Now())
	r.locked, r.refused = append(r.locked, locked...), append(r.refused, refused...)
	return nil
}

// A batch is a batch on its way into the table.
type batch struct {
	mark    store.Mark
	fence   store.Fence
	send    func(context.Context, store.Mark, []store.Record) error // in one transaction
	skip    func(context.Context, store.Record) error               // notes that a delivery has no row although its batch is written
	refused map[uuid.UUID]bool                                      // deliveries that the database does not take
}

// write tries until the records are written: the database may be away, read-only
// or full for as long as it likes. A batch that it can never take is bisected
// down to the row that is the cause, which is stripped of what the receiver said,
// and then of all but its status; what is refused even so waits aside. So one row
// can never hold the slot. The mark goes with the last part, whose commit means
// that all are written.
func (r *recorder) write(ctx context.Context, b *batch, records []store.Record) error {
	return r.writePart(ctx, b, records, true, 0)
}

func (r *recorder) writePart(ctx context.Context, b *batch, part []store.Record, last bool, stripped int) error {
	m := store.Mark{}
	if last {
		m = b.mark
	}
	pause, begun := retryPause, time.Now()
	for tries := 1; ; tries++ {
		err := r.try(ctx, b, m, part)
		switch {
		case err == nil:
			if r.failure.clear(); tries > 1 {
				r.log.Info("recording again", "tries", tries)
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
			if err := r.writePart(ctx, b, []store.Record{less}, last, stripped+1); err != nil {
				return err
			}
			if stripped == 0 && !b.refused[less.ID] {
				r.log.Error("a delivery's outcome could not be stored as it is; it is stored without what the receiver said", "delivery", less.ID, "error", err)
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
			r.log.Warn("cannot record outcomes; trying until it works", "error", err)
		}
		r.failure.note(begun, err)
		if !r.heartbeat.sleep(ctx, pause+time.Duration(r.scheduler.Jitter()*float64(pause))) {
			return ctx.Err()
		}
		pause = min(2*pause, retryPauseMax)
	}
}

// try writes a part once, with what it means, or where the database refuses that,
// the rows alone.
func (r *recorder) try(ctx context.Context, b *batch, mark store.Mark, part []store.Record) error {
	send := func(mark store.Mark) error {
		r.heartbeat.beat()
		return bounded(ctx, func(ctx context.Context) error { return b.send(ctx, mark, part) })
	}
	consequences := store.Consequences(mark.Health, part)
	var refused error
	if !r.deferring {
		if refused = send(mark); refused == nil || len(consequences) == 0 || !isRefusal(refused) {
			return refused
		}
	}
	mark.Alone = true
	if err := send(mark); err != nil {
		return err
	}
	return r.deferConsequences(ctx, consequences, refused)
}

// passOver lets a batch pass without the row of a delivery that the database takes
// in no form: the outcome waits in memory until it does. Where there is no row yet,
// the next process would not know of it, and is told first to compare.
func (r *recorder) passOver(ctx context.Context, b *batch, of store.Record, cause error) error {
	if !r.refusedReported {
		r.refusedReported = true
		r.log.Error("a delivery's outcome cannot be stored at all; it is kept and tried again: look at the constraints and triggers on webhook_deliveries",
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
	for _, c := range store.Consequences(nil, []store.Record{of}) {
		if len(c.Endpoints()) > 0 {
			return r.deferConsequences(ctx, []store.Consequence{c}, cause)
		}
	}
	return nil
}

// isPoison says that the database will never take these rows, as against not
// now: a data exception, a violated constraint, a program limit, a row twice. But not
// the constraint without a name that is a partition's bounds: somebody has just
// attached the one that the row belongs to, and the next try finds it.
func isPoison(err error) bool {
	if _, connecting := errors.AsType[*pgconn.ConnectError](err); connecting { // it has not seen them
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

// isRefusal says that a statement was refused for what it says, and not because the
// server is going down (57), is out of something (53, 58), or had another conflict
// just then (40).
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

// bareRecord is how far a record can be stripped.
const bareRecord = 2

// strip leaves of a record what walhook itself decided: without what the receiver
// said, or only the status.
func strip(r store.Record, cause error, level int) store.Record {
	if r.Attempt == nil {
		return r
	}
	a := *r.Attempt
	a.Response, a.Error = "", "walhook could not store the response"
	if pg, ok := errors.AsType[*pgconn.PgError](cause); ok {
		a.Error += ": SQLSTATE " + pg.Code
	}
	if level == bareRecord {
		a = store.Attempt{EndedAt: a.EndedAt, Duration: a.Duration} // which tell what came after it
	}
	r.Attempt = &a
	return r
}
