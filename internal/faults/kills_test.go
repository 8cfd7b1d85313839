package faults

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// noFault wants everything once.
func noFault(t *testing.T, s Setup) {
	x := newTrial(t, s)
	x.start()
	x.ready()
	<-x.drive(Load{Rate: *rate, Duration: lasting(20 * time.Second)})
	x.finish(time.Minute)
}

func killMinus9(t *testing.T, s Setup) {
	kills(newTrial(t, s), Load{Rate: *rate, Duration: lasting(time.Minute)}, *every)
}

// kills kills walhook again and again under a load, and starts it at once.
func kills(x *Trial, load Load, every time.Duration) {
	x.Helper()
	p := x.start()
	x.ready()
	lives, moved := killUntil(x, p, x.drive(load), every)
	x.expect(10*moved >= 9*lives, "the confirmed position moved in %d of %d lives", moved, lives)
	x.finish(time.Minute, fmt.Sprintf("moved=%d/%d", moved, lives))
}

// killUntil kills until done, and says in how many lives the confirmed position moved.
func killUntil(x *Trial, p *Process, done <-chan struct{}, every time.Duration) (lives, moved int) {
	x.Helper()
	confirmed := x.slot().Confirmed
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return lives, moved
		case <-ticker.C:
		}
		x.expect(p.running(), "%s has ended by itself: %v", p.Name, p.ended)
		over := x.crash(p)
		if err := p.kill(); err != nil {
			x.Fatal(err)
		}
		over()
		p = x.start()
		lives++
		now := x.slot().Confirmed
		if now > confirmed {
			moved++
		}
		confirmed = now
	}
}

// killMinus9Mixed kills under two-phase commits, COPY, and two huge
// transactions, one of which is rolled back.
func killMinus9Mixed(t *testing.T, s Setup) {
	const huge = 10_000
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	done := x.drive(Load{Rate: *rate / 2, Duration: lasting(30 * time.Second), Mixed: true})
	for _, rollBack := range []bool{false, true} {
		x.load.Go(func() {
			if err := x.driver.copy(context.WithoutCancel(t.Context()), x.driver.newEvents(huge), rollBack); err != nil {
				t.Errorf("a huge transaction: %v", err)
			}
		})
	}
	lives, moved := killUntil(x, p, done, *every)
	x.finish(2*time.Minute, fmt.Sprintf("moved=%d/%d", moved, lives))
}
