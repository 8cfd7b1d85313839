package schedule

import "time"

// Limits bound memory and concurrency.
type Limits struct {
	ParkAfter        time.Duration // a delivery without an outcome for this long is written as pending; 0: every one, before its first attempt
	MaxInFlight      int           // concurrent attempts
	EndpointInFlight int           // concurrent attempts of one endpoint that does not say itself
	Window           int           // deliveries in memory
	MaxMemory        int64         // bytes of their bodies
	Timeout          time.Duration // of one attempt, of an endpoint that does not say itself
	DisableAfter     time.Duration // of nothing but failures, an endpoint is disabled; 0: never
}

// laneQueue bounds a lane's queue to an eighth of the window. An endpoint that answers
// 2,000 times a second works that off within the default ParkAfter. So a backlog for a
// fast endpoint is read no faster than it is delivered, and written once.
func (l Limits) laneQueue() int { return max(l.Window/8, 1) }

// streamShare bounds deliveries from the stream. A quarter of the window is left to
// rows: otherwise the stream could fill it and keep every retry waiting.
func (l Limits) streamShare() int { return max(l.Window*3/4, 1) }

// rowsShare bounds deliveries from the table. Half of the window is left to the stream,
// so that rows never keep it from reading.
func (l Limits) rowsShare() int { return max(l.Window/2, 1) }

const (
	// unrecordedRoom bounds the attempts that were made and are not recorded, beside
	// those in flight: a crash may repeat them. At 20,000 attempts per second and 50 ms
	// between batches, about 1,000 are needed.
	unrecordedRoom = 2048

	// parkedRoom bounds the deliveries that wait to be written as pending, at 300 bytes
	// each without a body. So an event for very many endpoints, or a burst for one that
	// is behind, does not hold up the stream until all of it is written.
	parkedRoom = 64 << 10

	// leaseMargin is the time to record an outcome: the row of a running delivery
	// becomes due that long after the attempt's timeout.
	leaseMargin = 10 * time.Second

	// maxAside bounds the outcomes whose rows are locked by others before fetching
	// stops: they must not use up the room of fresh outcomes.
	maxAside = unrecordedRoom / 4
)
