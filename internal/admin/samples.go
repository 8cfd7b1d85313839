package admin

import (
	"context"
	"sync"
	"time"

	"github.com/walhook/walhook/deliver/schedule"
)

const (
	// sampleEvery is as often as the page asks for its charts.
	sampleEvery = 5 * time.Second

	// samplesKept are a quarter of an hour: long enough to see that something has changed. They
	// take 40 KiB.
	samplesKept = 180
)

// Samples are what this process did in the last minutes. Run takes them.
type Samples struct {
	stats func() schedule.Stats

	mu     sync.Mutex
	ring   [samplesKept]moment
	taken  int // of which the ring has the last
	before schedule.Counts
	at     time.Time // of before
}

// A moment is what was done between two looks.
type moment struct {
	took              time.Duration
	delivered, failed float64 // attempts per second
	wait              schedule.Latency
}

// NewSamples returns Samples of counters.
func NewSamples(stats func() schedule.Stats) *Samples { return &Samples{stats: stats} }

// Run takes a sample every five seconds, until the context ends.
func (s *Samples) Run(ctx context.Context) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for s.take(time.Now()); ; {
		select {
		case now := <-tick.C:
			s.take(now)
		case <-ctx.Done():
			return
		}
	}
}

// take looks at the counters, which are totals of the process and never go back. The first look
// has nothing to compare with.
func (s *Samples) take(now time.Time) {
	counts := s.stats().Counts
	s.mu.Lock()
	defer s.mu.Unlock()
	before, at := s.before, s.at
	s.before, s.at = counts, now
	if at.IsZero() || !now.After(at) {
		return
	}
	seconds := now.Sub(at).Seconds()
	s.ring[s.taken%samplesKept] = moment{
		took:      now.Sub(at),
		delivered: float64(counts.Delivered-before.Delivered) / seconds,
		failed:    float64(failures(counts)-failures(before)) / seconds,
		wait:      counts.ToAttempt.Since(before.ToAttempt),
	}
	s.taken++
}

// last returns the samples, the oldest first.
func (s *Samples) last() []moment {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(s.taken, samplesKept)
	all := make([]moment, 0, n)
	for i := s.taken - n; i < s.taken; i++ {
		all = append(all, s.ring[i%samplesKept])
	}
	return all
}

func failures(c schedule.Counts) (n uint64) {
	for _, of := range c.Errors {
		n += of
	}
	return n
}
