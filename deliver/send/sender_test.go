package send

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// A receiver is a TCP server. Its script handles the connection after each request. The
// requests' bytes are sent to a channel.
type receiver struct {
	listener net.Listener
	requests chan string
}

// A script answers a request, and reports whether to read another one.
type script func(conn net.Conn) (again bool)

func newReceiver(t testing.TB, play script) *receiver {
	t.Helper()
	return serve(t, "127.0.0.1:0", play)
}

func serve(t testing.TB, address string, play script) *receiver {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{l, make(chan string, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { r.converse(ctx, conn, play) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		wg.Wait()
	})
	return r
}

func (r *receiver) converse(ctx context.Context, conn net.Conn, play script) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var raw bytes.Buffer
	br := bufio.NewReader(io.TeeReader(conn, &raw))
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		r.requests <- raw.String()
		raw.Reset()
		if !play(conn) {
			return
		}
	}
}

func (r *receiver) addr() string { return r.listener.Addr().String() }

func (r *receiver) url(scheme string) string { return scheme + "://" + r.addr() }

// respond writes a response to each request.
func respond(text string) script {
	return func(conn net.Conn) bool {
		_, err := io.WriteString(conn, text)
		return err == nil
	}
}

// endless writes begin, and then again and again the same text until nobody reads.
func endless(begin, again string) script {
	return func(conn net.Conn) bool {
		_, err := io.WriteString(conn, begin)
		for err == nil {
			_, err = io.WriteString(conn, again)
		}
		return false
	}
}

// silent writes begin, and then nothing until the other side gives up.
func silent(begin string) script {
	return func(conn net.Conn) bool {
		io.WriteString(conn, begin)
		conn.Read(make([]byte, 1))
		return false
	}
}

// trickle writes begin, and then a byte every 20 ms.
func trickle(begin string) script {
	return func(conn net.Conn) bool {
		_, err := io.WriteString(conn, begin)
		for err == nil {
			_, err = io.WriteString(conn, "x")
			time.Sleep(20 * time.Millisecond)
		}
		return false
	}
}

// reset writes begin, and resets the connection.
func reset(begin string) script {
	return func(conn net.Conn) bool {
		io.WriteString(conn, begin)
		conn.(*net.TCPConn).SetLinger(0)
		return false
	}
}

func gzipBomb() string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.CopyN(w, zeros{}, 50<<20)
	w.Close()
	return b.String()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// A hostile response becomes an Attempt like any other: in time, storable, and without
