package deliver

import (
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/store/storetest"
	"github.com/walhook/walhook/outbox"
)

// A database is PostgreSQL as far as walhook relies on it: storetest's database with a
// slot, a standby and faults.
type database struct {
	*storetest.Memory
	s           *simulation
	replicated  pglogrepl.LSN // survives a crash; the walsender sends no more
	slot        *slot         // nil: there is none
	incarnation int           // counts outages and lost commits: statements under way fail
	away        time.Time     // until then all statements fail
	pids        uint32
}

func newDatabase(s *simulation) *database {
	db := &database{s: s}
	db.Memory = storetest.NewMemory(storetest.Config{FirstLSN: 1000, NewID: s.id, Slot: db.inUse,
		Length: func() pglogrepl.LSN { return pglogrepl.LSN(1 + s.rng.IntN(100)) }})
	return db
}

// inUse returns the session that holds the slot, if any, and the slot's position.
func (db *database) inUse() (pid uint32, confirmed pglogrepl.LSN) {
	if db.slot == nil || db.slot.connection == nil {
		return 0, 0
	}
	return db.slot.connection.session.PID, db.slot.confirmed
}

type slot struct {
	confirmed  pglogrepl.LSN
	saved      pglogrepl.LSN // on disk: the position after a crash
	made       pglogrepl.LSN
	moved      pglogrepl.LSN // somebody else moved it to here: earlier events may lack rows for a while
	checked    pglogrepl.LSN // up to here all deliveries are known to have rows
	connection *connection   // nil: not in use
}

func (db *database) hasFallenSince(incarnation int) bool {
	return db.incarnation != incarnation || time.Now().Before(db.away)
}

// fail ends all sessions.
func (db *database) fail(away time.Duration) {
	db.incarnation++
	db.away = time.Now().Add(away)
	if db.slot != nil {
		db.slot.connection = nil
	}
	db.ShowAll()
}

// fallBack loses commits that were not replicated. A standby that takes over begins a
// new timeline; a restored snapshot does not.
func (db *database) fallBack(newTimeline bool) {
	lost := db.FallBack(db.replicated)
	for _, c := range lost {
		for _, r := range c.Rows {
			db.s.journal.lost(r.ID)
		}
		for _, e := range c.Endpoints { // the fall back may have paused or sealed it, or undone that
			if now := db.Endpoint(e.ID); now != nil {
				db.s.journal.stands(now)
				db.s.journal.belongs(now)
			}
		}
	}
	if newTimeline {
		db.Timeline++
	}
	if db.slot != nil {
		if db.slot.made > db.replicated {
			db.slot = nil
		} else {
			db.slot.confirmed = min(db.slot.saved, db.replicated)
			db.slot.checked = min(db.slot.checked, db.slot.confirmed)
		}
	}
	db.s.note("fell back to %d: %d commits lost, timeline %d", db.replicated, len(lost), db.Timeline)
}

// confirm moves the slot. The stream does not bring earlier events again, so all of
// them must have rows that survive a crash.
func (db *database) confirm(lsn pglogrepl.LSN) {
	if lsn <= db.slot.confirmed {
		return
	}
	db.slot.confirmed = lsn
	if lsn > db.replicated {
		db.s.violate("confirmed %d, beyond %d that was sent", lsn, db.replicated)
	}
	for _, c := range db.WAL {
		if c.End <= max(db.slot.checked, db.slot.made, db.slot.moved) || c.End > lsn {
			continue
		}
		for _, e := range c.Events {
			for _, id := range e.EndpointIDs {
				if erased := db.Erased(id); erased != nil && erased.End <= db.replicated {
					continue
				}
				d := outbox.DeliveryID(e.ID, id)
				if r := db.Rows[d]; (r == nil && !db.hadRow(d) || r != nil && r.First.End > db.replicated) && !db.isNoted(d) {
					db.s.violate("confirmed %d, but delivery %s of an event at %d has no durable row", lsn, d, c.End)
				}
			}
		}
	}
	db.slot.checked = max(db.slot.checked, lsn)
}

// hadRow reports whether a crash would bring back a delivery's row: what has erased it may not
// survive.
func (db *database) hadRow(id uuid.UUID) bool {
	return slices.ContainsFunc(db.WAL, func(c *storetest.Commit) bool {
		return c.End <= db.replicated && slices.ContainsFunc(c.Rows, func(r *storetest.Row) bool { return r.ID == id })
	})
}

// isNoted reports whether the next process will compare from before a delivery whose row
// is refused.
func (db *database) isNoted(id uuid.UUID) bool {
	_, refused := db.Refused[id]
	return refused && !db.State.ReconcileFrom.IsZero() && db.State.ReconcileFrom.Before(outbox.IDTime(id))
}

// serve is PostgreSQL's own background work.
func (db *database) serve() {
	s := db.s
	s.spawn("replication", nil, func() {
		for {
			s.await(func() bool { return db.replicated < db.End() })
			if s.chance(s.faultRates.lag) {
				s.pass(s.within(300 * time.Millisecond))
			}
			for _, c := range db.WAL {
				if c.End > db.replicated && (c.End == db.End() || s.chance(50)) {
					db.replicated = c.End
					break
				}
			}
		}
	})
	s.spawn("visibility", nil, func() {
		invisible := func(c *storetest.Commit) bool { return !c.Visible }
		for {
			s.await(func() bool { return slices.ContainsFunc(db.WAL, invisible) })
			if s.chance(s.faultRates.lag) {
				s.pass(s.within(800 * time.Millisecond))
			}
			if at := slices.IndexFunc(db.WAL, invisible); at >= 0 {
				db.WAL[at].Visible = true
			}
		}
	})
	s.spawn("checkpoints", nil, func() {
		for {
			s.pass(s.within(2 * time.Second))
			if db.slot != nil {
				db.slot.saved = db.slot.confirmed
			}
		}
	})
}

// calm ends all lasting faults.
func (db *database) calm() {
	db.away, db.RefuseConsequences = time.Time{}, time.Time{}
	clear(db.Locked)
	clear(db.Picky)
	for id := range db.Refused {
		db.Refused[id] = time.Time{}
	}
}
