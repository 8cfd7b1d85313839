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
	"github.com/walhook/walhook/internal/webhook"
)

const (
	// insertMin and insertMax are the rows of one transaction, at first and at most:
	// some 30 ms and 100 ms of PostgreSQL's time. The recorder waits for its end.
	insertMin = 2000
	insertMax = 8000

	// insertSlow and insertQuick adapt the size of transactions, so that none takes a
	// second: half after a slower one, but not below insertMin, where rows no longer take
	// most of the time; double after a quicker one. One that timed out is tried again
	// with a quarter.
	insertSlow  = 400 * time.Millisecond
	insertQuick = 150 * time.Millisecond
)

// An inserterStore has the inserter's statements.
type inserterStore interface {
	InsertLSN(ctx context.Context) (pglogrepl.LSN, error)
	InsertMissing(ctx context.Context, fence webhook.Fence, records []webhook.Record) (inserted int, err error)
}

// An inserter inserts rows for the reconciler's candidates: for those that still have none
// once everything committed by now is recorded and confirmed.
type inserter struct {
	scheduler *schedule.Scheduler
	store     inserterStore
	recorder  *recorder
	heartbeat *heartbeat // the reconciler's
	log       *slog.Logger
	waiting   func(context.Context) // is called while it waits, and after each transaction

	size     int // rows in the next transaction
	inserted int // rows of this comparison
	refused  int // rows refused by a constraint or trigger of the deployment
}

// begin begins to count for another comparison.
func (i *inserter) begin() { i.size, i.inserted, i.refused = insertMin, 0, 0 }

// insert waits, and inserts the candidates that still have no row. The INSERT is the
// second check: it finds existing rows, whatever its snapshot shows.
func (i *inserter) insert(ctx context.Context, session *webhook.Session, fence webhook.Fence, candidates []store.Candidate) error {
	if err := i.awaitConfirmed(ctx, session); err != nil {
		return err
	}
	// As the recorder does: rows that are refused are found, logged and passed over.
	w := &writer{scheduler: i.scheduler, heartbeat: i.heartbeat, log: i.log}
	b := &batch{fence: fence, refused: map[uuid.UUID]bool{}, skip: func(context.Context, webhook.Record) error { return nil },
		send: func(_ context.Context, _ webhook.Mark, part []webhook.Record) error {
			return i.write(ctx, fence, part) // bounds each transaction itself
		}}
	records := make([]webhook.Record, 0, min(len(candidates), insertMax))
	for chunk := range slices.Chunk(candidates, insertMax) {
		// By endpoint, so that neighbours in the index on (endpoint_id, next_attempt_at)
		// follow each other: an eighth faster.
		slices.SortFunc(chunk, func(a, b store.Candidate) int {
			return cmp.Or(schedule.CompareIDs(a.EndpointID, b.EndpointID), schedule.CompareIDs(a.ID, b.ID))
		})
		records = records[:0]
		for _, c := range chunk {
			records = append(records, webhook.Record{ID: c.ID, EventID: c.EventID, EndpointID: c.EndpointID,
				OrganizationID: c.OrganizationID, EventType: c.EventType, Status: webhook.Pending})
		}
		if err := w.write(ctx, b, records); err != nil {
			return err
		}
	}
	i.refused += len(b.refused)
	return nil
}

// write writes rows in transactions that are short enough. A retry skips the rows that
// the failed try has inserted.
func (i *inserter) write(ctx context.Context, fence webhook.Fence, records []webhook.Record) error {
	for len(records) > 0 {
		part := records[:min(i.size, len(records))]
		for n := range part {
			part[n].Wait = i.scheduler.PendingWait(part[n].ID)
		}
		began := time.Now()
		attempt, cancel := i.heartbeat.statement(ctx)
		inserted, err := i.store.InsertMissing(attempt, fence, part)
		cancel()
		i.inserted += inserted
		i.scheduler.InsertedMissing(inserted)
		switch took := time.Since(began); {
		case err != nil && store.TimedOut(err):
			i.size = max(i.size/4, 1)
		case took > insertSlow:
			i.size = max(i.size/2, min(i.size, insertMin))
		case err == nil && took < insertQuick && len(part) == i.size:
			i.size = min(i.size*2, insertMax)
		}
		if err != nil {
			return err
		}
		records = records[len(part):]
		i.waiting(ctx)
	}
	return nil
}

// awaitConfirmed waits until everything committed by now is recorded and confirmed. A
// marker moves the position of an idle database. Deliveries to slow receivers are parked
// meanwhile. It fails in another session, whose positions may mean something else.
func (i *inserter) awaitConfirmed(ctx context.Context, session *webhook.Session) error {
	attempt, cancel := i.heartbeat.statement(ctx)
	lsn, err := i.store.InsertLSN(attempt)
	cancel()
	if err != nil {
		return err
	}
	if err := i.recorder.writeMarker(ctx, i.heartbeat); err != nil {
		return err
	}
	for {
		now, confirmed := i.scheduler.Confirmed()
		if now != session {
			return errors.New("the stream reconnected meanwhile")
		}
		if confirmed >= lsn {
			return nil
		}
		if !i.heartbeat.sleep(ctx, schedule.ParkEvery) {
			return ctx.Err()
		}
		i.waiting(ctx)
	}
}
