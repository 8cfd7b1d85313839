package schedule

import (
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/outbox"
)

// An Admission takes in one event: a delivery for each endpoint that is owed it, as far
// as there is room.
type Admission struct {
	scheduler *Scheduler
	event     *event
	endpoints []uuid.UUID // that are still to come
	admitted  int
	known     map[uuid.UUID]bool
	received  time.Time
	patience  time.Time // until then a delivery may wait for room, and not be parked
}

// NewAdmission begins to take in an event of the open transaction, which was committed at a
// time by PostgreSQL's clock. Deliveries in known are skipped. Admitted ones are added to known, unless that is nil: if they come again,
// they are in memory or have their row.
func (s *Scheduler) NewAdmission(e *outbox.Event, committed time.Time, known map[uuid.UUID]bool, received time.Time) *Admission {
	a := &Admission{scheduler: s, event: newEvent(e), endpoints: e.EndpointIDs, known: known, received: received,
		patience: received.Add(s.limits.ParkAfter)}
	a.event.committed = committed
	a.event.pinned = true // the first user may be done before the last has room
	return a
}

// Admit admits what there is room for and reports whether that is everything. If not, call
// it again after RoomFreed or ParkEvery. A stopped Scheduler admits nothing and
// confirms nothing from here on: the event will come again.
func (a *Admission) Admit(now time.Time) bool {
	s := a.scheduler
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(a.endpoints) > 0 {
		if a.admitted == s.limits.laneQueue() { // of one event as much goes direct as for one endpoint, where there is room
			a.patience = a.received
		}
		if s.stopping {
			a.giveUp()
			return true
		}
		endpoint := a.endpoints[0]
		id := outbox.DeliveryID(a.event.id, endpoint)
		if !s.adopt(id) && !a.known[id] && !s.admit(a.event, endpoint, id, a.received, a.patience, now) {
			s.dispatch(now)
			s.waiting = true
			return false
		}
		if a.known != nil {
			a.known[id] = true
		}
		a.endpoints = a.endpoints[1:]
		a.admitted++
	}
	a.unpin()
	s.dispatch(now)
	return true
}

// GiveUp ends it early: nothing from here on may be confirmed.
func (a *Admission) GiveUp() {
	a.scheduler.mu.Lock()
	defer a.scheduler.mu.Unlock()
	a.giveUp()
}

func (a *Admission) giveUp() {
	a.scheduler.ledger.current().pending++
	a.unpin()
}

func (a *Admission) unpin() {
	a.event.pinned = false
	a.event.unused()
}

// admit takes in one delivery from the stream, or reports that there is no room yet. A
// lane that is behind parks it at once. Until patience ends, it waits for room in a
// full window, or in a full lane while all other lanes have work.
func (s *Scheduler) admit(e *event, endpoint, id uuid.UUID, received, patience, now time.Time) bool {
	l := s.lane(endpoint, now)
	d := &Delivery{id: id, event: e, lane: l, received: received}
	direct := s.limits.ParkAfter > 0 && !l.spilled
	laneRoom := len(l.first) < s.queueRoom(l, now) && s.bytesFit(l, s.limits.MaxMemory)
	windowRoom := s.held-s.fetched < s.limits.streamShare() && s.fits(e)
	switch {
	case direct && laneRoom && windowRoom:
		s.add(d)
		d.age = s.aging.PushBack(d)
		s.enqueue(d, now)
	case direct && (laneRoom || s.worthWaiting(l, now)) && now.Before(patience):
		s.waitsFor = l
		return false
	case s.parked >= parkedRoom:
		s.waitsFor = l
		return false
	default:
		s.deliveries[id] = d
		s.spill(l, true)
		s.toPark(d)
	}
	d.tx = s.ledger.current()
	d.tx.pending++
	return true
}

// worthWaiting reports whether the stream may wait for room in a lane, so that a
// backlog is read no faster than it is delivered and is written once. The stream does
// not wait for a lane that its own limits hold back. Nor does it wait for a full queue
// while another lane has no work: its events may stand behind.
func (s *Scheduler) worthWaiting(l *lane, now time.Time) bool {
	if l.onlyProbes(now) || l.rate != nil {
		return false
	}
	if len(l.first) < s.limits.laneQueue() {
		return true // the window is about to be full
	}
	for _, other := range s.lanes {
		if other != l && !other.spilled && !other.refused && !other.paused && other.running == 0 && len(other.first) == 0 {
			return false
		}
	}
	return true
}

// fits reports whether there is room for an event's delivery. A body larger than
// MaxMemory passes too, alone.
func (s *Scheduler) fits(e *event) bool {
	size := int64(len(e.body))
	if e.users > 0 {
		size = 0
	}
	return s.held < s.limits.Window && (s.bytes+size <= s.limits.MaxMemory || s.bytes == 0)
}
