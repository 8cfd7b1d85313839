package schedule

import (
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
)

func TestLatency(t *testing.T) {
	t.Parallel()
	var l Latency
	if got := l.Quantile(0.5); got != 0 {
		t.Errorf("the median of nothing is %s", got)
	}
	for d, bucket := range map[time.Duration]int{
		-time.Second: 0, 0: 0, 1: 0, shortest: 0, shortest + 1: 1, 2 * shortest: 1, 2*shortest + 1: 2, time.Second: 12,
		shortest << 20: 20, shortest<<20 + 1: 21, 1000 * time.Hour: 21,
	} {
		before := l
		l.Add(d)
		if now := l.Since(before); now.buckets[bucket] != 1 || now.sum != max(d, 0) {
			t.Errorf("%s is counted as %v", d, now)
		}
	}
	atMost, count, sum := l.Histogram()
	if len(atMost) != latencyBuckets || atMost[0.00025] != 4 || atMost[0.0005] != 6 || atMost[1.024] != 8 || atMost[262.144] != 9 || count != 11 || sum != l.sum.Seconds() {
		t.Errorf("got %v, %d of them, %f seconds", atMost, count, sum)
	}
	for q, want := range map[float64]time.Duration{0: shortest, 0.36: shortest, 0.5: 2 * shortest, 0.6: 4 * shortest, 0.7: shortest << 12, 1: shortest << 21} {
		if got := l.Quantile(q); got != want {
			t.Errorf("%g of all are at most %s, want %s", q, got, want)
		}
	}
}

// The two latencies are those of first attempts that the stream brought, each counted once:
// a retry or a replay says nothing of how fast an event left.
func TestLatencyIsThatOfFirstAttempts(t *testing.T) {
	t.Parallel()
	const committed, took = 3 * time.Second, 400 * time.Millisecond
	now := time.Now()
	fail := webhook.Attempt{EndedAt: now, Duration: took, StatusCode: 500, Class: webhook.ErrHTTP5xx}
	for what, c := range map[string]struct {
		attempts int
		at       time.Time
		counted  uint64
		retried  uint64
	}{
		"the first attempt":                  {0, now.Add(-committed), 1, 0},
		"a second one":                       {1, now.Add(-committed), 0, 1},
		"a first one that the table brought": {0, time.Time{}, 0, 0},
	} {
		var counts Counts
		d := &Delivery{id: uuid.New(), attempts: c.attempts, event: &event{committed: c.at}}
		counts.attempt(d, &fail)
		counts.recorded(d, now.Add(time.Second))
		_, began, waited := counts.ToAttempt.Histogram()
		_, recorded, until := counts.ToRecorded.Histogram()
		if began != c.counted || recorded != c.counted || counts.Retried != c.retried || counts.Recorded != 1 {
			t.Errorf("%s: counted %d and %d, retried %d, recorded %d", what, began, recorded, counts.Retried, counts.Recorded)
		}
		if c.counted == 1 && (waited != (committed-took).Seconds() || until != (committed+time.Second).Seconds()) {
			t.Errorf("%s: began after %f s, was recorded after %f s", what, waited, until)
		}
	}
}

// A count that Plus forgets would begin anew with each pipeline.
func TestPlusKnowsEveryCount(t *testing.T) {
	t.Parallel()
	var one Counts
	v := reflect.ValueOf(&one).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Uint64:
			f.SetUint(1)
		case reflect.Map:
			f.Set(reflect.MakeMap(f.Type()))
			f.SetMapIndex(reflect.New(f.Type().Key()).Elem(), reflect.ValueOf(uint64(1)))
		case reflect.Struct:
			f.Addr().Interface().(*Latency).Add(time.Second)
		default:
			t.Errorf("%s is counted in no way that this test knows", v.Type().Field(i).Name)
		}
	}
	both := one.Plus(one)
	of := reflect.ValueOf(both)
	for i := range of.NumField() {
		if reflect.DeepEqual(of.Field(i).Interface(), v.Field(i).Interface()) {
			t.Errorf("%s: twice %v is %v", v.Type().Field(i).Name, v.Field(i), of.Field(i))
		}
	}
}

func BenchmarkLatency(b *testing.B) {
	var l Latency
	for d := time.Duration(0); b.Loop(); d += 100 * time.Microsecond {
		l.Add(d)
	}
}
