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
type pulse struct {
	name string
	at   atomic.Int64 // since started, which no step of the clock can change

	// waits, where not nil, waits in place of a select, whose choice among what is
	// ready is nobody's to repeat: the simulation decides by its seed.
	waits func(timer <-chan time.Time, a, b schedule.Signal) wake
}

var started = time.Now()

func newPulse(name string) *pulse {
	p := &pulse{name: name}
	p.beat()
	return p
}

// A wake is what ended a wait.
type wake int

const (
	over   wake = iota // the context ended
	timed              // the timer, or the ticker
	first              // of the two signals
	second             //
)

// wait beats, and then waits for what comes first; nil never comes. All loops wait here.
func (p *pulse) wait(ctx context.Context, timer <-chan time.Time, a, b schedule.Signal) wake {
	p.beat()
	if p.waits != nil {
		return p.waits(timer, a, b)
	}
	select {
	case <-ctx.Done():
		return over
	case <-timer:
		return timed
	case <-a:
		return first
	case <-b:
		return second
	}
}

// sleep waits for a time, and reports whether the context is still alive.
func (p *pulse) sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	return p.wait(ctx, timer.C, nil, nil) != over
}

func (p *pulse) beat() {
	p.at.Store(int64(time.Since(started)))
}

func (p *pulse) check(now time.Time) error {
	if silent := now.Sub(started) - time.Duration(p.at.Load()); silent > wedgedAfter {
		return fmt.Errorf("the %s has not turned for %s", p.name, silent.Round(time.Second))
	}
	return nil
}
