package deliver

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/walhook/walhook/deliver/schedule"
)

// wedgedAfter is how long a loop may go without turning. Every statement and
// every wait in a loop ends sooner, so a loop that is silent for longer is stuck.
const wedgedAfter = 12 * time.Second

// A pulse says that a loop turns, also while it waits.
type heartbeat struct {
	name string
	at   atomic.Int64 // since started, which no step of the clock can change

	// waits, where not nil, waits in place of a select, whose choice among what is
	// ready is nobody's to repeat: the simulation decides by its seed.
	waits func(timer <-chan time.Time, a, b schedule.Signal) wake
}

var started = time.Now()

func newHeartbeat(name string) *heartbeat {
	h := &heartbeat{name: name}
	h.beat()
	return h
}

// A wake is what ended a wait.
type wake int

const (
	stopped      wake = iota // the context ended
	timerFired               // the timer, or the ticker
	firstSignal              // of the two signals
	secondSignal             //
)

// wait beats, and then waits for what comes first; nil never comes. All loops wait here.
func (h *heartbeat) wait(ctx context.Context, timer <-chan time.Time, a, b schedule.Signal) wake {
	h.beat()
	if h.waits != nil {
		return h.waits(timer, a, b)
	}
	select {
	case <-ctx.Done():
		return stopped
	case <-timer:
		return timerFired
	case <-a:
		return firstSignal
	case <-b:
		return secondSignal
	}
}

// sleep waits for a time, and reports whether the context is still alive.
func (h *heartbeat) sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	return h.wait(ctx, timer.C, nil, nil) != stopped
}

func (h *heartbeat) beat() {
	h.at.Store(int64(time.Since(started)))
}

func (h *heartbeat) check(now time.Time) error {
	if silent := now.Sub(started) - time.Duration(h.at.Load()); silent > wedgedAfter {
		return fmt.Errorf("the %s has not turned for %s", h.name, silent.Round(time.Second))
	}
	return nil
}
