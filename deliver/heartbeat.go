package deliver

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/walhook/walhook/deliver/schedule"
)

const (
	// wedgedAfter is how long a loop may go without a heartbeat. Every statement and
	// every wait in a loop is shorter, so a loop that is silent for longer is stuck.
	wedgedAfter = 12 * time.Second

	// statementTimeout bounds every statement.
	statementTimeout = 8 * time.Second
)

// A heartbeat shows that a loop makes progress. A loop beats while it waits, too.
type heartbeat struct {
	name string
	at   atomic.Int64 // since started: monotonic, so a step of the clock cannot change it

	// waits, if not nil, replaces the select in wait. A select chooses at random among
	// the channels that are ready; the simulation chooses by its seed.
	waits func(timer <-chan time.Time, a, b schedule.Signal) wake
}

var started = time.Now()

func newHeartbeat(name string) *heartbeat {
	h := &heartbeat{name: name}
	h.beat()
	return h
}

// A wake is the reason why a wait ended.
type wake int

const (
	stopped      wake = iota // the context ended
	timerFired               // the timer, or the ticker
	firstSignal              // the first of the two signals
	secondSignal             // the second one
)

// wait beats, and then waits for whichever comes first. A nil channel never comes.
// The loops wait here, so that the simulation can decide how each wait ends.
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

// sleep waits for d, and reports whether the context is still alive.
func (h *heartbeat) sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	return h.wait(ctx, timer.C, nil, nil) != stopped
}

// statement beats, and returns the context of a statement.
func (h *heartbeat) statement(ctx context.Context) (context.Context, context.CancelFunc) {
	h.beat()
	return context.WithTimeout(ctx, statementTimeout)
}

func (h *heartbeat) beat() {
	h.at.Store(int64(time.Since(started)))
}

func (h *heartbeat) check(now time.Time) error {
	if silent := now.Sub(started) - time.Duration(h.at.Load()); silent > wedgedAfter {
		return fmt.Errorf("the %s has made no progress for %s", h.name, silent.Round(time.Second))
	}
	return nil
}
