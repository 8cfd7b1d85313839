package schedule

import (
	"cmp"
	"math"
	"time"

	"golang.org/x/time/rate"

	"github.com/google/uuid"
	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/webhook"
)

// lookUpNext takes up to n lanes whose endpoint has to be looked up. Lanes in use come
// first, so that they do not wait behind thousands of new ones.
func (s *Scheduler) lookUpNext(n int, now time.Time) (lanes []*lane) {
	s.reconsiderTouched(now)
	for len(lanes) < n {
		l := s.takeFirst(toLookUpAgain)
		if l == nil {
			l = s.takeFirst(toLookUpFirst)
		}
		if l == nil {
			break
		}
		l.ask, l.asked = false, true
		lanes = append(lanes, l)
	}
	return lanes
}

// lookedUp takes the answer of a look-up. A nil endpoint does not exist.
func (s *Scheduler) lookedUp(l *lane, e *webhook.Endpoint, target *send.Target, asOf, now time.Time) {
	l.asked = false
	s.touch(l)
	if asOf.Before(l.notBefore) {
		l.ask = true
		return
	}
	first, knew := l.asOf.IsZero() && l.state == unknown, l.organization != ""
	refused := e == nil || !e.Enabled
	paused := !refused && e.Paused
	if target == nil { // of one that is deleted only the last look-up tells who it was
		s.noteLookUp(l, knew, e, refused, paused)
	}
	l.endpoint, l.target, l.asOf = e, target, asOf
	if target != nil {
		s.noteLookUp(l, knew, e, refused, paused)
	}
	if !refused {
		s.setOrganization(l, e.OrganizationID)
		s.limit(l, e, now)
		s.retryNow(l, e.RetriedAt, now)
		if first && e.BreakerOpen {
			s.changeBreaker(l, func(b *breaker) { b.trip(now, l.backoff.length()) })
			s.holdBack(l, now)
		}
	}
	switch {
	case !refused && e.Sealed != "":
		s.shut(l, webhook.FaultSecret, e.Sealed, now)
	case refused || l.fault.kind == webhook.FaultSecret:
		s.unshut(l)
	}
	if refused && (!l.refused || !l.empty()) {
		s.emptyQueue(l, now)
	}
	l.refused = refused
	s.setPaused(l, paused, now)
}

// setPaused takes whether an endpoint is paused. What waits in memory goes back into the
// table, where it costs nothing: neither this lane nor a poll reads those rows again
// before the endpoint goes on. An open breaker then begins anew, with a probe, because
// nobody has asked the endpoint meanwhile.
func (s *Scheduler) setPaused(l *lane, paused bool, now time.Time) {
	goesOn := l.paused && !paused
	l.paused = paused
	switch {
	case paused && !l.empty():
		s.holdBack(l, now)
	case goesOn && l.breaker.open:
		l.breaker.trip(now, l.backoff.length())
	}
}

// retryNow closes a lane's breaker if webhook_retry_now was called since the last
// look-up. The lane starts as slowly as after a successful probe.
func (s *Scheduler) retryNow(l *lane, asked, now time.Time) {
	if !asked.After(l.retriedAt) {
		return
	}
	l.retriedAt = asked
	if !l.breaker.open {
		return
	}
	s.changeBreaker(l, func(b *breaker) { *b = breaker{ramp: 1} })
	s.changed(l, BreakerClosed, "webhook_retry_now was called")
	l.tell = false
	s.report(l, false, now, false, "")
	s.hasRows(l)
}

// limit applies the limits of an endpoint's row, and its schedule.
func (s *Scheduler) limit(l *lane, e *webhook.Endpoint, now time.Time) {
	l.limit = cmp.Or(e.MaxInFlight, s.limits.EndpointInFlight)
	l.timeout = cmp.Or(e.Timeout, s.limits.Timeout)
	if l.backoff = s.backoff; e.RetrySchedule != nil {
		l.backoff = e.RetrySchedule
	}
	perSecond := rate.Limit(e.RatePerSecond)
	burst := 1 + int(min(e.RatePerSecond*burstFor.Seconds(), math.MaxInt32))
	switch {
	case perSecond == 0:
		l.rate = nil
	case l.rate == nil:
		l.rate = rate.NewLimiter(perSecond, burst)
	case l.rate.Limit() != perSecond:
		l.rate.SetLimitAt(now, perSecond)
		l.rate.SetBurstAt(now, burst)
	}
}

// A LookUp is an endpoint to be looked up.
type LookUp struct {
	EndpointID uuid.UUID
	Endpoint   *webhook.Endpoint // as last known, and then as it is; nil: it does not exist
	Target     *send.Target      // of that
	lane       *lane
}

// TakeLookUps takes up to n lanes whose endpoint has to be looked up.
func (s *Scheduler) TakeLookUps(n int, now time.Time) []LookUp {
	s.mu.Lock()
	defer s.mu.Unlock()
	lanes := s.lookUpNext(n, now)
	wanted := make([]LookUp, len(lanes))
	for i, l := range lanes {
		wanted[i] = LookUp{EndpointID: l.id, Endpoint: l.endpoint, Target: l.target, lane: l}
	}
	return wanted
}

// LookedUp takes the answers of a look-up as of a time before it was asked for, or that it
// has failed.
func (s *Scheduler) LookedUp(answers []LookUp, failed bool, asOf, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range answers {
		if failed {
			x.lane.asked, x.lane.ask = false, true
			s.touch(x.lane)
			continue
		}
		s.lookedUp(x.lane, x.Endpoint, x.Target, asOf, now)
	}
	s.dispatch(now)
}
