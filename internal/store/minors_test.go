package store

import (
	"strings"
	"testing"
	"time"
)

func TestMinorVersion(t *testing.T) {
	t.Parallel()
	for version, want := range map[int]string{
		140004: "warn can go back to WAL; can miss changes; can remove WAL -> 14.24",
		140018: "warn run out of memory; can remove WAL -> 14.24",
		140019: "warn 14.24 is out -> 14.24",
		140024: "ok 14.24",
		150013: "warn run out of memory; can remove WAL -> release/17.6",
		150019: "ok 15.19",
		160008: "warn can miss changes; can remove WAL -> 16.15",
		170001: "warn can go back to WAL; can miss changes; can remove WAL -> 17.11",
		170005: "warn run out of memory; can remove WAL -> 17.11",
		170006: "warn 17.11 is out -> support/versioning",
		180003: "warn wait for ever -> release/18.4",
		180004: "warn 18.6 is out -> 18.6",
		180006: "ok 18.6",
		180009: "ok 18.9",
		190000: "ok knows no faults",
	} {
		c := minorVersion(version)
		state, rest, _ := strings.Cut(want, " ")
		found, fix, _ := strings.Cut(rest, " -> ")
		if string(c.State) != state || !strings.Contains(c.Fix, fix) {
			t.Errorf("%d: %s %s -> %s; want %s", version, c.State, c.Found, c.Fix, want)
		}
		for part := range strings.SplitSeq(found, "; ") {
			if !strings.Contains(c.Found, part) {
				t.Errorf("%d: %s; want %s", version, c.Found, part)
			}
		}
		if strings.Count(c.Found, ";") != max(strings.Count(found, ";"), strings.Count(c.Found, "is out"), strings.Count(c.Found, "knows no")) {
			t.Errorf("%d: %s; want no more than %s", version, c.Found, found)
		}
	}
}

func TestClockSkew(t *testing.T) {
	t.Parallel()
	began := time.Now()
	for _, c := range []struct {
		took, theirs time.Duration
		want         string
	}{
		{time.Millisecond, 0, "agree"},
		{time.Millisecond, -4 * time.Second, "agree"},
		{20 * time.Second, 12 * time.Second, "agree"}, // a slow answer proves nothing
		{time.Millisecond, time.Minute, "1m0s ahead of"},
		{time.Millisecond, -time.Minute, "1m0s behind"},
	} {
		if got := clockSkew(began, began.Add(c.took), began.Add(c.theirs)); !strings.Contains(got.Found, c.want) || (got.State == CheckOK) != (c.want == "agree") {
			t.Errorf("%v: %s %s", c, got.State, got.Found)
		}
	}
}
