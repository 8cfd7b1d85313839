package deliver

import (
	"container/heap"
	"context"
	"time"
)

const (
	// parkEvery is how exactly ParkAfter is kept.
	parkEvery = 20 * time.Millisecond

	// paceEvery is how exactly a rate is kept: lanes that may go on within it do so together.
	paceEvery = time.Millisecond

	// holdAgain is how soon a lane that is held back is looked at again, so that new
	// limits are in force within a second, also where nothing ends meanwhile.
	holdAgain = 250 * time.Millisecond
)

// A clock does what time alone brings about: it hands to the recorder what has
// had no outcome for ParkAfter, so that an endpoint that is slow or dead never
// holds the WAL or the window; and it lets lanes go on that had to wait for their
// rate, or for their breaker's next probe.
type clock struct {
	window *window
	pulse  *pulse
}

func (c *clock) run(ctx context.Context) error {
	timer := time.NewTimer(parkEvery)
	defer timer.Stop()
	for {
		if c.pulse.wait(ctx, timer.C, c.window.toPace, nil) == over {
			return nil
		}
		timer.Reset(c.window.turnClock(time.Now()))
	}
}

// turnClock does what is due and says when to come again.
func (w *window) turnClock(now time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.parkOverdue(now)
	for len(w.paused) > 0 && !w.paused[0].resume.After(now) {
		l := heap.Pop(&w.paused).(*lane)
		w.doubt(l, now)
		if l.running > 0 && l.trusted {
			w.pause(l, l.sign.Add(signWithin))
		}
		if l.rows && (l.shut || !l.breaker.holds(now)) && now.Sub(l.asOf) >= refreshAfter {
			w.want(l)
		}
		w.makeReady(l, now)
		w.feed(l, now)
	}
	w.dispatch(now)
	if len(w.paused) == 0 {
		return parkEvery
	}
	return min(max(w.paused[0].resume.Sub(now), paceEvery), parkEvery)
}

// hold has a lane that may not start anything looked at again: when it may, or
// soon enough to notice that its limits were changed.
func (w *window) hold(l *lane, at, now time.Time) {
	again := now.Add(holdAgain)
	if !at.IsZero() && at.Before(again) {
		again = at
	}
	w.pause(l, again)
}

// pause lets the clock look at a lane at a time, or before.
func (w *window) pause(l *lane, at time.Time) {
	switch {
	case l.resume.IsZero():
		l.resume = at
		heap.Push(&w.paused, l)
	case at.Before(l.resume):
		l.resume = at
		heap.Fix(&w.paused, l.paused)
	default:
		return
	}
	if w.paused[0] == l {
		w.toPace.raise()
	}
}

// A pausedLanes is a heap of lanes, the one to go on first at its top.
type pausedLanes []*lane

// Len is heap.Interface's.
func (p pausedLanes) Len() int { return len(p) }

// Less is heap.Interface's.
func (p pausedLanes) Less(i, j int) bool { return p[i].resume.Before(p[j].resume) }

// Swap is heap.Interface's.
func (p pausedLanes) Swap(i, j int) {
	p[i], p[j] = p[j], p[i]
	p[i].paused, p[j].paused = i, j
}

// Push is heap.Interface's.
func (p *pausedLanes) Push(x any) {
	l := x.(*lane)
	l.paused = len(*p)
	*p = append(*p, l)
}

// Pop is heap.Interface's. The lane is no longer paused.
func (p *pausedLanes) Pop() any {
	last := len(*p) - 1
	l := (*p)[last]
	(*p)[last] = nil
	*p = (*p)[:last]
	l.resume = time.Time{}
	return l
}
