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
	OwnFaults map[OwnFault]uint64 // that kept deliveries waiting
	Recorded  uint64              // outcomes committed
	Parked    uint64              // deliveries written before they had an outcome, without an attempt under way
	Leased    uint64              // and with one
	Fetched   uint64              // rows that were due
	Found     uint64              // rows that the reconciler had to insert
}

// An OwnFault keeps walhook from sending and is not the endpoint's fault: no attempt is
// counted.
type OwnFault string

// secretFault is a secret that cannot be opened. It is counted at each look-up: once a
// second for each endpoint that waits for it.
const secretFault OwnFault = "secret"

// OwnFaults lists them all.
var OwnFaults = []OwnFault{secretFault}

func (c *Counts) ownFault(f OwnFault) {
	if c.OwnFaults == nil {
		c.OwnFaults = map[OwnFault]uint64{}
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
