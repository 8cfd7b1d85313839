package schedule

import (
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
	Parked    uint64                      // deliveries written before they had an outcome, without an attempt under way
	Leased    uint64                      // and with one
	Fetched   uint64                      // rows that were due
	Found     uint64                      // rows that the reconciler had to insert
}

// ownFault counts a fault: a secret at each look-up, once a second for each endpoint that
// waits for it; others at each attempt that meets them.
func (c *Counts) ownFault(f webhook.OwnFault) {
	if c.OwnFaults == nil {
		c.OwnFaults = map[webhook.OwnFault]uint64{}
	}
	c.OwnFaults[f]++
}

func (c *Counts) attempt(a webhook.Attempt) {
	if send.Judge(a) == send.Delivered {
		c.Delivered++
		return
	}
	if c.Errors == nil {
		c.Errors = map[webhook.ErrorClass]uint64{}
	}
	c.Errors[a.Class]++
}
