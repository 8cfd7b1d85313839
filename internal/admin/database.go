package admin

import (
	"context"

	"github.com/google/uuid"

	"github.com/walhook/walhook/outbox"
)

// A gate lets one through at a time: however many ask, the admin server takes
// one connection of the pool for what it shows and one for /readyz, and leaves
// the others to deliveries.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

func (g gate) enter(ctx context.Context) error {
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g gate) leave() { <-g }

// A database is the Store behind a gate.
type database struct {
	store *outbox.Store
	turn  gate
}

func (d *database) overview(ctx context.Context) (outbox.Overview, error) {
	if err := d.turn.enter(ctx); err != nil {
		return outbox.Overview{}, err
	}
	defer d.turn.leave()
	return d.store.Overview(ctx)
}

func (d *database) sendTest(ctx context.Context, w outbox.TestWebhook) (event uuid.UUID, deliveries []uuid.UUID, err error) {
	if err := d.turn.enter(ctx); err != nil {
		return uuid.Nil, nil, err
	}
	defer d.turn.leave()
	return d.store.SendTest(ctx, w)
}
