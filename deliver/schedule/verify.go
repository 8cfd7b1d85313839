package schedule

import (
	"fmt"
	"time"
)

// A tally is what is counted all along, to be compared with what it counts.
type tally struct {
	held, fetched, running, low, ended, parked, unproven, spilled, open, shut, aging int
	bytes                                                                            int64
}

// Verify returns an error where a count is not that of what it counts, or where a lane
// is forgotten: its facts ask for a list that it is not in, and nothing will look at it
// again. It looks at all that is in memory, and is for tests.
func (s *Scheduler) Verify(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	counted := tally{held: s.held, fetched: s.fetched, running: s.running, low: s.low, ended: s.ended, parked: s.parked, unproven: s.unproven,
		spilled: s.spilled, open: s.open, aging: s.aging.Len(), bytes: s.bytes}
	for _, of := range s.faults {
		counted.shut += of.lanes.Len()
	}
	var found tally
	lanes := map[*lane]*lane{}
	bodies := map[*event]int{}
	for _, d := range s.deliveries {
		l := lanes[d.lane]
		if l == nil {
			l = &lane{}
			lanes[d.lane] = l
		}
		found.add(d)
		countIn(l, d)
		if d.stage == queued || d.stage == running {
			bodies[d.event]++
		}
	}
	for e, users := range bodies {
		found.bytes += e.size
		if e.users != users {
			return fmt.Errorf("the body of event %s has %d users, and counts %d", e.id, users, e.users)
		}
	}
	organizations := map[string]int{}
	for _, l := range s.lanes {
		if err := l.verify(lanes[l]); err != nil {
			return err
		}
		if of, forgotten := s.forgotten(l, now); forgotten {
			return fmt.Errorf("the lane of %s should be in list %d, and neither time nor anything else brings it there", l.id, of)
		}
		found.unproven += l.unproven
		if l.unproven > 0 {
			organizations[l.organization] += l.unproven
		}
		found.spilled += one(l.spilled)
		found.open += one(l.breaker.open)
		found.shut += one(l.fault.shut())
	}
	for organization, n := range s.unprovenOf {
		if organizations[organization] != n {
			return fmt.Errorf("organization %q counts %d permits of unproven lanes, and has %d", organization, n, organizations[organization])
		}
	}
	if found != counted {
		return fmt.Errorf("counted %+v, found %+v", counted, found)
	}
	if err := s.verifyPending(); err != nil {
		return err
	}
	if n := s.unwritten() + s.aside; n > len(s.deliveries) {
		return fmt.Errorf("%d deliveries are to be written, or wait aside, and %d are in memory", n, len(s.deliveries))
	}
	return nil
}

// verifyPending compares what keeps transactions from being confirmed with the deliveries that
// wait to be written.
func (s *Scheduler) verifyPending() error {
	enlisted, pending := 0, map[*transaction]int{}
	for _, d := range s.deliveries {
		enlisted += one(d.enlisted)
		if d.tx != nil && d.tx.generation == s.ledger.generation {
			pending[d.tx]++
		}
	}
	if enlisted != s.unwritten() {
		return fmt.Errorf("%d deliveries are enlisted, and %d wait for the recorder", enlisted, s.unwritten())
	}
	for _, t := range s.ledger.transactions {
		if n := pending[t]; n > t.pending || n < t.pending && !s.stopping { // a stop gives up what is still to come
			return fmt.Errorf("a transaction that ends at %s counts %d deliveries without a row, and has %d", t.end.lsn, t.pending, n)
		}
		delete(pending, t)
	}
	for t, n := range pending {
		return fmt.Errorf("a transaction that ends at %s is recorded, and has %d deliveries without a row", t.end.lsn, n)
	}
	return nil
}

func (s *Scheduler) forgotten(l *lane, now time.Time) (of listOf, is bool) {
	if l.touched || !l.touchAt.IsZero() {
		return 0, false
	}
	want, _ := s.wants(l, now)
	// In either list, a lane finds out in its turn what it may start; if it waits for a
	// look-up, when that has come.
	looksUp := l.asked || l.in[toLookUpFirst] != nil || l.in[toLookUpAgain] != nil
	starts := l.in[toStart] != nil || l.in[toStartLow] != nil || l.in[toStartPermitted] != nil || looksUp && !l.fresh(now)
	want[toStart], want[toStartLow] = want[toStart] && !starts, want[toStartLow] && !starts
	for of := range lists {
		// An endpoint that only grows old is looked up when the lane has its turn for something else.
		old := (of == toLookUpFirst || of == toLookUpAgain) && !l.ask && (l.listed() || l.running > 0)
		if want[of] && l.in[of] == nil && !old {
			return of, true
		}
	}
	return 0, false
}

func (t *tally) add(d *Delivery) {
	t.fetched += one(d.fetched)
	t.low += one(d.low && (d.stage == running || d.stage == ended))
	t.aging += one(d.age != nil)
	switch d.stage {
	case parked:
		t.parked++
	case running:
		t.held++
		t.running++
	case ended:
		t.held++
		t.ended++
	default:
		t.held++
	}
}

func countIn(l *lane, d *Delivery) {
	switch d.stage {
	case queued:
		l.held++
		l.bytes += d.event.size
		l.prefetched += one(d.fetched)
	case running:
		l.held++
		l.bytes += d.event.size
		l.running++
		l.lowRunning += one(d.low)
	case ended:
		l.ended++
	case parked:
		l.parking++
	}
}

// verify compares a lane's counts with what was found of it; nil: nothing.
func (l *lane) verify(found *lane) error {
	if found == nil {
		found = &lane{}
	}
	counts := func(l *lane) [6]int64 {
		return [...]int64{int64(l.held), int64(l.prefetched), l.bytes, int64(l.running), int64(l.ended), int64(l.parking)}
	}
	if counts(l) != counts(found) || l.lowRunning != found.lowRunning {
		return fmt.Errorf("the lane of %s counts held, prefetched, bytes, running, ended, parking %v, and has %v", l.id, counts(l), counts(found))
	}
	return nil
}

func one(is bool) int {
	if is {
		return 1
	}
	return 0
}