// leaks.
func TestHostileReceivers(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("group", func(t *testing.T) {
		const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
		bomb := gzipBomb()
		for _, tc := range []struct {
			name   string
			play   script
			class  webhook.ErrorClass
			status int
			text   string // prefix of the kept response
		}{
			{"2xx without a body", respond("HTTP/1.1 204 No Content\r\n\r\n"), "", 204, ""},
			{"HTTP/1.0", func(c net.Conn) bool { io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\nok"); return false }, "", 200, "ok"},
			{"NUL", respond("HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\na\x00b"), webhook.ErrHTTP5xx, 500, "ab"},
			{"invalid UTF-8", respond("HTTP/1.1 500 \xff\xfe\r\nX: \xff\r\nContent-Length: 3\r\n\r\na\xffb"), webhook.ErrHTTP5xx, 500, "a\uFFFDb"},
			{"endless body", endless("HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("x", 1<<16)), "", 200, "xxx"},
			{"endless chunks", endless(chunked, "3\r\nabc\r\n"), "", 200, "abcabc"},
			{"endless chunk extension", endless(chunked+"3;", "xxxxxxxxxxxxxxxx"), "", 200, ""},
			{"endless trailers", endless(chunked+"3\r\nabc\r\n0\r\n", "A: b\r\n"), "", 200, "abc"},
			{"invalid chunk", respond(chunked + "zz\r\n"), "", 200, ""},
			{"50 MB body", endless("HTTP/1.1 400 No\r\nContent-Length: 52428800\r\n\r\n", strings.Repeat("x", 1<<16)), webhook.ErrHTTP4xx, 400, "xxx"},
			{"gzip bomb", respond(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", len(bomb), bomb)), "", 200, "\x1f\uFFFD"},
			{"trickling body", trickle("HTTP/1.1 200 OK\r\n\r\n"), "", 200, "xx"},
			{"trickling body of a failure", trickle("HTTP/1.1 503 No\r\n\r\n"), webhook.ErrHTTP5xx, 503, "xx"},
			{"body that does not come", silent("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), "", 200, ""},
			{"body that breaks", reset("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"), "", 200, ""},
			{"two lengths", respond("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"), webhook.ErrProtocol, 0, ""},
			{"10 MB of headers", endless("HTTP/1.1 200 OK\r\n", "X-Long: "+strings.Repeat("x", 1000)+"\r\n"), webhook.ErrProtocol, 0, ""},
			{"one endless header", endless("HTTP/1.1 200 OK\r\nX: ", strings.Repeat("x", 1000)), webhook.ErrProtocol, 0, ""},
			{"endless status line", endless("HTTP/1.1 200 ", strings.Repeat("x", 1000)), webhook.ErrProtocol, 0, ""},
			{"1xx flood", endless("", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"), webhook.ErrProtocol, 0, ""},
			{"some 1xx, then 2xx", respond("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"), "", 204, ""},
			{"100, then nothing", silent("HTTP/1.1 100 Continue\r\n\r\n"), webhook.ErrTimeout, 0, ""},
			{"trickling 1xx", trickle("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 "), webhook.ErrTimeout, 0, ""},
			{"101", silent("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"), webhook.ErrProtocol, 101, ""},
			{"trickling headers", trickle("HTTP/1.1 200 OK\r\nX: "), webhook.ErrTimeout, 0, ""},
			{"no answer", silent(""), webhook.ErrTimeout, 0, ""},
			{"reset before the answer", reset(""), webhook.ErrReset, 0, ""},
			{"closed before the answer", func(net.Conn) bool { return false }, webhook.ErrReset, 0, ""},
			{"reset in the status line", reset("HTTP/1.1 200 O"), webhook.ErrReset, 0, ""},
			{"reset in the status", reset("HTTP/1.1 20"), webhook.ErrProtocol, 0, ""}, // net/http hides the cause
			{"reset in the headers", reset("HTTP/1.1 200 OK\r\nX: y"), webhook.ErrReset, 0, ""},
			{"closed in the headers", func(c net.Conn) bool { io.WriteString(c, "HTTP/1.1 200 OK\r\nX: y\r\n"); return false }, webhook.ErrReset, 0, ""},
			{"redirect loop", func(c net.Conn) bool {
				fmt.Fprintf(c, "HTTP/1.1 302 Found\r\nLocation: http://%s/\r\nContent-Length: 0\r\n\r\n", c.LocalAddr())
				return true
			}, webhook.ErrRedirect, 302, ""},
			{"308", respond("HTTP/1.1 308 No\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"), webhook.ErrRedirect, 308, ""},
			{"304 with a body", respond("HTTP/1.1 304 No\r\n\r\nbody"), webhook.ErrRedirect, 304, ""},
			{"204 with a body", respond("HTTP/1.1 204 No\r\n\r\nbody"), "", 204, ""},
			{"HTTP/0.9", func(c net.Conn) bool { io.WriteString(c, "<html>hello</html>"); return false }, webhook.ErrProtocol, 0, ""},
			{"garbage", endless("", "\x00\xff\xfe\x01"), webhook.ErrProtocol, 0, ""},
			{"a TLS alert", func(c net.Conn) bool { io.WriteString(c, "\x15\x03\x01\x00\x02\x02\x46\n"); return false }, webhook.ErrProtocol, 0, ""},
			{"HTTP/2 preface", func(c net.Conn) bool { io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); return false }, webhook.ErrProtocol, 0, ""},
			{"status of two digits", respond("HTTP/1.1 20 OK\r\n\r\n"), webhook.ErrProtocol, 0, ""},
			{"status of four digits", respond("HTTP/1.1 2000 OK\r\n\r\n"), webhook.ErrProtocol, 0, ""},
			{"status 000", respond("HTTP/1.1 000 \r\nContent-Length: 0\r\n\r\n"), webhook.ErrProtocol, 0, ""},
			{"status 999", respond("HTTP/1.1 999 \r\nContent-Length: 0\r\n\r\n"), webhook.ErrHTTP5xx, 999, ""},
			{"401 without what authentication needs", respond("HTTP/1.1 401 \r\nContent-Length: 0\r\n\r\n"), webhook.ErrHTTP4xx, 401, ""},
			{"407", respond("HTTP/1.1 407 \r\nContent-Length: 0\r\n\r\n"), webhook.ErrHTTP4xx, 407, ""},
			{"410", respond("HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"), webhook.ErrHTTP4xx, 410, ""},
		} {
			t.Run(tc.name, func(t *testing.T) {
				t.Parallel()
				const timeout = 500 * time.Millisecond
				s := testSender(t, func(c *SenderConfig) { c.Timeout = timeout })
				r := newReceiver(t, tc.play)
				a, completed := s.Send(t.Context(), testRequest(s, r.url("http")))
				if !completed || a.Class != tc.class || a.StatusCode != tc.status {
					t.Errorf("Send = %+v, %v, want class %q and status %d", a, completed, tc.class, tc.status)
				}
				if !strings.HasPrefix(a.Response, tc.text) {
					t.Errorf("response %.40q, want %q", a.Response, tc.text)
				}
				if a.Duration > 4*timeout {
					t.Errorf("it took %v", a.Duration)
				}
				checkStorable(t, a)
				if n := len(r.requests); n != 1 {
					t.Errorf("%d requests were sent, want 1", n)
				}
			})
		}
	})
}

// checkStorable checks an attempt against the bounds of webhook.Attempt.
func checkStorable(t *testing.T, a webhook.Attempt) {
	t.Helper()
	if len(a.Error) > maxError || len(a.Response) > maxResponse {
		t.Errorf("%d bytes of error, %d of response", len(a.Error), len(a.Response))
	}
	if text := a.Error + a.Response; !utf8.ValidString(text) || strings.Contains(text, "\x00") {
		t.Errorf("not storable: %q", text)
	}
	if (a.Class == "") != (a.Error == "") {
		t.Errorf("class %q, but error %q", a.Class, a.Error)
	}
	if a.EndedAt.IsZero() || a.Duration <= 0 || a.RetryAfter < 0 {
		t.Errorf("times are missing: %+v", a)
	}
}

func TestAnEchoOfTheRequestDoesNotGetIntoTheError(t *testing.T) {
	t.Parallel()
	const echo = "POST /hook?token=secret-token HTTP/1.1\r\n"
	for name, response := range map[string]string{
		"as the status line": echo + "\r\n",
		"as the status":      "HTTP/1.1 /hook?token=secret-token\r\n\r\n",
		"as the reason":      "HTTP/1.1 302 /hook?token=secret-token\r\nLocation: /hook?token=secret-token\r\nContent-Length: 0\r\n\r\n",
		"as a place":         "HTTP/1.1 302 Found\r\nLocation: https://example.com/a/secret-token/b\r\nContent-Length: 0\r\n\r\n",
		"as a host":          "HTTP/1.1 302 Found\r\nLocation: https://secret-token.example.com/\r\nContent-Length: 0\r\n\r\n",
		"as a header":        "HTTP/1.1 200 OK\r\n" + echo + "\r\n",
		"as a length":        "HTTP/1.1 200 OK\r\nContent-Length: secret-token\r\n\r\n",
		"as an encoding":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: secret-token\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := testSender(t, nil)
			r := newReceiver(t, respond(response))
			a, _ := s.Send(t.Context(), testRequest(s, r.url("http")+"/hook?token=secret-token"))
			if a.Class == "" || strings.Contains(a.Error, "secret-token") {
				t.Errorf("Send = %+v", a)
			}
		})
	}
}

func TestARedirectSaysWhereToAndThatItIsNotFollowed(t *testing.T) {
	t.Parallel()
	for location, want := range map[string]string{
		"https://www.example.com/hooks?key=1#top": "301 Moved Permanently: redirects are not followed; it points to https://www.example.com/hooks",
		"https://user:pass@example.com/":          "301 Moved Permanently: redirects are not followed; it points to https://example.com/",
		"/elsewhere?x":                            "301 Moved Permanently: redirects are not followed; it points to http://HOST/elsewhere",
		"":                                        "301 Moved Permanently: redirects are not followed",
		"https://%zz/":                            "301 Moved Permanently: redirects are not followed",
		"mailto:somebody":                         "301 Moved Permanently: redirects are not followed",
		"https://example.com/" + strings.Repeat("a", 600): ("301 Moved Permanently: redirects are not followed; it points to https://example.com/" + strings.Repeat("a", 600))[:maxError],
	} {
		s := testSender(t, nil)
		r := newReceiver(t, respond("HTTP/1.1 301 Moved\r\nLocation: "+location+"\r\nContent-Length: 0\r\n\r\n"))
		a, _ := s.Send(t.Context(), testRequest(s, r.url("http")))
		want = strings.ReplaceAll(want, "HOST", strings.TrimPrefix(r.url("http"), "http://"))
		if a.Class != webhook.ErrRedirect || a.Error != want {
			t.Errorf("%q: %s: %q, want %q", location, a.Class, a.Error, want)
		}
		checkStorable(t, a)
	}
}

func TestATricklingBodyHoldsAnAttemptForASecond(t *testing.T) {
	t.Parallel()
	s := testSender(t, nil)
	r := newReceiver(t, trickle("HTTP/1.1 200 OK\r\n\r\n"))
	a, _ := s.Send(t.Context(), testRequest(s, r.url("http")))
	if Judge(a) != Delivered || a.Duration < bodyTimeout || a.Duration > 3*bodyTimeout {
		t.Errorf("Send = %v after %v", Judge(a), a.Duration)
	}
}

func TestRetryAfterIsHandedOver(t *testing.T) {
	t.Parallel()
	s := testSender(t, nil)
	r := newReceiver(t, respond("HTTP/1.1 503 No\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n"))
	if a, _ := s.Send(t.Context(), testRequest(s, r.url("http"))); a.RetryAfter != 2*time.Minute {
		t.Errorf("RetryAfter = %v", a.RetryAfter)
	}
}

func TestAConnectionIsUsedAgain(t *testing.T) {
	t.Parallel()
	for name, response := range map[string]string{
		"without a body":      "HTTP/1.1 204 No Content\r\n\r\n",
		"with a body":         "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"with chunks":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"with a drained body": "HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + strings.Repeat("x", 60000),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conns := make(chan net.Addr, 100)
			s := testSender(t, nil)
			r := newReceiver(t, func(c net.Conn) bool {
				conns <- c.RemoteAddr()
				return respond(response)(c)
			})
			for range 3 {
				if a, _ := s.Send(t.Context(), testRequest(s, r.url("http"))); Judge(a) != Delivered {
					t.Fatalf("Send = %+v", a)
				}
			}
			if a, b, c := <-conns, <-conns, <-conns; a.String() != b.String() || b.String() != c.String() {
				t.Errorf("three requests used %v, %v, %v", a, b, c)
			}
		})
	}
}

// A receiver may have acted on a request before it breaks the connection. The attempt
// has failed, and only the retry schedule sends again.
func TestARequestThatMayHaveArrivedIsNotSentTwice(t *testing.T) {
	t.Parallel()
	s := testSender(t, nil)
	var served atomic.Int32
	r := newReceiver(t, func(c net.Conn) bool {
		if served.Add(1) == 1 {
			return respond("HTTP/1.1 204 No Content\r\n\r\n")(c)
		}
		return reset("")(c)
	})
	e := testEndpoint(r.url("http"))
	e.Headers = map[string]string{"Idempotency-Key": "1", "X-Idempotency-Key": "1"}
	req := testRequest(s, "")
	req.Endpoint = s.Target(e)
	if a, _ := s.Send(t.Context(), req); Judge(a) != Delivered {
		t.Fatalf("Send = %+v", a)
	}
	if a, _ := s.Send(t.Context(), req); a.Class != webhook.ErrReset {
		t.Errorf("Send = %+v, want class reset", a)
	}
	if n := served.Load(); n != 2 {
		t.Errorf("the receiver got %d requests, want 2", n)
	}
}

// writesConn counts a connection's writes and their bytes.
type writesConn struct {
	net.Conn
	writes atomic.Int32
}

func (c *writesConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// A second write costs a fifth of the throughput, and a second packet on a slow path.
// net/http makes one if it does not know the body's type.
func TestAnOrdinaryRequestIsOneWrite(t *testing.T) {
	t.Parallel()
	s := testSender(t, nil)
	var conn *writesConn
	dial := s.transport.DialContext
	s.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		conn = &writesConn{Conn: c}
		return conn, err
	}
	r := newReceiver(t, respond("HTTP/1.1 204 No Content\r\n\r\n"))
	if a, _ := s.Send(t.Context(), testRequest(s, r.url("http"))); Judge(a) != Delivered {
		t.Fatalf("Send = %+v", a)
	}
	if n := conn.writes.Load(); n != 1 {
		t.Errorf("the request took %d writes, want 1", n)
	}
}

func TestALargeBodyArrivesWhole(t *testing.T) {
	t.Parallel()
	s := testSender(t, nil)
	r := newReceiver(t, respond("HTTP/1.1 204 No Content\r\n\r\n"))
	req := testRequest(s, r.url("http"))
	e := testEvent()
	e.Payload = []byte(`"` + strings.Repeat("x", outbox.MaxPayloadBytes) + `"`)
	req.Body = Body(e)
	if a, _ := s.Send(t.Context(), req); Judge(a) != Delivered {
		t.Fatalf("Send = %+v", a)
	}
	if got := <-r.requests; !strings.HasSuffix(got, "\r\n\r\n"+string(req.Body)) {
		t.Errorf("%d bytes arrived, not ending in the body", len(got))
	}
}

// closingConn reports when the client closes its side of a connection.
type closingConn struct {
	net.Conn
	closed chan struct{}
	once   sync.Once
}

func (c *closingConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}

// The receiver closes an idle connection after net/http has chosen it and before the
// first byte. The test also pins the error text by which closedIdle detects that.
func TestAStaleConnectionIsPassedOver(t *testing.T) {
	t.Parallel()
	s := testSender(t, nil)
	var dialled []*closingConn
	dial := s.transport.DialContext
	s.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		dialled = append(dialled, &closingConn{Conn: conn, closed: make(chan struct{})})
		return dialled[len(dialled)-1], nil
	}
	var served []net.Conn
	r := newReceiver(t, func(c net.Conn) bool {
		served = append(served, c)
		return respond("HTTP/1.1 204 No Content\r\n\r\n")(c)
	})
	req := testRequest(s, r.url("http"))
	if a, _ := s.Send(t.Context(), req); Judge(a) != Delivered {
		t.Fatalf("Send = %+v", a)
	}
	stale := 0
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if info.Reused {
			stale++
			served[0].Close()
			<-dialled[0].closed
		}
	}})
	if a, _ := s.Send(ctx, req); Judge(a) != Delivered {
		t.Errorf("Send = %+v", a)
	}
	if stale != 1 || len(dialled) != 2 || len(r.requests) != 2 {
		t.Errorf("%d stale connections, %d dialled, %d requests", stale, len(dialled), len(r.requests))
	}
}

func TestCancellationFromOutsideIsNoOutcome(t *testing.T) {
	t.Parallel()
	s := testSender(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	r := newReceiver(t, func(c net.Conn) bool {
		cancel()
		return silent("")(c)
	})
	if a, completed := s.Send(ctx, testRequest(s, r.url("http"))); completed || a != (webhook.Attempt{}) {
		t.Errorf("Send = %+v, %v", a, completed)
	}
	if a, completed := s.Send(ctx, testRequest(s, r.url("http"))); completed {
		t.Errorf("Send with a cancelled context = %+v, %v", a, completed)
	}
}

func TestCancellationAfterTheStatusLineIsAnOutcome(t *testing.T) {
	t.Parallel()
	s := testSender(t, nil)
	r := newReceiver(t, silent("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"))
	ctx, cancel := context.WithCancel(t.Context())
	trace := &httptrace.ClientTrace{GotFirstResponseByte: func() { time.AfterFunc(200*time.Millisecond, cancel) }}
	a, completed := s.Send(httptrace.WithClientTrace(ctx, trace), testRequest(s, r.url("http")))
	if !completed || Judge(a) != Delivered || a.Response != "ab" {
		t.Errorf("Send = %+v, %v", a, completed)
	}
}

func TestConnectionsThatCannotBeMade(t *testing.T) {
	t.Parallel()
	trusted := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }))
	t.Cleanup(trusted.Close)
	old := httptest.NewUnstartedServer(nil)
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	old.StartTLS()
	t.Cleanup(old.Close)
	pool := x509.NewCertPool()
	pool.AddCert(trusted.Certificate())
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	plain := httptest.NewServer(nil)
	t.Cleanup(plain.Close)
	raw := func(play func(net.Conn)) string { return "https://" + listen(t, play) }
	names := dnsServer(t, map[string][]string{"elsewhere.test": {"127.0.0.1"}})

	for _, tc := range []struct {
		name  string
		url   string
		pool  *x509.CertPool
		class webhook.ErrorClass
	}{
		{"TLS that verifies", trusted.URL, pool, ""},
		{"unknown authority", trusted.URL, nil, webhook.ErrTLS},
		{"another name's certificate", strings.Replace(trusted.URL, "127.0.0.1", "elsewhere.test", 1), pool, webhook.ErrTLS},
		{"TLS 1.1", old.URL, nil, webhook.ErrTLS},
		{"plain HTTP where TLS is expected", strings.Replace(plain.URL, "http", "https", 1), nil, webhook.ErrTLS},
		{"closed in the handshake", raw(func(c net.Conn) { c.Read(make([]byte, 1)) }), nil, webhook.ErrTLS},
		{"garbage in the handshake", raw(func(c net.Conn) { io.WriteString(c, strings.Repeat("\xff", 100)) }), nil, webhook.ErrTLS},
		{"silence in the handshake", raw(func(c net.Conn) { io.Copy(io.Discard, c) }), nil, webhook.ErrTimeout},
		{"refused", "https://" + closed.Addr().String(), nil, webhook.ErrConnect},
		{"no such name", "https://nowhere.test", nil, webhook.ErrDNS},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := testSender(t, func(c *SenderConfig) {
				c.Timeout, c.RootCAs, c.Resolver = time.Second, tc.pool, names
			})
			a, completed := s.Send(t.Context(), testRequest(s, tc.url))
			if !completed || a.Class != tc.class {
				t.Errorf("Send = %+v, %v, want class %q", a, completed, tc.class)
			}
			checkStorable(t, a)
		})
	}
}

