package schedule

import (
	"time"
)

// next starts the next delivery and returns it; lanes take turns. It returns nil if
// nothing may start: the slot may be another process's, or all permits are taken, or
// there is no room for another outcome. That room is reserved before the request.
func (s *Scheduler) next(now time.Time) *Delivery {
	for s.reconsiderTouched(now); !s.stopping && s.live(now) && s.mayTry(now) &&
		s.running < s.limits.MaxInFlight && s.running+s.ended < s.limits.MaxInFlight+unrecordedRoom; s.reconsiderTouched(now) {
		l := s.takeFirst(toStart)
		if l == nil {
			return nil
		}
		if d := s.start(l, now); d != nil {
			s.touch(l)
			s.tried(now)
			return d
		}
	}
	return nil
}

// start starts the first delivery of a lane, if the lane's facts still allow it.
func (s *Scheduler) start(l *lane, now time.Time) *Delivery {
	s.demoteSilent(l, now)
	s.reconsider(l, now)
	if l.in[toStart] == nil {
		return nil
	}
	s.put(toStart, l, false)
	if l.running >= s.permitsFor(l) { // a permit that is released, a touch, or time brings it back
		s.put(toStartPermitted, l, true)
		s.touchBy(l, now.Add(holdAgain))
		return nil
	}
	if l.refused {
		s.emptyQueue(l, now)
		return nil
	}
	if l.stale(now) { // also if this is all that waits
		l.ask = true
	}
	s.requeueReassigned(l, now)
	from := l.choose(s.lowMay(l))
	if from == nil {
		s.touch(l)
		return nil
	}
	l.takeToken(now)
	d := l.pop(from)
	d.stage, d.target, d.lease = running, l.target, l.timeout+leaseMargin
	s.acquire(d, now)
	if d.fetched {
		l.prefetched--
	}
	return d
}

// requeueReassigned requeues deliveries from the heads of a lane's queues that the endpoint
// must not get: it belongs to another organization now. The retrier cancels their rows.
func (s *Scheduler) requeueReassigned(l *lane, now time.Time) {
	for _, queue := range []*[]*Delivery{&l.first, &l.low} {
		for len(*queue) > 0 && ((*queue)[0].stage != queued || !l.gets((*queue)[0].event)) {
			d := (*queue)[0]
			(*queue)[0] = nil
			if *queue = (*queue)[1:]; d.stage == queued {
				s.requeue(d, now)
				l.restart()
				s.hasRows(l)
				l.ask = true // if it is the endpoint's again, its rows would come and go until then
			}
		}
	}
}
