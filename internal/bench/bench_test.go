//go:build linux

package main

import (
	"encoding/json"
	"testing"
	"time"
)

func TestPayloadsAreJSONOfOneKiB(t *testing.T) {
	t.Parallel()
	for _, i := range []int{0, 9, 10, 49_999, 1_000_000} {
		if got := payload(i); len(got) != payloadBytes || !json.Valid(got) {
			t.Errorf("payload(%d): %d bytes, want %d of valid JSON", i, len(got), payloadBytes)
		}
	}
}

func TestQuantileIsByNearestRank(t *testing.T) {
	t.Parallel()
	ten := []time.Duration{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 5, 0.9: 9, 0.99: 10, 1: 10} {
		if got := quantile(ten, q); got != want {
			t.Errorf("quantile(%v) = %d, want %d", q, got, want)
		}
	}
}

func TestMedian(t *testing.T) {
	t.Parallel()
	if got := median([]float64{3, 1, 2}); got != 2 {
		t.Errorf("median of three = %v", got)
	}
	if got := median([]float64{4, 1, 2, 3}); got != 2.5 {
		t.Errorf("median of four = %v", got)
	}
}