// listen runs play on each connection to an address of this machine.
func listen(t *testing.T, play func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				play(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func TestErrorClass(t *testing.T) {
	t.Parallel()
	op := func(op string, err error) error { return &net.OpError{Op: op, Net: "tcp", Err: err} }
	for _, tc := range []struct {
		name string
		err  error
		want webhook.ErrorClass
	}{
		{"a name that did not resolve in time", op("dial", &net.DNSError{IsTimeout: true}), webhook.ErrDNS},
		{"no route", op("dial", syscall.EHOSTUNREACH), webhook.ErrConnect},
		{"no network", op("dial", syscall.ENETUNREACH), webhook.ErrConnect},
		{"the kernel's own timeout", op("dial", syscall.ETIMEDOUT), webhook.ErrTimeout},
		{"a proxy that is not there", op("proxyconnect", op("dial", syscall.ECONNREFUSED)), webhook.ErrConnect},
		{"a proxy that refuses", &proxyError{403}, webhook.ErrConnect},
		{"an alert through a proxy", op("remote error", errors.New("tls: bad certificate")), webhook.ErrTLS},
		{"a certificate through a proxy", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, webhook.ErrTLS},
		{"no TLS through a proxy", tls.RecordHeaderError{}, webhook.ErrTLS},
		{"a broken pipe", op("write", syscall.EPIPE), webhook.ErrReset},
		{"a block wins", op("dial", &BlockedError{}), webhook.ErrBlocked},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := errorClass(tc.err); got != tc.want {
				t.Errorf("class of %v = %s, want %s", tc.err, got, tc.want)
			}
		})
	}
}

