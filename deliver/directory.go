package deliver

import (
	"context"
	"log/slog"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/webhook"
)

// directoryPage bounds the endpoints in one look-up, which takes PostgreSQL about 2 ms.
const directoryPage = 500

// A directoryStore has the directory's statements.
type directoryStore interface {
	Endpoints(ctx context.Context, ids []uuid.UUID) ([]webhook.Endpoint, error)
}

// A directory looks up the endpoints that lanes want to send to. It caches nothing:
// a lane uses an answer for staleAfter. So a change in the table is in force within
// a second, even if the stream is far behind or a change hint is lost. Only endpoints
// in use are looked up.
type directory struct {
	scheduler *schedule.Scheduler
	store     directoryStore
	sender    *send.Sender
	heartbeat *heartbeat
	log       *slog.Logger
	lastErr   atomic.Pointer[error] // of the last look-up; nil if it succeeded
	faults    faultLog
	endpoints endpointLog
}

// failing returns why no endpoint can be looked up, or nil.
func (d *directory) failing() error {
	if err := d.lastErr.Load(); err != nil {
		return *err
	}
	return nil
}

func (d *directory) run(ctx context.Context) error {
	tick := time.NewTicker(schedule.DropIdleEvery)
	defer tick.Stop()
	for {
		switch d.heartbeat.wait(ctx, tick.C, d.scheduler.ToLookUp, nil) {
		case stopped:
			return nil
		case timerFired:
			d.scheduler.DropIdle(time.Now())
			d.faults.update(d.scheduler.Faults(), time.Now())
			changes, exhausted := d.scheduler.TakeChanges()
			d.endpoints.update(changes, exhausted, time.Now())
		default:
			d.lookUpPage(ctx)
		}
	}
}

// lookUpPage looks up a page of the endpoints whose lanes ask. With many endpoints in use
// there is always another page, so each is a turn of the loop. A lane without a fresh
// answer sends nothing: while the database is away, an endpoint may have been
// disabled. Nothing is sent either while the clock is off.
func (d *directory) lookUpPage(ctx context.Context) {
	wanted := d.scheduler.TakeLookUps(directoryPage, time.Now())
	if len(wanted) == 0 {
		return
	}
	attempt, cancel := d.heartbeat.statement(ctx)
	asOf := time.Now()
	err := d.lookUp(attempt, wanted)
	cancel()
	d.scheduler.LookedUp(wanted, err != nil, asOf, time.Now())
	d.scheduler.ToLookUp.Raise()
	if err == nil {
		d.lastErr.Store(nil)
		return
	}
	if ctx.Err() != nil {
		return
	}
	if d.lastErr.Swap(&err) == nil {
		d.log.Warn("cannot look up endpoints; nothing new is sent meanwhile; retrying", "error", err)
	}
	d.heartbeat.sleep(ctx, 4*retryPause)
}

func (d *directory) lookUp(ctx context.Context, wanted []schedule.LookUp) error {
	ids := make([]uuid.UUID, len(wanted))
	for i := range wanted {
		ids[i] = wanted[i].EndpointID
	}
	found, err := d.store.Endpoints(ctx, ids)
	if err != nil {
		return err
	}
	byID := make(map[uuid.UUID]*webhook.Endpoint, len(found))
	for i := range found {
		byID[found[i].ID] = &found[i]
	}
	for i := range wanted {
		d.answer(&wanted[i], byID[wanted[i].EndpointID])
	}
	return nil
}

// answer builds a new target if the endpoint has changed since the last look-up.
func (d *directory) answer(x *schedule.LookUp, e *webhook.Endpoint) {
	switch {
	case e == nil:
		x.Target = nil
	case x.Endpoint == nil || !reflect.DeepEqual(x.Endpoint, e):
		x.Target = d.sender.Target(e)
	}
	x.Endpoint = e
}
