// Package send makes one attempt to deliver. It has no state of deliveries, retries or
// rows.
//
//	sender     one POST: connections, deadline, the class of its error
//	request    an endpoint's row → target; body, headers and signature
//	response   the part of a response that is kept
//	guard      which addresses may be dialled
//	verdict    the meaning of an attempt for its delivery
package send

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
)

// SenderConfig configures a Sender.
type SenderConfig struct {
	Timeout     time.Duration  // of a whole attempt
	UserAgent   string         // "": Fabrk-Webhooks/1.0
	Guard       GuardConfig    // which addresses may be dialled
	ProxyURL    *url.URL       // nil: none; the environment's HTTP_PROXY is ignored
	MaxInFlight int            // concurrent attempts, which bounds the idle connections; 0: 1024
	RootCAs     *x509.CertPool // nil: the system's
	Resolver    *net.Resolver  // nil: net.DefaultResolver

	// Live reports whether this process may still send. It is asked before each write to
	// a receiver. Nil: always.
	Live func() bool
}

// A Sender makes the HTTP requests for deliveries. It follows no redirects, keeps no
// cookies, and never sends a request again once its body may have left. It is safe for
// concurrent use.
//
// net/http itself repeats a POST only if a reused connection took no byte of it. If a
// receiver closes an idle connection just as a request is written, it may have seen the
// request. The attempt then has class reset, and the retry schedule decides.
type Sender struct {
	transport *http.Transport
	guard     *Guard
	timeout   time.Duration
	userAgent string
	proxied   bool
}

const (
	defaultUserAgent   = "Fabrk-Webhooks/1.0"
	defaultMaxInFlight = 1024

	// bodyTimeout bounds reading a response's body. The status line has decided the
	// attempt; the text only helps operators. A body that trickles must not hold a
	// permit.
	bodyTimeout = time.Second

	// maxResponseHeader bounds a response's headers, including those of all 1xx
	// responses. Servers send 8 to 32 KiB at most by default.
	maxResponseHeader = 64 << 10

	// idleTimeout is how long an idle connection stays open: longer than a short pause
	// in traffic, and shorter than at load balancers (60 s), so that usually our side
	// closes it.
	idleTimeout = 30 * time.Second

	// bufferSize is the size of each of a connection's two buffers. Most requests and
	// responses fit, and a thousand idle connections cost 8 MiB.
	bufferSize = 4 << 10

	// tlsSessions bounds the cached TLS sessions, one for each host. Resuming a session
	// costs half of a full handshake.
	tlsSessions = 1024

	// maxStaleConns bounds the pooled connections that one attempt skips because the
	// receiver had closed them before anything was sent.
	maxStaleConns = 3
)

// Reasons why our side ends an attempt.
var (
	errTimeout      = errors.New("no response within the timeout")
	errAttemptEnded = errors.New("the attempt has ended")
	errNotLive      = errors.New("another process may hold the slot")
)

// NewSender returns a Sender. Close closes its idle connections.
func NewSender(cfg SenderConfig) *Sender {
	s := &Sender{
		guard:     NewGuard(cfg.Guard),
		timeout:   cfg.Timeout,
		userAgent: cmp.Or(cfg.UserAgent, defaultUserAgent),
		proxied:   cfg.ProxyURL != nil,
	}
	s.transport = newTransport(cfg, s.guard)
	return s
}

// newTransport returns the connection pool. It speaks HTTP/1.1 only, on purpose: every
// receiver does. HTTP/2 would put all deliveries to a host on one TCP connection. There,
// one lost packet or a full flow-control window delays all of them, the receiver's
// stream limit caps them, a GOAWAY leaves the fate of many requests unknown, and
// net/http retries by rules of its own.
func newTransport(cfg SenderConfig, guard *Guard) *http.Transport {
	inFlight := cmp.Or(cfg.MaxInFlight, defaultMaxInFlight)
	// The dialer divides its own timeout among a name's addresses.
	d := &dialer{net.Dialer{Timeout: cfg.Timeout, Resolver: cfg.Resolver}, cfg.Timeout, &tls.Config{
		MinVersion:         tls.VersionTLS12,
		NextProtos:         []string{"http/1.1"},
		ClientSessionCache: tls.NewLRUClientSessionCache(tlsSessions),
		RootCAs:            cfg.RootCAs,
	}, cfg.Live}
	t := &http.Transport{
		DialContext:            d.DialContext,
		DialTLSContext:         d.dialTLS,
		TLSClientConfig:        d.config,
		TLSHandshakeTimeout:    cfg.Timeout,
		Protocols:              new(http.Protocols),
		DisableCompression:     true, // a gzip bomb stays compressed
		MaxIdleConns:           inFlight,
		MaxIdleConnsPerHost:    inFlight,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxResponseHeader,
		ReadBufferSize:         bufferSize,
		WriteBufferSize:        bufferSize,
	}
	t.Protocols.SetHTTP1(true)
	if cfg.ProxyURL == nil {
		d.Control = guard.control
		return t
	}
	// No guard: only the proxy is dialled, which the operator chose.
	t.Proxy = http.ProxyURL(cfg.ProxyURL)
	t.OnProxyConnectResponse = refusedByProxy
	return t
}