// dnsServer returns a resolver that knows some names and their addresses.
func dnsServer(t *testing.T, names map[string][]string) *net.Resolver {
	t.Helper()
	return dnsServerOf(t, func(name string, _ uint16) []string { return names[name] })
}

// What a query asks for (RFC 1035, section 3.2.2, and RFC 3596).
const (
	kindA    = 1
	kindAAAA = 28
)

// dnsServerOf returns a resolver that calls a function for each query.
func dnsServerOf(t *testing.T, addresses func(name string, kind uint16) []string) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			conn.WriteTo(dnsAnswer(buf[:n], addresses), from)
		}
	})
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// dnsAnswer answers a query for one name (RFC 1035, section 4).
func dnsAnswer(query []byte, addresses func(name string, kind uint16) []string) []byte {
	var labels []string
	at := 12
	for query[at] != 0 {
		labels = append(labels, string(query[at+1:at+1+int(query[at])]))
		at += 1 + int(query[at])
	}
	question := query[12 : at+5]
	asked := binary.BigEndian.Uint16(query[at+1:])
	found := addresses(strings.ToLower(strings.Join(labels, ".")), asked)
	flags := uint16(0x8180)
	if len(found) == 0 {
		flags |= 3 // no such name
	}
	var answers []byte
	count := uint16(0)
	for _, text := range found {
		addr := netip.MustParseAddr(text)
		kind := uint16(kindA)
		if addr.Is6() {
			kind = kindAAAA
		}
		if kind != asked {
			continue
		}
		count++
		answers = append(answers, 0xc0, 12)
		answers = binary.BigEndian.AppendUint16(answers, kind)
		answers = append(answers, 0, 1, 0, 0, 0, 0)
		answers = binary.BigEndian.AppendUint16(answers, uint16(addr.BitLen()/8))
		answers = append(answers, addr.AsSlice()...)
	}
	msg := binary.BigEndian.AppendUint16(bytes.Clone(query[:2]), flags)
	msg = binary.BigEndian.AppendUint16(msg, 1)
	msg = binary.BigEndian.AppendUint16(msg, count)
	msg = append(append(msg, 0, 0, 0, 0), question...)
	return append(msg, answers...)
}

