package schedule

// How endpoints stand, and how many stand how: for metrics.

// A standing is how an endpoint stands, as far as its lane knows.
type standing uint8

const (
	unsettled standing = iota // not looked up yet, or disabled, or deleted
	fine
	lastFailed // its last attempt failed
	breakerOpen
	isPaused
	standings
)

// standing returns how a lane's endpoint stands.
func (l *lane) standing() standing {
	switch {
	case l.organization == "" || l.refused:
		return unsettled
	case l.paused:
		return isPaused
	case l.breaker.open:
		return breakerOpen
	case l.state == failing:
		return lastFailed
	default:
		return fine
	}
}

// count counts a lane as it stands now. Whoever changes how it stands touches it, and so
// has it counted.
func (s *Scheduler) count(l *lane, as standing) {
	s.standing[l.countedAs]--
	s.standing[as]++
	l.countedAs = as
}

// EndpointCounts are the endpoints of the lanes in memory, by how they stand: those with
// something to do, or lately. A disabled endpoint is none of them.
type EndpointCounts struct {
	OK      int
	Failing int // the last attempt failed
	Open    int // and the breaker is open
	Paused  int
}

func (s *Scheduler) endpointCounts() EndpointCounts {
	return EndpointCounts{OK: s.standing[fine], Failing: s.standing[lastFailed], Open: s.standing[breakerOpen], Paused: s.standing[isPaused]}
}