// A dialer makes connections, and marks errors of the TLS handshake.
type dialer struct {
	net.Dialer
	timeout time.Duration
	config  *tls.Config
	live    func() bool
}

// DialContext connects.
func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := d.Dialer.DialContext(ctx, network, address)
	if err != nil || d.live == nil {
		return conn, err
	}
	return liveConn{conn, d.live}, nil
}

// A liveConn writes only while the process may send. A check before the attempt is not
// enough: a process may be frozen between that check and the write, and meanwhile
// another process holds the slot and sends.
type liveConn struct {
	net.Conn
	live func() bool
}

// Write is net.Conn's.
func (c liveConn) Write(b []byte) (int, error) {
	if !c.live() {
		return 0, errNotLive
	}
	return c.Conn.Write(b)
}

// A handshakeError is a failed TLS handshake.
type handshakeError struct{ err error }

// Error returns the cause's text.
func (e *handshakeError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *handshakeError) Unwrap() error { return e.err }

// dialTLS connects and shakes hands within an attempt's timeout. It needs one of its
// own: net/http may finish a dial in the background, for other requests, without the
// attempt's context.
func (d *dialer) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.timeout, errTimeout)
	defer cancel()
	plain, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, errors.Join(err, plain.Close())
	}
	config := d.config.Clone()
	config.ServerName = host
	conn := tls.Client(plain, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		plain.Close()
		return nil, &handshakeError{err}
	}
	return conn, nil
}

// A proxyError is a proxy's refusal of CONNECT.
type proxyError struct{ status int }

// Error returns the proxy's status.
func (e *proxyError) Error() string { return "the proxy answered CONNECT with " + statusText(e.status) }

func refusedByProxy(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return &proxyError{resp.StatusCode}
	}
	return nil
}

// Close closes the idle connections. Attempts under way continue.
func (s *Sender) Close() { s.transport.CloseIdleConnections() }

// A Request is the input of an attempt.
type Request struct {
	Endpoint   *Target
	DeliveryID uuid.UUID
	EventType  string
	Retry      int    // the number of earlier attempts
	Body       []byte // from Body; must not change afterwards
}

// Send makes one attempt within the Sender's timeout. A failure is in the Attempt. The
// second result reports whether the attempt was completed. It is false if the context
// was cancelled before a status line came: that says nothing about the endpoint, and the
// receiver may have seen the request. It is also false if the process lost the right to
// send: then no receiver can have acted on the request.
func (s *Sender) Send(parent context.Context, r Request) (webhook.Attempt, bool) {
	begun := time.Now()
	if class, text, refused := r.Endpoint.Refused(); refused {
		return failure(begun, class, text), true
	}
	if !validValue(r.EventType) {
		return failure(begun, webhook.ErrBadRequest, "the event type has characters that a header cannot carry"), true
	}
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(errAttemptEnded)
	timer := time.AfterFunc(s.timeout, func() { cancel(errTimeout) })
	defer timer.Stop()

	resp, err := s.roundTrip(ctx, r, begun)
	if errors.Is(err, errNotLive) {
		return webhook.Attempt{}, false
	}
	if err != nil {
		return failedAttempt(ctx, begun, err)
	}
	timer.Reset(min(bodyTimeout, max(s.timeout-time.Since(begun), 0)))
	return answeredAttempt(begun, resp), true
}

// roundTrip sends the request and waits for the status line. If the receiver had closed
// a pooled connection before the body was begun, it cannot have acted on the request, so
// roundTrip takes another connection.
func (s *Sender) roundTrip(ctx context.Context, r Request, at time.Time) (*http.Response, error) {
	for stale := 0; ; stale++ {
		req, c := newCall(ctx, r, at)
		resp, err := s.transport.RoundTrip(req)
		if err == nil || stale >= maxStaleConns || !closedIdle(err) || c.begun() {
			return resp, err
		}
	}
}

