// Package send makes one attempt to deliver. It has no state of deliveries, retries or
// rows. Of net/http it uses the writer of a head and the parser of a response, and no
// client.
//
//	sender     one attempt: on an idle connection or a new one, and once more if that breaks unanswered
//	exchange   one request and its response on one connection
//	pool       idle connections
//	dial       new connections: TCP, TLS, and the right to write
//	resolver   whose fault it is that a name did not resolve
//	proxy      tunnels: CONNECT and SOCKS5
//	failure    why there is no status line: its class, and whose fault it is
//	words      what a tenant may read of it
//	request    an endpoint's row → target; body, headers and signature
//	response   reading a response, and the part of it that is kept
//	guard      which addresses may be dialled
//	protected  those of walhook itself, which never are
//	verdict    the meaning of an attempt for its delivery
package send

import (
	"cmp"
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
)

// SenderConfig configures a Sender.
type SenderConfig struct {
	Timeout     time.Duration  // of a whole attempt, where the endpoint does not say itself
	UserAgent   string         // "": Fabrk-Webhooks/1.0
	Guard       GuardConfig    // which addresses may be dialled
	ProxyURL    *url.URL       // nil: none; the environment's HTTP_PROXY is ignored
	MaxInFlight int            // concurrent attempts, which bounds the idle connections; 0: 1024
	RootCAs     *x509.CertPool // nil: the system's
	Resolver    *net.Resolver  // nil: net.DefaultResolver
	Log         *slog.Logger   // nil: none; gets the technical text of failures, at debug

	// Live reports whether this process may still send. It is asked before each write to
	// a receiver. Nil: always.
	Live func() bool
}

// A Sender makes the HTTP requests for deliveries. It follows no redirects, and keeps no
// cookies. It is safe for concurrent use.
//
// A receiver may close an idle connection just as a request is written. If a reused
// connection breaks before any byte of an answer has come, the same bytes go out once
// more, on a new connection. The receiver may have seen them already.
type Sender struct {
	guard     *Guard
	dialer    *dialer
	pool      *pool
	timeout   time.Duration
	userAgent string
	log       *slog.Logger
	resent    atomic.Uint64
}

const (
	defaultUserAgent   = "Fabrk-Webhooks/1.0"
	defaultMaxInFlight = 1024
)

// NewSender returns a Sender. Close closes its idle connections.
func NewSender(cfg SenderConfig) *Sender {
	guard := NewGuard(cfg.Guard)
	return &Sender{
		guard:     guard,
		dialer:    newDialer(&cfg, guard),
		pool:      newPool(cmp.Or(cfg.MaxInFlight, defaultMaxInFlight)),
		timeout:   cfg.Timeout,
		userAgent: cmp.Or(cfg.UserAgent, defaultUserAgent),
		log:       cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)),
	}
}

// Close closes the idle connections. Attempts under way continue.
func (s *Sender) Close() { s.pool.close() }

// Resent returns how many requests were sent twice within their attempt, because a reused
// connection broke before any byte of an answer had come.
func (s *Sender) Resent() uint64 { return s.resent.Load() }

// A Request is the input of an attempt.
type Request struct {
	Endpoint   *Target
	DeliveryID uuid.UUID
	EventType  string
	Retry      int    // the number of earlier attempts
	Body       []byte // from Body; must not change afterwards
}

// Send makes one attempt within the target's timeout. A failure is in the Attempt. The
// second result reports whether the attempt was completed. It is false if the context
// was cancelled before a status line came and before the timeout: that says nothing about
// the endpoint, and the receiver may have seen the request. It is also false if the process
// lost the right to send: then no receiver can have acted on the request.
func (s *Sender) Send(ctx context.Context, r Request) (webhook.Attempt, bool) {
	begun := time.Now()
	if class, text, refused := r.Endpoint.Refused(); refused {
		return failed(begun, class, text), true
	}
	if !validValue(r.EventType) {
		return failed(begun, webhook.ErrBadRequest, "the event type has characters that a header cannot carry"), true
	}
	if ctx.Err() != nil {
		return webhook.Attempt{}, false
	}
	a, f := s.attempt(ctx, &r, begun)
	switch {
	case f == nil:
		return a, true
	case f.notLive(), ctx.Err() != nil && time.Since(begun) < r.Endpoint.timeout:
		return webhook.Attempt{}, false
	default:
		s.log.DebugContext(ctx, "attempt failed", "delivery", r.DeliveryID, "class", f.class, "reason", f.err)
		a = failed(begun, f.class, cutText(inWords(f.class, f.err)))
		a.OwnFault = f.fault
		return a, true
	}
}

