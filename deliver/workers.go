package deliver

import (
	"context"
	"sync"
	"time"

	"github.com/walhook/walhook/deliver/schedule"
)

// workerIdle is how long a worker without work stays: its grown stack makes
// the next attempt cheaper, but after a burst the memory goes back.
const workerIdle = 10 * time.Second

// workers run the attempts: one goroutine per attempt under way, kept for the
// next one.
type workers struct {
	mu   sync.Mutex
	idle int
	work chan *schedule.Delivery  // handed to an idle worker; has room for every attempt, so that sending never blocks
	run  func(*schedule.Delivery) // on a new goroutine
}

// start hands a delivery to a worker.
func (w *workers) start(d *schedule.Delivery) {
	if w.takeIdle() {
		w.work <- d
		return
	}
	w.run(d)
}

// takeIdle takes a worker out of those that are idle, or reports that there is none.
func (w *workers) takeIdle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.idle == 0 {
		return false
	}
	w.idle--
	return true
}

// work makes attempts until there is nothing to do for a while.
func (e *Engine) work(ctx context.Context, d *schedule.Delivery) {
	for d != nil {
		d = e.attempt(ctx, d)
		if d == nil {
			d = e.awaitWork()
		}
	}
}

// attempt sends one request, hands its outcome to the recorder, and returns
// what to do next.
func (e *Engine) attempt(ctx context.Context, d *schedule.Delivery) *schedule.Delivery {
	r := d.Request()
	a, completed := e.send(ctx, r)
	if completed && e.observe != nil {
		e.observe(r.EventType, a)
	}
	now := time.Now()
	switch {
	case !completed && ctx.Err() != nil: // the process is being killed
		e.scheduler.Abandon(d, now)
		return nil
	case !completed: // nothing of it left this process
		e.scheduler.Unsent(d, now)
		return nil
	}
	return e.scheduler.Finish(d, a, now)
}

// rest waits for the next delivery, for workerIdle.
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
		return nil // nobody has counted on this one
	}
	return <-w.work // it comes at the last moment
}
