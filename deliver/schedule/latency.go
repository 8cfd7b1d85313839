package schedule

import (
	"math/bits"
	"time"
)

const (
	// shortest is the bound of the first bucket of a Latency: a commit reaches a receiver
	// next door in 0.3 ms. Each bucket is twice as wide as the one before.
	shortest = 250 * time.Microsecond

	// latencyBuckets bounds the buckets: the last bound is 262 s, beyond which minutes do
	// not matter.
	latencyBuckets = 21
)

// A Latency counts durations by their length. It has no lock and takes no memory, so
// that counting costs nanoseconds: the Scheduler does so with its mutex held.
type Latency struct {
	buckets [latencyBuckets + 1]uint64 // the last one has what is longer than all bounds
	sum     time.Duration
}

// Add counts a duration. One below zero is the difference of two machines' clocks.
func (l *Latency) Add(d time.Duration) {
	d = max(d, 0)
	l.buckets[min(bits.Len64(uint64(max(d-1, 0)/shortest)), latencyBuckets)]++
	l.sum += d
}

// Histogram returns the counts as Prometheus has them: how many were at most so many
// seconds long, how many there were, and how long together.
func (l *Latency) Histogram() (atMost map[float64]uint64, count uint64, sum float64) {
	atMost = make(map[float64]uint64, latencyBuckets)
	for i, n := range l.buckets {
		if count += n; i < latencyBuckets {
			atMost[(shortest << i).Seconds()] = count
		}
	}
	return atMost, count, l.sum.Seconds()
}

// Since returns what was counted after before, an earlier copy.
func (l Latency) Since(before Latency) Latency {
	for i := range l.buckets {
		l.buckets[i] -= before.buckets[i]
	}
	l.sum -= before.sum
	return l
}

func (l Latency) plus(o *Latency) Latency {
	for i := range l.buckets {
		l.buckets[i] += o.buckets[i]
	}
	l.sum += o.sum
	return l
}

// Quantile returns the bound of the bucket that holds a quantile: so long, or up to half as
// long. It is 0 if nothing was counted.
func (l *Latency) Quantile(q float64) time.Duration {
	_, count, _ := l.Histogram()
	if count == 0 {
		return 0
	}
	i, seen := 0, l.buckets[0]
	for ; i < latencyBuckets && float64(seen) < q*float64(count); seen += l.buckets[i] {
		i++
	}
	return shortest << i
}
