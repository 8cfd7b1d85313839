package schedule

import (
	"math"
	"time"

	"github.com/walhook/walhook/deliver/send"
)

// A Backoff holds the waits between the attempts of one series: the n-th
// failed attempt is followed by the n-th wait, from its end to the next. A
// schedule of nine waits makes ten attempts; an empty one makes one.
type Backoff []time.Duration

// jitterShare bounds by how much jitter lengthens a wait. It only ever
// lengthens: receivers may rely on the schedule as a minimum.
const jitterShare = 0.2

// Wait returns how long to wait after the failed-th failure of a series (1 is
// the first), and false when the schedule is used up. The jitter, in [0,1),
// lengthens the scheduled wait by up to 20 %; a longer Retry-After replaces it.
func (b Backoff) Wait(failed int, retryAfter time.Duration, jitter float64) (time.Duration, bool) {
	failed = max(failed, 1)
	if failed > len(b) {
		return 0, false
	}
	wait := lengthen(max(b[failed-1], 0), jitter)
	return max(wait, min(retryAfter, send.MaxRetryAfter)), true
}

// length returns how long a series takes, without jitter, stopping at a year.
func (b Backoff) length() time.Duration {
	const year = 365 * 24 * time.Hour
	total := time.Duration(0)
	for _, wait := range b {
		total = min(total+min(max(wait, 0), year), year)
	}
	return total
}

// lengthen adds the jitter to a wait, stopping at the longest Duration.
func lengthen(wait time.Duration, jitter float64) time.Duration {
	if !(jitter > 0) { // also NaN
		return wait
	}
	extra := float64(wait) * jitterShare * min(jitter, 1)
	if extra >= float64(math.MaxInt64-wait) {
		return math.MaxInt64
	}
	return wait + time.Duration(extra)
}
