package deliver

import (
	"bytes"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

// A database is PostgreSQL as far as walhook relies on it. Everything that was
// committed is in its WAL, and what is in the tables follows from that: a database
// that falls back, after a crash or to a standby, is the replay of what it kept.
type database struct {
	s *simulation
	*tables
	wal         []*commit
	replicated  pglogrepl.LSN // what a crash leaves, and all that the walsender sends
	slot        *slot         // nil: there is none
	timeline    int32
	incarnation int       // how often it fell back or was away: statements under way have failed
	server      time.Time // when it was started
	away        time.Time // no statement works before
	locked      map[uuid.UUID]time.Time
	refused     map[uuid.UUID]time.Time // deliveries whose row is not taken in any form until then
	picky       map[uuid.UUID]time.Time // or not with what the receiver said
	mute        time.Time               // none of walhook's own events is taken before
	moves       int                     // how often rows were moved into other partitions
	moved       map[uuid.UUID]int       // events and deliveries: by which of the moves, the last time
	planned     int                     // after how many of them the statement that runs now was planned
	pids        uint32
	firstLSN    pglogrepl.LSN
}

// A commit is a transaction in the WAL, with the new versions of its rows.
type commit struct {
	end       pglogrepl.LSN
	at        time.Time
	visible   bool // to other sessions
	events    []*outbox.Event
	rows      []*deliveryRow
	endpoints []*endpointRow
	failures  []endpointFailure
	state     *stateRow
	echo      string
}

type deliveryRow struct {
	store.Record
	due   time.Time
	said  bool // by an operator, and not by walhook
	by    *commit
	first *commit
}

func (r *deliveryRow) waits() bool { return r.Status == store.Pending || r.Status == store.Retrying }

type endpointRow struct {
	store.Endpoint
	deleted bool
	own     bool // it gets walhook's own events, too
	by      *commit
}

type endpointFailure struct {
	endpoint uuid.UUID
	failing  bool
	open     bool
}

type stateRow struct {
	epoch         int64
	holder        uuid.UUID
	durable       pglogrepl.LSN
	durableAt     time.Time
	timeline      int32
	reconcileFrom time.Time // zero: not to be reconciled
	updatedAt     time.Time
}

type slot struct {
	confirmed  pglogrepl.LSN
	saved      pglogrepl.LSN // on disk: where it is after a crash
	made       pglogrepl.LSN
	moved      pglogrepl.LSN // by somebody else, to here: what is before may be without a row for a while
	checked    pglogrepl.LSN // up to here everything is known to have its rows
	connection *connection   // nil: not in use
}

// tables are what the WAL up to now comes to.
type tables struct {
	events    []*outbox.Event // by id
	inserted  map[uuid.UUID]*commit
	rows      map[uuid.UUID]*deliveryRow
	order     []*deliveryRow // by id
	endpoints []*endpointRow // in the order that they were made
	failing   map[uuid.UUID]endpointFailure
	state     *stateRow // nil: none yet
}

func newTables() *tables {
	return &tables{inserted: map[uuid.UUID]*commit{}, rows: map[uuid.UUID]*deliveryRow{}, failing: map[uuid.UUID]endpointFailure{}}
}

func newDatabase(s *simulation) *database {
	return &database{s: s, tables: newTables(), timeline: 1, locked: map[uuid.UUID]time.Time{}, refused: map[uuid.UUID]time.Time{}, picky: map[uuid.UUID]time.Time{}, moved: map[uuid.UUID]int{}, firstLSN: 1000}
}

func (t *tables) apply(c *commit) {
	for _, e := range c.events {
		at, _ := slices.BinarySearchFunc(t.events, e.ID, func(o *outbox.Event, id uuid.UUID) int { return compareIDs(o.ID, id) })
		t.events = slices.Insert(t.events, at, e)
		t.inserted[e.ID] = c
	}
	for _, r := range c.rows {
		at, found := slices.BinarySearchFunc(t.order, r.ID, func(o *deliveryRow, id uuid.UUID) int { return compareIDs(o.ID, id) })
		if found {
			t.order[at] = r
		} else {
			t.order = slices.Insert(t.order, at, r)
		}
		t.rows[r.ID] = r
	}
	for _, e := range c.endpoints {
		if at := slices.IndexFunc(t.endpoints, func(o *endpointRow) bool { return o.ID == e.ID }); at >= 0 {
			t.endpoints[at] = e
		} else {
			t.endpoints = append(t.endpoints, e)
		}
	}
	for _, f := range c.failures {
		if f.failing {
			t.failing[f.endpoint] = f
		} else {
			delete(t.failing, f.endpoint)
		}
	}
	if c.state != nil {
		t.state = c.state
	}
}

func (t *tables) endpoint(id uuid.UUID) *endpointRow {
	for _, e := range t.endpoints {
		if e.ID == id && !e.deleted && e.by.visible {
			return e
		}
	}
	return nil
}

func (t *tables) enabled(id uuid.UUID) bool {
	e := t.endpoint(id)
	return e != nil && e.Enabled
}

// owed are the enabled endpoints that want a type, as a trigger in a transaction
// that has also made endpoints would find them.
func (t *tables) owed(organization, typ string, made ...*endpointRow) (ids []uuid.UUID) {
	for _, e := range slices.Concat(t.endpoints, made) {
		mine := e.by == nil || e.by.visible
		if mine && e.Enabled && !e.deleted && e.OrganizationID == organization && (e.own || !outbox.IsOwnType(typ)) {
			ids = append(ids, e.ID)
		}
	}
	return ids
}

// end is where the WAL ends.
func (db *database) end() pglogrepl.LSN {
	if len(db.wal) == 0 {
		return db.firstLSN
	}
	return db.wal[len(db.wal)-1].end
}

// write commits.
func (db *database) write(c *commit) {
	c.end = db.end() + pglogrepl.LSN(1+db.s.rng.IntN(100))
	c.at = time.Now()
	for _, r := range c.rows {
		if r.by = c; r.first == nil {
			r.first = c
		}
	}
	for _, e := range c.endpoints {
		e.by = c
	}
	db.wal = append(db.wal, c)
	db.apply(c)
}

// settled says of a row what the store's SQL says by xmin: every transaction that was
// under way when it was written is visible.
func (db *database) settled(r *deliveryRow) bool {
	for _, c := range db.wal {
		if c.end >= r.by.end {
			return true
		}
		if !c.visible {
			return false
		}
	}
	return true
}

func (db *database) hasFallenSince(incarnation int) bool {
	return db.incarnation != incarnation || time.Now().Before(db.away)
}

// fail is the end of all sessions.
func (db *database) fail(away time.Duration) {
	db.incarnation++
	db.away = time.Now().Add(away)
	if db.slot != nil {
		db.slot.connection = nil
	}
	for _, c := range db.wal {
		c.visible = true
	}
}

// fallBack loses what was not replicated. On a standby that takes over another
// timeline begins; after a restored snapshot, none does.
func (db *database) fallBack(newTimeline bool) {
	kept, lost := db.wal, []*commit(nil)
	for i, c := range db.wal {
		if c.end > db.replicated {
			kept, lost = db.wal[:i:i], db.wal[i:]
			break
		}
	}
	for _, c := range lost {
		for _, r := range c.rows {
			db.s.journal.lost(r.ID)
		}
	}
	db.wal, db.tables = kept, newTables()
	for _, c := range kept {
		db.apply(c)
	}
	for _, c := range lost {
		for _, e := range c.endpoints { // it may be sealed again, or no more
			db.s.journal.sealed(e.ID, db.endpoint(e.ID) != nil && db.endpoint(e.ID).Sealed != "")
		}
	}
	db.locked = map[uuid.UUID]time.Time{}
	db.server = time.Now()
	if newTimeline {
		db.timeline++
	}
	if db.slot != nil {
		if db.slot.made > db.replicated {
			db.slot = nil
		} else {
			db.slot.confirmed = min(db.slot.saved, db.replicated)
			db.slot.checked = min(db.slot.checked, db.slot.confirmed)
		}
	}
	db.s.note("fell back to %d: %d commits lost, timeline %d", db.replicated, len(lost), db.timeline)
}

// confirm moves the slot. Whatever is behind it will not come again, so it must
// have its rows, where a crash leaves them.
func (db *database) confirm(lsn pglogrepl.LSN) {
	if lsn <= db.slot.confirmed {
		return
	}
	db.slot.confirmed = lsn
	if lsn > db.replicated {
		db.s.violate("confirmed %d, beyond %d that was sent", lsn, db.replicated)
	}
	for _, c := range db.wal {
		if c.end <= max(db.slot.checked, db.slot.made, db.slot.moved) || c.end > lsn {
			continue
		}
		for _, e := range c.events {
			for _, id := range e.EndpointIDs {
				d := outbox.DeliveryID(e.ID, id)
				if r := db.rows[d]; (r == nil || r.first.end > db.replicated) && !db.isNoted(d) {
					db.s.violate("confirmed %d, but delivery %s of an event at %d has no durable row", lsn, d, c.end)
				}
			}
		}
	}
	db.slot.checked = max(db.slot.checked, lsn)
}

// isNoted says of a delivery whose row is refused that whoever comes next will compare
// from before it.
func (db *database) isNoted(id uuid.UUID) bool {
	_, refused := db.refused[id]
	return refused && !db.state.reconcileFrom.IsZero() && db.state.reconcileFrom.Before(outbox.IDTime(id))
}

// serve does what PostgreSQL does by itself.
func (db *database) serve() {
	s := db.s
	s.spawn("replication", nil, func() {
		for {
			s.await(func() bool { return db.replicated < db.end() })
			if s.chance(s.weather.lag) {
				s.pass(s.within(300 * time.Millisecond))
			}
			for _, c := range db.wal {
				if c.end > db.replicated && (c.end == db.end() || s.chance(50)) {
					db.replicated = c.end
					break
				}
			}
		}
	})
	s.spawn("visibility", nil, func() {
		invisible := func(c *commit) bool { return !c.visible }
		for {
			s.await(func() bool { return slices.ContainsFunc(db.wal, invisible) })
			if s.chance(s.weather.lag) {
				s.pass(s.within(800 * time.Millisecond))
			}
			if at := slices.IndexFunc(db.wal, invisible); at >= 0 {
				db.wal[at].visible = true
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

// calm ends what was to last longer.
func (db *database) calm() {
	db.away, db.mute = time.Time{}, time.Time{}
	clear(db.locked)
	clear(db.picky)
	for id := range db.refused {
		db.refused[id] = time.Time{}
	}
}

func (db *database) fenced(f store.Fence) bool {
	return db.state == nil || db.state.holder != f.Holder || db.state.epoch != f.Epoch
}

// missed says that a statement sees a row neither where it was nor where it is.
func (db *database) missed(id uuid.UUID) bool { return db.moved[id] > db.planned }

func (db *database) isLocked(id uuid.UUID) bool { return time.Now().Before(db.locked[id]) }

func afterID(id, after uuid.UUID) bool { return bytes.Compare(id[:], after[:]) > 0 }
