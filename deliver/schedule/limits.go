package schedule

import "time"

// Limits bound what is in memory and what is under way.
type Limits struct {
	ParkAfter        time.Duration // a delivery without an outcome for this long is written as pending; 0: every one, before its first attempt
	MaxInFlight      int           // concurrent attempts
	EndpointInFlight int           // concurrent attempts of one endpoint that does not say itself
	Window           int           // deliveries in memory
	MaxMemory        int64         // bytes of their bodies
	Timeout          time.Duration // of one attempt
	DisableAfter     time.Duration // of nothing but failures, an endpoint is disabled; 0: never
}

// laneQueue bounds a lane's queue: an eighth of the window, which an endpoint
// that answers 2,000 times a second works off within the default ParkAfter. So
// a backlog for a fast endpoint is read no faster than it is delivered, and
// written once.
func (l Limits) laneQueue() int { return max(l.Window/8, 1) }

// streamShare is what the stream may hold of the window: a quarter is left to
// rows, or a stream that fills it all would keep every retry waiting.
func (l Limits) streamShare() int { return max(l.Window*3/4, 1) }

// rowsShare is what rows may hold of it: half is for what the stream brings, so
// that rows never keep it from reading.
func (l Limits) rowsShare() int { return max(l.Window/2, 1) }

const (
	// unrecordedRoom bounds the attempts that were made and are not recorded, beside
	// those in flight: what a crash may repeat. At 20,000 a second and 50 ms between
	// two batches about 1,000 are needed.
	unrecordedRoom = 2048

	// parkedRoom bounds the deliveries that wait to be written as pending: 300 bytes
	// each, without a body. What stands behind one event for very many endpoints, or
	// a burst for one that is behind, does not wait in the stream until all of that is
	// written.
	parkedRoom = 64 << 10

	// leaseMargin is how long after its attempt's timeout the row of a delivery that
	// was parked while it ran may become due: time to record the outcome.
	leaseMargin = 10 * time.Second

	// maxAside bounds the outcomes whose rows an operator's long transaction has
	// locked before no more rows are fetched: they must not use up the room that
	// fresh events' outcomes need.
	maxAside = unrecordedRoom / 4
)
