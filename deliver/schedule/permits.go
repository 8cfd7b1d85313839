package schedule

import (
	"time"

	"golang.org/x/time/rate"
)

// Permits are what a lane may start: how many attempts at once, by its endpoint's limit
// and its breaker, and how many in a second.
type permits struct {
	limit       int // attempts at once
	running     int
	lateRunning int           // those of them that are no first attempts
	guests      int           // of its places, those that count in Scheduler.guests
	trusted     bool          // its endpoint answers
	sign        time.Time     // when it last did, or when the first attempt under way began
	rate        *rate.Limiter // nil: no limit
	breaker     breaker
}

// may is how many attempts may be under way at once.
func (p *permits) may(now time.Time) int { return min(p.limit, p.breaker.limit(now)) }

// begun counts an attempt that begins.
func (p *permits) begun(late bool, now time.Time) {
	if p.running == 0 {
		p.sign = now
	}
	p.running++
	if late {
		p.lateRunning++
	}
}

// gaveBack counts one that has ended.
func (p *permits) gaveBack(late bool) {
	p.running--
	if late {
		p.lateRunning--
	}
}

// silent says whether an endpoint that is trusted has attempts under way, and has not
// answered for a while.
func (p *permits) silent(now time.Time) bool {
	return p.trusted && p.running > 0 && now.Sub(p.sign) >= signWithin
}

// within is how much of n the lane's rate lets through in a time.
func (p *permits) within(d time.Duration, n int) int {
	if p.rate == nil {
		return n
	}
	return int(min(float64(p.rate.Limit())*d.Seconds(), float64(n)))
}

// nextToken is when the lane's rate lets the next attempt through.
func (p *permits) nextToken(now time.Time) time.Time {
	if p.rate == nil {
		return now
	}
	tokens := p.rate.TokensAt(now)
	if tokens >= 1 {
		return now
	}
	wait := (1 - tokens) / float64(p.rate.Limit()) * float64(time.Second)
	return now.Add(time.Duration(min(wait, float64(time.Hour))) + 1) // it is looked at again before an hour is over
}

// takeToken takes one of the lane's rate.
func (p *permits) takeToken(now time.Time) {
	if p.rate != nil {
		p.rate.AllowN(now, 1)
	}
}