// answeredAttempt returns the Attempt for a response.
func answeredAttempt(begun time.Time, resp *http.Response) webhook.Attempt {
	a := webhook.Attempt{StatusCode: resp.StatusCode, Class: StatusClass(resp.StatusCode)}
	if resp.StatusCode < http.StatusOK {
		resp.Body.Close() // a 101's body is the connection itself, which the context does not bound
	} else {
		a.Response = keep(resp.Body, resp.ContentLength)
	}
	a.EndedAt = time.Now()
	a.Duration = a.EndedAt.Sub(begun)
	if a.Class != "" {
		a.Error = statusText(resp.StatusCode)
		if a.Class == webhook.ErrRedirect {
			a.Error = redirectText(resp)
		}
		a.RetryAfter = retryAfter(resp.Header, a.EndedAt)
	}
	return a
}

// redirectText tells an operator that a redirect is not followed, and which URL the
// endpoint should have instead. It leaves out the query. It leaves out the whole URL if
// the receiver has copied a value of our query into it: that may be a secret.
func redirectText(resp *http.Response) string {
	text := statusText(resp.StatusCode) + ": redirects are not followed"
	to, err := resp.Location()
	if err != nil || to.Host == "" {
		return text
	}
	where := url.URL{Scheme: to.Scheme, Host: to.Host, Path: to.Path, RawPath: to.RawPath}
	for _, values := range resp.Request.URL.Query() {
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

func failure(begun time.Time, class webhook.ErrorClass, text string) webhook.Attempt {
	now := time.Now()
	return webhook.Attempt{EndedAt: now, Duration: now.Sub(begun), Class: class, Error: text}
}

// cutText makes an error's text storable.
func cutText(text string) string { return storable([]byte(text), maxError, true) }

// failedAttempt returns the Attempt for an error before the status line, and whether the
// attempt was completed: it was not if it was cancelled from outside.
func failedAttempt(ctx context.Context, begun time.Time, err error) (webhook.Attempt, bool) {
	switch cause := context.Cause(ctx); {
	case cause == nil:
		class := errorClass(err)
		return failure(begun, class, errorText(class, err)), true
	case errors.Is(cause, errTimeout): // err is a consequence of it
		return failure(begun, webhook.ErrTimeout, errTimeout.Error()), true
	default:
		return webhook.Attempt{}, false
	}
}

// errorText returns an error's text for operators. For an invalid response it does not
// use net/http's text: that quotes the response, where a receiver may have echoed our
// URL's query.
func errorText(class webhook.ErrorClass, err error) string {
	if class == webhook.ErrProtocol {
		return "the response is not valid HTTP, or its headers are larger than 64 KiB"
	}
	return cutText(err.Error())
}

// errorClass classifies a transport's error by its type, with one exception: see
// closedIdle.
func errorClass(err error) webhook.ErrorClass {
	if _, ok := errors.AsType[*BlockedError](err); ok {
		return webhook.ErrBlocked
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return webhook.ErrDNS
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return webhook.ErrTimeout
	}
	switch {
	case isTLS(err):
		return webhook.ErrTLS
	case isConnect(err):
		return webhook.ErrConnect
	case isReset(err):
		return webhook.ErrReset
	default: // net/http could not parse the response
		return webhook.ErrProtocol
	}
}

func isTLS(err error) bool {
	if _, ok := errors.AsType[*handshakeError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	op, ok := errors.AsType[*net.OpError](err)
	return ok && (op.Op == "remote error" || op.Op == "local error") // crypto/tls's alerts
}

func isConnect(err error) bool {
	if _, ok := errors.AsType[*proxyError](err); ok {
		return true
	}
	op, ok := errors.AsType[*net.OpError](err)
	return ok && (op.Op == "dial" || op.Op == "proxyconnect" || op.Op == "socks connect")
}

func isReset(err error) bool {
	for _, target := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed,
		syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED} {
		if errors.Is(err, target) {
			return true
		}
	}
	op, ok := errors.AsType[*net.OpError](err)
	return ok && (op.Op == "read" || op.Op == "write") || closedIdle(err)
}

// closedIdle reports whether the receiver closed a pooled connection before the request
// was written. net/http does not export that error. A test fails if its text changes.
func closedIdle(err error) bool { return err.Error() == "http: server closed idle connection" }
