package deliver

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/walhook/walhook/deliver/schedule"
)

// workerIdle is how long an idle worker stays. Its grown stack makes the next attempt
// cheaper; after a burst the memory is freed.
const workerIdle = 10 * time.Second

// workers run the attempts: one goroutine for each attempt under way. An idle one is
// kept for a while and reused.
type workers struct {
	mu   sync.Mutex
	idle int
	work chan *schedule.Delivery  // to an idle worker; has room for MaxInFlight, so that sending never blocks
	run  func(*schedule.Delivery) // runs a new worker, on a goroutine of its own
}

// start hands a delivery to an idle worker, or to a new one.
func (w *workers) start(d *schedule.Delivery) {
	if w.takeIdle() {
		w.work <- d
		return
	}
	w.run(d)
}

// takeIdle reserves an idle worker, and reports whether there was one.
func (w *workers) takeIdle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.idle == 0 {
		return false
	}
	w.idle--
	return true
}

// work makes attempts until none has come for workerIdle.
func (e *Engine) work(ctx context.Context, d *schedule.Delivery) {
	for d != nil {
		d = e.attempt(ctx, d)
		if d == nil {
			d = e.awaitWork()
		}
	}
}

// attempt sends one request, passes its outcome on, and returns the worker's next
// delivery, if there is one.
func (e *Engine) attempt(ctx context.Context, d *schedule.Delivery) *schedule.Delivery {
	r := d.Request()
	a, completed := e.send(ctx, r)
	ours := completed && a.OwnFault != ""
	if completed && !ours && e.observe != nil {
		e.observe(r.EventType, a)
	}
	now := time.Now()
	switch {
	case !completed && errors.Is(context.Cause(ctx), errCut):
		e.cutOff.Add(1)
		e.scheduler.Unsent(d, now)
		return nil
	case !completed && ctx.Err() != nil: // the process is being killed, and nobody waits for the permit
		return nil
	case !completed: // the right to send was lost: no receiver can have acted on it
		e.scheduler.Unsent(d, now)
		return nil
	case ours:
		return e.scheduler.MetFault(d, a, now)
	}
	return e.scheduler.Finish(d, a, now)
}

// awaitWork waits for the next delivery, for at most workerIdle.
func (e *Engine) awaitWork() *schedule.Delivery {
	w := &e.workers
	w.mu.Lock()
	w.idle++
	w.mu.Unlock()
	timer := time.NewTimer(workerIdle)
	defer timer.Stop()
	select {
	case d := <-w.work:
		return d
	case <-timer.C:
	case <-e.stopped:
	}
	if w.takeIdle() {
		return nil // nobody has reserved this worker
	}
	return <-w.work // reserved at the last moment: the delivery is on its way
}
