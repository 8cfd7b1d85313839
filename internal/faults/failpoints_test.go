package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/failpoint"
)

const (
	// fewEvents is a transaction that owes one delivery: when that is recorded,
	// nothing else is under way.
	fewEvents = 1

	// manyEvents is a transaction that is received and recorded in many pieces, so that a
	// death leaves it recorded in part.
	manyEvents = 2000

	// aPart of its deliveries is recorded before a death in the middle.
	aPart = 400
)

// failpoints makes walhook die at moments that a kill by the clock hits once in a thousand
// times, while a single transaction is under way. A delivery that has its outcome by then
// must never be sent again.
func failpoints(t *testing.T, s Setup) {
	s.Binary = breakable(t)
	x := newTrial(t, s)
	x.receiver.failShare = 0
	figures := []string{
		x.dieAt(failpoint.Answered, fewEvents),
		x.dieAt(failpoint.Recorded, fewEvents),
		x.dieAtParkedOutcome(),
		x.dieAt(failpoint.Echoed, fewEvents),
		x.dieWhileParking(),
		x.dieInTakeover(),
	}
	if s.ParkAfter > 0 {
		figures = append(figures, x.dieInTheMiddle(failpoint.Recorded), x.dieInTheMiddle(failpoint.Echoed))
	} else { // every row is inserted long before its outcome, as pending
		figures = append(figures, x.dieAt(failpoint.Recorded, manyEvents), x.dieAt(failpoint.Echoed, manyEvents), x.dieInTheMiddle(failpoint.Updated))
	}
	x.start()
	x.ready()
	x.finish(time.Minute, figures...)
}

// dieAt makes a walhook die when it first reaches a point, and starts the next one.
func (x *Trial) dieAt(point failpoint.Point, events int) string {
	x.Helper()
	p, arm := x.startDying(point)
	d := x.expectDeath(point)
	arm()
	x.insertOnce(events)
	x.dies(p, point)
	return x.goesOn(d)
}

// dieInTheMiddle makes a walhook die when a part of a transaction is recorded.
func (x *Trial) dieInTheMiddle(point failpoint.Point) string {
	x.Helper()
	p, arm := x.startDying(point)
	d := x.expectDeath(point)
	x.insertOnce(manyEvents)
	x.recordsAPart(d)
	arm()
	x.dies(p, point)
	return x.goesOn(d)
}

// recordsAPart waits until a part of the transaction is recorded.
func (x *Trial) recordsAPart(d death) {
	x.Helper()
	x.eventually(10*time.Second, "a part of it is recorded", func() bool { return len(x.succeeded()) > d.recorded+aPart })
}

// dieAtParkedOutcome makes a walhook die when it has recorded the outcome of a delivery
// that was parked before.
func (x *Trial) dieAtParkedOutcome() string {
	x.Helper()
	p, arm := x.startDying(failpoint.Updated)
	d := x.expectDeath(failpoint.Updated)
	answer := x.hangParked(fewEvents)
	arm()
	answer()
	x.dies(p, failpoint.Updated)
	return x.goesOn(d)
}

// dieWhileParking makes an endpoint hang, so that its deliveries are parked.
func (x *Trial) dieWhileParking() string {
	x.Helper()
	p, arm := x.startDying(failpoint.Parking)
	d := x.expectDeath(failpoint.Parking)
	release := x.receiver.hang(0)
	arm()
	x.insertOnce(manyEvents)
	x.dies(p, failpoint.Parking)
	release()
	return x.goesOn(d)
}

// dieInTakeover makes a standby die when it has claimed the slot, in the middle of a
// transaction that was recorded in part.
func (x *Trial) dieInTakeover() string {
	x.Helper()
	active := x.start()
	x.streams(active)
	standby := x.start(breaking(failpoint.Kill(failpoint.TakeOver)))
	x.standingBy(standby)
	d := x.expectDeath(failpoint.TakeOver)
	x.insertOnce(manyEvents)
	x.recordsAPart(d)
	over := x.crash(active)
	if err := active.kill(); err != nil {
		x.Fatal(err)
	}
	over()
	x.crash(standby)
	x.dies(standby, failpoint.TakeOver)
	return x.goesOn(d)
}

