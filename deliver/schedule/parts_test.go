package schedule

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"github.com/walhook/walhook/internal/webhook"
)

// A queue's retries and replays get every fourth attempt where both wait, none where they
// may not be started, and all of them where nothing else waits.
func TestQueueTurns(t *testing.T) {
	t.Parallel()
	const waiting = 12
	drain := func(q *queue, lowMay bool) (order string) {
		for from := q.choose(lowMay); from != nil; from = q.choose(lowMay) {
			if q.pop(from).low {
				order += "l"
			} else {
				order += "f"
			}
		}
		return order
	}
	fill := func(first, late int) *queue {
		q := &queue{}
		for range first {
			q.push(&Delivery{})
		}
		for range late {
			q.push(&Delivery{low: true})
		}
		return q
	}
	for name, tc := range map[string]struct {
		q      *queue
		lowMay bool
		want   string
	}{
		"both":               {fill(waiting/2, 3), true, "ffflfffll"},
		"late ones only":     {fill(0, 3), true, "lll"},
		"late ones may not":  {fill(2, 3), false, "ff"},
		"none":               {fill(0, 0), true, ""},
		"first attempts too": {fill(3, 0), true, "fff"},
	} {
		if got := drain(tc.q, tc.lowMay); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// What was parked meanwhile is dropped from the head, and only from there.
func TestQueueTrim(t *testing.T) {
	t.Parallel()
	waits, gone := &Delivery{stage: queued}, &Delivery{stage: parked}
	for name, tc := range map[string]struct{ first, want []*Delivery }{
		"from the head":    {[]*Delivery{gone, gone, waits}, []*Delivery{waits}},
		"not from between": {[]*Delivery{waits, gone, waits}, []*Delivery{waits, gone, waits}},
		"all":              {[]*Delivery{gone, gone}, nil},
	} {
		q := &queue{first: slices.Clone(tc.first)}
		if q.trim(); !slices.Equal(q.first, tc.want) {
			t.Errorf("%s: %d are left, want %d", name, len(q.first), len(tc.want))
		}
	}
}

func TestPermits(t *testing.T) {
	t.Parallel()
	now := time.Now()
	p := &permits{limit: 5, proven: true, rate: rate.NewLimiter(10, 1)}
	if p.may(now) != 5 {
		t.Errorf("%d at once, want the limit", p.may(now))
	}
	p.breaker = breaker{ramp: 2}
	if p.may(now) != 2 {
		t.Errorf("%d at once, want what the breaker lets through", p.may(now))
	}
	if at := p.nextToken(now); at.After(now) {
		t.Errorf("the first has to wait %s", at.Sub(now))
	}
	p.takeToken(now)
	if wait := p.nextToken(now).Sub(now); wait < 99*time.Millisecond || wait > 101*time.Millisecond {
		t.Errorf("the next has to wait %s, want a tenth of a second", wait)
	}
	if p.begun(true, now); p.silent(now.Add(answerWithin - 1)) {
		t.Error("silent before its time")
	}
	if !p.silent(now.Add(answerWithin)) {
		t.Error("not silent after all that time")
	}
	if p.ended(true); p.running != 0 || p.lowRunning != 0 || p.silent(now.Add(time.Hour)) {
		t.Errorf("%+v after all have ended", p)
	}
}

func TestKnownGrowsOld(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for age, want := range map[time.Duration][2]bool{0: {true, false}, refreshAfter: {true, true}, staleAfter: {false, true}} {
		k := known{asOf: now.Add(-age)}
		if got := [2]bool{k.fresh(now), k.stale(now)}; got != want {
			t.Errorf("after %s, fresh and stale: %v, want %v", age, got, want)
		}
	}
	if k := (known{}); k.fresh(now) || !k.stale(now) {
		t.Error("what was never looked up is relied on")
	}
}

// A page that was not full is the last, unless something stands before it by then.
func TestLastPage(t *testing.T) {
	t.Parallel()
	p := &prefetch{rows: true}
	at := webhook.PageEnd{ID: uuid.New()}
	if !p.end(10, 10, at) || p.after != at {
		t.Error("a full page is the last")
	}
	if left := p.end(9, 10, at); left || p.rows || p.after != (webhook.PageEnd{}) {
		t.Error("a page that was not full is not the last")
	}
	p.begin()
	p.overflown = true
	if !p.end(9, 10, at) {
		t.Error("a page is the last of which some found no room")
	}
	p.after = webhook.PageEnd{}
	p.begin()
	p.restart() // something was put back meanwhile
	if left := p.end(0, 10, at); left || !p.rows {
		t.Error("what was put back while a page was under way is not looked for")
	}
}
