package schedule

import (
	"time"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/webhook"
)

// Counts are totals since the start, for metrics.
type Counts struct {
	Events    uint64 // that came by the stream
	Delivered uint64 // attempts that were answered with 2xx
	Errors    map[webhook.ErrorClass]uint64
	OwnFaults map[webhook.OwnFault]uint64 // that kept deliveries waiting
	Recorded  uint64                      // outcomes committed
	Finished  map[webhook.Status]uint64   // deliveries that came to an end: success, failed, cancelled
	Parked    uint64                      // deliveries written before they had an outcome, without an attempt under way
	Leased    uint64                      // and with one
	Fetched   uint64                      // rows that were due
	Found     uint64                      // rows that the reconciler had to insert
	Retried   uint64                      // attempts that were not their delivery's first

	// From the commit of an event, of first attempts that the stream brought.
	ToAttempt  Latency // until the attempt began
	ToRecorded Latency // until its outcome was committed
}

// ownFault counts a fault: a secret at each look-up, once a second for each endpoint that
// waits for it; others at each attempt that meets them.
func (c *Counts) ownFault(f webhook.OwnFault) {
	if c.OwnFaults == nil {
		c.OwnFaults = map[webhook.OwnFault]uint64{}
	}
	c.OwnFaults[f]++
}

// finish counts deliveries that came to an end by an attempt, or because their endpoint was
// disabled or deleted.
func (c *Counts) finish(as webhook.Status, n int) {
	if n == 0 || as == webhook.Pending || as == webhook.Retrying {
		return
	}
	if c.Finished == nil {
		c.Finished = map[webhook.Status]uint64{}
	}
	c.Finished[as] += uint64(n)
}

// attempt counts one that has ended.
func (c *Counts) attempt(d *Delivery, a *webhook.Attempt) {
	if d.attempts > 0 {
		c.Retried++
	} else if d.fromStream() {
		c.ToAttempt.Add(a.EndedAt.Add(-a.Duration).Sub(d.event.committed))
	}
	if send.Judge(*a) == send.Delivered {
		c.Delivered++
		return
	}
	if c.Errors == nil {
		c.Errors = map[webhook.ErrorClass]uint64{}
	}
	c.Errors[a.Class]++
}

// recorded counts an outcome that is committed.
func (c *Counts) recorded(d *Delivery, now time.Time) {
	c.Recorded++
	c.finish(d.outcome, 1)
	if d.attempts == 0 && d.fromStream() {
		c.ToRecorded.Add(now.Sub(d.event.committed))
	}
}

// Plus returns the sum of two.
func (c Counts) Plus(o Counts) Counts {
	c.Events += o.Events
	c.Delivered += o.Delivered
	c.Recorded += o.Recorded
	c.Parked += o.Parked
	c.Leased += o.Leased
	c.Fetched += o.Fetched
	c.Found += o.Found
	c.Retried += o.Retried
	c.Errors, c.OwnFaults, c.Finished = sum(c.Errors, o.Errors), sum(c.OwnFaults, o.OwnFaults), sum(c.Finished, o.Finished)
	c.ToAttempt, c.ToRecorded = c.ToAttempt.plus(&o.ToAttempt), c.ToRecorded.plus(&o.ToRecorded)
	return c
}

func sum[K comparable](a, b map[K]uint64) map[K]uint64 {
	both := map[K]uint64{}
	for _, counts := range []map[K]uint64{a, b} {
		for k, n := range counts {
			both[k] += n
		}
	}
	return both
}
