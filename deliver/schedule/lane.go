package schedule

import (
	"bytes"
	"container/list"
	"time"

	"github.com/google/uuid"
)

const (
	// staleAfter bounds the age of an endpoint's row that attempts may rely on. So a
	// change is in force within a second of its commit.
	staleAfter = time.Second

	// refreshAfter is the age from which a lane in use has its endpoint looked up
	// again, before it becomes too old.
	refreshAfter = 500 * time.Millisecond

	// burstFor bounds the burst of an endpoint with a rate after a lull, as a time at
	// that rate. A tenth of a second makes up for late timers.
	burstFor = 100 * time.Millisecond
)

// A lane is one endpoint's queue and its limits: how many attempts at once, how
// many in a second, and what its breaker lets through. It goes direct, from the
// stream, until it is so far behind that deliveries have to be parked. Then it is
// spilled: what the stream brings is parked at once, and the lane is fed in
// pages from the table, until a page holds all that is left.
//
// Its parts do not know each other. The Scheduler changes them, and touches the lane.
type lane struct {
	id uuid.UUID
	queue
	permits
	known
	prefetch
	health
	fault fault
	ended int       // attempts whose outcome is not committed
	used  time.Time // when it was last asked for

	in      [lists]*list.Element
	touched bool      // to be reconsidered
	touchAt time.Time // in Scheduler.timed until then; zero: it is not
	timedAt int       // where in it
}

// lane returns an endpoint's lane, making it where there is none.
func (s *Scheduler) lane(id uuid.UUID, now time.Time) *lane {
	l := s.lanes[id]
	if l == nil {
		l = &lane{id: id, permits: permits{limit: s.limits.EndpointInFlight}, known: known{timeout: s.limits.Timeout, backoff: s.backoff}}
		s.lanes[id] = l
	}
	l.used = now
	return l
}

// idle reports whether dropping the lane loses only what the table knows.
func (l *lane) idle() bool {
	return l.held == 0 && l.ended == 0 && l.parking == 0 && !l.gone && !l.spilled && !l.rows && !l.toBeCancelled && !l.ask && !l.listed() && l.unreported == nil
}

// may returns how many attempts may be under way at once, by the lane's own limits.
func (l *lane) may(now time.Time) int {
	if l.paused {
		return 0
	}
	return min(l.permits.may(now), l.fault.may(now))
}

// onlyProbes reports whether the lane gets only attempts that find out whether it may go on.
// A paused one gets none: may says so.
func (l *lane) onlyProbes(now time.Time) bool {
	return l.paused || l.fault.shut() || l.breaker.holds(now)
}

// queueRoom returns how many deliveries from the stream the lane may queue: as many as
// it can send within ParkAfter, because the rest would be parked anyway.
func (s *Scheduler) queueRoom(l *lane, now time.Time) int {
	if l.onlyProbes(now) {
		return min(l.may(now)-l.held, 1) // the probe
	}
	// Half of what is free: however many lanes are behind, there is room for one more.
	n := min(s.limits.laneQueue(), (s.limits.streamShare()-(s.held-s.fetched))/2)
	return max(1, l.within(s.limits.ParkAfter, n))
}

func (s *Scheduler) enqueue(d *Delivery, now time.Time) {
	l := d.lane
	d.stage = queued
	l.held++
	l.bytes += d.event.size
	if d.fetched {
		l.prefetched++
	}
	l.push(d)
	s.touch(l)
}

// leave removes a delivery from its lane's counts and releases its body.
func (s *Scheduler) leave(d *Delivery, now time.Time) {
	l := d.lane
	l.held--
	l.bytes -= d.event.size
	if d.fetched && d.stage == queued {
		l.prefetched--
	}
	s.unuse(d.event)
	s.touch(l)
}

// CompareIDs orders ids as PostgreSQL does.
func CompareIDs(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }
