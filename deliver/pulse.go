package deliver

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/walhook/walhook/internal/sabotage"
)

// wedgedAfter is how long a loop may go without turning. Every statement and
// every wait in a loop ends sooner, so a loop that is silent for longer is stuck.
const wedgedAfter = 12 * time.Second

// A pulse says that a loop turns, also while it waits.
type pulse struct {
	name string
	at   atomic.Int64 // since started, which no step of the clock can change
}

var started = time.Now()

func newPulse(name string) *pulse {
	p := &pulse{name: name}
	p.beat()
	return p
}

func (p *pulse) beat() {
	sabotage.Turn(p.name)
	p.at.Store(int64(time.Since(started)))
}

func (p *pulse) check(now time.Time) error {
	if silent := now.Sub(started) - time.Duration(p.at.Load()); silent > wedgedAfter {
		return fmt.Errorf("the %s has not turned for %s", p.name, silent.Round(time.Second))
	}
	return nil
}
