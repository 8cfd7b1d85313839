package faults

import (
	"testing"
	"time"

	"github.com/walhook/walhook/internal/oracle"
)

func TestTallyAllowsALifeWhatTheCrashBeforeHasLost(t *testing.T) {
	t.Parallel()
	const most = maxInFlight + unrecorded
	start := time.Now()
	began := map[string]time.Time{"walhook-1": start, "walhook-2": start.Add(10 * time.Second), "walhook-3": start.Add(20 * time.Second)}
	crashes := []oracle.Crash{{From: start.Add(9 * time.Second)}, {From: start.Add(19 * time.Second)}}
	for _, c := range []struct {
		what    string
		repeats map[string]int
		found   int
	}{
		{"nothing", map[string]int{}, 0},
		{"W in each life after a crash", map[string]int{"walhook-2": most, "walhook-3": most}, 0},
		{"all of it in one life", map[string]int{"walhook-3": most + 1}, 1},
		{"one before any crash", map[string]int{"walhook-1": 1}, 1},
	} {
		y := &Tally{repeats: c.repeats}
		if found := y.tooMany(crashes, began); len(found) != c.found {
			t.Errorf("%s: found %q", c.what, found)
		}
	}
}
