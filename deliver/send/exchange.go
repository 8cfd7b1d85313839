package send

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/walhook/walhook/internal/webhook"
)

const (
	// bodyTimeout bounds reading a response's body. The status line has decided the
	// attempt; the text only helps operators. A body that trickles must not hold a
	// permit.
	bodyTimeout = time.Second

	// writeSize is the size of the buffer for a request: most fit, and are one write
	// and one record of TLS.
	writeSize = 16 << 10

	// writeGrace bounds how long the rest of a large request may take after its
	// response, for receivers that answer early and read on.
	writeGrace = 50 * time.Millisecond
)

// exchange sends a request on a connection, and reads its response. Afterwards the
// connection is idle or closed.
func (s *Sender) exchange(ctx context.Context, c *conn, r *Request, begun time.Time) (webhook.Attempt, *failure) {
	deadline := begun.Add(r.Endpoint.timeout)
	if err := c.SetDeadline(deadline); err != nil {
		c.abort()
		return webhook.Attempt{}, &failure{class: webhook.ErrReset, err: err, unanswered: c.reused}
	}
	c.wire.broke.Store(false)
	stop := context.AfterFunc(ctx, c.interrupt)
	in := newReader(c)
	defer in.release()

	w := c.send(r, begun)
	resp, f := in.answer(w.err) //nolint:bodyclose // closing reads all of it, and keep decides how much is read
	if f != nil {
		stop()
		c.abort()
		if err := w.end(); errors.Is(err, errNotLive) {
			f = &failure{err: err}
		}
		return webhook.Attempt{}, f
	}
	c.boundBody(ctx, in, resp, deadline)
	a, whole := answeredAttempt(begun, resp, r.Endpoint.url)
	whole = w.finish(c) && whole && in.buf.Buffered() == 0
	switch {
	case !stop(): // interrupt may still come
		c.abort()
	case whole && !resp.Close && resp.StatusCode >= http.StatusOK:
		s.pool.put(c, a.EndedAt)
	default:
		c.retire()
	}
	return a, nil
}

// post tells the parser what a response is for: it depends on the method alone.
var post = &http.Request{Method: http.MethodPost}

// answer reads the head of the response. A receiver may have answered also if it has not
// taken the whole request.
func (r *reader) answer(wrote error) (*http.Response, *failure) {
	if errors.Is(wrote, errNotLive) {
		return nil, &failure{err: wrote}
	}
	resp, err := r.head(post)
	if err == nil {
		return resp, nil
	}
	f := r.failure(err)
	f.unanswered = r.conn.reused && !r.began && f.class != webhook.ErrTimeout
	return nil, f
}

// boundBody sets the deadline for reading the body, unless it is here already.
func (c *conn) boundBody(ctx context.Context, in *reader, resp *http.Response, deadline time.Time) {
	if length := resp.ContentLength; resp.Body == http.NoBody || length >= 0 && length <= int64(in.buf.Buffered()) {
		return
	}
	if soon := time.Now().Add(bodyTimeout); soon.Before(deadline) {
		_ = c.SetReadDeadline(soon) // the attempt's own bounds it as well
	}
	if ctx.Err() != nil { // or the new deadline would undo the interruption
		c.interrupt()
	}
}

// A writing is a request on its way.
type writing struct {
	err  error
	rest chan error // takes the error of the part that is written beside reading; nil: none
}

var writeBuffers = sync.Pool{New: func() any { return new(make([]byte, 0, writeSize)) }}

// send writes a request, head and body together. A body beyond the buffer is written
// beside reading the response: a receiver that refuses it may answer without reading it.
func (c *conn) send(r *Request, at time.Time) (w writing) {
	buf := writeBuffers.Get().(*[]byte)
	defer writeBuffers.Put(buf)
	b := r.appendHead((*buf)[:0], at)
	fits := min(len(r.Body), cap(b)-len(b))
	b = append(b, r.Body[:fits]...)
	*buf = b[:0]

	if _, w.err = c.Write(b); w.err != nil || fits == len(r.Body) {
		return w
	}
	rest := make(chan error, 1)
	w.rest = rest
	go func() {
		_, err := c.Write(r.Body[fits:])
		if errors.Is(err, errNotLive) {
			c.abort() // nobody will answer half a request
		}
		rest <- err
	}()
	return w
}

// end waits for the rest, and returns the error of writing.
func (w *writing) end() error {
	if w.rest != nil {
		w.err, w.rest = <-w.rest, nil
	}
	return w.err
}

// finish reports whether the whole request was written. It waits for the rest for
// writeGrace.
func (w *writing) finish(c *conn) bool {
	if w.rest == nil {
		return w.err == nil
	}
	grace := time.AfterFunc(writeGrace, c.abort)
	return w.end() == nil && grace.Stop()
}
