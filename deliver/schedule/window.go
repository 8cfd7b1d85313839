package schedule

import (
	"time"

	"github.com/walhook/walhook/internal/store"
)

// bytesFit says whether a lane may hold more, of what is free of so many bytes
// for all: an eighth, which is 32 of the largest bodies at the beginning.
func (s *Scheduler) bytesFit(l *lane, all int64) bool { return l.bytes < max((all-s.bytes)/8, 1) }

// fetchRoom says whether rows may be fetched.
func (s *Scheduler) fetchRoom() bool {
	return s.held < s.limits.Window && s.fetched < s.limits.rowsShare() && s.bytes < s.limits.MaxMemory/2 && s.aside <= maxAside
}

func (s *Scheduler) add(d *Delivery) {
	s.deliveries[d.id] = d
	s.use(d.event)
	s.held++
}

// remove takes a delivery out of memory.
func (s *Scheduler) remove(d *Delivery) {
	delete(s.deliveries, d.id)
	if s.removed != nil {
		s.removed[d.id] = true
	}
	if d.stage == parked {
		s.parked--
	} else {
		s.held--
	}
	if d.fetched {
		s.fetched--
	}
	if s.starved && s.fetchRoom() {
		s.starved = false
		s.ToFetch.Raise()
	}
	s.room()
}

// room tells the fan-out that there is some, when it is worth waking up for: of
// a full lane's queue, a quarter.
func (s *Scheduler) room() {
	if s.waiting && len(s.waitsFor.first) <= s.limits.laneQueue()*3/4 {
		s.waiting = false
		s.RoomFreed.Raise()
	}
}

// parkOverdue parks what has had no outcome for ParkAfter: what is queued gives
// up its place and its lane goes on from the table; for what is running a row
// is written beside the attempt, with a lease.
func (s *Scheduler) parkOverdue(now time.Time) {
	for s.parked < parkedRoom {
		front := s.aging.Front()
		if front == nil {
			return
		}
		d := front.Value.(*Delivery)
		if now.Sub(d.received) < s.limits.ParkAfter {
			return
		}
		s.stopAging(d)
		switch d.stage {
		case queued:
			s.spill(d.lane, true)
			s.leave(d, now)
			s.held--
			s.toPark(d)
			d.lane.trim()
		case running:
			s.counts.Leased++
			s.enlist(d)
		}
	}
}

// stopAging takes a delivery off the list of those that grow old.
func (s *Scheduler) stopAging(d *Delivery) {
	if d.age != nil {
		s.aging.Remove(d.age)
		d.age = nil
	}
}

// toPark hands a delivery, whose body is released, to the recorder.
func (s *Scheduler) toPark(d *Delivery) {
	d.stage = parked
	s.parked++
	d.lane.parking++
	s.counts.Parked++
	s.enlist(d)
}

// finish takes an attempt's outcome, for the recorder.
func (s *Scheduler) finish(d *Delivery, a store.Attempt, now time.Time) {
	l := d.lane
	s.release(d, &a, now)
	s.stopAging(d)
	s.leave(d, now)
	d.stage = ended
	d.attempt = &a
	s.ended++
	l.ended++
	s.counts.attempt(a)
	s.judge(d, &a, now)
	s.enlist(d)
	s.touch(l)
	s.room()
}

// unsent takes back a delivery whose request may not be sent any more, because
// another process may have the slot: it goes to the table, or stays there.
func (s *Scheduler) unsent(d *Delivery, now time.Time) {
	s.release(d, &store.Attempt{}, now)
	s.releaseLow(d, now)
	s.stopAging(d)
	s.leave(d, now)
	d.lane.restart()
	if d.inTable && !d.enlisted && !d.writing {
		s.remove(d)
		s.hasRows(d.lane)
		return
	}
	s.held--
	s.spill(d.lane, true)
	s.toPark(d)
}

// enlist hands a delivery to the recorder, which looks at its stage only when
// it takes it: a lease that was overtaken by its outcome is never written.
func (s *Scheduler) enlist(d *Delivery) {
	if d.enlisted {
		return
	}
	d.enlisted = true
	switch {
	case d.inTable || d.writing:
		s.existing = append(s.existing, d)
	case d.stage == parked:
		s.toBeParked = append(s.toBeParked, d)
	default:
		s.newRows = append(s.newRows, d)
	}
	if n := s.unwritten(); n == 1 || n == recordBatch {
		s.ToRecord.Raise()
	}
}

// unwritten is how many deliveries wait for the recorder.
func (s *Scheduler) unwritten() int { return len(s.newRows) + len(s.toBeParked) + len(s.existing) }

// dispatch starts what may be started.
func (s *Scheduler) dispatch(now time.Time) {
	for d := s.next(now); d != nil; d = s.next(now) {
		s.onStart(d)
	}
}
