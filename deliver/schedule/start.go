package schedule

import (
	"time"
)

// next starts the next delivery, lanes in turn, or returns nil where none may
// start: the slot is not certainly ours, or there is no room for the outcome, which
// is reserved before the request.
func (s *Scheduler) next(now time.Time) *Delivery {
	for s.reconsiderTouched(now); !s.stopping && s.live(now) &&
		s.running < s.limits.MaxInFlight && s.running+s.ended < s.limits.MaxInFlight+unrecordedRoom; s.reconsiderTouched(now) {
		l := s.takeFirst(toStart)
		if l == nil {
			return nil
		}
		if d := s.start(l, now); d != nil {
			s.touch(l)
			return d
		}
	}
	return nil
}

// start starts the first delivery of a lane that was in turn, if its facts still say so.
func (s *Scheduler) start(l *lane, now time.Time) *Delivery {
	s.demoteSilent(l, now)
	s.reconsider(l, now)
	if l.in[toStart] == nil {
		return nil
	}
	s.put(toStart, l, false)
	if l.running >= s.permitsFor(l) { // others have them: a touch, or time, brings it back
		s.pause(l, now.Add(holdAgain))
		return nil
	}
	if l.refused {
		s.emptyQueue(l, now)
		return nil
	}
	s.requeueStrangers(l, now)
	from := l.choose(s.lowMay(l))
	if from == nil {
		s.touch(l)
		return nil
	}
	l.takeToken(now)
	d := l.pop(from)
	d.stage, d.target = running, l.target
	s.acquire(d, now)
	if d.fetched {
		l.prefetched--
	}
	return d
}

// requeueStrangers has what stands at the head of a lane's queues and is another
// organization's wait in the table, where it is cancelled: its endpoint was deleted,
// and one that has the same id must not get it.
func (s *Scheduler) requeueStrangers(l *lane, now time.Time) {
	for _, queue := range []*[]*Delivery{&l.first, &l.low} {
		for len(*queue) > 0 && ((*queue)[0].stage != queued || (*queue)[0].event.organization != l.organization) {
			d := (*queue)[0]
			(*queue)[0] = nil
			if *queue = (*queue)[1:]; d.stage == queued {
				s.requeue(d, now)
				l.restart()
				s.hasRows(l)
			}
		}
	}
}
