package faults

import (
	"fmt"
	"testing"
	"time"
)

// repeatedEvents kills all of PostgreSQL a moment after everything since a checkpoint is
// recorded. The recovered slot is as old as the checkpoint, and a stream from there would
// bring it all again. None of it would be sent again, because it has its rows, but new
// events would have to wait.
func repeatedEvents(t *testing.T, s Setup) {
	const transactions, atMost = 400, 100
	const counter = "walhook_events_total"
	s.Durable = true
	x := newTrial(t, s)
	x.receiver.failShare = 0
	p := x.start()
	x.streams(p)
	x.exec(`CHECKPOINT`)
	for range transactions {
		x.insertOnce(mostRows)
	}
	x.drain(20 * time.Second)
	before, measured := p.metric(t.Context(), counter)
	x.expect(measured && before >= transactions*mostRows, "%s is %.0f", counter, before)
	over := x.crash(nil)
	if err := x.server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := x.server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	over()
	x.pool.Reset() // its connections are dead
	x.monitor.forget()
	x.insertOnce(1)
	x.drain(20 * time.Second) // until everything repeated is read
	after, _ := p.metric(t.Context(), counter)
	repeated := int(after-before) - 1
	x.expect(repeated >= 0 && repeated <= atMost, "%d of %.0f events came by the stream once more", repeated, before)
	x.finish(time.Minute, fmt.Sprintf("repeated=%d of %.0f", repeated, before))
}
