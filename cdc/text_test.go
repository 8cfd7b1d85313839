package cdc

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

func TestParseTimestamp(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		want time.Time
		ok   bool
	}{
		"2026-11-23 14:57:59.123456+00":    {time.Date(2026, 11, 23, 14, 57, 59, 123456000, time.UTC), true},
		"2026-11-23 14:57:59.1+00":         {time.Date(2026, 11, 23, 14, 57, 59, 1e8, time.UTC), true},
		"2026-11-23 14:57:59+00":           {time.Date(2026, 11, 23, 14, 57, 59, 0, time.UTC), true},
		"0001-01-01 00:00:00+00":           {time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), true},
		"infinity":                         {time.Time{}, true},
		"-infinity":                        {time.Time{}, true},
		"0044-03-15 12:00:00+00 BC":        {time.Time{}, true},
		"12026-11-23 14:57:59+00":          {time.Time{}, true},
		"":                                 {},
		"+00":                              {},
		"2026-11-23":                       {},
		"2026-11-23 14:57:59":              {},
		"2026-11-23 14:57:59+02":           {},
		"2026-11-23T14:57:59+00":           {},
		"2026-13-23 14:57:59+00":           {},
		"2026-11-23 24:57:59+00":           {},
		"2026-11-23 14:5x:59+00":           {},
		"2026-11-23 14:57:59.+00":          {},
		"2026-11-23 14:57:59.1234567+00":   {},
		"Mon Nov 23 14:57:59 2026 UTC":     {},
		"23.11.2026 14:57:59.123456 UTC":   {},
		"2026-11-23 14:57:59.12345x+00":    {},
		"2026-11-23 14:57:59.123456+00:30": {},
	}
	for in, c := range cases {
		got, ok := parseTimestamp([]byte(in))
		if ok != c.ok || !got.Equal(c.want) {
			t.Errorf("%q: got %s, %v", in, got, ok)
		}
	}
}

func TestTimestampsOfPostgreSQL(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		want := time.UnixMicro(rapid.Int64Range(-62135596800_000_000, 253402300799_999_999).Draw(t, "µs")).UTC()
		text := want.Format("2006-01-02 15:04:05.999999-07")
		if got, ok := parseTimestamp([]byte(text)); !ok || !got.Equal(want) {
			t.Errorf("%s: got %s, %v", text, got, ok)
		}
	})
}

func TestParseUUIDs(t *testing.T) {
	t.Parallel()
	a, b := uuid.MustParse(anID), uuid.MustParse(endpoint)
	cases := map[string]struct {
		want []uuid.UUID
		ok   bool
	}{
		"{}":                                    {nil, true},
		"{" + anID + "}":                        {[]uuid.UUID{a}, true},
		"{" + anID + "," + endpoint + "}":       {[]uuid.UUID{a, b}, true},
		"{" + anID + ",NULL," + endpoint + "}":  {[]uuid.UUID{a, b}, true},
		"[0:1]={" + anID + "," + endpoint + "}": {[]uuid.UUID{a, b}, true},
		"{{" + anID + "},{" + endpoint + "}}":   {[]uuid.UUID{a, b}, true},
		"{" + strings.ToUpper(endpoint) + "}":   {[]uuid.UUID{b}, true},
		"":                                      {},
		"{":                                     {},
		"[0:1]":                                 {},
		anID:                                    {},
		"{" + anID[1:] + "}":                    {},
		"{" + anID + anID + "}{":                {},
		"{" + strings.Replace(anID, "0", "g", 1) + "}": {},
		"{" + strings.Replace(anID, "-", "0", 1) + "}": {},
	}
	for in, c := range cases {
		got, ok := parseUUIDs([]byte(in))
		if ok != c.ok || !slices.Equal(got, c.want) && c.ok {
			t.Errorf("%q: got %v, %v", in, got, ok)
		}
	}
}

func TestUUIDsOfPostgreSQL(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var want []uuid.UUID
		var texts []string
		for range rapid.IntRange(0, 20).Draw(t, "n") {
			id := uuid.UUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
			want, texts = append(want, id), append(texts, id.String())
		}
		got, ok := parseUUIDs([]byte("{" + strings.Join(texts, ",") + "}"))
		if !ok || !slices.Equal(got, want) {
			t.Errorf("got %v, %v, want %v", got, ok, want)
		}
	})
}
