package schedule

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const long = 75 * time.Hour // a schedule

func TestBreaker(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	failing := func(n int) breaker {
		var b breaker
		for range n {
			b.failed(start, start, false, long)
		}
		return b
	}
	check := func(t *testing.T, b *breaker, at time.Duration, want int) {
		t.Helper()
		if got := b.limit(start.Add(at)); got != want {
			t.Errorf("after %v: %d attempts at once, want %d (%+v)", at, got, want, b)
		}
	}

	t.Run("a run of failures opens it, a success among them does not", func(t *testing.T) {
		t.Parallel()
		b := failing(breakAfter - 1)
		check(t, &b, 0, math.MaxInt)
		b.succeeded(32)
		for range breakAfter - 1 {
			if b.failed(start, start, false, long) {
				t.Fatal("opened early")
			}
		}
		check(t, &b, 0, math.MaxInt)
		if !b.failed(start, start, false, long) {
			t.Error("not opened")
		}
		check(t, &b, 0, 0)
	})
	t.Run("five timeouts open it", func(t *testing.T) {
		t.Parallel()
		var b breaker
		for n := range breakAfter / timeoutCosts {
			if opened := b.failed(start, start, true, long); opened != (n == breakAfter/timeoutCosts-1) {
				t.Errorf("after %d: %v", n+1, opened)
			}
		}
	})
	t.Run("probes become rarer, up to a bound", func(t *testing.T) {
		t.Parallel()
		b, at := failing(breakAfter), time.Duration(0)
		for _, wait := range []time.Duration{1, 2, 4, 8, 15, 15, 15, 15, 15, 15, 15, 15, 15} {
			at += wait * time.Second
			check(t, &b, at-1, 0)
			check(t, &b, at, 1)
			if b.failed(start.Add(at), start.Add(at), false, long) {
				t.Error("it opened, and was open")
			}
		}
	})
	t.Run("what was under way when it opened says nothing new", func(t *testing.T) {
		t.Parallel()
		b := failing(breakAfter)
		for range 100 {
			b.failed(start.Add(-time.Millisecond), start.Add(500*time.Millisecond), false, long)
		}
		check(t, &b, time.Second, 1)
	})
	t.Run("but a success does", func(t *testing.T) {
		t.Parallel()
		b := failing(breakAfter)
		b.succeeded(32)
		check(t, &b, 0, 1)
	})
	t.Run("after the first success the endpoint gets one more with each", func(t *testing.T) {
		t.Parallel()
		b := failing(breakAfter)
		for n := range 7 {
			b.succeeded(8)
			check(t, &b, 0, n+1)
		}
		b.succeeded(8)
		check(t, &b, 0, math.MaxInt)
	})
	t.Run("and one less with a failure, so that some failures do not hold it down", func(t *testing.T) {
		t.Parallel()
		b := failing(breakAfter)
		for range 6 {
			b.succeeded(32)
		}
		for _, want := range []int{5, 4, 3, 2, 1, 1} {
			b.failed(start, start, false, long)
			check(t, &b, 0, want)
		}
		for n := 0; b.limit(start) != math.MaxInt; n++ {
			if n == 1000 {
				t.Fatal("with one failure in four it never ends")
			}
			if n%4 == 0 {
				b.failed(start, start, false, long)
			} else {
				b.succeeded(32)
			}
		}
	})
	t.Run("one that is known to be open begins with a probe", func(t *testing.T) {
		t.Parallel()
		var b breaker
		b.trip(start, long)
		check(t, &b, 0, 1)
		b.failed(start, start, false, long)
		check(t, &b, 0, 0)
	})
}

func TestBreakerHoldsForNoLongerThanASchedule(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const short = 3 * time.Second
	var b breaker
	for range breakAfter {
		b.failed(start, start, false, short)
	}
	for at := time.Duration(0); at < short; at += 100 * time.Millisecond {
		now := start.Add(at)
		if n := b.limit(now); n > 1 {
			t.Errorf("after %v: %d at once", at, n)
		} else if n == 1 {
			b.failed(now, now, false, short)
		}
	}
	if n := b.limit(start.Add(short)); n != math.MaxInt || !b.open {
		t.Errorf("after %v: %d at once, open %v; want no limit, and still open", short, n, b.open)
	}
	if b.failed(start.Add(short), start.Add(short), false, short); b.limit(start.Add(short)) != math.MaxInt {
		t.Error("held back again by a failure")
	}
}

// Whatever comes, an open breaker lets one attempt through within probeMax, a
// closed one at least one at any time, and only a success closes it.
func TestBreakerNeverShutsForGood(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var b breaker
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		limit := rapid.IntRange(1, 40).Draw(t, "limit")
		t.Repeat(map[string]func(*rapid.T){
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, int(20*time.Second)).Draw(t, "d")))
			},
			"fail": func(t *rapid.T) {
				open := b.open
				begun := now.Add(-time.Duration(rapid.IntRange(0, int(10*time.Second)).Draw(t, "age")))
				if opened := b.failed(begun, now, rapid.Bool().Draw(t, "timeout"), long); open && (opened || !b.open) || !open && opened != b.open {
					t.Fatalf("open before %v, opened %v, open after %v", open, opened, b.open)
				}
			},
			"succeed": func(t *rapid.T) {
				if b.succeeded(limit); b.open {
					t.Fatal("open after a success")
				}
			},
			"": func(t *rapid.T) {
				if n := b.limit(now.Add(probeMax)); n < 1 || b.open && n != 1 {
					t.Fatalf("%d attempts at once after %v: %+v", n, probeMax, b)
				}
				if !b.open && b.limit(now) < 1 {
					t.Fatalf("closed, and nothing may start: %+v", b)
				}
			},
		})
	})
}
