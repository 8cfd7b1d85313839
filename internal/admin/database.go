package admin

import (
	"context"
	"maps"
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

	// Who has the gate's turn reads and writes these.
	shown  kept[store.Overview]
	listed map[string]*kept[endpointList] // by organization; "": those in trouble
}

// endpointsShown bounds a list of endpoints: to count what waits for 25 costs some 30 ms.
const endpointsShown = 25

// An endpointList is what EndpointViews returns.
type endpointList struct {
	endpoints []store.EndpointView
	more      bool
}

const (
	// What took longer than slowRead to read, because there are millions to be counted, is
	// shown for as many times as long: asked for one thing, however often, it costs PostgreSQL a
	// twentieth of a core.
	slowRead   = 200 * time.Millisecond
	shownTimes = 20
)

// A kept remembers what took long to read.
type kept[T any] struct {
	last  T
	until time.Time // it is shown
}

func (k *kept[T]) get(read func() (T, error)) (T, error) {
	if !k.over() {
		return k.last, nil
	}
	begun := time.Now()
	v, err := read()
	if took := time.Since(begun); err == nil && took > slowRead {
		k.last, k.until = v, begun.Add(shownTimes*took)
	}
	return v, err
}

// over reports whether it remembers nothing any more.
func (k *kept[T]) over() bool { return !time.Now().Before(k.until) }

// inTurn runs one read at a time.
func inTurn[T any](ctx context.Context, d *database, f func() (T, error)) (v T, err error) {
	if err := d.turn.enter(ctx); err != nil {
		return v, err
	}
	defer d.turn.leave()
	return f()
}

// changing runs one action at a time. What was kept is read anew, so that it shows what was done.
func changing[T any](ctx context.Context, d *database, f func() (T, error)) (T, error) {
	return inTurn(ctx, d, func() (T, error) {
		d.shown = kept[store.Overview]{}
		clear(d.listed)
		return f()
	})
}

func newDatabase(s *store.Store) *database {
	return &database{store: s, turn: newGate(), listed: map[string]*kept[endpointList]{}}
}

func (d *database) overview(ctx context.Context) (store.Overview, error) {
	return inTurn(ctx, d, func() (store.Overview, error) {
		return d.shown.get(func() (store.Overview, error) { return d.store.Overview(ctx) })
	})
}

func (d *database) endpoints(ctx context.Context, organization string) ([]store.EndpointView, bool, error) {
	l, err := inTurn(ctx, d, func() (endpointList, error) {
		// Reads come one after the other, and each is kept for shownTimes as long: so these are few.
		maps.DeleteFunc(d.listed, func(_ string, k *kept[endpointList]) bool { return k.over() })
		k := d.listed[organization]
		if k == nil {
			k = &kept[endpointList]{}
			d.listed[organization] = k
		}
		return k.get(func() (l endpointList, err error) {
			l.endpoints, l.more, err = d.store.EndpointViews(ctx, organization, endpointsShown)
			return l, err
		})
	})
	return l.endpoints, l.more, err
}

func (d *database) endpoint(ctx context.Context, id uuid.UUID) (*store.EndpointView, error) {
	return inTurn(ctx, d, func() (*store.EndpointView, error) { return d.store.EndpointView(ctx, id) })
}

func (d *database) deliveries(ctx context.Context, f store.DeliveryFilter) (store.DeliveryPage, error) {
	return inTurn(ctx, d, func() (store.DeliveryPage, error) { return d.store.Deliveries(ctx, f) })
}

func (d *database) delivery(ctx context.Context, id uuid.UUID) (*store.DeliveryDetail, error) {
	return inTurn(ctx, d, func() (*store.DeliveryDetail, error) { return d.store.Delivery(ctx, id) })
}

func (d *database) retryNow(ctx context.Context, endpoint uuid.UUID) (int64, error) {
	return changing(ctx, d, func() (int64, error) { return d.store.RetryNow(ctx, endpoint) })
}

func (d *database) replay(ctx context.Context, delivery uuid.UUID) error {
	_, err := changing(ctx, d, func() (struct{}, error) { return struct{}{}, d.store.Replay(ctx, delivery) })
	return err
}

func (d *database) replayFailed(ctx context.Context, endpoint uuid.UUID, since string) (int64, error) {
	return changing(ctx, d, func() (int64, error) { return d.store.ReplayFailed(ctx, endpoint, since) })
}

func (d *database) enable(ctx context.Context, endpoint uuid.UUID) error {
	_, err := changing(ctx, d, func() (struct{}, error) { return struct{}{}, d.store.Enable(ctx, endpoint) })
	return err
}

func (d *database) pause(ctx context.Context, endpoint uuid.UUID) error {
	_, err := changing(ctx, d, func() (struct{}, error) { return struct{}{}, d.store.Pause(ctx, endpoint) })
	return err
}

func (d *database) resume(ctx context.Context, endpoint uuid.UUID) error {
	_, err := changing(ctx, d, func() (struct{}, error) { return struct{}{}, d.store.Resume(ctx, endpoint) })
	return err
}

func (d *database) sendTestTo(ctx context.Context, endpoint uuid.UUID) (uuid.UUID, error) {
	return changing(ctx, d, func() (uuid.UUID, error) { return d.store.SendTestTo(ctx, endpoint) })
}

func (d *database) sendTest(ctx context.Context, w store.TestWebhook) (event uuid.UUID, deliveries []uuid.UUID, err error) {
	if err := d.turn.enter(ctx); err != nil {
		return uuid.Nil, nil, err
	}
	defer d.turn.leave()
	return d.store.SendTest(ctx, w)
}
