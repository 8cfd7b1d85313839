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
)

// tick does what is due and returns when to call it again.
func (s *Scheduler) tick(now time.Time) time.Duration {
	s.parkOverdue(now)
	for len(s.paused) > 0 && !s.paused[0].resume.After(now) {
		l := heap.Pop(&s.paused).(*lane)
		s.demoteSilent(l, now)
		s.touch(l)
	}
	s.dispatch(now)
	if len(s.paused) == 0 {
		return ParkEvery
	}
	return min(max(s.paused[0].resume.Sub(now), paceEvery), ParkEvery)
}

// pause has tick touch a lane at a time, or earlier.
func (s *Scheduler) pause(l *lane, at time.Time) {
	switch {
	case l.resume.IsZero():
		l.resume = at
		heap.Push(&s.paused, l)
	case at.Before(l.resume):
		l.resume = at
		heap.Fix(&s.paused, l.paused)
	default:
		return
	}
	if s.paused[0] == l {
		s.ToPace.Raise()
	}
}

// A pausedLanes is a heap of lanes by resume time.
type pausedLanes []*lane

// Len is heap.Interface's.
func (p pausedLanes) Len() int { return len(p) }

// Less is heap.Interface's.
func (p pausedLanes) Less(i, j int) bool { return p[i].resume.Before(p[j].resume) }

// Swap is heap.Interface's.
func (p pausedLanes) Swap(i, j int) {
	p[i], p[j] = p[j], p[i]
	p[i].paused, p[j].paused = i, j
}

// Push is heap.Interface's.
func (p *pausedLanes) Push(x any) {
	l := x.(*lane)
	l.paused = len(*p)
	*p = append(*p, l)
}

// Pop is heap.Interface's. The lane is no longer paused.
func (p *pausedLanes) Pop() any {
	last := len(*p) - 1
	l := (*p)[last]
	(*p)[last] = nil
	*p = (*p)[:last]
	l.resume = time.Time{}
	return l
}

// Tick does what is due and returns when to call it again.
func (s *Scheduler) Tick(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tick(now)
}
