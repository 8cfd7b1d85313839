package schedule

import (
	"container/heap"
	"time"
)

const (
	// ParkEvery is the precision of ParkAfter, and the poll interval of loops that wait
	// for something to be recorded.
	ParkEvery = 20 * time.Millisecond

	// paceEvery is the precision of a rate. Lanes that are due within it continue
	// together.
	paceEvery = time.Millisecond

	// holdAgain is the poll interval of a lane that may not start anything. New limits
	// are in force within a second, even if nothing ends meanwhile.
	holdAgain = 250 * time.Millisecond

	// pausedAgain is the poll interval of a paused lane for which rows wait. So it goes
	// on within a second, even if the change hint is lost or late.
	pausedAgain = staleAfter - holdAgain
)

// Tick does what is due and returns when to call it again.
func (s *Scheduler) Tick(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parkOverdue(now)
	for len(s.timed) > 0 && !s.timed[0].touchAt.After(now) {
		l := heap.Pop(&s.timed).(*lane)
		s.demoteSilent(l, now)
		s.touch(l)
	}
	s.dispatch(now)
	if len(s.timed) == 0 {
		return ParkEvery
	}
	return min(max(s.timed[0].touchAt.Sub(now), paceEvery), ParkEvery)
}

// touchBy has tick touch a lane at a time, or earlier.
func (s *Scheduler) touchBy(l *lane, at time.Time) {
	switch {
	case l.touchAt.IsZero():
		l.touchAt = at
		heap.Push(&s.timed, l)
	case at.Before(l.touchAt):
		l.touchAt = at
		heap.Fix(&s.timed, l.timedAt)
	default:
		return
	}
	if s.timed[0] == l {
		s.ToPace.Raise()
	}
}

// A timedLanes is a heap of lanes by the time at which they are touched.
type timedLanes []*lane

// Len is heap.Interface's.
func (p timedLanes) Len() int { return len(p) }

// Less is heap.Interface's.
func (p timedLanes) Less(i, j int) bool { return p[i].touchAt.Before(p[j].touchAt) }

// Swap is heap.Interface's.
func (p timedLanes) Swap(i, j int) {
	p[i], p[j] = p[j], p[i]
	p[i].timedAt, p[j].timedAt = i, j
}

// Push is heap.Interface's.
func (p *timedLanes) Push(x any) {
	l := x.(*lane)
	l.timedAt = len(*p)
	*p = append(*p, l)
}

// Pop is heap.Interface's. The lane no longer has a timer.
func (p *timedLanes) Pop() any {
	last := len(*p) - 1
	l := (*p)[last]
	(*p)[last] = nil
	*p = (*p)[:last]
	l.touchAt = time.Time{}
	return l
}
