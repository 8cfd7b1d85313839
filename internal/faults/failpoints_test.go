package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/sabotage"
)

const (
	// fewEvents is a transaction that owes one delivery: when that is recorded,
	// nothing else is under way.
	fewEvents = 1

	// manyEvents is a transaction that comes in several pieces and is recorded in
	// several batches, so that a death leaves it recorded in part.
	manyEvents = 400

	// mostEvents is one that takes long enough to be recorded for a death by the
	// clock to come in the middle.
	mostEvents = 2000
)

// failpoints has walhook die at moments that a kill by the clock hits once in a
// thousand times, with nothing under way but one transaction. What has its
// outcome by then is never sent again.
func failpoints(t *testing.T, s Setup) {
	s.Binary = breakable(t)
	x := newTrial(t, s)
	x.receiver.failShare = 0
	figures := []string{
		x.dieAt(sabotage.Answered, fewEvents, 1),
		x.dieAt(sabotage.Recorded, fewEvents, 0),
		x.dieAt(sabotage.Recorded, manyEvents, maxInFlight),
		x.dieAtParkedOutcome(),
		x.dieAt(sabotage.Echoed, fewEvents, 0),
		x.dieAt(sabotage.Echoed, manyEvents, maxInFlight),
		x.dieWhileParking(),
		x.dieInTakeover(),
	}
	x.start()
	x.ready()
	x.finish(time.Minute, figures...)
}

// dieAt has a walhook die at a point, and the next one go on.
func (x *Trial) dieAt(point sabotage.Point, events, twice int) string {
	x.Helper()
	p, arm := x.startDying(point)
	d := x.expectDeath(point, events, twice)
	arm()
	x.insertOnce(events)
	x.dies(p, point)
	return x.goesOn(d)
}

// dieAtParkedOutcome has a walhook die when it has recorded the outcome of a
// delivery that was parked before.
func (x *Trial) dieAtParkedOutcome() string {
	x.Helper()
	p, arm := x.startDying(sabotage.Recorded)
	d := x.expectDeath(sabotage.Recorded, fewEvents, 0)
	answer := x.hangParked(fewEvents)
	arm()
	answer()
	x.dies(p, sabotage.Recorded)
	return x.goesOn(d)
}

// dieWhileParking has an endpoint hang, so that what is owed to it is parked.
func (x *Trial) dieWhileParking() string {
	x.Helper()
	p, arm := x.startDying(sabotage.Parking)
	d := x.expectDeath(sabotage.Parking, manyEvents, maxInFlight)
	release := x.receiver.hang(0)
	arm()
	x.insertOnce(manyEvents)
	x.dies(p, sabotage.Parking)
	release()
	return x.goesOn(d)
}

// dieInTakeover has a standby die when it has claimed the slot, in the middle of
// a transaction that was recorded in part.
func (x *Trial) dieInTakeover() string {
	x.Helper()
	active := x.start()
	x.streams(active)
	standby := x.start(breaking(sabotage.Kill(sabotage.TakeOver)))
	x.standingBy(standby)
	d := x.expectDeath(sabotage.TakeOver, mostEvents, maxInFlight)
	x.insertOnce(mostEvents)
	x.eventually(10*time.Second, "a part of it is recorded", func() bool { return len(x.succeeded()) > d.recorded+manyEvents })
	if err := active.kill(); err != nil {
		x.Fatal(err)
	}
	x.crashes++
	x.dies(standby, sabotage.TakeOver)
	return x.goesOn(d)
}

// A death is how things stood before it, and what may come of it.
type death struct {
	point    sabotage.Point
	events   int // in the one transaction under way
	twice    int // requests that come twice: all of them have no outcome; at most, where there are many events
	requests int
	recorded int // deliveries with their outcome
}

func (x *Trial) expectDeath(point sabotage.Point, events, twice int) death {
	x.Helper()
	return death{point: point, events: events, twice: twice, requests: x.journal.count(), recorded: len(x.succeeded())}
}

// startDying starts a walhook that will die at a point, but not before it is armed.
func (x *Trial) startDying(point sabotage.Point) (p *Process, arm func()) {
	x.Helper()
	file := filepath.Join(x.folder, fmt.Sprintf("armed-%d", x.crashes))
	p = x.start(breaking(sabotage.Kill(point)), sabotage.Armed+"="+file)
	x.streams(p)
	return p, func() {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			x.Fatal(err)
		}
	}
}

// streams waits until a process holds the slot, and has nothing left to do.
func (x *Trial) streams(p *Process) {
	x.Helper()
	x.holds(p, 20*time.Second)
	x.drain(20 * time.Second)
}

// insertOnce commits events in one transaction: of a type that only the first
// endpoint wants where it is one, of any where there are more.
func (x *Trial) insertOnce(n int) {
	x.Helper()
	events := x.driver.newEvents(n)
	if n == 1 {
		events[0].Type = "org.created"
	}
	if err := x.driver.copy(x.Context(), events, false); err != nil {
		x.Fatal(err)
	}
}

// dies waits for a process's end.
func (x *Trial) dies(p *Process, point sabotage.Point) {
	x.Helper()
	x.eventually(20*time.Second, p.Name+" dies at "+string(point), func() bool { return !p.running() })
	x.crashes++
}

// goesOn lets a walhook finish what another has begun, and judges what came twice.
func (x *Trial) goesOn(d death) string {
	x.Helper()
	succeeded := x.succeeded()
	recorded := len(succeeded) - d.recorded
	died := x.journal.count()
	next := x.start()
	x.streams(next)
	again := 0
	for _, r := range x.journal.since(died) {
		if succeeded[r.Delivery] {
			again++
		}
	}
	x.expect(again == 0, "at %s %d deliveries had their outcome, and %d requests were sent for them again", d.point, recorded, again)
	seen, twice := map[uuid.UUID]bool{}, 0
	for _, r := range x.journal.since(d.requests) {
		if seen[r.Delivery] {
			twice++
		}
		seen[r.Delivery] = true
	}
	x.expect(twice == d.twice || d.events > 1 && twice < d.twice, "at %s %d of %d deliveries came twice, want %d", d.point, twice, len(seen), d.twice)
	_, err := next.stop(timeout + exitMargin)
	x.expect(err == nil, "%v", err)
	return fmt.Sprintf("%s=%d/%d twice, recorded=%d", d.point, twice, len(seen), recorded)
}

// succeeded are the deliveries whose row is a success.
func (x *Trial) succeeded() map[uuid.UUID]bool {
	x.Helper()
	rows, err := x.pool.Query(x.Context(), `SELECT id FROM webhook_deliveries WHERE status = 'success'`)
	if err != nil {
		x.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		x.Fatal(err)
	}
	found := make(map[uuid.UUID]bool, len(ids))
	for _, id := range ids {
		found[id] = true
	}
	return found
}
