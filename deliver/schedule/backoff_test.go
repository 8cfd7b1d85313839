package schedule

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/walhook/walhook/deliver/send"
)

func TestScheduleWait(t *testing.T) {
	t.Parallel()
	s := Backoff{5 * time.Second, 5 * time.Minute, 24 * time.Hour}
	const most = 1 - 1.0/(1<<53)
	for _, tc := range []struct {
		name       string
		schedule   Backoff
		failed     int
		retryAfter time.Duration
		jitter     float64
		want       time.Duration
		again      bool
	}{
		{"the first failure waits the first entry", s, 1, 0, 0, 5 * time.Second, true},
		{"the last entry is used", s, 3, 0, 0, 24 * time.Hour, true},
		{"then the schedule is used up", s, 4, 0, 0, 0, false},
		{"Retry-After does not prolong the schedule", s, 4, time.Hour, 0, 0, false},
		{"no schedule, no second attempt", nil, 1, 0, 0, 0, false},
		{"no failure counts as the first", s, 0, 0, 0, 5 * time.Second, true},
		{"jitter lengthens", s, 1, 0, 0.5, 5500 * time.Millisecond, true},
		{"by at most a fifth", s, 2, 0, most, 6*time.Minute - 1, true},
		{"jitter beyond its range is cut", s, 2, 0, 100, 6 * time.Minute, true},
		{"negative jitter does not shorten", s, 2, 0, -1, 5 * time.Minute, true},
		{"no number is no jitter", s, 2, 0, math.NaN(), 5 * time.Minute, true},
		{"Retry-After lengthens", s, 1, time.Minute, 0.5, time.Minute, true},
		{"Retry-After does not shorten", s, 2, time.Second, 0, 5 * time.Minute, true},
		{"Retry-After is capped at a day", s, 1, 48 * time.Hour, 0, 24 * time.Hour, true},
		{"the cap does not shorten the schedule", Backoff{48 * time.Hour}, 1, 72 * time.Hour, 0, 48 * time.Hour, true},
		{"a negative wait is none", Backoff{-time.Second}, 1, 0, 0.5, 0, true},
		{"the longest wait does not overflow", Backoff{math.MaxInt64}, 1, 0, most, math.MaxInt64, true},
		{"nor one just below", Backoff{math.MaxInt64 / 10 * 9}, 1, 0, most, math.MaxInt64, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, again := tc.schedule.Wait(tc.failed, tc.retryAfter, tc.jitter)
			if got != tc.want || again != tc.again {
				t.Errorf("Wait = %v, %v, want %v, %v", got, again, tc.want, tc.again)
			}
		})
	}
}

func TestAWaitIsNeverShorterThanTheSchedule(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		wait := time.Duration(rapid.Int64Min(0).Draw(t, "wait"))
		retryAfter := time.Duration(rapid.Int64().Draw(t, "retryAfter"))
		jitter := rapid.Float64Range(0, 1).Draw(t, "jitter")
		got, again := Backoff{wait}.Wait(1, retryAfter, jitter)
		if !again || got < wait || got < min(retryAfter, send.MaxRetryAfter) {
			t.Fatalf("Wait = %v, %v", got, again)
		}
	})
}
