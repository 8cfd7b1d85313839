package deliver

import (
	"time"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

// What attempts say of their endpoints: to the breaker at once, and to the
// database where it is news.

// failureLook is how often a failing endpoint is compared with
// WALHOOK_DISABLE_AFTER, which is a matter of hours.
const failureLook = time.Minute

// lookEvery is failureLook, or less where an endpoint is disabled sooner.
func (l Limits) lookEvery() time.Duration {
	if l.DisableAfter == 0 {
		return failureLook
	}
	return min(failureLook, l.DisableAfter)
}

// health is how an endpoint did last, as far as this process knows.
type health uint8

const (
	unknown health = iota
	working
	failing
)

// judge learns from an attempt how its endpoint is, and has it recorded where
// that is news.
func (w *window) judge(d *delivery, a *store.Attempt, now time.Time) {
	l := d.lane
	opened, look := false, false
	switch send.Judge(*a) {
	case send.Gone:
		d.gone, l.gone = true, true
		l.asOf = time.Time{}
		return
	case send.Delivered:
		w.changeBreaker(l, func(b *breaker) { b.succeeded(l.limit) })
		if l.health == working {
			return
		}
		l.health = working
	case send.Retry:
		w.changeBreaker(l, func(b *breaker) {
			opened = b.failed(a.EndedAt.Add(-a.Duration), now, a.Class == store.ErrTimeout, w.schedule.length())
		})
		due := now.Sub(l.lookedAt) >= w.limits.lookEvery()
		if l.health == failing && !opened && !due {
			return
		}
		look = l.health != working && due // one that is not known may have been failing for long
		if l.health == working || look {
			l.lookedAt = now
		}
		l.health = failing
	}
	w.tell(l, look, a.EndedAt, outbox.IsOwnType(d.event.typ))
	if opened {
		w.holdBack(l, now)
	}
}

// tell has a lane's health recorded with the next batch, as it stands then.
func (w *window) tell(l *lane, look bool, at time.Time, own bool) {
	n := l.news
	if n == nil {
		n = &store.EndpointHealth{EndpointID: l.id}
		l.news = n
		w.news = append(w.news, l)
	}
	n.Failing, n.Open, n.At, n.Own = l.health == failing, l.breaker.open, at, own
	n.Recovered = n.Recovered || !n.Failing
	n.Look = n.Failing && (n.Look || look)
}

// takeNews hands over what is to be recorded about endpoints.
func (w *window) takeNews() []store.EndpointHealth {
	var news []store.EndpointHealth
	for _, l := range w.news {
		news = append(news, *l.news)
		l.news = nil
	}
	w.news = nil
	return news
}

// tellAgain gives news back that could not be recorded. What has come since is newer.
func (w *window) tellAgain(health []store.EndpointHealth) {
	for _, h := range health {
		l := w.lane(h.EndpointID, time.Now())
		if l.news == nil {
			l.news = &h
			w.news = append(w.news, l)
			continue
		}
		l.news.Recovered = l.news.Recovered || h.Recovered
		l.news.Look = l.news.Failing && (l.news.Look || h.Look)
	}
}

// changeBreaker keeps count of the breakers that are open.
func (w *window) changeBreaker(l *lane, change func(*breaker)) {
	before := l.breaker.open
	change(&l.breaker)
	if after := l.breaker.open; after != before {
		w.open += oneUp(after)
	}
}

func oneUp(up bool) int {
	if up {
		return 1
	}
	return -1
}
