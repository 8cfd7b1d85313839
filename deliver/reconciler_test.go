package deliver

import (
	"testing"
	"time"
)

func TestReconcilerReach(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000_000, 0)
	r := &reconciler{horizon: 72 * time.Hour}
	for _, c := range []struct {
		since, from time.Time
	}{
		{time.Unix(0, 0), now.Add(-72 * time.Hour)},
		{now.Add(-100 * time.Hour), now.Add(-72 * time.Hour)},
		{now.Add(-5 * time.Hour), now.Add(-6 * time.Hour)},
		{now, now.Add(-time.Hour)},
		{now.Add(time.Second), now.Add(-72 * time.Hour)}, // the clock was set back
		{now.Add(5 * time.Hour), now.Add(-72 * time.Hour)},
	} {
		start, from := r.reach(c.since, now)
		if !from.Equal(c.from) {
			t.Errorf("since %s: compared from %s, want %s", c.since, from, c.from)
		}
		if start.After(from) {
			t.Errorf("since %s: it starts at %s, after %s", c.since, start, from)
		}
	}
}
