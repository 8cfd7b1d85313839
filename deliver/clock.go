package deliver

import (
	"context"
	"time"

	"github.com/walhook/walhook/deliver/schedule"
)

// A clock drives whatever depends on time alone. It hands deliveries without an
// outcome after ParkAfter to the recorder, so that a slow or dead endpoint holds
// neither WAL nor window. And it resumes lanes that waited for their rate limit or
// for their breaker's next probe.
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
