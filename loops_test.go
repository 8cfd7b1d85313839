package main

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestAStreamThatStandsStillEndsTheProcess(t *testing.T) {
	t.Parallel()
	wedged := errors.New("the stream has not turned for 8s")
	for name, looks := range map[string][]error{
		"after two looks":                          {nil, wedged, wedged},
		"and not after one, which a thaw explains": {wedged, nil, wedged, nil, wedged, wedged},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				n := 0
				err := watch(t.Context(), func() error { n++; return looks[n-1] })
				if !errors.Is(err, wedged) || n != len(looks) {
					t.Errorf("it ended with %v after %d looks, want %d", err, n, len(looks))
				}
			})
		})
	}
}

func TestNotificationsCountTenTimesASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began, at := time.Now(), []time.Duration{}
		call, stop := atMost(t.Context(), hintEvery, func() { at = append(at, time.Since(began)) })
		for range 10_000 { // in a second
			call()
			time.Sleep(100 * time.Microsecond)
		}
		if len(at) < 10 || len(at) > 11 {
			t.Errorf("10,000 calls in a second counted %d times", len(at))
		}
		time.Sleep(2 * hintEvery)
		calm := time.Since(began)
		at = nil
		call() // after a lull: at once
		synctest.Wait()
		call() // and what comes behind it: when its time has come
		call()
		time.Sleep(2 * hintEvery)
		if want := []time.Duration{calm, calm + hintEvery}; !slices.Equal(at, want) {
			t.Errorf("counted at %v, want %v", at, want)
		}
		stop()
	})
}
