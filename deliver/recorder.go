package deliver

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/sabotage"
	"github.com/walhook/walhook/outbox"
)

const (
	// recordBatch is how many rows one transaction records: about 5 ms of work.
	// Larger batches are no faster per row and hold their locks for longer.
	recordBatch = 500

	// recordEvery is how long an outcome waits for others to share its transaction.
	// It adds nothing to a delivery's latency, and at low rates saves a third of the CPU.
	recordEvery = 50 * time.Millisecond

	// busyAgain is how long the outcome of a row that someone else has locked waits aside.
	busyAgain = 250 * time.Millisecond

	// statementTimeout bounds every statement, so that each loop turns.
	statementTimeout = 8 * time.Second

	// retryPause and retryPauseMax bound the pause before a statement that the
	// database refused is tried again.
	retryPause    = 50 * time.Millisecond
	retryPauseMax = time.Second
)

// A recorder writes outcomes and parked deliveries, in batches, one transaction
// at a time: the n-th batch is durable only if all before it are.
type recorder struct {
	window *window
	store  Store
	pulse  *pulse
	log    *slog.Logger
	turn   turn
	aside  []*delivery // whose rows someone else had locked
}

// A turn is held by whoever writes a numbered batch, from taking the number to
// the commit.
type turn struct{ free signal }

func newTurn() turn {
	t := turn{free: newSignal()}
	t.giveBack()
	return t
}

// take waits for the turn, for as long as the context lives.
func (t turn) take(ctx context.Context, p *pulse) bool {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		switch p.wait(ctx, tick.C, t.free, nil) {
		case over:
			return false
		case first:
			return true
		}
	}
}

func (t turn) giveBack() { t.free.raise() }

