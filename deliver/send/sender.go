// Package send makes one attempt to deliver: it knows nothing of deliveries that
// wait, of retries or of rows.
//
//	sender     one POST: connections, deadline, the class of what went wrong
//	request    the body, the headers, the signature; what an endpoint's row makes of them
//	response   what is kept of an answer
//	guard      addresses that nothing is sent to
//	verdict    what an attempt means for its delivery
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

	"github.com/walhook/walhook/internal/store"
)

// SenderConfig configures a Sender.
type SenderConfig struct {
	Timeout     time.Duration  // of one attempt, all of it
	UserAgent   string         // "": Fabrk-Webhooks/1.0
	Guard       GuardConfig    // which addresses may be dialled
	ProxyURL    *url.URL       // nil: none; the environment's HTTP_PROXY is ignored
	MaxInFlight int            // how many attempts run at once, which bounds the idle connections; 0: 1024
	RootCAs     *x509.CertPool // nil: the system's
	Resolver    *net.Resolver  // nil: net.DefaultResolver

	// Live is asked before anything is written to a receiver: whether the right to
	// send is still there. Nil: always.
	Live func() bool
}

// A Sender makes HTTP requests for deliveries and says what they came to. It
// follows no redirect, keeps no cookie, and never sends a request a second time
// once its body may have left. It is safe for concurrent use.
//
// net/http sends a POST again by itself only over a connection that was reused
// and took no byte of it. A receiver that closes an idle connection at the very
// moment that a request is written to it yields an attempt of class reset,
// because it may have seen the request, and the schedule decides.
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

	// bodyPatience bounds how long a response's body is read once its status line
	// has decided the attempt. The kept text is a courtesy to operators, and must
	// not hold a lane's place against a receiver that trickles.
	bodyPatience = time.Second

	// maxResponseHeader bounds a response's headers, all 1xx responses together
	// included. The largest that servers send by default are 8 to 32 KiB.
	maxResponseHeader = 64 << 10

	// idleTimeout is shorter than what load balancers keep idle connections for
	// (60 s), so that it is mostly us who close one, and longer than a lull.
	idleTimeout = 30 * time.Second

	// bufferSize is that of a connection's two buffers. Most requests and
	// responses fit; a thousand idle connections cost 8 MiB.
	bufferSize = 4 << 10

	// tlsSessions bounds the hosts whose TLS session is remembered, which halves
	// the cost of coming back to one.
	tlsSessions = 1024

	// staleConns bounds how many connections that turn out to be closed before
	// anything was sent are passed over in one attempt.
	staleConns = 3
)

// The ways in which an attempt is cut short from our side.
var (
	errTimeout = errors.New("no response within the timeout")
	errEnough  = errors.New("the attempt is over")
	errNotLive = errors.New("the slot may be another process's")
)

// NewSender returns a Sender. Close it to close its idle connections.
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

// newTransport returns the connection pool. It speaks HTTP/1.1 only, on purpose:
// every receiver of webhooks does. HTTP/2 would put all deliveries to a host on
// one TCP connection, where one slow receiver's window and one lost packet hold
// up the others, cap them at the receiver's stream limit, let a GOAWAY make the
// fate of many requests unknown at once, and retry by rules of its own.
func newTransport(cfg SenderConfig, guard *Guard) *http.Transport {
	inFlight := cmp.Or(cfg.MaxInFlight, defaultMaxInFlight)
	// The dialer's own timeout is what it divides among a name's addresses.
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
		DisableCompression:     true, // a gzip bomb stays bytes
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
	// Only the proxy is dialled, and that is the operator's choice.
	t.Proxy = http.ProxyURL(cfg.ProxyURL)
	t.OnProxyConnectResponse = refusedByProxy
	return t
}

// A dialer makes connections, and tells failures of the handshake from others.
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

// A liveConn writes only as long as there is a right to. What was asked before an
// attempt began is not enough: a process that is frozen between that and the last
// step would send when it goes on, and another one has sent long before.
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

// A handshakeError is a connection on which TLS could not begin.
type handshakeError struct{ err error }

// Error returns the cause's text.
func (e *handshakeError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *handshakeError) Unwrap() error { return e.err }

// dialTLS connects and shakes hands, all in the attempt's timeout: net/http
// finishes a dial in the background for other requests to use, without ours.
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

// A proxyError is a proxy's refusal to connect.
type proxyError struct{ status int }

// Error returns the proxy's status.
func (e *proxyError) Error() string { return "the proxy answered CONNECT with " + statusText(e.status) }

func refusedByProxy(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return &proxyError{resp.StatusCode}
	}
	return nil
}

// Close closes the idle connections. Attempts that run end as they would.
func (s *Sender) Close() { s.transport.CloseIdleConnections() }

// A Request is what an attempt sends.
type Request struct {
	Endpoint   *Target
	DeliveryID uuid.UUID
	EventType  string
	Retry      int    // how many attempts came before
	Body       []byte // from Body; not to be changed afterwards
}

