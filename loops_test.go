package main

import (
	"errors"
	"testing"
	"testing/synctest"
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
