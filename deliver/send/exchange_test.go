package send

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/webhook"
)

// largeRequest has a body that no socket takes before somebody reads it.
func largeRequest(s *Sender, url string) Request {
	r := testRequest(s, url)
	r.Body = []byte(strings.Repeat("x", 16<<20))
	return r
}

// fullListener returns an address that answers no connection attempt: its queue is full.
func fullListener(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*syscall.SockaddrInet4).Port)).String()
	for range 100 {
		conn, err := net.DialTimeout("tcp", address, 100*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { conn.Close() })
	}
	t.Skip("this machine's queues do not fill")
	return ""
}

// Wherever an attempt hangs, its timeout ends it as a timeout, and so does the end of the
// process; cancellation ends it as nothing.
func TestAnAttemptEndsWhereverItHangs(t *testing.T) {
	t.Parallel()
	deaf := func(t *testing.T) string { // reads nothing
		held := make(chan struct{})
		address := listen(t, func(net.Conn) { <-held })
		t.Cleanup(func() { close(held) })
		return address
	}
	mute := func(t *testing.T) string { // reads everything
		return listen(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	}
	names := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	for _, tc := range []struct {
		name    string
		request func(*testing.T, *Sender) Request
		fault   webhook.OwnFault
	}{
		{"looking the name up", func(_ *testing.T, s *Sender) Request { return testRequest(s, "http://name.test:8080/") }, webhook.FaultResolver},
		{"connecting", func(t *testing.T, s *Sender) Request { return testRequest(s, "http://"+fullListener(t)) }, ""},
		{"the handshake", func(t *testing.T, s *Sender) Request { return testRequest(s, "https://"+mute(t)) }, ""},
		{"the handshake with one who reads nothing", func(t *testing.T, s *Sender) Request { return testRequest(s, "https://"+deaf(t)) }, ""},
		{"writing", func(t *testing.T, s *Sender) Request { return largeRequest(s, "http://"+deaf(t)) }, ""},
		{"reading", func(t *testing.T, s *Sender) Request { return testRequest(s, "http://"+mute(t)) }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			const soon = 300 * time.Millisecond
			t.Run("until the timeout", func(t *testing.T) {
				t.Parallel()
				s := testSender(t, func(c *SenderConfig) { c.Timeout, c.Resolver = soon, names })
				a, completed := s.Send(t.Context(), tc.request(t, s))
				if !completed || a.Class != webhook.ErrTimeout || a.Error != errTimeout.Error() || a.Duration > unhurried || a.OwnFault != tc.fault {
					t.Errorf("Send = %+v, %v", a, completed)
				}
			})
			t.Run("until the endpoint's own timeout", func(t *testing.T) {
				t.Parallel()
				s := testSender(t, func(c *SenderConfig) { c.Timeout, c.Resolver = time.Minute, names })
				r := tc.request(t, s)
				r.Endpoint.timeout = soon // as Target sets it
				a, completed := s.Send(t.Context(), r)
				if !completed || a.Class != webhook.ErrTimeout || a.Error != errTimeout.Error() || a.Duration > unhurried || a.OwnFault != tc.fault {
					t.Errorf("Send = %+v, %v", a, completed)
				}
			})
			t.Run("until the timeout, though it is cancelled by then", func(t *testing.T) {
				t.Parallel()
				s := testSender(t, func(c *SenderConfig) { c.Timeout, c.Resolver = time.Minute, names })
				r := tc.request(t, s)
				r.Endpoint.timeout = soon
				a, completed := s.Send(&lateContext{t.Context(), time.Now().Add(soon / 2)}, r)
				if !completed || a.Class != webhook.ErrTimeout || a.OwnFault != tc.fault {
					t.Errorf("Send = %+v, %v", a, completed)
				}
			})
			t.Run("until it is cancelled", func(t *testing.T) {
				t.Parallel()
				s := testSender(t, func(c *SenderConfig) { c.Timeout, c.Resolver = time.Minute, names })
				ctx, cancel := context.WithCancel(t.Context())
				r := tc.request(t, s)
				begun := time.Now()
				time.AfterFunc(soon, cancel)
				a, completed := s.Send(ctx, r)
				if completed || a != (webhook.Attempt{}) || time.Since(begun) > unhurried {
					t.Errorf("Send = %+v, %v after %v", a, completed, time.Since(begun))
				}
			})
		})
	}
}

// A lateContext is cancelled at a time, and nobody is told who does not ask.
type lateContext struct {
	context.Context
	at time.Time
}

func (c *lateContext) Done() <-chan struct{} { return nil }

