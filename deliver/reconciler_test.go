package deliver

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walhook/walhook/outbox"
)

// A refusing database does not take a marker at first.
type refusing struct {
	Store
	left    int
	written []uint64
}

// Mark is Store's.
func (r *refusing) Mark(_ context.Context, _ outbox.Fence, mark outbox.Mark) error {
	if r.left--; r.left >= 0 {
		return errors.New("refused")
	}
	r.written = append(r.written, mark.Seq)
	return nil
}

func TestMarkerIsWrittenInTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(small, nil)
		db := &refusing{left: 3}
		r := &reconciler{window: w, store: db, recorder: &recorder{turn: newTurn()}, pulse: newPulse("reconciler")}
		if err := r.mark(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(db.written) != 1 || db.written[0] != w.ledger.taken {
			t.Errorf("written %v, want the number that was taken, %d", db.written, w.ledger.taken)
		}
	})
}

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
