package faults

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
)

// lease expects that a walhook leaves alone what the one before it may still be sending: a
// row that was parked during its attempt is not due before the attempt must be over, even
// if the process has died.
func lease(t *testing.T, s Setup) {
	if s.ParkAfter == 0 {
		t.Skip("everything is parked before its first attempt, and not while one runs")
	}
	const events = 5
	x := newTrial(t, s)
	x.receiver.failShare = 0
	active := x.start()
	x.streams(active)
	standby := x.start()
	x.standingBy(standby)
	release := x.hangParked(events)
	over := x.crash(active)
	if err := active.kill(); err != nil {
		t.Fatal(err)
	}
	over()
	release()
	x.holds(standby, 10*time.Second)
	x.drain(time.Minute)
	soonest := x.soonestAgain()
	x.expect(soonest >= timeout, "a delivery was sent again %s after an attempt that may take %s began", soonest, timeout)
	x.finish(time.Minute, fmt.Sprintf("again=%s", soonest.Round(time.Millisecond)))
}

// hangParked starts deliveries that are not answered before the release, and waits until
// each has its pending row.
func (x *Trial) hangParked(n int) (release func()) {
	x.Helper()
	before := x.journal.Count()
	release = x.receiver.hang(0)
	for range n {
		x.insertOnce(1)
	}
	x.eventually(10*time.Second, "every delivery is under way, and parked", func() bool {
		var rows int
		err := x.pool.QueryRow(x.Context(), `SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'`).Scan(&rows)
		return err == nil && rows == n && x.journal.Count() == before+n
	})
	return release
}

// soonestAgain is the shortest time between two requests for one delivery.
func (x *Trial) soonestAgain() time.Duration {
	soonest := time.Hour
	last := map[uuid.UUID]time.Time{}
	_, requests := x.journal.Copy()
	for _, r := range requests {
		if before, again := last[r.Delivery]; again {
			soonest = min(soonest, r.At.Sub(before))
		}
		last[r.Delivery] = r.At
	}
	return soonest
}

// thawed freezes a walhook that waits for answers. They come, and another walhook takes
// over. Thawed, the first has outcomes for rows that are no longer its own.
func thawed(t *testing.T, s Setup) {
	const events = 5
	x := newTrial(t, s)
	x.watchWrites()
	x.receiver.failShare = 0
	zombie := x.start()
	x.streams(zombie)
	standby := x.start()
	x.standingBy(standby)
	answer := x.hangParked(events)
	over := x.crash(zombie)
	if err := zombie.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	answer()
	release := x.receiver.hang(0) // the other's deliveries must not have an outcome yet
	x.holds(standby, 15*time.Second)
	x.claims(standby, 10*time.Second)
	before := x.writtenBy(zombie)
	if err := zombie.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	over()
	written := 0
	x.eventually(15*time.Second, "the zombie stands by, has ended, or has written", func() bool {
		written = x.writtenBy(zombie) - before
		return written > 0 || !zombie.Running() || zombie.logged("starting again as a standby") > 0
	})
	x.expect(written == 0, "the zombie wrote %d rows", written)
	release()
	x.finish(time.Minute, fmt.Sprintf("zombie wrote=%d (%s)", written, zombie.fate()))
}