// run records until the context ends. What it holds then is lost to this
// process, and repeated by the next.
func (r *recorder) run(ctx context.Context) error {
	tick := time.NewTicker(busyAgain)
	defer tick.Stop()
	for {
		switch r.pulse.wait(ctx, tick.C, r.window.toRecord, nil) {
		case over:
			return nil
		case timed:
			r.bringBack()
		default:
			r.gather(ctx)
		}
		for r.pending() {
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
func (r *recorder) gather(ctx context.Context) {
	timer := time.NewTimer(recordEvery)
	defer timer.Stop()
	for {
		r.window.mu.Lock()
		full := r.window.unwritten() >= recordBatch || r.window.stopping
		r.window.mu.Unlock()
		if full || r.pulse.wait(ctx, timer.C, r.window.toRecord, nil) != first {
			return
		}
	}
}

func (r *recorder) pending() bool {
	r.window.mu.Lock()
	defer r.window.mu.Unlock()
	return r.window.fence.Epoch != 0 && r.window.unwritten() > 0
}

// bringBack lines up again what was busy.
func (r *recorder) bringBack() {
	r.window.mu.Lock()
	defer r.window.mu.Unlock()
	for _, d := range r.aside {
		r.window.enlist(d)
	}
	r.aside, r.window.aside = nil, 0
}

// recordOnce writes one batch of new rows and one of existing ones.
func (r *recorder) recordOnce(ctx context.Context) error {
	if !r.turn.take(ctx, r.pulse) {
		return ctx.Err()
	}
	defer r.turn.giveBack()
	if err := r.recordNew(ctx); err != nil {
		return err
	}
	return r.recordExisting(ctx)
}

func (r *recorder) recordNew(ctx context.Context) error {
	w := r.window
	w.mu.Lock()
	taken, records := w.takeNew()
	if len(taken) == 0 {
		w.mu.Unlock()
		return nil
	}
	batch, at := w.recordedBy(taken)
	mark := outbox.Mark{Seq: batch, Durable: at.lsn, CommitAt: at.at, Health: w.takeNews()}
	fence := w.fence
	w.mu.Unlock()

	allNew := true
	err := r.write(ctx, mark, records, func(ctx context.Context, mark outbox.Mark, part []outbox.Record) error {
		fresh, err := r.store.Insert(ctx, fence, mark, part)
		allNew = allNew && fresh
		return err
	})
	if err != nil {
		return err
	}
	sabotage.Reach(sabotage.Recorded)
	w.mu.Lock()
	defer w.mu.Unlock()
	if sabotage.On(sabotage.SkipEcho) {
		w.ledger.echo(mark.Seq)
		w.confirm()
	}
	w.inserted(taken, allNew)
	return nil
}

func (r *recorder) recordExisting(ctx context.Context) error {
	w := r.window
	w.mu.Lock()
	taken, records := w.takeExisting()
	if len(taken) == 0 {
		w.mu.Unlock()
		return nil
	}
	mark := outbox.Mark{Durable: w.ledger.recorded.lsn, CommitAt: w.ledger.recorded.at, Health: w.takeNews()}
	fence := w.fence
	w.mu.Unlock()
	busy, again := map[uuid.UUID]bool{}, map[uuid.UUID]bool{}
	err := r.write(ctx, mark, records, func(ctx context.Context, mark outbox.Mark, part []outbox.Record) error {
		locked, waiting, err := r.store.Update(ctx, fence, mark, part)
		for _, id := range locked {
			busy[id] = true
		}
		for _, id := range waiting {
			again[id] = true
		}
		return err
	})
	if err != nil {
		return err
	}
	sabotage.Reach(sabotage.Updated)
	w.mu.Lock()
	defer w.mu.Unlock()
	r.aside = append(r.aside, w.updated(taken, busy, again)...)
	w.aside = len(r.aside)
	return nil
}

// A send writes records in one transaction.
type send func(context.Context, outbox.Mark, []outbox.Record) error

// write tries until the records are written: the database may be away, read-only
// or full for as long as it likes. A batch that it can never take is bisected
// down to the row that is the cause, which is stripped of what the receiver
// said; so one row can never hold the slot. The mark goes with the last part,
// whose commit means that all are written.
func (r *recorder) write(ctx context.Context, mark outbox.Mark, records []outbox.Record, send send) error {
	return r.writePart(ctx, mark, records, true, false, send)
}

func (r *recorder) writePart(ctx context.Context, mark outbox.Mark, part []outbox.Record, last, stripped bool, send send) error {
	m := outbox.Mark{}
	if last {
		m = mark
	}
	if stripped {
		m.Health = nil // it may be the cause
	}
	pause := retryPause
	for tries := 1; ; tries++ {
		r.pulse.beat()
		attempt, cancel := context.WithTimeout(ctx, statementTimeout)
		err := send(attempt, m, part)
		cancel()
		switch {
		case err == nil:
			if tries > 1 {
				r.log.Info("recording again", "tries", tries)
			}
			return nil
		case errors.Is(err, outbox.ErrFenced), ctx.Err() != nil:
			return err
		case isPoison(err) && len(part) > 1:
			half := len(part) / 2
			if err := r.writePart(ctx, mark, part[:half], false, false, send); err != nil {
				return err
			}
			return r.writePart(ctx, mark, part[half:], last, false, send)
		case isPoison(err) && len(part) > 0 && !stripped:
			r.log.Error("a delivery's outcome cannot be stored as it is; storing it without the response", "delivery", part[0].ID, "error", err)
			return r.writePart(ctx, mark, []outbox.Record{strip(part[0], err)}, last, true, send)
		case isPoison(err) && len(part) > 0:
			r.log.Error("a delivery's outcome cannot be stored at all: look at the constraints and triggers on webhook_deliveries",
				"delivery", part[0].ID, "error", err)
			if !last {
				return nil
			}
			part = nil // the mark must still be written
			continue
		case tries == 1:
			r.log.Warn("cannot record outcomes; trying until it works", "error", err)
		}
		if !r.pulse.sleep(ctx, pause+time.Duration(r.window.jitter()*float64(pause))) {
			return ctx.Err()
		}
		pause = min(2*pause, retryPauseMax)
	}
}

// isPoison says that the database will never take these rows, as against not
// now: a data exception, a violated constraint, a program limit, a row twice.
func isPoison(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || len(pg.Code) != 5 {
		return false
	}
	switch pg.Code[:2] {
	case "21", "22", "23", "54", "P0":
		return true
	}
	return false
}

// strip leaves of a record what walhook itself decided.
func strip(r outbox.Record, cause error) outbox.Record {
	if r.Attempt != nil {
		a := *r.Attempt
		a.Response, a.Error = "", "walhook could not store the error: SQLSTATE unknown"
		if pg, ok := errors.AsType[*pgconn.PgError](cause); ok {
			a.Error = "walhook could not store the response: SQLSTATE " + pg.Code
		}
		r.Attempt = &a
	}
	r.Exhausted, r.Gone = false, false
	return r
}
