package schedule

import (
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
)

// Deliveries on their way back into the table, and what becomes of their lane.

// requeueAll moves a lane's queue into the table.
func (s *Scheduler) requeueAll(l *lane, now time.Time) {
	for _, d := range append(l.first, l.low...) {
		if d.stage == queued {
			s.requeue(d, now)
		}
	}
	l.first, l.low = nil, nil
	l.restart()
}

// requeue moves a delivery that has left its queue into the table. Without a row it is
// parked; otherwise it only leaves memory.
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

// dropPrefetched drops a lane's queued deliveries that came from the table.
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

// holdBack requeues everything that waits in a lane which gets only probes.
func (s *Scheduler) holdBack(l *lane, now time.Time) {
	s.spill(l, true)
	s.requeueAll(l, now)
	s.hasRows(l)
}

// emptyQueue requeues everything that waits for an endpoint that is disabled or
// deleted. The retrier cancels the rows later, not at once: the transaction that
// brought a delivery may not be visible yet, and may itself have made or enabled the
// endpoint. If the endpoint is enabled again, its lane starts afresh.
func (s *Scheduler) emptyQueue(l *lane, now time.Time) {
	l.rows = false
	s.requeueAll(l, now)
	s.spill(l, false)
	s.changeBreaker(l, func(b *breaker) { *b = breaker{} })
	l.state, l.tell = unknown, false
	s.cancelRows(l)
}

// spill records whether a lane is fed from the table.
func (s *Scheduler) spill(l *lane, spilled bool) {
	if l.spilled != spilled {
		l.spilled = spilled
		s.spilled += oneUp(spilled)
	}
}

// cancelRows has the retrier cancel the rows of a refused lane.
func (s *Scheduler) cancelRows(l *lane) {
	l.toBeCancelled = true
	s.touch(l)
}

// TakeCancellations takes up to n of the disabled and deleted endpoints that have rows to
// cancel, in turn.
func (s *Scheduler) TakeCancellations(n int) []*Cancellation {
	s.mu.Lock()
	defer s.mu.Unlock()
	var cancellations []*Cancellation
	for len(cancellations) < n {
		l := s.takeFirst(toCancel)
		if l == nil {
			break
		}
		l.cancelling = true
		cancellations = append(cancellations, &Cancellation{EndpointID: l.id, Reason: l.refusal(), lane: l})
	}
	return cancellations
}

// A Cancellation is an endpoint with rows to cancel.
type Cancellation struct {
	EndpointID uuid.UUID
	Reason     string // why nothing is sent to it
	lane       *lane
}

// Cancelled takes the end of one chunk of a Cancellation: how many rows it has cancelled,
// and whether there may be more, as there is if the chunk failed.
func (s *Scheduler) Cancelled(x *Cancellation, n int, more bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.finish(webhook.Cancelled, n)
	x.lane.cancelling, x.lane.toBeCancelled = false, more
	s.touch(x.lane)
	s.reconsiderTouched(now)
}
