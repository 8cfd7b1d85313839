package faults

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// droppedSlot takes the slot away under load.
func droppedSlot(t *testing.T, s Setup) {
	const before, atMost = 4 * time.Second, 30 * time.Second
	x := newTrial(t, s)
	x.start()
	x.ready()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	x.load.Go(func() { x.driver.drive(ctx, Load{Rate: *rate}) })
	<-time.After(before)
	x.monitor.pause(true) // the new slot's position is beyond what has rows
	x.eventually(10*time.Second, "the slot is dropped", func() bool {
		_, err := x.pool.Exec(t.Context(), `SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots WHERE slot_name = $1`, slotName)
		if err == nil {
			_, err = x.pool.Exec(t.Context(), `SELECT pg_drop_replication_slot($1)`, slotName)
		}
		return err == nil
	})
	x.crashes++
	took := x.resynchronised(time.Now(), atMost)
	<-time.After(before)
	cancel()
	x.finish(time.Minute, fmt.Sprintf("resync=%s", took.Round(time.Millisecond)))
}

// resynchronised waits until all that was committed until a second from now has
// its rows, and the slot means something again.
func (x *Trial) resynchronised(began time.Time, atMost time.Duration) time.Duration {
	x.Helper()
	<-time.After(time.Second)
	owing := x.journal.committed()
	x.eventually(2*atMost, "everything that was committed before has its rows", func() bool { return x.allHaveRows(owing) })
	took := time.Since(began)
	x.expect(took <= atMost, "resynchronised after %s", took)
	x.monitor.pause(false)
	return took
}
