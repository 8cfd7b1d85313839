package deliver

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

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
	window *window
	store  directoryStore
	sender *send.Sender
	pulse  *pulse
	log    *slog.Logger
	failed atomic.Pointer[error] // the last look-up did; nil: it did not
	said   int                   // how many endpoints were said to have secrets that cannot be opened
}

// trouble is why nothing is sent, if so.
func (d *directory) trouble() error {
	if err := d.failed.Load(); err != nil {
		return *err
	}
	d.window.mu.Lock()
	defer d.window.mu.Unlock()
	return d.window.allShut()
}

// allShut is why nothing can be sent to any endpoint that has something to do.
func (w *window) allShut() error {
	if w.shut == 0 {
		return nil
	}
	var why error
	for _, l := range w.lanes {
		switch {
		case l.shut:
			why = fmt.Errorf("the secrets of all endpoints that have something to do cannot be opened; endpoint %s: %s", l.id, l.endpoint.Sealed)
		case l.endpoint != nil && !l.refused:
			return nil
		}
	}
	return why
}

// sayShut says that there are secrets which cannot be opened: once, and again where
// there are ten times as many.
func (d *directory) sayShut() {
	d.window.mu.Lock()
	n := d.window.shut
	var one *store.Endpoint
	for _, l := range d.window.lanes {
		if l.shut && n >= 10*d.said {
			one = l.endpoint
			break
		}
	}
	d.window.mu.Unlock()
	switch {
	case n == 0 && d.said > 0:
		d.log.Info("all signing secrets can be opened again")
		d.said = 0
	case one != nil:
		d.log.Warn("signing secrets cannot be opened: what is owed to these endpoints waits, and no attempt is counted",
			"endpoints", n, "endpoint", one.ID, "error", one.Sealed)
		d.said = n
	}
}

func (d *directory) run(ctx context.Context) error {
	tick := time.NewTicker(forgetEvery)
	defer tick.Stop()
	for {
		switch d.pulse.wait(ctx, tick.C, d.window.toLookUp, nil) {
		case over:
			return nil
		case timed:
			d.window.mu.Lock()
			d.window.forget(time.Now())
			d.window.mu.Unlock()
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
		lanes := d.take()
		if len(lanes) == 0 {
			d.sayShut()
			return
		}
		attempt, cancel := context.WithTimeout(ctx, statementTimeout)
		err := d.lookUp(attempt, lanes)
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
		d.giveBack(lanes)
		if !d.pulse.sleep(ctx, 4*retryPause) {
			return
		}
	}
}

func (d *directory) take() []*lane {
	d.window.mu.Lock()
	defer d.window.mu.Unlock()
	return d.window.lookUpNext(directoryPage)
}

func (d *directory) giveBack(lanes []*lane) {
	d.window.mu.Lock()
	defer d.window.mu.Unlock()
	d.window.wanted = append(d.window.wanted, lanes...)
}

func (d *directory) lookUp(ctx context.Context, lanes []*lane) error {
	ids := make([]uuid.UUID, len(lanes))
	for i, l := range lanes {
		ids[i] = l.id
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
	targets := d.targets(lanes, byID)
	w := d.window
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for i, l := range lanes {
		w.lookedUp(l, byID[l.id], targets[i], asOf, now)
	}
	w.dispatch(now)
	return nil
}

// targets parses what has changed since the last look-up.
func (d *directory) targets(lanes []*lane, byID map[uuid.UUID]*store.Endpoint) []*send.Target {
	targets := make([]*send.Target, len(lanes))
	for i, l := range lanes {
		e := byID[l.id]
		switch {
		case e == nil:
		// Only this goroutine writes a lane's endpoint and target, so it may read them unlocked.
		case l.endpoint != nil && reflect.DeepEqual(l.endpoint, e):
			targets[i] = l.target
		default:
			targets[i] = d.sender.Target(e)
		}
	}
	return targets
}

const (
	// forgetEvery and forgetLook pace the look for idle lanes: a few at a time, so
	// that nobody waits for a walk over all of them.
	forgetEvery = 100 * time.Millisecond
	forgetLook  = 4000

	// laneMemory is how long an idle lane keeps its endpoint's parsed form.
	laneMemory = time.Minute

	// maxIdleLanes bounds the idle lanes that are kept for laneMemory, at about
	// 2 KiB each: 16 MiB.
	maxIdleLanes = 8192
)

// forget drops lanes that have been idle for a while. Those that only have rows
// waiting in the table keep nothing but that.
func (w *window) forget(now time.Time) {
	looked := 0
	for _, l := range w.lanes {
		switch {
		case l.idle() && (now.Sub(l.used) >= laneMemory || len(w.lanes) > maxIdleLanes):
			w.drop(l)
		case l.held == 0 && !l.refused && now.Sub(l.asOf) >= laneMemory:
			l.endpoint, l.target, l.asOf = nil, nil, time.Time{}
		}
		if looked++; looked == forgetLook {
			return
		}
	}
}

// drop forgets a lane that is idle.
func (w *window) drop(l *lane) {
	if w.lanes[l.id] == l {
		delete(w.lanes, l.id)
	}
	w.changeBreaker(l, func(b *breaker) { *b = breaker{} })
	if l.shut {
		l.shut = false
		w.shut--
	}
}
