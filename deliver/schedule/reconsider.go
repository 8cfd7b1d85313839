package schedule

import (
	"time"

	"github.com/walhook/walhook/internal/webhook"
)

// Which lanes wait for what. Only this file puts lanes into lists.

// A listOf is what the lanes of a list wait for.
type listOf int

const (
	toStart          listOf = iota // something may be started
	toStartPermitted               // it was its turn, and others had the permits
	toStartLow                     // only low-priority deliveries wait, and too many are under way
	toFetch                        // rows may be due, and there is room for them
	toLookUpFirst                  // its endpoint has to be looked up for the first time
	toLookUpAgain                  // and again
	toCancel                       // rows wait to be cancelled
	lists
)

// put puts a lane at the end of a list, unless it is there already, or takes it out.
func (s *Scheduler) put(of listOf, l *lane, in bool) {
	at := &l.in[of]
	switch {
	case in && *at == nil:
		*at = s.lists[of].PushBack(l)
	case !in && *at != nil:
		s.lists[of].Remove(*at)
		*at = nil
	}
}

// takeFirst takes the lane that has waited longest out of a list. It returns nil if the
// list is empty.
func (s *Scheduler) takeFirst(of listOf) *lane {
	front := s.lists[of].Front()
	if front == nil {
		return nil
	}
	l := front.Value.(*lane)
	s.put(of, l, false)
	return l
}

// touch has a lane reconsidered before the next lane is taken from any list. Whoever
// changes a lane touches it.
func (s *Scheduler) touch(l *lane) {
	if !l.touched {
		l.touched = true
		s.touched = append(s.touched, l)
	}
}

// reconsiderTouched reconsiders the touched lanes.
func (s *Scheduler) reconsiderTouched(now time.Time) {
	for i := 0; i < len(s.touched); i++ { // which may touch others
		l := s.touched[i]
		l.touched = false
		s.reconsider(l, now)
	}
	clear(s.touched)
	s.touched = s.touched[:0]
}

// reconsider puts a lane into the lists that its facts ask for, takes it out of the
// others, and sets its timer. It is idempotent and looks at nothing but facts.
func (s *Scheduler) reconsider(l *lane, now time.Time) {
	l.trim()
	want, again := s.wants(l, now)
	for of := range lists {
		isNew := want[of] && l.in[of] == nil
		s.put(of, l, want[of])
		switch {
		case isNew && (of == toLookUpFirst || of == toLookUpAgain):
			s.ToLookUp.Raise()
		case isNew && (of == toFetch || of == toCancel):
			s.ToFetch.Raise()
		}
	}
	if !again.IsZero() {
		s.touchBy(l, again)
	}
}

// wants returns the lists that a lane's facts ask for, and when time may change that.
func (s *Scheduler) wants(l *lane, now time.Time) (want [lists]bool, again time.Time) {
	var next earliest
	lookUp := l.ask
	if !l.empty() && !l.gone {
		switch {
		case l.running >= l.may(now):
			next.by(now.Add(holdAgain)) // its limits may be raised
		case l.choose(s.lowMay(l)) == nil:
			want[toStartLow] = true
			next.by(now.Add(holdAgain)) // a lane that is woken for a share may not use it
		default:
			lookUp = lookUp || l.stale(now)
			want[toStart] = l.fresh(now)
			if at := l.nextToken(now); want[toStart] && !l.refused && at.After(now) {
				want[toStart] = false
				next.by(at)
				next.by(now.Add(holdAgain))
			}
		}
	}
	if l.rows && !l.paging {
		want[toFetch] = s.page(l, s.limits.rowsShare()-s.fetched, now) > 0
		// Where nothing may be fetched, the endpoint's limits may have been raised.
		lookUp = lookUp || !want[toFetch] && l.stale(now) && (l.paused || l.fault.kind == webhook.FaultSecret || !l.onlyProbes(now))
		switch {
		case want[toFetch]:
		case l.paused:
			next.by(now.Add(pausedAgain))
		case l.fault.shut():
			next.by(l.fault.again(now))
		case l.breaker.holds(now) && now.Before(l.breaker.next):
			next.by(l.breaker.next)
		default:
			next.by(now.Add(holdAgain))
		}
	}
	if l.running > 0 && l.proven {
		next.by(l.lastAnswer.Add(answerWithin))
	}
	want[toLookUpFirst] = lookUp && !l.asked && l.asOf.IsZero()
	want[toLookUpAgain] = lookUp && !l.asked && !l.asOf.IsZero()
	want[toCancel] = l.toBeCancelled && !l.cancelling
	return want, next.at
}

// listed reports whether a lane is in a list, or a look-up, page or sweep of it is
// under way.
func (l *lane) listed() bool {
	for _, at := range l.in {
		if at != nil {
			return true
		}
	}
	return l.touched || l.asked || l.cancelling || l.paging
}

// An earliest is the first of several times; zero if there was none.
type earliest struct{ at time.Time }

func (e *earliest) by(at time.Time) {
	if e.at.IsZero() || at.Before(e.at) {
		e.at = at
	}
}