func (c *lateContext) Err() error {
	if time.Now().After(c.at) {
		return context.Canceled
	}
	return nil
}

// receiverOf plays over http or https.
func receiverOf(t *testing.T, scheme string, play script) (*receiver, *x509.CertPool) {
	t.Helper()
	if scheme == "https" {
		return newSecureReceiver(t, play)
	}
	return newReceiver(t, play), nil
}

// A receiver that refuses a large body answers without reading it. Its answer is the
// outcome, whether it closes the connection (which then resets our writing) or waits.
func TestAnEarlyAnswerIsTheOutcome(t *testing.T) {
	t.Parallel()
	const answer = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmore"
	for _, tc := range []struct {
		name string
		size int
		then func(*testing.T, net.Conn)
	}{
		{"1 MiB, and it closes", 1 << 20, func(*testing.T, net.Conn) {}},
		{"16 MiB, and it closes", 16 << 20, func(*testing.T, net.Conn) {}},
		{"16 MiB, and it waits", 16 << 20, func(t *testing.T, _ net.Conn) { <-t.Context().Done() }}, // which is longer than the attempt's timeout
		{"16 MiB, and it resets", 16 << 20, func(_ *testing.T, c net.Conn) {
			time.Sleep(100 * time.Millisecond)
			c.(*net.TCPConn).SetLinger(0)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			address := listen(t, func(c net.Conn) {
				head := bufio.NewReader(c)
				for line := ""; line != "\r\n"; line, _ = head.ReadString('\n') {
				}
				io.WriteString(c, answer)
				tc.then(t, c)
			})
			s := testSender(t, nil)
			r := testRequest(s, "http://"+address)
			r.Body = []byte(strings.Repeat("x", tc.size))
			a, completed := s.Send(t.Context(), r)
			if !completed || a.StatusCode != http.StatusRequestEntityTooLarge || a.Duration > unhurried/2 {
				t.Errorf("Send = %+v, %v", a, completed)
			}
			if n := len(idleConns(s)); n != 0 {
				t.Errorf("%d connections are idle, of which one has an unfinished request", n)
			}
		})
	}
}

// A receiver may answer early and read the rest: it gets all of it, and its connection is
// used again.
func TestAnEarlyAnswerDoesNotCutTheRequest(t *testing.T) {
	t.Parallel()
	rest := make(chan int64, 2)
	address := listen(t, func(c net.Conn) {
		br := bufio.NewReader(c)
		for range 2 {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
			n, _ := io.Copy(io.Discard, req.Body)
			rest <- n
		}
	})
	s := testSender(t, nil)
	for range 2 {
		r := largeRequest(s, "http://"+address)
		r.Body = r.Body[:1<<20]
		if a, _ := s.Send(t.Context(), r); Judge(a) != Delivered {
			t.Fatalf("Send = %+v", a)
		}
		if n := <-rest; n != 1<<20 {
			t.Errorf("%d bytes came", n)
		}
		if len(idleConns(s)) != 1 {
			t.Error("the connection is not used again")
		}
	}
}

// A process that may not send writes nothing, be it to shake hands, on a connection that
// it has, or within a request.
func TestNothingIsWrittenWithoutTheRightTo(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			var asked, allowed atomic.Int32
			allowed.Store(1 << 30)
			r, trusted := receiverOf(t, scheme, respond("HTTP/1.1 204 No Content\r\n\r\n"))
			s := testSender(t, func(c *SenderConfig) {
				c.RootCAs, c.Live = trusted, func() bool { return asked.Add(1) <= allowed.Load() }
			})
			first := func() { // on a new connection
				s.Close()
				s.pool = newPool(10)
				asked.Store(0)
			}
			req, large := testRequest(s, r.url(scheme)), largeRequest(s, r.url(scheme))
			if a, _ := s.Send(t.Context(), req); Judge(a) != Delivered {
				t.Fatalf("Send = %+v", a)
			}
			writes := asked.Load()
			<-r.requests
			refused := func(what string, req Request) {
				if a, completed := s.Send(t.Context(), req); completed || a != (webhook.Attempt{}) {
					t.Errorf("%s: Send = %+v, %v", what, a, completed)
				}
				if len(r.requests) != 0 {
					t.Errorf("%s: a request came", what)
				}
			}
			allowed.Store(writes) // on the connection that it has
			refused("between the look and the write", req)
			for n := range writes { // from the first write of the handshake on
				first()
				allowed.Store(n)
				refused("on a new connection", req)
			}
			first()
			allowed.Store(writes)
			refused("within a large request", large)
		})
	}
}
