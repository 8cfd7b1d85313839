package admin

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/store"
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
	store *store.Store
	turn  gate

	last  store.Overview // who has the gate's turn reads and writes it
	until time.Time      // it is shown
}

const (
	// An overview that took longer than slowOverview, because there are millions to be
	// counted, is shown for as many times as long: however often it is asked for, it costs
	// PostgreSQL a twentieth of a core.
	slowOverview  = 200 * time.Millisecond
	overviewTimes = 20
)

func (d *database) overview(ctx context.Context) (store.Overview, error) {
	if err := d.turn.enter(ctx); err != nil {
		return store.Overview{}, err
	}
	defer d.turn.leave()
	begun := time.Now()
	if begun.Before(d.until) {
		return d.last, nil
	}
	o, err := d.store.Overview(ctx)
	if took := time.Since(begun); err == nil && took > slowOverview {
		d.last, d.until = o, begun.Add(overviewTimes*took)
	}
	return o, err
}

func (d *database) sendTest(ctx context.Context, w store.TestWebhook) (event uuid.UUID, deliveries []uuid.UUID, err error) {
	if err := d.turn.enter(ctx); err != nil {
		return uuid.Nil, nil, err
	}
	defer d.turn.leave()
	return d.store.SendTest(ctx, w)
}
