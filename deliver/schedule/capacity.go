package schedule

import (
	"time"

	"github.com/walhook/walhook/internal/webhook"
)

// MaxInFlight permits are shared by all lanes. A hanging endpoint keeps a permit until
// the attempt times out. So endpoints that may hang get few, and some permits are
// reserved for first attempts.

const (
	// answerWithin is how long an endpoint stays proven while attempts are under way
	// and none is answered.
	answerWithin = time.Second

	// An endpoint is unproven until it answers. unprovenPermits bounds its attempts at
	// once; all unproven endpoints together get one in unprovenShare of the permits.
	unprovenPermits = 8
	unprovenShare   = 2
)

// lowInFlight bounds the low-priority attempts (retries and replays) that are under way
// or not recorded yet. A quarter of the permits is reserved for first attempts, so that a
// storm of retries after an outage cannot starve new events. A low-priority attempt keeps its permit
// until it is recorded: a storm goes no faster than the database records it.
func (l Limits) lowInFlight() int { return max(l.MaxInFlight*3/4, 1) }

// unprovenRoom bounds the permits of all unproven endpoints together.
func (l Limits) unprovenRoom() int { return max(l.MaxInFlight/unprovenShare, 1) }

// permitsFor returns how many attempts a lane may have under way, as far as the permits
// of all lanes go. When only an eighth of the permits is left, no lane may have more than are
// left, so that another lane always finds some. The same holds among unproven
// lanes at any time, for each lane and for each organization.
func (s *Scheduler) permitsFor(l *lane) int {
	left := s.limits.MaxInFlight - s.running
	if l.proven {
		if left > s.limits.MaxInFlight/8 {
			return s.limits.MaxInFlight
		}
		return left
	}
	free := s.limits.unprovenRoom() - s.unproven
	if s.unprovenOf[l.organization] >= free {
		return 0
	}
	return min(left, unprovenPermits, free)
}

// countUnproven updates the count of permits that unproven lanes hold. A lane that has
// just lost its proof may hold far more than unprovenPermits. Only that many count:
// the others would not have been available to unproven lanes anyway.
func (s *Scheduler) countUnproven(l *lane) {
	n := 0
	if !l.proven {
		n = min(l.running, unprovenPermits)
	}
	if n == l.unproven {
		return
	}
	s.unproven += n - l.unproven
	if s.unprovenOf[l.organization] += n - l.unproven; s.unprovenOf[l.organization] == 0 {
		delete(s.unprovenOf, l.organization)
	}
	l.unproven = n
}

// setOrganization moves a lane's unproven permits to another organization with it.
func (s *Scheduler) setOrganization(l *lane, organization string) {
	if l.unproven > 0 && organization != l.organization {
		s.unprovenOf[organization] += l.unproven
		if s.unprovenOf[l.organization] -= l.unproven; s.unprovenOf[l.organization] == 0 {
			delete(s.unprovenOf, l.organization)
		}
	}
	l.organization = organization
}

// acquire takes a permit for a delivery's attempt.
func (s *Scheduler) acquire(d *Delivery, now time.Time) {
	d.lane.begun(d.low, now)
	s.running++
	if d.low {
		s.low++
	}
	s.countUnproven(d.lane)
}

// release returns the permit of an attempt that has ended.
func (s *Scheduler) release(d *Delivery, a *webhook.Attempt, now time.Time) {
	l := d.lane
	l.permits.ended(d.low)
	s.running--
	s.countUnproven(l)
	if a.StatusCode != 0 {
		l.lastAnswer = now
		s.setProven(l, true)
	}
	if waits := s.takeFirst(toStartPermitted); waits != nil {
		s.touch(waits)
	}
}

// demoteSilent makes a lane unproven whose endpoint has attempts under way and has not
// answered for answerWithin. Deliveries beyond its smaller limit go back to the table.
func (s *Scheduler) demoteSilent(l *lane, now time.Time) {
	if !l.silent(now) {
		return
	}
	s.setProven(l, false)
	if len(l.first)+len(l.low) > unprovenPermits {
		s.holdBack(l, now)
	}
}

func (s *Scheduler) setProven(l *lane, proven bool) {
	l.proven = proven
	s.countUnproven(l)
}

// lowMay reports whether a lane may start another low-priority attempt. No lane may have more
// of them under way than are left for all.
func (s *Scheduler) lowMay(l *lane) bool {
	return l.lowRunning < s.limits.lowInFlight()-s.low
}

// releaseLow returns the share that a low-priority delivery holds until it is recorded,
// and wakes the lane that has waited longest for one.
func (s *Scheduler) releaseLow(d *Delivery, now time.Time) {
	if !d.low {
		return
	}
	d.low = false
	s.low--
	for range s.lists[toStartLow].Len() {
		if s.low >= s.limits.lowInFlight() {
			return
		}
		l := s.takeFirst(toStartLow)
		if s.reconsider(l, now); l.in[toStart] != nil {
			return
		}
	}
}
