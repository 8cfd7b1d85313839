package faults

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/walhook/walhook/internal/process"
)

// A Usage is what an idle walhook uses.
type Usage struct {
	goroutines int
	resident   int64 // bytes of memory
}

const (
	// moreGoroutines bounds how many more goroutines an idle walhook may have after a load
	// than before: those of pooled database connections. A leak of one per attempt exceeds
	// it within a second.
	moreGoroutines = 20

	// moreResident bounds how much more memory it may have: the default of
	// WALHOOK_MAX_MEMORY. The payloads of a full window may be garbage that is not yet
	// collected, because nothing is allocated any more, and freed memory returns to the
	// system slowly. So this does not find small leaks; the count of goroutines does.
	moreResident = 64 << 20

	// returnsWithin bounds how soon after the last outcome both must hold: idle workers
	// stay for ten seconds by design.
	returnsWithin = 15 * time.Second
)

// more describes what is used beyond the bounds; "": nothing.
func (u Usage) more(before Usage) string {
	switch {
	case u.goroutines > before.goroutines+moreGoroutines:
		return fmt.Sprintf("%d goroutines, and before the load %d", u.goroutines, before.goroutines)
	case u.resident > before.resident+moreResident:
		return fmt.Sprintf("%d MiB, and before the load %d", u.resident>>20, before.resident>>20)
	}
	return ""
}

// usage measures an idle process.
func (p *Process) usage(ctx context.Context) (Usage, error) {
	const goroutines = "walhook_go_goroutines"
	n, measured := p.metric(ctx, goroutines)
	if !measured {
		return Usage{}, fmt.Errorf("%s has no metric %s", p.Name, goroutines)
	}
	stat, err := p.measure()
	return Usage{goroutines: int(n), resident: stat.Resident}, err
}

// idles measures a process that has nothing to do yet.
func (x *Trial) idles(p *Process) {
	x.Helper()
	x.eventually(5*time.Second, p.Name+" can be measured", func() bool {
		u, err := p.usage(x.Context())
		if err == nil {
			p.idle = &u
		}
		return err == nil
	})
}

// idlesAgain expects that the processes use no more than before the load, and returns
// the figures. It closes the connections to the receivers, which walhook would keep for
// a while.
func (x *Trial) idlesAgain() (figures []string) {
	x.Helper()
	x.receiver.server.CloseClientConnections()
	deadline := time.Now().Add(returnsWithin)
	for _, p := range x.living() {
		if p.idle == nil {
			continue
		}
		now, err := p.usage(x.Context())
		for ; (err != nil || now.more(*p.idle) != "") && time.Now().Before(deadline); now, err = p.usage(x.Context()) {
			time.Sleep(lookEvery)
		}
		x.expect(err == nil, "%v", err)
		x.expect(now.more(*p.idle) == "", "%s after the last outcome %s has %s", returnsWithin, p.Name, now.more(*p.idle))
		figures = append(figures, fmt.Sprintf("goroutines=%d to %d memory=%d to %dMiB", p.idle.goroutines, now.goroutines, p.idle.resident>>20, now.resident>>20))
	}
	return figures
}

// measure reads what a process uses. One without memory has ended, or is only just starting.
func (p *Process) measure() (process.Stat, error) {
	s, err := process.ReadStat(p.PID)
	if err == nil && s.Resident == 0 {
		err = errors.New("it has no memory")
	}
	return s, err
}

// measure reads what a process uses. One that cannot be measured is between fork and exec, or
// has been killed: then it loses its memory first, and its parent hears of the end only when a
// busy machine has closed the rest.
func (x *Trial) measure(p *Process) process.Stat {
	const settles, again = 10 * time.Second, 10 * time.Millisecond
	for began := time.Now(); ; {
		s, err := p.measure()
		if err == nil {
			return s
		}
		select {
		case <-p.Exited:
			return s
		case <-time.After(again):
		}
		if time.Since(began) > settles {
			x.Errorf("measure %s: %v", p.Name, err)
			return s
		}
	}
}

func (x *Trial) resident(p *Process) int64    { return x.measure(p).Resident }
func (x *Trial) cpu(p *Process) time.Duration { return x.measure(p).CPU }
