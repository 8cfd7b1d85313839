package send

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/walhook/walhook/internal/webhook"
)

const (
	// maxResponseHead bounds a response's status line and headers, including those of
	// all 1xx responses. Servers send 8 to 32 KiB at most by default.
	maxResponseHead = 64 << 10

	// maxHeadLines bounds their lines, of which each takes some hundred bytes of memory
	// while a receiver keeps the next one to itself. Proxies take 100 headers.
	maxHeadLines = 500

	// readSize is the size of the buffer that most responses fit in.
	readSize = 4 << 10
)

// A reader reads one response. It counts the bytes and lines of the head, and remembers the
// error that the connection ended with, which http.ReadResponse does not always return.
type reader struct {
	conn  *conn
	buf   *bufio.Reader // over the reader itself
	left  int           // bytes that may still come
	lines int           // of the head, that have come
	began bool          // any byte has come
	err   error         // of the connection
}

var readers = sync.Pool{New: func() any {
	r := &reader{}
	r.buf = bufio.NewReaderSize(r, readSize)
	return r
}}

// newReader returns a reader for a connection's next response. It must be released.
func newReader(c *conn) *reader {
	r := readers.Get().(*reader)
	r.conn, r.left, r.lines, r.began, r.err = c, maxResponseHead, 0, false, nil
	r.buf.Reset(r)
	return r
}

func (r *reader) release() {
	r.conn, r.err = nil, nil
	readers.Put(r)
}

var errHeadTooLong = errors.New("the response's head is too long")

// Read is for buf. What it has read before belongs to the head, or the head would be over.
func (r *reader) Read(b []byte) (int, error) {
	if r.left <= 0 || r.lines > maxHeadLines {
		return 0, errHeadTooLong
	}
	n, err := r.conn.Read(b[:min(len(b), r.left)])
	r.left -= n
	r.lines += bytes.Count(b[:n], []byte("\n"))
	r.began = r.began || n > 0
	r.err = err
	return n, err
}

// head reads the head of the final response. A 101 is final: no request asks for it.
func (r *reader) head(req *http.Request) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(r.buf, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode/100 != 1 || resp.StatusCode == http.StatusSwitchingProtocols {
			r.left, r.lines = math.MaxInt, math.MinInt // keep bounds the body
			return resp, nil
		}
	}
}

// failure classifies an error of head: where the connection broke, or else what came is
// not HTTP. The parser takes a header that was cut for one that is malformed. failure does
// not use the parser's text: that quotes the response, where a receiver may have echoed our
// URL's query.
func (r *reader) failure(err error) *failure {
	if r.err != nil && (isEnd(err) || !isEnd(r.err) || r.lines > 0) {
		return r.conn.brokenFailure(r.err)
	}
	return &failure{class: webhook.ErrProtocol, err: errNotHTTP}
}

const errNotHTTP = words("the response is not valid HTTP, or it has more than 64 KiB or 500 lines of headers")

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

// keep returns the first maxResponse bytes of a response body as storable text, and
// reports whether the body was read to its end. It drains up to drainLimit more. It never
// fails: the status line has decided the attempt, so an unreadable part is left out.
func keep(body io.Reader, length int64) (text string, ended bool) {
	if body == http.NoBody {
		return "", true
	}
	buf := keepBuffers.Get().(*[maxResponse]byte)
	defer keepBuffers.Put(buf)
	n, err := fill(body, buf[:])
	whole := err != nil || int64(n) == length           // an error ends it, too
	if err == nil && length <= maxResponse+drainLimit { // or the length is unknown: -1
		_, err = io.CopyN(io.Discard, body, drainLimit)
	}
	return storable(buf[:n], maxResponse, whole), errors.Is(err, io.EOF)
}

// fill reads until the buffer is full or the body ends, and returns the error that ended
// it.
func fill(body io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = body.Read(buf[n:])
		n += m
	}
	return n, err
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