// attempt sends a request on an idle connection, and otherwise, or if that one breaks
// unanswered, on a new one.
func (s *Sender) attempt(ctx context.Context, r *Request, begun time.Time) (a webhook.Attempt, f *failure) {
	if c := s.pool.take(r.Endpoint.key, begun); c != nil {
		if a, f = s.exchange(ctx, c, r, begun); f == nil || !f.unanswered || ctx.Err() != nil {
			return a, f
		}
	}
	broken := f
	dialling, cancel := context.WithDeadline(ctx, begun.Add(r.Endpoint.timeout))
	defer cancel()
	c, f := s.dialer.dial(dialling, r.Endpoint.key)
	sent := f == nil
	if sent {
		a, f = s.exchange(ctx, c, r, begun)
		sent = !f.notLive()
	}
	switch {
	case broken == nil:
	case sent:
		s.resent.Add(1)
	case f.notLive(), f.fault != "":
		return a, broken // what was sent before may have arrived, so it counts
	}
	return a, f
}

// answeredAttempt returns the Attempt for a response, and reports whether its body was
// read to the end.
func answeredAttempt(begun time.Time, resp *http.Response, from *url.URL) (a webhook.Attempt, whole bool) {
	a = webhook.Attempt{StatusCode: resp.StatusCode, Class: StatusClass(resp.StatusCode)}
	if resp.StatusCode >= http.StatusOK { // what follows a 101 is no response
		a.Response, whole = keep(resp.Body, resp.ContentLength)
	}
	a.EndedAt = time.Now()
	a.Duration = a.EndedAt.Sub(begun)
	if a.Class != "" {
		a.Error = statusText(resp.StatusCode)
		if a.Class == webhook.ErrRedirect {
			a.Error = redirectText(resp, from)
		}
		a.RetryAfter = retryAfter(resp.Header, a.EndedAt)
	}
	return a, whole
}

// redirectText tells an operator that a redirect is not followed, and which URL the
// endpoint should have instead. It leaves out the query. It leaves out the whole URL if
// the receiver has copied a value of our query into it: that may be a secret.
func redirectText(resp *http.Response, from *url.URL) string {
	text := statusText(resp.StatusCode) + ": redirects are not followed"
	resp.Request = &http.Request{URL: from} // a Location may be relative to it
	to, err := resp.Location()
	if err != nil || to.Host == "" {
		return text
	}
	where := url.URL{Scheme: to.Scheme, Host: to.Host, Path: to.Path, RawPath: to.RawPath}
	for _, values := range from.Query() {
		for _, value := range values {
			if value != "" && (strings.Contains(where.Path, value) || strings.Contains(where.String(), value)) {
				return text
			}
		}
	}
	return cutText(text + "; it points to " + where.String())
}

// statusText names a status by Go's list. The receiver's own words are not stored.
func statusText(status int) string {
	text := strconv.Itoa(status)
	if name := http.StatusText(status); name != "" {
		text += " " + name
	}
	return text
}

func failed(begun time.Time, class webhook.ErrorClass, text string) webhook.Attempt {
	now := time.Now()
	return webhook.Attempt{EndedAt: now, Duration: now.Sub(begun), Class: class, Error: text}
}

// cutText makes an error's text storable, and safe to show: a control character, or one
// that turns the direction of the text, becomes U+FFFD.
func cutText(text string) string {
	return storable([]byte(strings.Map(shown, text)), maxError, true)
}

func shown(r rune) rune {
	if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
		return unicode.ReplacementChar
	}
	return r
}
