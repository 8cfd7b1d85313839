package schedule

import (
	"time"

	"github.com/walhook/walhook/internal/webhook"
)

// bytesFit reports whether a lane may hold more bodies: up to an eighth of the free
// bytes. In an empty window that is 32 of the largest bodies.
func (s *Scheduler) bytesFit(l *lane, all int64) bool { return l.bytes < max((all-s.bytes)/8, 1) }

// fetchRoom reports whether rows may be fetched.
func (s *Scheduler) fetchRoom() bool {
	return s.held < s.limits.Window && s.fetched < s.limits.rowsShare() && s.bytes < s.limits.MaxMemory/2 && s.aside <= maxAside
}

func (s *Scheduler) add(d *Delivery) {
	s.deliveries[d.id] = d
	s.use(d.event)
	s.held++
}

// remove removes a delivery from memory.
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

// room wakes the fan-out if it waits for room and there is enough: a quarter of a full
// lane's queue.
func (s *Scheduler) room() {
	if s.waiting && len(s.waitsFor.first) <= s.limits.laneQueue()*3/4 {
		s.waiting = false
		s.RoomFreed.Raise()
	}
}

// parkOverdue parks deliveries that have had no outcome for ParkAfter. A queued
// delivery leaves memory, and its lane continues from the table. For a running one, a
// row with a lease is written beside the attempt.
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

// stopAging removes a delivery from the list of those that parkOverdue looks at.
func (s *Scheduler) stopAging(d *Delivery) {
	if d.age != nil {
		s.aging.Remove(d.age)
		d.age = nil
	}
}

// toPark hands a delivery whose body is released to the recorder.
func (s *Scheduler) toPark(d *Delivery) {
	d.stage = parked
	s.parked++
	d.lane.parking++
	s.counts.Parked++
	s.enlist(d)
}

// finish takes an attempt's outcome and hands it to the recorder.
func (s *Scheduler) finish(d *Delivery, a webhook.Attempt, now time.Time) {
	l := d.lane
	s.release(d, &a, now)
	s.stopAging(d)
	s.leave(d, now)
	d.stage = ended
	d.attempt = &a
	s.ended++
	l.ended++
	s.counts.attempt(d, &a)
	s.worked(l, &a, now)
	s.judge(d, &a, now)
	s.enlist(d)
	s.touch(l)
	s.room()
}

// unsent takes back a delivery whose attempt does not count: its request was not sent,
// because another process may hold the slot, or the end of this one has cut it. It goes to
// the table or stays there. A lease in the table ends with the process.
func (s *Scheduler) unsent(d *Delivery, now time.Time) {
	s.release(d, &webhook.Attempt{}, now)
	s.releaseLow(d, now)
	s.stopAging(d)
	s.leave(d, now)
	d.lane.restart()
	if d.inTable && !d.enlisted && !d.writing && (d.fetched || !s.stopping) {
		s.remove(d)
		s.hasRows(d.lane)
		return
	}
	s.held--
	s.spill(d.lane, true)
	s.toPark(d)
}

// enlist hands a delivery to the recorder. The recorder looks at the stage when it
// takes the delivery, so a lease that its outcome has overtaken is never written.
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

// unwritten returns how many deliveries wait for the recorder.
func (s *Scheduler) unwritten() int { return len(s.newRows) + len(s.toBeParked) + len(s.existing) }

// dispatch starts everything that may start.
func (s *Scheduler) dispatch(now time.Time) {
	for d := s.next(now); d != nil; d = s.next(now) {
		s.onStart(d)
	}
}
