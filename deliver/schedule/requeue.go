package schedule

import (
	"slices"
	"time"
)

// Deliveries on their way back into the table, and what becomes of their lane.

// putBack empties a lane's queue into the table.
func (s *Scheduler) putBack(l *lane, now time.Time) {
	for _, d := range append(l.first, l.late...) {
		if d.stage == queued {
			s.sendBack(d, now)
		}
	}
	l.first, l.late = nil, nil
	l.restart()
}

// sendBack lets a delivery go that has left its lane's queue, to wait in the table.
func (s *Scheduler) sendBack(d *Delivery, now time.Time) {
	s.leave(d, now)
	if d.inTable {
		s.remove(d)
		return
	}
	s.held--
	s.young(d)
	s.toPark(d)
}

// unstock lets go what waits in a lane's queue and came from the table.
func (s *Scheduler) unstock(l *lane, now time.Time) {
	stocked := func(d *Delivery) bool {
		if d.stage != queued || !d.fetched {
			return false
		}
		s.leave(d, now)
		s.remove(d)
		return true
	}
	l.first, l.late = slices.DeleteFunc(l.first, stocked), slices.DeleteFunc(l.late, stocked)
	l.restart()
	s.hasRows(l)
}

// holdBack puts back what waits in the lane of an endpoint that gets only probes.
func (s *Scheduler) holdBack(l *lane, now time.Time) {
	s.spill(l, true)
	s.putBack(l, now)
	s.hasRows(l)
}

// emptyQueue empties the lane of an endpoint that is disabled or deleted: into
// the table, where the sweep cancels what is there. Not at once: the transaction
// that brought a delivery may not be visible yet, and may have made or enabled
// the endpoint. Once it is enabled again, it begins anew.
func (s *Scheduler) emptyQueue(l *lane, now time.Time) {
	l.rows = false
	s.putBack(l, now)
	s.spill(l, false)
	s.changeBreaker(l, func(b *breaker) { *b = breaker{} })
	l.state = unknown
	s.toSweep(l)
}

// spill says whether a lane is fed from the table.
func (s *Scheduler) spill(l *lane, spilled bool) {
	if l.spilled != spilled {
		l.spilled = spilled
		s.spilled += oneUp(spilled)
	}
}

// toSweep has the retrier cancel the rows of a lane that is refused.
func (s *Scheduler) toSweep(l *lane) {
	l.sweep = true
	s.touch(l)
}
