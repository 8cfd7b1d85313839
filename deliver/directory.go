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
	pulse     *pulse
	log       *slog.Logger
	failed    atomic.Pointer[error] // the last look-up did; nil: it did not
	said      int                   // how many endpoints were said to have secrets that cannot be opened
}

// trouble is why nothing is sent, if so.
func (d *directory) trouble() error {
	if err := d.failed.Load(); err != nil {
		return *err
	}
	if one := d.scheduler.AllShut(); one != nil {
		return fmt.Errorf("the secrets of all endpoints that have something to do cannot be opened; endpoint %s: %s", one.ID, one.Sealed)
	}
	return nil
}

// sayShut says that there are secrets which cannot be opened: once, and again where
// there are ten times as many.
func (d *directory) sayShut() {
	n, one := d.scheduler.Shut()
	switch {
	case n == 0 && d.said > 0:
		d.log.Info("all signing secrets can be opened again")
		d.said = 0
	case one != nil && n >= 10*d.said:
		d.log.Warn("signing secrets cannot be opened: what is owed to these endpoints waits, and no attempt is counted",
			"endpoints", n, "endpoint", one.ID, "error", one.Sealed)
		d.said = n
	}
}

func (d *directory) run(ctx context.Context) error {
	tick := time.NewTicker(schedule.ForgetEvery)
	defer tick.Stop()
	for {
		switch d.pulse.wait(ctx, tick.C, d.scheduler.ToLookUp, nil) {
		case over:
			return nil
		case timed:
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
	failing := false
	for {
		d.pulse.beat()
		wanted := d.scheduler.LookUps(directoryPage, time.Now())
		if len(wanted) == 0 {
			d.sayShut()
			return
		}
		attempt, cancel := context.WithTimeout(ctx, statementTimeout)
		err := d.lookUp(attempt, wanted)
		cancel()
		if err == nil {
			d.failed.Store(nil)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		d.failed.Store(&err)
		if !failing {
			failing = true
			d.log.Warn("cannot look up endpoints; nothing new is sent until it works", "error", err)
		}
		d.scheduler.GiveBackLookUps(wanted, time.Now())
		if !d.pulse.sleep(ctx, 4*retryPause) {
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
