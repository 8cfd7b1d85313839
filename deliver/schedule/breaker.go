package schedule

import (
	"math"
	"time"
)

const (
	// breakAfter is how many attempts of an endpoint have to fail in a row, without
	// one success among them, for its breaker to open. A receiver that fails every
	// second request reaches that once in a million. One without an answer before its
	// timeout counts as several: it costs a permit for all that time.
	breakAfter   = 20
	timeoutCosts = 4

	// probeFirst is how long after its breaker opened an endpoint gets the first
	// probe. Each that fails doubles the wait, up to probeMax: how long a receiver
	// that is up again may have to wait to be noticed.
	probeFirst = time.Second
	probeMax   = 15 * time.Second
)

// A breaker holds back an endpoint that does nothing but fail: while it is open,
// one attempt at a time, the probe, finds out whether that is over. After the
// first success the endpoint is not met with all that has waited, but with one
// attempt at a time, and one more after each success. It holds nothing back for
// longer than a schedule lasts, so that what waits comes to its end in time, if
// only as failed. It is a pure data structure; the zero breaker is closed.
type breaker struct {
	open     bool
	failures int       // in a row, while closed
	since    time.Time // it opened
	until    time.Time // it holds back
	probes   int       // that have failed since
	next     time.Time // no probe before
	ramp     int       // attempts at once, after it was open; 0: no limit of the breaker's
}

// holds says whether no more than probes are let through.
func (b *breaker) holds(now time.Time) bool { return b.open && now.Before(b.until) }

// limit returns how many attempts may be under way at once.
func (b *breaker) limit(now time.Time) int {
	switch {
	case b.holds(now) && now.Before(b.next):
		return 0
	case b.holds(now):
		return 1
	case b.ramp > 0:
		return b.ramp
	default:
		return math.MaxInt
	}
}

// succeeded takes a success of an endpoint that may have so many attempts under
// way, and closes the breaker.
func (b *breaker) succeeded(limit int) {
	ramp := b.ramp
	if b.open || ramp > 0 {
		ramp++
	}
	if ramp >= limit {
		ramp = 0
	}
	*b = breaker{ramp: ramp}
}

// failed takes a failure, and reports whether it opened the breaker, for the
// length of a schedule. While that is open, only a failed probe counts: the
// attempts that were under way when it opened say nothing new.
func (b *breaker) failed(begun, now time.Time, timeout bool, schedule time.Duration) (opened bool) {
	switch {
	case b.open && begun.Before(b.since):
		return false
	case b.open:
		b.probes++
		b.after(now, min(probeFirst<<min(b.probes, 10), probeMax))
		return false
	}
	if b.ramp > 0 {
		b.ramp = max(b.ramp-1, 1)
	}
	b.failures++
	if timeout {
		b.failures += timeoutCosts - 1
	}
	if b.failures < breakAfter {
		return false
	}
	b.trip(now, schedule)
	b.after(now, probeFirst)
	return true
}

// after puts the next probe off.
func (b *breaker) after(now time.Time, wait time.Duration) {
	if b.next = now.Add(wait); b.until.Before(b.next) {
		b.next = b.until
	}
}

// trip opens a breaker that was open when the endpoint was last heard of: the
// first attempt is the probe.
func (b *breaker) trip(now time.Time, schedule time.Duration) {
	*b = breaker{open: true, since: now, until: now.Add(schedule), next: now}
}
