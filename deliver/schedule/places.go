package schedule

import (
	"time"

	"github.com/walhook/walhook/internal/store"
)

// Who may have how many of the MaxInFlight places for attempts under way. A place
// that is taken is not to be had back before the attempt ends, which is Timeout
// where an endpoint hangs. So those that may hang get few, and some are kept.

const (
	// signWithin is how long an endpoint is trusted while attempts are under way and
	// none is answered.
	signWithin = time.Second

	// guestPlaces is how many places a lane may have whose endpoint has not shown
	// that it answers, and guestShare which part of all places these may have together.
	guestPlaces = 8
	guestShare  = 2
)

// lateInFlight bounds the retries and replays that are under way or not recorded
// yet: a quarter of the places is kept for first attempts, so that a storm of
// retries after an outage cannot starve what is new. A late one keeps its place
// until it is recorded: a storm goes no faster than the database takes it, and
// does not fill the room for what is unrecorded.
func (l Limits) lateInFlight() int { return max(l.MaxInFlight*3/4, 1) }

// guestRoom is how many places those may have together that are not trusted.
func (l Limits) guestRoom() int { return max(l.MaxInFlight/guestShare, 1) }

// places is how many attempts a lane may have under way, as far as there are
// places. When no more than an eighth of them is left, no lane may have more than
// that, so that however many are busy another finds some; among the guests no lane
// at any time, and no organization either.
func (s *Scheduler) places(l *lane) int {
	left := s.limits.MaxInFlight - s.running
	if l.trusted {
		if left > s.limits.MaxInFlight/8 {
			return s.limits.MaxInFlight
		}
		return left
	}
	free := s.limits.guestRoom() - s.guests
	if s.guestsOf[l.organization] >= free {
		return 0
	}
	return min(left, guestPlaces, free)
}

// countGuests counts a lane's places among those of guests. One that is no longer
// trusted may have far more under way than a guest gets: that many count, or the
// rest would stand for places that nobody else could have had.
func (s *Scheduler) countGuests(l *lane) {
	n := 0
	if !l.trusted {
		n = min(l.running, guestPlaces)
	}
	if n == l.guests {
		return
	}
	s.guests += n - l.guests
	if s.guestsOf[l.organization] += n - l.guests; s.guestsOf[l.organization] == 0 {
		delete(s.guestsOf, l.organization)
	}
	l.guests = n
}

// acquire gives a delivery's attempt its place.
func (s *Scheduler) acquire(d *Delivery, now time.Time) {
	d.lane.begun(d.late, now)
	s.running++
	if d.late {
		s.late++
	}
	s.countGuests(d.lane)
}

// release takes the place back from an attempt that has ended.
func (s *Scheduler) release(d *Delivery, a *store.Attempt, now time.Time) {
	l := d.lane
	l.gaveBack(d.late)
	s.running--
	s.countGuests(l)
	if a.StatusCode != 0 {
		l.sign = now
		s.trust(l, true)
	}
}

// doubt no longer trusts an endpoint that has attempts under way and has not
// answered for a while. What it cannot be given soon goes back into the table.
func (s *Scheduler) doubt(l *lane, now time.Time) {
	if !l.silent(now) {
		return
	}
	s.trust(l, false)
	if len(l.first)+len(l.late) > guestPlaces {
		s.holdBack(l, now)
	}
}

func (s *Scheduler) trust(l *lane, trusted bool) {
	l.trusted = trusted
	s.countGuests(l)
}

// lateMay says whether one more of a lane's retries and replays may be under way: all
// lanes together have a share of the places, and none may have more than are left.
func (s *Scheduler) lateMay(l *lane) bool {
	return l.lateRunning < s.limits.lateInFlight()-s.late
}

// settled frees the place that a late delivery keeps until it is recorded, for the
// lane that has waited for one longest.
func (s *Scheduler) settled(d *Delivery, now time.Time) {
	if !d.late {
		return
	}
	d.late = false
	s.late--
	for range s.lists[toStartLate].Len() {
		if s.late >= s.limits.lateInFlight() {
			return
		}
		l := s.takeFirst(toStartLate)
		if s.reconsider(l, now); l.in[toStart] != nil {
			return
		}
	}
}
