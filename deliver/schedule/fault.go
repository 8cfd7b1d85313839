package schedule

import (
	"cmp"
	"container/list"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
)

// Faults of ours say nothing about an endpoint. A lane that meets one is shut: what is
// owed waits in the table, and no attempt is counted. Its breaker and its endpoint's
// health stay as they are.

const (
	// A shut lane tries again after faultFirst, then after twice as long each time, up to
	// faultMax: a lane notices so late that a fault has ended.
	faultFirst = time.Second
	faultMax   = 5 * time.Second

	// heldFrom is how many lanes a fault must shut, with nothing sent meanwhile, to hold
	// all lanes. Fewer may be their endpoints' affair: a proxy's rules refuse hosts, and
	// ports run out towards one address.
	heldFrom = 3

	// heldEvery is the time between two attempts while all lanes are held. So ten
	// thousand endpoints do not storm a proxy that is away.
	heldEvery = time.Second
)

// A fault is why a lane is shut. The zero fault is none.
type fault struct {
	kind  webhook.OwnFault
	text  string
	since time.Time     // an attempt met it last
	tries int           // attempts that did
	next  time.Time     // no attempt before
	at    *list.Element // in Scheduler.faults
}

func (f *fault) shut() bool { return f.kind != "" }

// may returns how many attempts may be under way at once. Only a look-up tells that a
// secret can be opened again.
func (f *fault) may(now time.Time) int {
	switch {
	case !f.shut():
		return math.MaxInt
	case f.kind == webhook.FaultSecret, now.Before(f.next):
		return 0
	default:
		return 1
	}
}

// again returns when to look at a shut lane again.
func (f *fault) again(now time.Time) time.Time {
	switch {
	case f.kind == webhook.FaultSecret:
		return now.Add(staleAfter)
	case now.Before(f.next):
		return f.next
	default:
		return now.Add(holdAgain)
	}
}

// A faultOf is what is known of one kind.
type faultOf struct {
	lanes list.List // that it has shut
	since time.Time // the first of them was
	ended time.Time // attempts from before say nothing new
}

// shut shuts a lane, or notes that it stays shut.
func (s *Scheduler) shut(l *lane, kind webhook.OwnFault, text string, now time.Time) {
	if l.fault.kind != kind {
		s.unshut(l)
		of := s.faults[kind]
		if of.lanes.Len() == 0 {
			of.since = now
		}
		l.fault = fault{kind: kind, at: of.lanes.PushBack(l)}
	}
	l.fault.text = text
	s.counts.ownFault(kind)
	s.holdBack(l, now)
}

// unshut has a lane go on.
func (s *Scheduler) unshut(l *lane) {
	if l.fault.shut() {
		s.faults[l.fault.kind].lanes.Remove(l.fault.at)
		l.fault = fault{}
		s.touch(l)
	}
}

// met takes an attempt that met a fault. One that began before the lane was shut, or
// before the fault ended, says nothing new.
func (s *Scheduler) met(l *lane, a *webhook.Attempt, now time.Time) {
	begun := a.EndedAt.Add(-a.Duration)
	if begun.Before(l.fault.since) || begun.Before(s.faults[a.OwnFault].ended) || l.fault.kind == webhook.FaultSecret {
		s.counts.ownFault(a.OwnFault)
		return
	}
	if !l.fault.shut() {
		if s.shutInRow == 0 {
			s.shutSince = now
		}
		s.shutInRow++
	}
	tries := l.fault.tries
	s.shut(l, a.OwnFault, a.Error, now)
	f := &l.fault
	f.since, f.tries = now, tries+1
	f.next = now.Add(lengthen(min(faultFirst<<min(tries, 10), faultMax), s.jitter()))
}

// worked takes an attempt that met none. The lanes that the same fault has shut go on
// with this one.
func (s *Scheduler) worked(l *lane, a *webhook.Attempt, now time.Time) {
	if s.shutInRow == 0 && !l.fault.shut() {
		return
	}
	begun := a.EndedAt.Add(-a.Duration)
	if !begun.Before(s.shutSince) {
		s.shutInRow = 0
	}
	if l.fault.tries == 0 || begun.Before(l.fault.since) {
		return
	}
	of := s.faults[l.fault.kind]
	of.ended = now
	for front := of.lanes.Front(); front != nil; front = of.lanes.Front() {
		s.unshut(front.Value.(*lane))
	}
}

// allHeld reports whether a fault lets nothing through.
func (s *Scheduler) allHeld() bool { return s.shutInRow >= heldFrom }

// mayTry reports whether an attempt may begin, as far as faults go.
func (s *Scheduler) mayTry(now time.Time) bool { return !s.allHeld() || !now.Before(s.tryNext) }

// tried takes an attempt that has begun.
func (s *Scheduler) tried(now time.Time) {
	if s.allHeld() {
		s.tryNext = now.Add(heldEvery)
	}
}

// MetFault takes back a delivery whose attempt met a fault of ours, and returns the next
// delivery for the same worker, or nil.
func (s *Scheduler) MetFault(d *Delivery, a webhook.Attempt, now time.Time) *Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsent(d, now)
	s.met(d.lane, &a, now)
	return s.next(now)
}

// A Fault keeps deliveries waiting, and is ours.
type Fault struct {
	Kind      webhook.OwnFault
	Since     time.Time
	Endpoints int       // that wait
	Endpoint  uuid.UUID // one of them
	Text      string    // what happened there
}

// Faults returns those that keep deliveries waiting.
func (s *Scheduler) Faults() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ongoing()
}

func (s *Scheduler) ongoing() (faults []Fault) {
	for _, kind := range webhook.OwnFaults {
		of := s.faults[kind]
		if front := of.lanes.Front(); front != nil {
			l := front.Value.(*lane)
			faults = append(faults, Fault{Kind: kind, Since: of.since, Endpoints: of.lanes.Len(), Endpoint: l.id, Text: l.fault.text})
		}
	}
	return faults
}

// Stuck returns the fault for which nothing can be sent, if there is one: it holds all
// lanes, or has shut all that have something to do. It may look at every lane, so a loop
// that is in a hurry does not ask.
func (s *Scheduler) Stuck() (worst Fault, stuck bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	faults := s.ongoing()
	if len(faults) == 0 {
		return Fault{}, false
	}
	worst = slices.MaxFunc(faults, func(a, b Fault) int { return cmp.Compare(a.Endpoints, b.Endpoints) })
	return worst, s.allHeld() || s.allShut(worst.Since)
}

// allShut reports whether no lane does without a fault's end: has something to do and is
// not shut, or was answered since the fault began.
func (s *Scheduler) allShut(since time.Time) bool {
	for _, l := range s.lanes {
		goesOn := l.endpoint != nil && !l.refused && !l.paused && !l.fault.shut()
		if goesOn && (l.held > 0 || l.rows || l.lastAnswer.After(since)) {
			return false
		}
	}
	return true
}