// A death is the state before it.
type death struct {
	point    failpoint.Point
	requests int
	recorded int // deliveries with their outcome
	rows     int // deliveries with a row
}

func (x *Trial) expectDeath(point failpoint.Point) death {
	x.Helper()
	return death{point: point, requests: x.journal.Count(), recorded: len(x.succeeded()), rows: x.rows()}
}

// startDying starts a walhook that dies at a point once it is armed.
func (x *Trial) startDying(point failpoint.Point) (p *Process, arm func()) {
	x.Helper()
	file := filepath.Join(x.folder, fmt.Sprintf("armed-%d", len(x.crashes)))
	p = x.start(breaking(failpoint.Kill(point)), failpoint.Armed+"="+file)
	x.streams(p)
	return p, func() {
		x.crash(p) // until dies
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			x.Fatal(err)
		}
	}
}

// streams waits until a process has claimed the slot and has nothing left to do. Its
// claim's own echo has come too, because the confirmed position is beyond it.
func (x *Trial) streams(p *Process) {
	x.Helper()
	x.holds(p, 20*time.Second)
	x.claims(p, 20*time.Second)
	x.drain(30 * time.Second) // longer than a lease: parked deliveries wait for its end
}

// claims waits until a process has claimed the slot: it holds the slot a moment before
// that, and only then may nobody else write.
func (x *Trial) claims(p *Process, within time.Duration) {
	x.Helper()
	x.eventually(within, p.Name+" has claimed the slot", func() bool { return p.logged("claimed the slot") > 0 })
}

// insertOnce commits events in one transaction: a single one is of a type that only the
// first endpoint wants, several are of any type.
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

// dies waits for the end of a process whose crash was noted, and of its transactions:
// PostgreSQL streams a commit before others can see it.
func (x *Trial) dies(p *Process, point failpoint.Point) {
	x.Helper()
	x.eventually(20*time.Second, p.Name+" dies at "+string(point), func() bool { return !p.Running() })
	x.crashes[len(x.crashes)-1].Until = time.Now()
	x.eventually(20*time.Second, "its connections are gone", func() bool {
		var n int
		err := x.pool.QueryRow(x.Context(), `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, p.Name).Scan(&n)
		return err == nil && n == 0
	})
}

// goesOn lets a walhook finish the work of another, and judges what was sent twice: the
// deliveries that had been sent and had no outcome, and no others.
func (x *Trial) goesOn(d death) string {
	x.Helper()
	succeeded := x.succeeded()
	recorded, rows := len(succeeded)-d.recorded, x.rows()-d.rows
	switch d.point {
	case failpoint.Updated, failpoint.TakeOver:
		x.expect(recorded > 0, "at %s nothing had its outcome", d.point)
	case failpoint.Recorded, failpoint.Echoed: // a new row has an outcome, or was parked first: on a busy machine a single one may be
		x.expect(rows > 0, "at %s no delivery had its row", d.point)
	}
	next := x.start()
	x.streams(next)
	again := 0
	before, seen, twice := map[uuid.UUID]bool{}, map[uuid.UUID]bool{}, 0
	for _, r := range x.journal.Since(d.requests) {
		if r.Agent != next.Name {
			before[r.Delivery] = true
		} else if succeeded[r.Delivery] {
			again++
		}
		if seen[r.Delivery] {
			twice++
		}
		seen[r.Delivery] = true
	}
	x.expect(again == 0, "at %s %d deliveries had their outcome, and %d requests were sent for them again", d.point, recorded, again)
	x.expect(twice == len(before)-recorded, "at %s %d of %d deliveries had been sent, %d had their outcome, and %d came twice", d.point, len(before), len(seen), recorded, twice)
	_, err := next.stop(timeout + exitMargin)
	x.expect(err == nil, "%v", err)
	return fmt.Sprintf("%s: sent=%d of %d recorded=%d of %d rows twice=%d", d.point, len(before), len(seen), recorded, rows, twice)
}

// rows counts the deliveries that have a row.
func (x *Trial) rows() (n int) {
	x.Helper()
	if err := x.pool.QueryRow(x.Context(), `SELECT count(*) FROM webhook_deliveries`).Scan(&n); err != nil {
		x.Fatal(err)
	}
	return n
}

// succeeded returns the deliveries whose row is a success.
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