// A canary listens on this machine. No spelling of its address may reach it.
func TestTheCanaryIsNotReached(t *testing.T) {
	t.Parallel()
	var connections atomic.Int32
	_, port, _ := net.SplitHostPort(listen(t, func(net.Conn) { connections.Add(1) }))
	redirector := serve(t, "127.0.0.2:0", respond("HTTP/1.1 307 No\r\nLocation: http://127.0.0.1:"+port+"/\r\nContent-Length: 0\r\n\r\n"))
	names := dnsServer(t, map[string][]string{
		"canary.test": {"127.0.0.1"}, "six.test": {"::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"},
		"both.test": {"127.0.0.1", "::1"}, "2130706433": {"127.0.0.1"}, "localhost": {"127.0.0.1"},
	})
	var n uint16
	fmt.Sscan(port, &n)
	s := testSender(t, func(c *SenderConfig) {
		c.Timeout, c.Resolver = 2*time.Second, names
		c.Guard.Ports = []uint16{n} // so that it is the address that is refused
		c.Guard.Nets = []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}
	})
	for _, host := range []string{
		"127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
		"0.0.0.0", "[::]", "0", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.0.0.1.", "[::1%25lo]",
		"localhost", "LOCALHOST.", "１２７.0.0.1", "canary.test", "six.test", "both.test",
	} {
		t.Run(host, func(t *testing.T) {
			for _, scheme := range []string{"http", "https"} {
				a, completed := s.Send(t.Context(), testRequest(s, scheme+"://"+host+":"+port+"/"))
				if !completed || a.Class != webhook.ErrBlocked {
					t.Errorf("Send over %s = %+v, %v, want class blocked_address", scheme, a, completed)
				}
			}
		})
	}
	t.Run("by a redirect", func(t *testing.T) {
		if a, _ := s.Send(t.Context(), testRequest(s, redirector.url("http"))); a.Class != webhook.ErrRedirect {
			t.Errorf("Send = %+v, want class redirect", a)
		}
	})
	if got := connections.Load(); got != 0 {
		t.Errorf("the canary saw %d connections", got)
	}
}

