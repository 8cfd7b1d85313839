package schedule

// A Signal wakes one loop; several before it wakes are one.
type Signal chan struct{}

// NewSignal returns a Signal that was not raised.
func NewSignal() Signal { return make(Signal, 1) }

// Raise wakes the loop that waits, or the next that would. It never blocks.
func (s Signal) Raise() {
	select {
	case s <- struct{}{}:
	default:
	}
}
