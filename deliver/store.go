package deliver

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/outbox"
)

// A Store is what the parts ask of the database, each method in one statement or
// one transaction. *outbox.Store is it, and says what each promises.
type Store interface {
	// The fan-out: to claim the slot, and what it need not send.
	Acquire(ctx context.Context, holder uuid.UUID, session *outbox.Session, seq uint64) (outbox.Fence, error)
	Existing(ctx context.Context, ids []uuid.UUID, known map[uuid.UUID]bool) error

	// The recorder.
	Insert(ctx context.Context, fence outbox.Fence, mark outbox.Mark, records []outbox.Record) (allNew bool, err error)
	Update(ctx context.Context, fence outbox.Fence, mark outbox.Mark, records []outbox.Record) (busy, again []uuid.UUID, err error)

	Tell(ctx context.Context, fence outbox.Fence, c outbox.Consequence) (rest []outbox.Consequence, err error)
	Owe(ctx context.Context, fence outbox.Fence, from time.Time) (noted time.Time, err error)

	// The retrier.
	Now(ctx context.Context) (time.Time, error)
	NewlyDue(ctx context.Context, since time.Time) (endpoints []uuid.UUID, now time.Time, all bool, err error)
	Waiting(ctx context.Context, after uuid.UUID, limit int) ([]outbox.Waiting, error)
	Due(ctx context.Context, pages []outbox.Page, take func(*outbox.Due)) error
	CancelRows(ctx context.Context, fence outbox.Fence, endpoint uuid.UUID, reason string) (cancelled int, more bool, err error)
	CancelStrangers(ctx context.Context, fence outbox.Fence, ids []uuid.UUID) error
	CancelOrphans(ctx context.Context, fence outbox.Fence, ids []uuid.UUID) error

	// The directory.
	Endpoints(ctx context.Context, ids []uuid.UUID) ([]outbox.Endpoint, error)

	// The reconciler, beside Now.
	Missing(ctx context.Context, from outbox.Position, until uuid.UUID, limit int) (outbox.Compared, error)
	InsertMissing(ctx context.Context, fence outbox.Fence, records []outbox.Record) (inserted int, err error)
	AnyMissing(ctx context.Context, after, until time.Time) (bool, error)
	InsertLSN(ctx context.Context) (pglogrepl.LSN, error)
	Mark(ctx context.Context, fence outbox.Fence, mark outbox.Mark) error
	Reconciled(ctx context.Context, fence outbox.Fence) (since time.Time, err error)
	Settled(ctx context.Context, fence outbox.Fence) (bool, error)
}
