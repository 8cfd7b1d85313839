package send

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"
)

func TestStorable(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, in, want string
		limit          int
		whole          bool
	}{
		{"text stays", "öl", "öl", 10, true},
		{"NUL is removed", "a\x00b\x00", "ab", 10, true},
		{"bytes that are no UTF-8 are replaced", "a\xff\xfeb", "a\uFFFDb", 10, true},
		{"a surrogate is no UTF-8", "\xed\xa0\x80", "\uFFFD", 10, true},
		{"a long text is cut", "abcdef", "abc", 3, true},
		{"between runes", "aöö", "aö", 4, true},
		{"before a rune of four bytes", "a\U0001F600", "a", 4, true},
		{"a text that goes on loses the rune it was cut in", "aö\xf0\x9f", "aö", 10, false},
		{"a text that ends there keeps its fault", "aö\xf0\x9f", "aö\uFFFD", 10, true},
		{"replacing does not exceed the limit", "\xff\xffa\xff", "\uFFFDa", 4, true},
		{"nothing", "", "", 10, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := storable([]byte(tc.in), tc.limit, tc.whole); got != tc.want {
				t.Errorf("storable = %q, want %q", got, tc.want)
			}
		})
	}
}

func FuzzStorable(f *testing.F) {
	f.Add([]byte("a\x00\xff\xf0\x9f\x98"), 3, true)
	f.Fuzz(func(t *testing.T, b []byte, limit int, whole bool) {
		if limit < 0 {
			return
		}
		got := storable(b, limit, whole)
		if len(got) > limit || !utf8.ValidString(got) || strings.Contains(got, "\x00") {
			t.Errorf("storable(%q, %d, %v) = %q", b, limit, whole, got)
		}
	})
}

// A watchedBody counts the bytes read from it.
type watchedBody struct {
	io.Reader
	read int
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.read += n
	return n, err
}

func TestKeep(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 1<<20)
	for _, tc := range []struct {
		name     string
		body     io.Reader
		length   int64
		want     string
		readMost int
		ended    bool
	}{
		{"a short body", strings.NewReader("ok"), 2, "ok", 2, true},
		{"a short body of unknown length", strings.NewReader("ok"), -1, "ok", 2, true},
		{"a body a byte at a time", iotest.OneByteReader(strings.NewReader("ok")), -1, "ok", 2, true},
		{"a body that tells its end early", iotest.DataErrReader(strings.NewReader(long[:maxResponse])), maxResponse, long[:maxResponse], maxResponse, true},
		{"a body that breaks is kept so far", io.MultiReader(strings.NewReader("half"), iotest.ErrReader(errors.New("reset"))), 100, "half", 4, false},
		{"a body that is cut off is kept so far", io.MultiReader(strings.NewReader("half"), iotest.ErrReader(io.ErrUnexpectedEOF)), 100, "half", 4, false},
		{"a body of exactly what is kept", strings.NewReader(long[:maxResponse]), maxResponse, long[:maxResponse], maxResponse, true},
		{"a body that can be drained is", strings.NewReader(long[:maxResponse+100]), maxResponse + 100, long[:maxResponse], maxResponse + 100, true},
		{"an endless body is drained for a while", strings.NewReader(long), -1, long[:maxResponse], maxResponse + drainLimit, false},
		{"a body that says it is long is not drained", strings.NewReader(long), int64(len(long)), long[:maxResponse], maxResponse, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			body := &watchedBody{Reader: tc.body}
			got, ended := keep(body, tc.length)
			if got != tc.want {
				t.Errorf("keep = %d bytes %.20q…, want %d bytes %.20q…", len(got), got, len(tc.want), tc.want)
			}
			if body.read != tc.readMost || ended != tc.ended {
				t.Errorf("%d bytes were read, want %d; ended %v, want %v", body.read, tc.readMost, ended, tc.ended)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name, value, date string
		want              time.Duration
	}{
		{"none", "", "", 0},
		{"seconds", "120", "", 2 * time.Minute},
		{"seconds among spaces", " 120 ", "", 2 * time.Minute},
		{"zero", "0", "", 0},
		{"negative", "-5", "", 0},
		{"a day at most", "86401", "", 24 * time.Hour},
		{"any number of digits", strings.Repeat("9", 400), "", 24 * time.Hour},
		{"leading zeros", "000000000000000000000000005", "", 5 * time.Second},
		{"a fraction is no number of seconds", "1.5", "", 0},
		{"a word", "soon", "", 0},
		{"only a sign", "-", "", 0},
		{"a date", "Mon, 23 Nov 2026 12:01:00 GMT", "", time.Minute},
		{"a date of RFC 850", "Monday, 23-Nov-26 12:01:00 GMT", "", time.Minute},
		{"a date as C prints it", "Mon Nov 23 12:01:00 2026", "", time.Minute},
		{"a date in the past", "Mon, 23 Nov 2026 11:00:00 GMT", "", 0},
		{"a date beyond a day", "Fri, 23 Nov 2096 12:00:00 GMT", "", 24 * time.Hour},
		{"a date against the receiver's own clock", "Sun, 22 Nov 2026 12:01:00 GMT", "Sun, 22 Nov 2026 12:00:00 GMT", time.Minute},
		{"a date against a clock that cannot be read", "Mon, 23 Nov 2026 12:01:00 GMT", "yesterday", time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h := http.Header{}
			h.Set("Retry-After", tc.value)
			h.Set("Date", tc.date)
			if got := retryAfter(h, now); got != tc.want {
				t.Errorf("retryAfter = %v, want %v", got, tc.want)
			}
		})
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("120", "")
	f.Add("-1", "")
	f.Add("99999999999999999999999999", "")
	f.Add("Mon, 23 Nov 2026 12:01:00 GMT", "Mon, 23 Nov 2026 12:00:00 GMT")
	f.Fuzz(func(t *testing.T, value, date string) {
		h := http.Header{"Retry-After": {value}, "Date": {date}}
		if got := retryAfter(h, time.Unix(0, 0)); got < 0 || got > MaxRetryAfter {
			t.Errorf("retryAfter(%q, %q) = %v", value, date, got)
		}
	})
}
