package deliver

import (
	"context"
	"time"

	"github.com/walhook/walhook/deliver/schedule"
)

// A clock does what time alone brings about: it hands to the recorder what has
// had no outcome for ParkAfter, so that an endpoint that is slow or dead never
// holds the WAL or the window; and it lets lanes go on that had to wait for their
// rate, or for their breaker's next probe.
type clock struct {
	scheduler *schedule.Scheduler
	heartbeat *heartbeat
}

func (c *clock) run(ctx context.Context) error {
	timer := time.NewTimer(schedule.ParkEvery)
	defer timer.Stop()
	for {
		if c.heartbeat.wait(ctx, timer.C, c.scheduler.ToPace, nil) == stopped {
			return nil
		}
		timer.Reset(c.scheduler.Tick(time.Now()))
	}
}
