//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"
)

func TestPayloadsAreJSONOfOneKiB(t *testing.T) {
	t.Parallel()
	for _, i := range []int{0, 9, 10, 49_999, 1_000_000} {
		if got := payload(i, payloadBytes); len(got) != payloadBytes || !json.Valid(got) {
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

func TestOnlyNamesScenarios(t *testing.T) {
	t.Parallel()
	for only, want := range map[string]int{"all": len(scenarios), "drain": 1, "replay,bad,replay": 2} {
		if got, err := choose(only); err != nil || len(got) != want {
			t.Errorf("choose(%q) = %d scenarios and %v, want %d", only, len(got), err, want)
		}
	}
	for _, only := range []string{"", "drian", "drain,", "drain,all"} {
		if got, err := choose(only); err == nil {
			t.Errorf("choose(%q) = %d scenarios, want an error", only, len(got))
		}
	}
}

func TestRefusingAddressRefuses(t *testing.T) {
	t.Parallel()
	address, release, err := refusingAddress()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	conn, err := net.Dial("tcp", address)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialling %s: %v, want a refusal", address, err)
	}
}

// Latencies count by endpoint, but not during the warm-up, and not those of bad
// endpoints. An event that never arrived counts with the time waited for it.
func TestCompareOfCommitsAndArrivals(t *testing.T) {
	t.Parallel()
	l := load{endpoints: 3, bad: 1}
	events := []sent{
		{id: "warm-up", endpoint: 0, due: 1, begun: 1, committed: 2},
		{id: "arrived", endpoint: 0, due: 10, begun: 12, committed: 13},
		{id: "lost", endpoint: 1, due: 11, begun: 11, committed: 12},
		{id: "bad", endpoint: 2, due: 12, begun: 12, committed: 13},
	}
	var s steady
	s.compare(l, events, arrivals{Stamps: map[string]time.Duration{"warm-up": 3, "arrived": 20, "replayed": 30}}, 5)
	if len(s.byEndpoint) != 2 || len(s.byEndpoint[0]) != 1 || s.byEndpoint[0][0] != 7 {
		t.Errorf("latencies %v, want 7 for the first endpoint", s.byEndpoint)
	}
	if s.missing != 1 || len(s.byEndpoint[1]) != 1 || s.byEndpoint[1][0] < 1000 {
		t.Errorf("%d missing, latencies %v, want the one with the time until now", s.missing, s.byEndpoint)
	}
	if s.others != 1 || s.lastOther != 30 {
		t.Errorf("%d others, the last at %d, want 1 at 30", s.others, s.lastOther)
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

// An INSERT counts as beside an upkeep if they overlap at all.
func TestInsertsBesideAnUpkeep(t *testing.T) {
	t.Parallel()
	p := probes{all: []span{{1, 2}, {9, 11}, {12, 13}, {18, 40}, {20, 21}, {50, 53}}}
	upkeep := []span{{10, 20}, {60, 70}}
	if got := p.during(upkeep); !slices.Equal(got, []time.Duration{1, 2, 22}) {
		t.Errorf("beside it took %v", got)
	}
}