// Send makes one attempt, in at most the Sender's timeout. What went wrong is in
// the Attempt. The second result is false when the context was cancelled before
// a status line came: then the attempt is cut off by ourselves, it says nothing
// about the endpoint, and whether the receiver saw it is unknown. It is false too
// when the right to send was lost: then no receiver can have acted on it.
func (s *Sender) Send(parent context.Context, r Request) (store.Attempt, bool) {
	begun := time.Now()
	if class, text, refused := r.Endpoint.Refused(); refused {
		return failure(begun, class, text), true
	}
	if !validValue(r.EventType) {
		return failure(begun, store.ErrBadRequest, "the event type cannot be sent in a header"), true
	}
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(errEnough)
	timer := time.AfterFunc(s.timeout, func() { cancel(errTimeout) })
	defer timer.Stop()

	resp, err := s.roundTrip(ctx, r, begun)
	if errors.Is(err, errNotLive) {
		return store.Attempt{}, false
	}
	if err != nil {
		return broken(ctx, begun, err)
	}
	timer.Reset(min(bodyPatience, max(s.timeout-time.Since(begun), 0)))
	return answered(begun, resp), true
}

// roundTrip sends the request and waits for the status line. A connection from
// the pool that the receiver had closed before the body was begun has carried no
// request that anyone could act on, so another connection is taken.
func (s *Sender) roundTrip(ctx context.Context, r Request, at time.Time) (*http.Response, error) {
	for stale := 0; ; stale++ {
		req, c := newCall(ctx, r, at)
		resp, err := s.transport.RoundTrip(req)
		if err == nil || stale >= staleConns || !closedIdle(err) || c.begun() {
			return resp, err
		}
	}
}

// answered makes an Attempt of a response.
func answered(begun time.Time, resp *http.Response) store.Attempt {
	a := store.Attempt{StatusCode: resp.StatusCode, Class: StatusClass(resp.StatusCode)}
	if resp.StatusCode < http.StatusOK {
		resp.Body.Close() // a 101's body is the connection itself, which our context does not bound
	} else {
		a.Response = keep(resp.Body, resp.ContentLength)
	}
	a.EndedAt = time.Now()
	a.Duration = a.EndedAt.Sub(begun)
	if a.Class != "" {
		a.Error = statusText(resp.StatusCode)
		if a.Class == store.ErrRedirect {
			a.Error = redirectText(resp)
		}
		a.RetryAfter = retryAfter(resp.Header, a.EndedAt)
	}
	return a
}

// redirectText says what an operator has to know of a redirect: that it is not
// followed, and where the endpoint's url would have to point instead. The query
// stays away, and so does all of it where the receiver has copied a part of ours.
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

// statusText names a status in our own words: the receiver's are in no table.
func statusText(status int) string {
	text := strconv.Itoa(status)
	if name := http.StatusText(status); name != "" {
		text += " " + name
	}
	return text
}

func failure(begun time.Time, class store.ErrorClass, text string) store.Attempt {
	now := time.Now()
	return store.Attempt{EndedAt: now, Duration: now.Sub(begun), Class: class, Error: text}
}

// cutText makes an error's text storable.
func cutText(text string) string { return storable([]byte(text), maxError, true) }

// broken makes an Attempt of an error before the status line, and says whether
// the attempt was completed: it was not when it was cancelled from outside.
func broken(ctx context.Context, begun time.Time, err error) (store.Attempt, bool) {
	switch cause := context.Cause(ctx); {
	case cause == nil:
		class := errorClass(err)
		return failure(begun, class, errorText(class, err)), true
	case errors.Is(cause, errTimeout): // whatever else the error says follows from it
		return failure(begun, store.ErrTimeout, errTimeout.Error()), true
	default:
		return store.Attempt{}, false
	}
}

// errorText is what an operator reads. What net/http says of a response that it
// cannot read quotes it, and a receiver may have echoed our URL's query there.
func errorText(class store.ErrorClass, err error) string {
	if class == store.ErrProtocol {
		return "the response is not valid HTTP, or its headers are larger than 64 KiB"
	}
	return cutText(err.Error())
}

// errorClass finds the class of a transport's error, by its types; see
// closedIdle for the one exception.
func errorClass(err error) store.ErrorClass {
	if _, ok := errors.AsType[*BlockedError](err); ok {
		return store.ErrBlocked
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return store.ErrDNS
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return store.ErrTimeout
	}
	switch {
	case isTLS(err):
		return store.ErrTLS
	case isConnect(err):
		return store.ErrConnect
	case isReset(err):
		return store.ErrReset
	default: // net/http could not make sense of what came
		return store.ErrProtocol
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

// closedIdle reports that a pooled connection was closed by the receiver before
// the request was written. net/http does not export that error; a test fails
// should its text change.
func closedIdle(err error) bool { return err.Error() == "http: server closed idle connection" }
