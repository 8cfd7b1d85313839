package faults

import (
	"fmt"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/oracle"
)

// restoredSnapshot restores the whole disk: the slot is there, on the same timeline.
func restoredSnapshot(t *testing.T, s Setup) { restored(t, s, true) }

// restoredToAPoint recovers to a point in time from a base backup: there is no slot, and
// a new timeline.
func restoredToAPoint(t *testing.T, s Setup) { restored(t, s, false) }

// restored restores the database to a moment ago while walhook runs. Later events are gone.
// walhook has sent them before the restore, because the receivers answer at once, and must
// not send them again. Earlier events whose outcomes are gone are sent again, with the same
// ids.
func restored(t *testing.T, s Setup, snapshot bool) {
	const before, since, resyncAtMost = 4 * time.Second, 3 * time.Second, 30 * time.Second
	x := newTrial(t, s)
	x.receiver.failShare = 0 // or the restored rows would count fewer attempts than the receivers got requests
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	<-time.After(before)
	backup := backUp(t, x.server, snapshot)
	<-time.After(since)
	x.monitor.pause(true)
	stop()
	x.load.Wait()
	over := x.crash(nil)
	if err := x.server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := x.server.Restore(backup, !snapshot); err != nil {
		t.Fatal(err)
	}
	if err := x.server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	over()
	began := time.Now()
	sent := x.journal.Count()
	x.eventually(20*time.Second, "the database is a primary", func() bool {
		var recovery bool
		err := x.pool.QueryRow(t.Context(), `SELECT pg_is_in_recovery()`).Scan(&recovery)
		return err == nil && !recovery
	})
	undone := x.goneWith(oracle.Committed, oracle.Unknown)
	x.expect(undone > 0, "nothing was undone")
	stop = x.driveOn(Load{Rate: *rate})
	defer stop()
	x.monitor.forget()
	took := x.resynchronised(began, resyncAtMost)
	<-time.After(before)
	stop()
	x.expect(p.Running(), "%s has ended: %v", p.Name, p.Err)
	x.drain(time.Minute)
	again := x.sentUndone(sent)
	x.expect(again == 0, "%d requests were sent for lost events after the restore", again)
	x.finish(time.Minute, fmt.Sprintf("resync=%s undone=%d, sent afterwards=%d", took.Round(time.Millisecond), undone, again))
}

// sentUndone counts the requests from the n-th on for lost events.
func (x *Trial) sentUndone(n int) (requests int) {
	events, all := x.journal.Copy()
	undone := map[string]bool{}
	for _, e := range events {
		undone[e.ID.String()] = e.Fate == oracle.Undone
	}
	for _, r := range all[n:] {
		if undone[r.Event.String()] {
			requests++
		}
	}
	return requests
}
