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

// Bounds of texts that others wrote, in bytes.
const (
	maxResponse = 4 << 10 // of a response body: enough for an error message, little enough for a row
	maxError    = 512     // of an attempt's error
)

// drainLimit bounds the bytes that are read and thrown away so that the connection can
// be reused. A new TLS connection costs more than reading 64 KiB, and less than reading
// a body of any size.
const drainLimit = 64 << 10

var keepBuffers = sync.Pool{New: func() any { return new([maxResponse]byte) }}

// keep returns the first maxResponse bytes of a response body as storable text. It
// drains up to drainLimit more, and closes the body. It never fails: the status line has
// decided the attempt, so an unreadable part is left out.
func keep(body io.ReadCloser, length int64) string {
	if body == http.NoBody {
		return ""
	}
	defer body.Close()
	buf := keepBuffers.Get().(*[maxResponse]byte)
	defer keepBuffers.Put(buf)
	n, ended := fill(body, buf[:])
	if !ended && length <= maxResponse+drainLimit { // or the length is unknown: -1
		_, _ = io.CopyN(io.Discard, body, drainLimit)
	}
	return storable(buf[:n], maxResponse, ended || int64(n) == length)
}

// fill reads until the buffer is full or the body ends, and reports whether it ended. A
// read error ends it, too.
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

// storable returns text that PostgreSQL can store: valid UTF-8 without NUL, of at most
// limit bytes. Invalid bytes become U+FFFD. If the text was cut (not whole, or longer
// than limit), a partial rune at the end is removed instead.
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
	if len(text) > limit { // U+FFFD is longer than the bytes it replaces
		text = string(trimPartialRune([]byte(text[:limit])))
	}
	return text
}

// trimPartialRune removes an incomplete rune from the end of b.
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

// MaxRetryAfter bounds the delay that a receiver can ask for, so that a wrong header
// cannot postpone a delivery for ever.
const MaxRetryAfter = 24 * time.Hour

// retryAfter returns the wait that a response's Retry-After asks for, at most
// MaxRetryAfter. It returns 0 if the header is missing, invalid or in the past. A date is
// compared with the response's own Date, because the receiver's clock may be off, or
// with now if there is no Date.
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

// seconds parses delta-seconds of any length, up to MaxRetryAfter. A negative number
// counts as 0.
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
