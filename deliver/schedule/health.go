package schedule

import (
	"cmp"
	"time"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// What attempts say of their endpoints: to the breaker at once, and to the
// database when it changes.

// disableCheckMax is how often a failing endpoint is compared with WALHOOK_DISABLE_AFTER,
// which is usually hours.
const disableCheckMax = time.Minute

// disableCheckEvery returns disableCheckMax, or less if endpoints are disabled sooner.
func (l Limits) disableCheckEvery() time.Duration {
	if l.DisableAfter == 0 {
		return disableCheckMax
	}
	return min(disableCheckMax, l.DisableAfter)
}

// A health is the condition of an endpoint, as far as this process knows.
type health struct {
	state      condition
	checkedAt  time.Time               // when it was last compared with WALHOOK_DISABLE_AFTER
	retriedAt  time.Time               // when an operator last asked for what waits
	unreported *webhook.EndpointHealth // to be recorded; nil: nothing
	tell       bool                    // a delivery of another event than walhook's own has failed since the last success
}

// A condition is the outcome of an endpoint's last attempt.
type condition uint8

const (
	unknown condition = iota
	working
	failing
)

// judge updates an endpoint's breaker and health from an attempt, and reports a change.
func (s *Scheduler) judge(d *Delivery, a *webhook.Attempt, now time.Time) {
	l := d.lane
	own := outbox.IsOwnType(d.event.typ)
	opened, told, check := false, false, false
	switch send.Judge(*a) {
	case send.Gone:
		d.gone, l.gone = true, true
		l.asOf = time.Time{}
		return
	case send.Delivered:
		if l.breaker.open {
			s.changed(l, BreakerClosed, "")
		}
		s.changeBreaker(l, func(b *breaker) { b.succeeded(l.limit) })
		l.tell = false
		if l.state == working {
			return
		}
		l.state = working
	case send.Retry:
		told, l.tell = !own && !l.tell, l.tell || !own
		s.changeBreaker(l, func(b *breaker) {
			opened = b.failed(a.EndedAt.Add(-a.Duration), now, a.Class == webhook.ErrTimeout, l.backoff.length())
		})
		due := now.Sub(l.checkedAt) >= s.limits.disableCheckEvery()
		told = told && l.breaker.open // by failures of walhook's own events alone, so far
		if l.state == failing && !opened && !told && !due {
			return
		}
		check = l.state != working && due // one that is not known may have been failing for long
		if l.state == working || check {
			l.checkedAt = now
		}
		l.state = failing
	}
	s.report(l, check, a.EndedAt, own, a.Class)
	if opened {
		s.changed(l, BreakerOpened, a.Error)
		s.holdBack(l, now)
	}
}

// report has a lane's health recorded with the next batch, as it stands then.
func (s *Scheduler) report(l *lane, check bool, at time.Time, own bool, class webhook.ErrorClass) {
	n := l.unreported
	if n == nil {
		n = &webhook.EndpointHealth{EndpointID: l.id}
		l.unreported = n
		s.unreported = append(s.unreported, l)
	}
	n.Failing, n.Open, n.At, n.Own, n.Tell = l.state == failing, l.breaker.open, at, own, l.tell
	n.Class = cmp.Or(class, n.Class)
	n.Recovered = n.Recovered || !n.Failing
	n.CheckDisable = n.Failing && (n.CheckDisable || check)
}

// takeHealth takes what is to be recorded about endpoints.
func (s *Scheduler) takeHealth() []webhook.EndpointHealth {
	var health []webhook.EndpointHealth
	for _, l := range s.unreported {
		health = append(health, *l.unreported)
		l.unreported = nil
	}
	s.unreported = nil
	return health
}

// ReturnHealth gives back what could not be recorded. Newer reports win.
func (s *Scheduler) ReturnHealth(health []webhook.EndpointHealth, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range health {
		l := s.lane(h.EndpointID, now)
		if l.unreported == nil {
			l.unreported = &h
			s.unreported = append(s.unreported, l)
			continue
		}
		l.unreported.Recovered = l.unreported.Recovered || h.Recovered
		l.unreported.CheckDisable = l.unreported.Failing && (l.unreported.CheckDisable || h.CheckDisable)
	}
}

// changeBreaker changes a breaker and keeps count of the open ones.
func (s *Scheduler) changeBreaker(l *lane, change func(*breaker)) {
	before := l.breaker.open
	change(&l.breaker)
	if after := l.breaker.open; after != before {
		s.open += oneUp(after)
	}
}

func oneUp(up bool) int {
	if up {
		return 1
	}
	return -1
}

// TakeHealth takes the endpoints' health to be recorded.
func (s *Scheduler) TakeHealth() []webhook.EndpointHealth {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takeHealth()
}
