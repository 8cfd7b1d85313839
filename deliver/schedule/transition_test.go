package schedule

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walhook/walhook/internal/webhook"
)

// Operators hear of each change once, of no attempt, and of nothing that was so before this
// process knew.
func TestChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, usual)
		works := time.Now().Add(10 * time.Second)
		endpoint := h.open(until(works, always(503, 0), always(200, 0)), of("a"))
		taken := func(what string, want ...Change) {
			t.Helper()
			var got []Change
			for _, x := range h.w.transitions {
				if got = append(got, x.Change); x.Endpoint != endpoint || x.Organization != "a" {
					t.Errorf("%s: %+v", what, x)
				}
			}
			if h.w.transitions = nil; !slices.Equal(got, want) {
				t.Errorf("%s: changes %v, want %v", what, got, want)
			}
		}
		h.event(endpoint)
		h.sleep(time.Second)
		taken("a failure")
		for range breakAfter {
			h.event(endpoint)
		}
		h.sleep(time.Second)
		taken("many", BreakerOpened)
		h.sleep(2 * time.Minute) // the retries are due after one, and jitter
		taken("a success", BreakerClosed)
		h.change(endpoint, paused(true))
		h.event(endpoint)
		h.sleep(2 * time.Second)
		taken("paused", Paused)
		h.change(endpoint, paused(false))
		h.sleep(2 * time.Second)
		taken("resumed", Resumed)
		h.change(endpoint, func(e *webhook.Endpoint) { e.Enabled = false })
		h.event(endpoint)
		h.sleep(2 * time.Second)
		taken("disabled", Disabled)

		known := h.open(always(200, 0), of("a"), paused(true))
		off := h.open(always(200, 0), of("a"), func(e *webhook.Endpoint) { e.Enabled = false })
		h.event(known, off)
		h.sleep(5 * time.Second)
		taken("what was so before")
	})
}

// Deliveries that are given up are counted, with the first of them.
func TestExhausted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, usual)
		h.w.backoff = Backoff{}
		endpoint := h.open(always(503, 0), of("a"))
		for range 3 {
			h.event(endpoint)
		}
		h.sleep(time.Second)
		if e := h.w.exhausted; e.Count != 3 || e.Endpoint != endpoint || e.Organization != "a" {
			t.Errorf("%+v", e)
		}
	})
}
