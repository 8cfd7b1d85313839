package deliver

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/store"
)

// A Store is what the parts ask of the database, each method in one statement or
// one transaction. *store.Store is it, and says what each promises.
type Store interface {
	// The fan-out: to claim the slot, and what it need not send.
	Acquire(ctx context.Context, holder uuid.UUID, session *store.Session, seq uint64) (store.Fence, error)
	Existing(ctx context.Context, ids []uuid.UUID, known map[uuid.UUID]bool) error

	// The recorder.
	Insert(ctx context.Context, fence store.Fence, mark store.Mark, records []store.Record) (allNew bool, err error)
	Update(ctx context.Context, fence store.Fence, mark store.Mark, records []store.Record) (busy, again []uuid.UUID, err error)

	Tell(ctx context.Context, fence store.Fence, c store.Consequence) (rest []store.Consequence, err error)
	Owe(ctx context.Context, fence store.Fence, from time.Time) (noted time.Time, err error)

	// The retrier.
	Now(ctx context.Context) (time.Time, error)
	NewlyDue(ctx context.Context, since time.Time) (endpoints []uuid.UUID, now time.Time, all bool, err error)
	Waiting(ctx context.Context, after uuid.UUID, limit int) ([]store.Waiting, error)
	Due(ctx context.Context, pages []store.Page, take func(*store.Due)) error
	CancelRows(ctx context.Context, fence store.Fence, endpoint uuid.UUID, reason string) (cancelled int, more bool, err error)
	CancelStrangers(ctx context.Context, fence store.Fence, ids []uuid.UUID) error
	CancelOrphans(ctx context.Context, fence store.Fence, ids []uuid.UUID) error

	// The directory.
	Endpoints(ctx context.Context, ids []uuid.UUID) ([]store.Endpoint, error)

	// The reconciler, beside Now.
	Missing(ctx context.Context, from store.Position, until uuid.UUID, limit int) (store.Compared, error)
	InsertMissing(ctx context.Context, fence store.Fence, records []store.Record) (inserted int, err error)
	AnyMissing(ctx context.Context, after, until time.Time) (bool, error)
	InsertLSN(ctx context.Context) (pglogrepl.LSN, error)
	Mark(ctx context.Context, fence store.Fence, mark store.Mark) error
	Reconciled(ctx context.Context, fence store.Fence) (since time.Time, err error)
	Settled(ctx context.Context, fence store.Fence) (bool, error)
}
