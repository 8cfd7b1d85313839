package schedule

import (
	"time"

	"golang.org/x/time/rate"
)

// A permits value says what a lane may start: how many attempts at once, by its endpoint's
// limit and its breaker, and how many per second.
type permits struct {
	limit      int // attempts at once
	running    int
	lowRunning int           // of low priority
	unproven   int           // its part of Scheduler.unproven
	proven     bool          // its endpoint has answered lately
	lastAnswer time.Time     // or when the first of the attempts under way began
	rate       *rate.Limiter // nil: no limit
	breaker    breaker
}

// may returns how many attempts may be under way at once.
func (p *permits) may(now time.Time) int { return min(p.limit, p.breaker.limit(now)) }

// begun counts an attempt that begins.
func (p *permits) begun(low bool, now time.Time) {
	if p.running == 0 {
		p.lastAnswer = now
	}
	p.running++
	if low {
		p.lowRunning++
	}
}

// ended counts an attempt that has ended.
func (p *permits) ended(low bool) {
	p.running--
	if low {
		p.lowRunning--
	}
}

// silent reports whether a proven endpoint has attempts under way and has not
// answered for answerWithin.
func (p *permits) silent(now time.Time) bool {
	return p.proven && p.running > 0 && now.Sub(p.lastAnswer) >= answerWithin
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
