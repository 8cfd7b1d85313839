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
)

const (
	// retryPause and retryPauseMax bound the pause before a failed statement is tried
	// again.
	retryPause    = 50 * time.Millisecond
	retryPauseMax = time.Second
)

// A writer writes batches of rows that the database may not take: for the recorder, and
// for the reconciler's inserter.
type writer struct {
	scheduler       *schedule.Scheduler
	heartbeat       *heartbeat
	log             *slog.Logger
	failure         failure
	refusedReported bool     // refused rows were logged
	deferred        deferred // consequences of what was written
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
func (w *writer) write(ctx context.Context, b *batch, records []webhook.Record) error {
	return w.writePart(ctx, b, records, true, 0)
}

func (w *writer) writePart(ctx context.Context, b *batch, part []webhook.Record, last bool, stripped int) error {
	m := webhook.Mark{}
	if last {
		m = b.mark
	}
	pause, begun := retryPause, time.Now()
	for tries := 1; ; tries++ {
		err := w.try(ctx, b, m, part)
		switch {
		case err == nil:
			if w.failure.clear(); tries > 1 {
				w.log.Info("recording outcomes resumed", "tries", tries)
			}
			return nil
		case errors.Is(err, store.ErrFenced), ctx.Err() != nil:
			return err
		case isPoison(err) && len(part) > 1:
			half := len(part) / 2
			if err := w.writePart(ctx, b, part[:half], false, 0); err != nil {
				return err
			}
			return w.writePart(ctx, b, part[half:], last, 0)
		case isPoison(err) && len(part) > 0 && stripped < bareRecord:
			less := strip(part[0], err, stripped+1)
			if err := w.writePart(ctx, b, []webhook.Record{less}, last, stripped+1); err != nil {
				return err
			}
			if stripped == 0 && !b.refused[less.ID] {
				w.log.Error("the database refused a delivery's outcome; stored without the response", "delivery", less.ID, "error", err)
			}
			return nil
		case isPoison(err) && len(part) > 0:
			if err := w.passOver(ctx, b, part[0], err); err != nil {
				return err
			}
			if !last {
				return nil
			}
			part = nil // the mark must still be written
			continue
		case tries == 1:
			w.log.Warn("cannot record outcomes; retrying", "error", err)
		}
		w.failure.note(begun, err)
		if !w.heartbeat.sleep(ctx, pause+time.Duration(w.scheduler.Jitter()*float64(pause))) {
			return ctx.Err()
		}
		pause = min(2*pause, retryPauseMax)
	}
}

// try writes a part once, with its consequences. If the database refuses that, it
// writes the rows alone and defers the consequences.
func (w *writer) try(ctx context.Context, b *batch, mark webhook.Mark, part []webhook.Record) error {
	send := func(mark webhook.Mark) error {
		ctx, cancel := w.heartbeat.statement(ctx)
		defer cancel()
		return b.send(ctx, mark, part)
	}
	consequences := store.Consequences(mark.Health, part)
	var refused error
	if !w.deferred.active {
		if refused = send(mark); refused == nil || len(consequences) == 0 || !isRefusal(refused) {
			return refused
		}
	}
	mark.Alone = true
	if err := send(mark); err != nil {
		return err
	}
	return w.deferred.add(ctx, consequences, refused)
}

// passOver lets a batch commit without a row that the database refuses in every form.
// The outcome waits in memory until it is accepted. If there is no row yet, the next
// process would miss the delivery, so the state row first notes that a comparison is due.
func (w *writer) passOver(ctx context.Context, b *batch, of webhook.Record, cause error) error {
	if !w.refusedReported {
		w.refusedReported = true
		w.log.Error("the database refuses a delivery's outcome; kept in memory, and retried: check the constraints and triggers on webhook_deliveries",
			"delivery", of.ID, "error", cause)
	}
	b.refused[of.ID] = true
	for {
		attempt, cancel := w.heartbeat.statement(ctx)
		err := b.skip(attempt, of)
		cancel()
		switch {
		case errors.Is(err, store.ErrFenced), ctx.Err() != nil:
			return err
		case err != nil:
			if !w.heartbeat.sleep(ctx, 4*retryPause) {
				return ctx.Err()
			}
			continue
		}
		break
	}
	for _, c := range store.Consequences(nil, []webhook.Record{of}) {
		if len(c.Endpoints()) > 0 {
			return w.deferred.add(ctx, []store.Consequence{c}, cause)
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
