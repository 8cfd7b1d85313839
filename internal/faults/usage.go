package faults

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/walhook/walhook/internal/process"
)

// Usage is what a walhook uses while it has nothing to do.
type Usage struct {
	goroutines int
	resident   int64 // bytes of memory
}

const (
	// moreGoroutines bounds how many a walhook may have more after a load than before:
	// those of database connections, which pools keep. Each attempt has several, so that
	// a leak of them is beyond it within a second.
	moreGoroutines = 20

	// moreResident bounds how much more memory it may keep: WALHOOK_MAX_MEMORY, its
	// default. The payloads of a full window may be garbage that is not collected yet,
	// because nothing is allocated any more, and what is collected goes back to the
	// system slowly. So what leaks in small pieces is not seen here, but by goroutines.
	moreResident = 64 << 20

	// returnsWithin is how soon after the last outcome that must be so: those who make
	// attempts stay for ten seconds without one, by design.
	returnsWithin = 15 * time.Second
)

// more says what is used beyond what was before; "": nothing that counts.
func (u Usage) more(before Usage) string {
	switch {
	case u.goroutines > before.goroutines+moreGoroutines:
		return fmt.Sprintf("%d goroutines, and before the load %d", u.goroutines, before.goroutines)
	case u.resident > before.resident+moreResident:
		return fmt.Sprintf("%d MiB, and before the load %d", u.resident>>20, before.resident>>20)
	}
	return ""
}

// usage measures what a process uses.
func (p *Process) usage(ctx context.Context) (Usage, error) {
	const goroutines = "walhook_go_goroutines"
	n, measured := p.metric(ctx, goroutines)
	if !measured {
		return Usage{}, fmt.Errorf("%s has no metric %s", p.Name, goroutines)
	}
	stat, err := p.measure()
	return Usage{goroutines: int(n), resident: stat.Resident}, err
}

// idles keeps what a process uses that has nothing to do yet.
func (x *Trial) idles(p *Process) {
	x.Helper()
	x.eventually(5*time.Second, p.Name+" tells what it uses", func() bool {
		u, err := p.usage(x.Context())
		if err == nil {
			p.idle = &u
		}
		return err == nil
	})
}

// idlesAgain expects that the processes use no more than before the load, and says
// what they use. Connections to the receivers are closed: walhook would keep them
// for a while.
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

// measure reads what a process uses. One that has ended, and nobody has waited for, uses
// no memory.
func (p *Process) measure() (process.Stat, error) {
	s, err := process.ReadStat(p.PID)
	if err == nil && s.Resident == 0 {
		err = errors.New("it has ended")
	}
	return s, err
}

// measure reads what a process uses. One that cannot be measured must have ended, or
// end at once.
func (x *Trial) measure(p *Process) process.Stat {
	const ends = time.Second
	s, err := p.measure()
	if err == nil {
		return s
	}
	select {
	case <-p.Exited:
	case <-time.After(ends):
		x.Errorf("measure %s: %v", p.Name, err)
	}
	return s
}

func (x *Trial) resident(p *Process) int64    { return x.measure(p).Resident }
func (x *Trial) cpu(p *Process) time.Duration { return x.measure(p).CPU }
