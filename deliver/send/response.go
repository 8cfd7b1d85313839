package send

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// What is kept of texts that others wrote, in bytes.
const (
	maxResponse = 4 << 10 // of a response body: enough for an error message, little enough for a row
	maxError    = 512     // of an attempt's error
)

// drainLimit bounds what is read beyond the kept part only to be able to reuse
// the connection. A new TLS connection costs more than 64 KiB, and less than
// whatever else may come.
const drainLimit = 64 << 10

var keepBuffers = sync.Pool{New: func() any { return new([maxResponse]byte) }}

// keep reads a response body as far as it is worth reading, closes it, and
// returns what is kept of it as storable text. It never fails: the status line
// has decided the attempt, and what could not be read is not kept.
func keep(body io.ReadCloser, length int64) string {
	if body == http.NoBody {
		return ""
	}
	defer body.Close()
	buf := keepBuffers.Get().(*[maxResponse]byte)
	defer keepBuffers.Put(buf)
	n, ended := fill(body, buf[:])
	if !ended && length <= maxResponse+drainLimit { // also where the length is unknown: -1
		_, _ = io.CopyN(io.Discard, body, drainLimit)
	}
	return storable(buf[:n], maxResponse, ended || int64(n) == length)
}

// fill reads until the buffer is full or the body ends, and says whether it
// ended. A body that breaks has ended too.
func fill(body io.Reader, buf []byte) (n int, ended bool) {
	for n < len(buf) {
		m, err := body.Read(buf[n:])
		n += m
		if err != nil {
			return n, true
		}
	}
	return n, false
}

// storable makes text of bytes that PostgreSQL can store: valid UTF-8, no NUL,
// at most limit bytes. Bytes that are no UTF-8 become U+FFFD, but not those of a
// rune that our own cut went through, where the bytes are not the whole text.
func storable(b []byte, limit int, whole bool) string {
	if len(b) > limit {
		b, whole = b[:limit], false
	}
	if !whole {
		b = trimPartialRune(b)
	}
	if utf8.Valid(b) && bytes.IndexByte(b, 0) < 0 {
		return string(b)
	}
	text := strings.ReplaceAll(strings.ToValidUTF8(string(b), "\uFFFD"), "\x00", "")
	if len(text) > limit { // U+FFFD is longer than what it replaces
		text = string(trimPartialRune([]byte(text[:limit])))
	}
	return text
}

// trimPartialRune removes the beginning of a rune from the end of b.
func trimPartialRune(b []byte) []byte {
	for i := 1; i < utf8.UTFMax && i <= len(b); i++ {
		if c := b[len(b)-i]; utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(b[len(b)-i:]) {
				return b[:len(b)-i]
			}
			return b
		}
	}
	return b
}

// MaxRetryAfter bounds how long a receiver can put a delivery off, so that a
// wrong header cannot lose it.
const MaxRetryAfter = 24 * time.Hour

// retryAfter returns the wait that a response's Retry-After asks for, at most
// MaxRetryAfter; 0 where there is none, none that can be read, or none left. A
// date is taken against the response's own Date, so that a receiver whose clock
// is off means what it says, or against now where it has none.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(h.Get("Retry-After"))
	if value == "" {
		return 0
	}
	if wait, ok := seconds(value); ok {
		return wait
	}
	until, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return min(max(until.Sub(now), 0), MaxRetryAfter)
}

// seconds parses delta-seconds of any length, stopping at MaxRetryAfter. A
// negative number is 0.
func seconds(value string) (time.Duration, bool) {
	digits, negative := strings.CutPrefix(value, "-")
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	if negative {
		return 0, true
	}
	var wait time.Duration
	for _, d := range digits {
		if wait = wait*10 + time.Duration(d-'0')*time.Second; wait >= MaxRetryAfter {
			return MaxRetryAfter, true
		}
	}
	return wait, true
}
