package deliver

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/store"
)

// directoryPage bounds one look-up of endpoints: about 2 ms of PostgreSQL's time.
const directoryPage = 500

// A directoryStore is what the directory asks of the database.
type directoryStore interface {
	Endpoints(ctx context.Context, ids []uuid.UUID) ([]store.Endpoint, error)
}

// A directory looks up the endpoints that lanes want to send to. It caches
// nothing itself: a lane relies on what it was told for staleAfter, so that a
// change in the table is in force within a second, however far behind the stream
// is and whatever becomes of a hint. Only endpoints in use cost anything.
type directory struct {
	scheduler *schedule.Scheduler
	store     directoryStore
	sender    *send.Sender
	heartbeat *heartbeat
	log       *slog.Logger
	lastErr   atomic.Pointer[error] // the last look-up did; nil: it did not
	reported  int                   // how many endpoints were said to have secrets that cannot be opened
}

// trouble is why nothing is sent, if so.
func (d *directory) failing() error {
	if err := d.lastErr.Load(); err != nil {
		return *err
	}
	if one := d.scheduler.AllShut(); one != nil {
		return fmt.Errorf("the secrets of all endpoints that have something to do cannot be opened; endpoint %s: %s", one.ID, one.Sealed)
	}
	return nil
}

// reportSealed says that there are secrets which cannot be opened: once, and again where
// there are ten times as many.
func (d *directory) reportSealed() {
	n, one := d.scheduler.Shut()
	switch {
	case n == 0 && d.reported > 0:
		d.log.Info("all signing secrets can be opened again")
		d.reported = 0
	case one != nil && n >= 10*d.reported:
		d.log.Warn("signing secrets cannot be opened: what is owed to these endpoints waits, and no attempt is counted",
			"endpoints", n, "endpoint", one.ID, "error", one.Sealed)
		d.reported = n
	}
}

func (d *directory) run(ctx context.Context) error {
	tick := time.NewTicker(schedule.ForgetEvery)
	defer tick.Stop()
	for {
		switch d.heartbeat.wait(ctx, tick.C, d.scheduler.ToLookUp, nil) {
		case stopped:
			return nil
		case timerFired:
			d.scheduler.Forget(time.Now())
		default:
			d.lookUpAll(ctx)
		}
	}
}

// lookUpAll answers every wanted lane. While the database is away nothing is
// sent to an endpoint that may have been disabled meanwhile, and nothing while
// the clock is off.
func (d *directory) lookUpAll(ctx context.Context) {
	warned := false
	for {
		d.heartbeat.beat()
		wanted := d.scheduler.LookUps(directoryPage, time.Now())
		if len(wanted) == 0 {
			d.reportSealed()
			return
		}
		attempt, cancel := context.WithTimeout(ctx, statementTimeout)
		err := d.lookUp(attempt, wanted)
		cancel()
		if err == nil {
			d.lastErr.Store(nil)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		d.lastErr.Store(&err)
		if !warned {
			warned = true
			d.log.Warn("cannot look up endpoints; nothing new is sent until it works", "error", err)
		}
		d.scheduler.GiveBackLookUps(wanted, time.Now())
		if !d.heartbeat.sleep(ctx, 4*retryPause) {
			return
		}
	}
}

func (d *directory) lookUp(ctx context.Context, wanted []schedule.LookUp) error {
	ids := make([]uuid.UUID, len(wanted))
	for i := range wanted {
		ids[i] = wanted[i].EndpointID
	}
	asOf := time.Now()
	found, err := d.store.Endpoints(ctx, ids)
	if err != nil {
		return err
	}
	byID := make(map[uuid.UUID]*store.Endpoint, len(found))
	for i := range found {
		byID[found[i].ID] = &found[i]
	}
	for i := range wanted {
		d.answer(&wanted[i], byID[wanted[i].EndpointID])
	}
	d.scheduler.LookedUp(wanted, asOf, time.Now())
	return nil
}

// answer parses what has changed since the last look-up.
func (d *directory) answer(x *schedule.LookUp, e *store.Endpoint) {
	switch {
	case e == nil:
		x.Target = nil
	case x.Endpoint == nil || !reflect.DeepEqual(x.Endpoint, e):
		x.Target = d.sender.Target(e)
	}
	x.Endpoint = e
}
