package faults

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/oracle"
)

// noFault breaks nothing.
func noFault(t *testing.T, s Setup) {
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	load := Load{Rate: *rate, Duration: lasting(20 * time.Second)}
	<-x.drive(load)
	x.drain(time.Minute)
	const held = 0.8 // the least share of the rate, or the load was not the one asked for
	committed, want := float64(len(x.journal.Committed())), load.Rate*load.Duration.Seconds()*(1-rollbackShare)
	x.expect(committed >= held*want, "%.0f events were committed, and the rate means %.0f", committed, want)
	x.finish(time.Minute, fmt.Sprintf("rate=%.0f%% cpu=%.0f%%", 100*committed/want, 100*x.cpu(p).Seconds()/load.Duration.Seconds()))
}

func killMinus9(t *testing.T, s Setup) {
	load := Load{Rate: *rate, Duration: lasting(time.Minute)}
	kills(newTrial(t, s), load, lifetimes(t, load.Duration))
}

const (
	// shortestLife and longestLife bound the time between kills; leastLives bounds their
	// number in a short load.
	shortestLife, longestLife = 500 * time.Millisecond, 5 * time.Second
	leastLives                = 6
)

// lifetimes are random, by a seed that is printed.
func lifetimes(t *testing.T, load time.Duration) (next func() time.Duration) {
	t.Helper()
	chosen := cmp.Or(*seed, rand.Uint64())
	t.Logf("the kills are those of -faults.seed=%d", chosen)
	random := rand.New(rand.NewPCG(chosen, 0))
	longest := max(shortestLife, min(longestLife, load/leastLives))
	return func() time.Duration {
		return shortestLife + time.Duration(random.Int64N(int64(longest-shortestLife)+1))
	}
}

// kills kills walhook again and again under a load, and starts it at once.
func kills(x *Trial, load Load, lifetime func() time.Duration) {
	x.Helper()
	p := x.start()
	x.ready()
	l := killUntil(x, p, x.drive(load), func() <-chan time.Time { return time.After(lifetime()) })
	most := 5 // of ten: quick lives are short, and others' scenarios, or other tests, run beside them
	if *faults && !*quick {
		most = 9
	}
	x.expect(10*l.moved >= most*l.lives, "the confirmed position moved in %d of %d lives", l.moved, l.lives)
	x.finish(time.Minute, fmt.Sprintf("moved=%d/%d", l.moved, l.lives))
}

// Lives is the lives of walhooks that are killed one after the other.
type Lives struct {
	lives    int
	moved    int // lives in which the confirmed position moved
	long     int // lives that are longEnough
	recorded int // long lives in which it moved, or rows were inserted
}

// longEnough is the length of a life in which walhook must record something, whatever it
// has to read and to look up first.
const longEnough = 2 * time.Second

// killUntil kills until done.
func killUntil(x *Trial, p *Process, done <-chan struct{}, end func() <-chan time.Time) (l Lives) {
	x.Helper()
	confirmed, rows := x.slot().Confirmed, x.recorded()
	for {
		began := time.Now()
		select {
		case <-done:
			x.expect(l.lives > 0, "nothing was killed")
			return l
		case <-end():
		}
		x.expect(p.Running(), "%s has ended by itself: %v", p.Name, p.Err)
		over := x.crash(p)
		if err := p.kill(); err != nil {
			x.Fatal(err)
		}
		lasted := time.Since(began)
		over()
		p = x.start()
		l.lives++
		nowConfirmed, nowRows := x.slot().Confirmed, x.recorded()
		if nowConfirmed > confirmed {
			l.moved++
		}
		if lasted >= longEnough {
			l.long++
			if nowConfirmed > confirmed || nowRows > rows {
				l.recorded++
			}
		}
		confirmed, rows = nowConfirmed, nowRows
	}
}

// killMinus9Mixed kills under two-phase commits, COPY, and huge transactions, of which
// every second is rolled back. Each of the others is cut: walhook is killed as soon as some
// of its rows are inserted. The confirmed position stands until all of them are, so it is
// the number of rows that must move, in 9 of 10 lives that are long enough to read and look
// up the cut transaction again.
func killMinus9Mixed(t *testing.T, s Setup) {
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	load := Load{Rate: *rate / 2, Duration: lasting(30 * time.Second), Mixed: true}
	lifetime := lifetimes(t, load.Duration)
	done := x.drive(load)
	h := &Huge{trial: x, left: either(4, 2)}
	l := killUntil(x, p, done, func() <-chan time.Time {
		h.count()
		return time.After(min(h.begin(), lifetime()))
	})
	x.expect(h.cut > 0, "no kill came while a huge transaction was recorded in part")
	x.expect(10*l.recorded >= 9*l.long, "rows were recorded in %d of %d long lives", l.recorded, l.long)
	x.finish(2*time.Minute, fmt.Sprintf("moved=%d/%d recorded=%d/%d cut=%d", l.moved, l.lives, l.recorded, l.long, h.cut))
}

// A Huge is transactions of thousands of rows, of which every second is rolled back.
type Huge struct {
	trial  *Trial
	left   int            // transactions still to come
	events []oracle.Event // of the last committed one, until the next kill
	cut    int            // kills while a part of its rows was inserted
}

// begin runs the next transaction, if there is one. It returns the time until the kill:
// none for one that commits, because begin waits until some of its rows are inserted.
func (h *Huge) begin() (life time.Duration) {
	const rows = 10_000
	x := h.trial
	x.Helper()
	if h.left == 0 {
		return longestLife
	}
	h.left--
	events, rollBack := x.driver.newEvents(rows), h.left%2 == 0
	if rollBack {
		x.load.Go(func() {
			if err := x.driver.copy(context.WithoutCancel(x.Context()), events, true); err != nil {
				x.Errorf("a huge transaction: %v", err)
			}
		})
		return longestLife
	}
	if err := x.driver.copy(x.Context(), events, false); err != nil {
		x.Fatal(err)
	}
	for _, e := range events {
		h.events = append(h.events, *e)
	}
	x.eventually(longestLife, "some of a huge transaction's rows are inserted", func() bool { there, _ := h.rows(); return there > 0 })
	return 0
}

// rows returns how many of the last transaction's deliveries have a row, of how many.
func (h *Huge) rows() (there, owed int) {
	x := h.trial
	x.Helper()
	all := x.monitor.owed(h.events)
	missing, err := withoutRows(x.Context(), x.pool, all, time.Time{})
	if err != nil {
		x.Fatal(err)
	}
	return len(all) - len(missing), len(all)
}

// count notes whether the last transaction was cut by the kill before.
func (h *Huge) count() {
	if there, owed := h.rows(); 0 < there && there < owed {
		h.cut++
	}
	h.events = nil
}