// beside listens at 127.0.0.2, which is allowed, and has a canary at the same port of
// 127.0.0.1, which is not.
func beside(t *testing.T, play script) (r *receiver, port string, connections *atomic.Int32) {
	t.Helper()
	connections = new(atomic.Int32)
	_, port, _ = net.SplitHostPort(listen(t, func(net.Conn) { connections.Add(1) }))
	return serve(t, "127.0.0.2:"+port, play), port, connections
}

func onlyBeside(c *SenderConfig) {
	c.Guard.Nets = []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}
}

func TestANameWithAnAllowedAddressIsReachedThere(t *testing.T) {
	t.Parallel()
	_, port, canary := beside(t, respond("HTTP/1.1 204 No Content\r\n\r\n"))
	names := dnsServer(t, map[string][]string{
		"first.test": {"127.0.0.2", "127.0.0.1"}, "last.test": {"127.0.0.1", "127.0.0.2", "::1"},
		"gone.test": {"127.0.0.3", "127.0.0.1"}, // nobody listens at 127.0.0.3
	})
	s := testSender(t, func(c *SenderConfig) {
		onlyBeside(c)
		c.Guard.Nets = append(c.Guard.Nets, netip.MustParsePrefix("127.0.0.3/32"))
		c.Resolver = names
	})
	for _, name := range []string{"first.test", "last.test"} {
		if a, _ := s.Send(t.Context(), testRequest(s, "http://"+name+":"+port)); Judge(a) != Delivered {
			t.Errorf("Send to %s = %+v", name, a)
		}
	}
	if a, completed := s.Send(t.Context(), testRequest(s, "http://gone.test:"+port)); !completed || Judge(a) == Delivered {
		t.Errorf("Send to gone.test = %+v, %v", a, completed)
	}
	if got := canary.Load(); got != 0 {
		t.Errorf("the address that is not allowed saw %d connections", got)
	}
}

