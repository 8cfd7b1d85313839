package schedule

import (
	"math"
	"time"
)

const (
	// breakAfter is how many attempts must fail in a row to open the breaker. A
	// receiver that fails every second request reaches that once in a million. A
	// timeout counts as timeoutCosts failures, because it holds a permit for all that
	// time.
	breakAfter   = 20
	timeoutCosts = 4

	// probeFirst is the wait before the first probe. Each failed probe doubles it, up
	// to probeMax: how long a receiver that is up again may go unnoticed.
	probeFirst = time.Second
	probeMax   = 15 * time.Second
)

// A breaker holds back an endpoint that only fails. While it is open, one attempt at a
// time, the probe, finds out whether that is over. After the first success, slow start
// begins: one attempt at a time, and one more after each success. The breaker holds
// nothing back for longer than a retry schedule lasts, so that deliveries still come to
// their end, if only as failed. It is a pure data structure; the zero breaker is
// closed.
type breaker struct {
	open     bool
	failures int       // in a row, while closed
	since    time.Time // it opened
	until    time.Time // it holds back
	probes   int       // that have failed since
	next     time.Time // no probe before
	ramp     int       // attempts at once, after it was open; 0: no limit of the breaker's
}

// holds reports whether only probes are let through.
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

// succeeded takes a success and closes the breaker. Slow start ends at the endpoint's
// limit.
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

// failed takes a failure and reports whether it opened the breaker, for the length of a
// retry schedule. While the breaker is open, only a failed probe counts: attempts that
// were under way when it opened say nothing new.
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

// after postpones the next probe.
func (b *breaker) after(now time.Time, wait time.Duration) {
	if b.next = now.Add(wait); b.until.Before(b.next) {
		b.next = b.until
	}
}

// trip opens a breaker that was open in the process before. The first attempt is the
// probe.
func (b *breaker) trip(now time.Time, schedule time.Duration) {
	*b = breaker{open: true, since: now, until: now.Add(schedule), next: now}
}
