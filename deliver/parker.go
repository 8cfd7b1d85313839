package deliver

import (
	"context"
	"time"
)

// parkEvery is how exactly ParkAfter is kept.
const parkEvery = 20 * time.Millisecond

// A parker hands to the recorder what has had no outcome for ParkAfter, so that
// an endpoint that is slow or dead never holds the WAL or the window.
type parker struct {
	window *window
	pulse  *pulse
}

func (p *parker) run(ctx context.Context) error {
	tick := time.NewTicker(parkEvery)
	defer tick.Stop()
	for {
		p.pulse.beat()
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			p.window.mu.Lock()
			p.window.parkOverdue(now)
			p.window.mu.Unlock()
		}
	}
}
