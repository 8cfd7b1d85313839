package deliver

import (
	"context"
	"time"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/sabotage"
	"github.com/walhook/walhook/internal/store"
)

// workerMemory is how long a worker without work stays: its grown stack makes
// the next attempt cheaper, but after a burst the memory goes back.
const workerMemory = 10 * time.Second

// workers run the attempts: one goroutine per attempt under way, kept for the
// next one. Guarded by the window's mutex.
type workers struct {
	idle int
	work chan *delivery  // handed to an idle worker; has room for every attempt, so that sending never blocks
	run  func(*delivery) // on a new goroutine
}

// dispatch starts what may be started.
func (w *window) dispatch(now time.Time) {
	for d := w.next(now); d != nil; d = w.next(now) {
		if w.workers.idle > 0 {
			w.workers.idle--
			w.workers.work <- d
			continue
		}
		w.workers.run(d)
	}
}

// work makes attempts until there is nothing to do for a while.
func (e *Engine) work(ctx context.Context, d *delivery) {
	for d != nil {
		d = e.attempt(ctx, d)
		if d == nil {
			d = e.rest()
		}
	}
}

// attempt sends one request, hands its outcome to the recorder, and returns
// what to do next.
func (e *Engine) attempt(ctx context.Context, d *delivery) *delivery {
	a, completed := e.send(ctx, send.Request{
		Endpoint:   d.target,
		DeliveryID: d.id,
		EventType:  d.event.typ,
		Retry:      d.attempts,
		Body:       d.event.body,
	})
	sabotage.Reach(sabotage.Answered)
	if completed && e.observe != nil {
		e.observe(d.event.typ, a)
	}
	now := time.Now()
	e.window.mu.Lock()
	defer e.window.mu.Unlock()
	switch {
	case !completed && ctx.Err() != nil: // the process is being killed: the attempt has no outcome
		e.window.vacate(d, &a, now)
		return nil
	case !completed: // nothing of it left this process
		e.window.unsent(d, &a, now)
		return nil
	}
	e.window.finish(d, a, now)
	return e.window.next(now)
}

// rest waits for the next delivery, for workerMemory.
func (e *Engine) rest() *delivery {
	w := e.window
	w.mu.Lock()
	w.workers.idle++
	w.mu.Unlock()
	timer := time.NewTimer(workerMemory)
	defer timer.Stop()
	select {
	case d := <-w.workers.work:
		return d
	case <-timer.C:
	case <-e.stopped:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case d := <-w.workers.work: // it came at the last moment
		return d
	default:
		w.workers.idle--
		return nil
	}
}

// Counts are totals since the start, for metrics.
type Counts struct {
	Events    uint64 // that came by the stream
	Delivered uint64 // attempts that were answered with 2xx
	Errors    map[store.ErrorClass]uint64
	OwnFaults map[OwnFault]uint64 // that kept deliveries waiting
	Recorded  uint64              // outcomes committed
	Parked    uint64              // deliveries written before they had an outcome, without an attempt under way
	Leased    uint64              // and with one
	Fetched   uint64              // rows that were due
	Found     uint64              // rows that the reconciler had to insert
}

// An OwnFault is what keeps walhook from sending that is no fault of the endpoint's:
// no attempt is counted.
type OwnFault string

// secretFault is a secret that cannot be opened: counted at each look-up, which is
// once a second for each endpoint that waits for it.
const secretFault OwnFault = "secret"

// OwnFaults are all of them.
var OwnFaults = []OwnFault{secretFault}

func (c *Counts) ownFault(f OwnFault) {
	if c.OwnFaults == nil {
		c.OwnFaults = map[OwnFault]uint64{}
	}
	c.OwnFaults[f]++
}

func (c *Counts) attempt(a store.Attempt) {
	if send.Judge(a) == send.Delivered {
		c.Delivered++
		return
	}
	if c.Errors == nil {
		c.Errors = map[store.ErrorClass]uint64{}
	}
	c.Errors[a.Class]++
}
