package schedule

import "time"

const (
	// DropIdleEvery and dropIdleChunk pace the search for idle lanes. It looks at a few at a
	// time, so that nobody waits for a walk over all of them.
	DropIdleEvery = 100 * time.Millisecond
	dropIdleChunk = 4000

	// laneMemory is how long an idle lane keeps its parsed endpoint.
	laneMemory = time.Minute

	// maxIdleLanes bounds the idle lanes kept for laneMemory, at about 2 KiB each: 16
	// MiB.
	maxIdleLanes = 8192
)

// DropIdle drops lanes that have been idle for laneMemory, a few at a time. A lane that only
// has rows waiting in the table drops its endpoint.
func (s *Scheduler) DropIdle(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	looked := 0
	for _, l := range s.lanes {
		switch {
		case l.idle() && (now.Sub(l.used) >= laneMemory || len(s.lanes) > maxIdleLanes):
			s.drop(l)
		case l.held == 0 && !l.refused && now.Sub(l.asOf) >= laneMemory:
			l.endpoint, l.target, l.asOf = nil, nil, time.Time{}
		}
		if looked++; looked == dropIdleChunk {
			return
		}
	}
}

// drop removes an idle lane.
func (s *Scheduler) drop(l *lane) {
	if s.lanes[l.id] == l {
		delete(s.lanes, l.id)
	}
	s.changeBreaker(l, func(b *breaker) { *b = breaker{} })
	s.unshut(l)
}