// A name resolves to an allowed address at first, and then to this machine. If it were
// resolved once for the check and again for dialling, the first attempt would go there.
func TestANameThatChangesItsAnswerGainsNothing(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			once := func(c net.Conn) bool { // or the connection would be used again
				io.WriteString(c, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
				return false
			}
			_, port, canary := beside(t, once)
			var asked atomic.Int32
			names := dnsServerOf(t, func(_ string, kind uint16) []string {
				if kind == kindA && asked.Add(1) > 1 {
					return []string{"127.0.0.1"}
				}
				return []string{"127.0.0.2"}
			})
			s := testSender(t, func(c *SenderConfig) {
				onlyBeside(c)
				c.Resolver = names
			})
			req := testRequest(s, scheme+"://changing.test:"+port)
			first, _ := s.Send(t.Context(), req)
			if want := map[string]webhook.ErrorClass{"http": "", "https": webhook.ErrTLS}[scheme]; first.Class != want { // it was reached
				t.Errorf("Send = %+v, want class %q", first, want)
			}
			for range 3 {
				if a, completed := s.Send(t.Context(), req); !completed || a.Class != webhook.ErrBlocked {
					t.Errorf("Send after the change = %+v, %v, want class blocked_address", a, completed)
				}
			}
			if got := canary.Load(); got != 0 || asked.Load() != 4 {
				t.Errorf("the canary saw %d connections; the name was asked for %d times, want 4", got, asked.Load())
			}
		})
	}
}

