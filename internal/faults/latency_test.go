package faults

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/walhook/walhook/internal/oracle"
)

// oneOfFiftyHangs measures how one hanging endpoint affects forty-nine healthy ones. The
// bound is loose, because other load on the machine affects both figures.
func oneOfFiftyHangs(t *testing.T, s Setup) {
	healthy := latencyOf(t, s, false)
	hanging := latencyOf(t, s, true)
	s.Report.add("p50=%s then %s, p99=%s then %s: %.2f times", healthy.at(0.5), hanging.at(0.5), healthy.at(0.99), hanging.at(0.99),
		float64(hanging.at(0.99))/float64(healthy.at(0.99)))
	const loosely, noise = 3, 50 * time.Millisecond
	if hanging.at(0.99) > loosely*healthy.at(0.99)+noise {
		t.Errorf("the others' p99 is %s, and %s without the endpoint that hangs", hanging.at(0.99), healthy.at(0.99))
	}
}

// latencies are sorted.
type latencies []time.Duration

func (l latencies) at(q float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	return l[int(q*float64(len(l)-1))].Round(10 * time.Microsecond)
}

// latencyOf runs fifty organizations with an endpoint each. It returns the times from
// before the commit to the first request, without those of endpoint 0.
func latencyOf(t *testing.T, s Setup, hang bool) (found latencies) {
	const endpoints, lagAtMost = 50, 3 * time.Second
	for i := range endpoints {
		s.Endpoints = append(s.Endpoints, oracle.Endpoint{Org: fmt.Sprintf("org_%d", i), Types: []string{"*"}})
	}
	x := newTrial(t, s)
	x.receiver.failShare = 0
	x.start()
	x.ready()
	release := func() {}
	if hang {
		release = x.receiver.hang(0)
	}
	done := x.drive(Load{Rate: *rate, Duration: lasting(15 * time.Second)})
	<-done
	before := insertLSN(t.Context(), x.pool)
	x.eventually(lagAtMost, "the slot has moved past the load", func() bool { return x.slot().Confirmed >= before })
	events, requests := x.journal.Copy()
	began := map[uuid.UUID]time.Time{}
	for _, e := range events {
		began[e.ID] = e.Began
	}
	for _, r := range requests {
		if r.Endpoint != 0 && r.Retry == 0 {
			found = append(found, r.At.Sub(began[r.Event]))
		}
	}
	slices.Sort(found)
	release()
	x.finish(2*time.Minute, fmt.Sprintf("hanging=%t p99=%s", hang, found.at(0.99)))
	return found
}
