package schedule

import (
	"slices"
	"time"
)

// Deliveries on their way back into the table, and what becomes of their lane.

// requeueAll empties a lane's queue into the table.
func (s *Scheduler) requeueAll(l *lane, now time.Time) {
	for _, d := range append(l.first, l.low...) {
		if d.stage == queued {
			s.requeue(d, now)
		}
	}
	l.first, l.low = nil, nil
	l.restart()
}

// requeue lets a delivery go that has left its lane's queue, to wait in the table.
func (s *Scheduler) requeue(d *Delivery, now time.Time) {
	s.leave(d, now)
	if d.inTable {
		s.remove(d)
		return
	}
	s.held--
	s.stopAging(d)
	s.toPark(d)
}

// dropPrefetched lets go what waits in a lane's queue and came from the table.
func (s *Scheduler) dropPrefetched(l *lane, now time.Time) {
	prefetched := func(d *Delivery) bool {
		if d.stage != queued || !d.fetched {
			return false
		}
		s.leave(d, now)
		s.remove(d)
		return true
	}
	l.first, l.low = slices.DeleteFunc(l.first, prefetched), slices.DeleteFunc(l.low, prefetched)
	l.restart()
	s.hasRows(l)
}

// holdBack puts back what waits in the lane of an endpoint that gets only probes.
func (s *Scheduler) holdBack(l *lane, now time.Time) {
	s.spill(l, true)
	s.requeueAll(l, now)
	s.hasRows(l)
}

// emptyQueue empties the lane of an endpoint that is disabled or deleted: into
// the table, where the sweep cancels what is there. Not at once: the transaction
// that brought a delivery may not be visible yet, and may have made or enabled
// the endpoint. Once it is enabled again, it begins anew.
func (s *Scheduler) emptyQueue(l *lane, now time.Time) {
	l.rows = false
	s.requeueAll(l, now)
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