func TestProxy(t *testing.T) {
	t.Parallel()
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }))
	t.Cleanup(secure.Close)
	pool := x509.NewCertPool()
	pool.AddCert(secure.Certificate())
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Proxy-Authorization") == "" || r.Host == "forbidden.test:443":
			w.WriteHeader(http.StatusForbidden)
		case r.Method == http.MethodConnect:
			tunnel(w, secure.Listener.Addr().String())
		default:
			fmt.Fprint(w, "proxied "+r.URL.Host)
		}
	}))
	t.Cleanup(proxy.Close)
	through, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	through.User = url.UserPassword("user", "secret-token")
	s := testSender(t, func(c *SenderConfig) {
		c.ProxyURL, c.RootCAs, c.Guard.Nets = through, pool, nil
	})
	for _, tc := range []struct {
		name, url string
		class     webhook.ErrorClass
		text      string
	}{
		{"http", "http://name.test/", "", "proxied name.test"},
		{"https", "https://example.com/", "", ""}, // the name in httptest's certificate
		{"https to another name", "https://name.test/", webhook.ErrTLS, ""},
		{"a refusal", "https://forbidden.test/", webhook.ErrConnect, ""},
		{"a literal address is still checked", "http://127.0.0.1/", webhook.ErrBlocked, ""},
		{"so is the port", "http://name.test:22/", webhook.ErrBlocked, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a, _ := s.Send(t.Context(), testRequest(s, tc.url))
			if a.Class != tc.class || a.Response != tc.text || strings.Contains(a.Error, "secret-token") {
				t.Errorf("Send = %+v, want class %q and response %q", a, tc.class, tc.text)
			}
			checkStorable(t, a)
		})
	}
}

// tunnel connects a CONNECT request's connection to an address.
func tunnel(w http.ResponseWriter, address string) {
	there, err := net.Dial("tcp", address)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	here, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		there.Close()
		return
	}
	io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		defer there.Close()
		io.Copy(there, here)
	}()
	go func() {
		defer here.Close()
		io.Copy(here, there)
	}()
}

func TestTheEnvironmentsProxyIsIgnored(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	s := testSender(t, nil)
	r := newReceiver(t, respond("HTTP/1.1 204 No Content\r\n\r\n"))
	if a, _ := s.Send(t.Context(), testRequest(s, r.url("http"))); Judge(a) != Delivered {
		t.Errorf("Send = %+v", a)
	}
}

// BenchmarkSend compares a Sender with a bare net/http client that makes a minimal signed
// POST to the same receiver.
func BenchmarkSend(b *testing.B) {
	receive := func(conn net.Conn) {
		br := bufio.NewReader(conn)
		answer := []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		for {
			length := 0
			for {
				line, err := br.ReadSlice('\n')
				if err != nil {
					return
				}
				if len(line) <= 2 {
					break
				}
				if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
					fmt.Sscan(string(v), &length)
				}
			}
			if _, err := br.Discard(length); err != nil {
				return
			}
			if _, err := conn.Write(answer); err != nil {
				return
			}
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go receive(conn)
		}
	}()
	address := "http://" + l.Addr().String() + "/hook"
	e := testEvent()
	e.Payload = []byte(`{"text": "` + strings.Repeat("x", 1000) + `"}`)
	body := Body(e)

	b.Run("walhook", func(b *testing.B) {
		s := testSender(b, nil)
		r := testRequest(s, address)
		r.Body = body
		b.SetParallelism(16)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if a, _ := s.Send(b.Context(), r); Judge(a) != Delivered {
					b.Errorf("Send = %+v", a)
				}
			}
		})
	})
	b.Run("bare", func(b *testing.B) {
		transport := &http.Transport{MaxIdleConnsPerHost: 1024, MaxIdleConns: 1024}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
		b.SetParallelism(16)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := bareSend(b.Context(), client, address, body); err != nil {
					b.Error(err)
				}
			}
		})
	})
}

func bareSend(ctx context.Context, client *http.Client, address string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, []byte(testSecret))
	mac.Write(body)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Webhook-Signature", hex.EncodeToString(mac.Sum(nil)))
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
