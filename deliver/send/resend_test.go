package send

import (
	"context"
	"io"
	"net"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/webhook"
)

// afterFirst answers the first request with 204, and then plays.
func afterFirst(served *atomic.Int32, play func(n int32, c net.Conn) bool) script {
	return func(c net.Conn) bool {
		n := served.Add(1)
		if n == 1 {
			return respond("HTTP/1.1 204 No Content\r\n\r\n")(c)
		}
		return play(n, c)
	}
}

// A reused connection that breaks before any byte of an answer has come costs no attempt:
// the same bytes go out once more, on a new connection, and only once.
func TestAnUnansweredRequestOnAReusedConnectionIsResentOnce(t *testing.T) {
	t.Parallel()
	answered := respond("HTTP/1.1 204 No Content\r\n\r\n")
	for _, tc := range []struct {
		name   string
		play   func(n int32, c net.Conn) bool // of the second request and those after it
		class  webhook.ErrorClass
		served int32
		resent uint64
	}{
		{"it is reset, and then all is well", func(n int32, c net.Conn) bool {
			if n == 2 {
				return reset("")(c)
			}
			return answered(c)
		}, "", 3, 1},
		{"it is closed, and then all is well", func(n int32, c net.Conn) bool { return n > 2 && answered(c) }, "", 3, 1},
		{"the new one breaks as well", func(_ int32, c net.Conn) bool { return reset("")(c) }, webhook.ErrReset, 3, 1},
		{"the new one refuses", func(n int32, c net.Conn) bool {
			return n > 2 && respond("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")(c)
		}, webhook.ErrHTTP5xx, 3, 1},
		{"a byte has come", func(_ int32, c net.Conn) bool { return reset("H")(c) }, webhook.ErrReset, 2, 0},
		{"a 100 has come", func(_ int32, c net.Conn) bool { return reset("HTTP/1.1 100 Continue\r\n\r\n")(c) }, webhook.ErrReset, 2, 0},
		{"what came is not HTTP", func(_ int32, c net.Conn) bool { io.WriteString(c, "hello\n"); return false }, webhook.ErrProtocol, 2, 0},
		{"nothing comes in time", func(_ int32, c net.Conn) bool { return silent("")(c) }, webhook.ErrTimeout, 2, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var served atomic.Int32
			s := testSender(t, func(c *SenderConfig) { c.Timeout = runsOut(time.Second, tc.class) })
			r := newReceiver(t, afterFirst(&served, tc.play))
			req := testRequest(s, r.url("http"))
			if a, _ := s.Send(t.Context(), req); Judge(a) != Delivered {
				t.Fatalf("Send = %+v", a)
			}
			<-r.requests
			a, completed := s.Send(t.Context(), req)
			if !completed || a.Class != tc.class {
				t.Errorf("Send = %+v, %v, want class %q", a, completed, tc.class)
			}
			checkStorable(t, a)
			if served.Load() != tc.served || s.Resent() != tc.resent {
				t.Errorf("%d requests came, %d were sent again, want %d and %d", served.Load(), s.Resent(), tc.served, tc.resent)
			}
			if tc.resent > 0 {
				if one, two := <-r.requests, <-r.requests; one != two {
					t.Errorf("sent\n%s\nand then\n%s", one, two)
				}
			}
		})
	}
}

// The receiver closes the connection between the look at it and the write.
func TestAConnectionThatClosesAtTheLastMomentIsReplaced(t *testing.T) {
	t.Parallel()
	ends := make(chan net.Conn, 2)
	var end net.Conn
	s := testSender(t, func(c *SenderConfig) {
		c.Live = func() bool { // is asked right before the write
			if end != nil {
				end.(*net.TCPConn).SetLinger(0)
				end.Close()
				end = nil
			}
			return true
		}
	})
	r := newReceiver(t, func(c net.Conn) bool {
		ends <- c
		return respond("HTTP/1.1 204 No Content\r\n\r\n")(c)
	})
	req := testRequest(s, r.url("http"))
	for range 2 {
		if a, _ := s.Send(t.Context(), req); Judge(a) != Delivered {
			t.Fatalf("Send = %+v", a)
		}
		end = <-ends
	}
	if s.Resent() != 1 || len(r.requests) != 2 {
		t.Errorf("%d requests came, and %d were sent again", len(r.requests), s.Resent())
	}
}

// Nothing goes out again once the process may not send, or has to stop. What was sent
// before may have arrived: that is an outcome, unless the attempt was cancelled.
func TestAResendObeys(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		stop      func(live *atomic.Bool, cancel func())
		class     webhook.ErrorClass
		completed bool
	}{
		{"the right to send", func(live *atomic.Bool, _ func()) { live.Store(false) }, webhook.ErrReset, true},
		{"cancellation", func(_ *atomic.Bool, cancel func()) { cancel() }, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var served atomic.Int32
			var live atomic.Bool
			live.Store(true)
			ctx, cancel := context.WithCancel(t.Context())
			s := testSender(t, func(c *SenderConfig) { c.Live = live.Load })
			r := newReceiver(t, afterFirst(&served, func(_ int32, c net.Conn) bool {
				tc.stop(&live, cancel)
				return reset("")(c)
			}))
			req := testRequest(s, r.url("http"))
			if a, _ := s.Send(ctx, req); Judge(a) != Delivered {
				t.Fatalf("Send = %+v", a)
			}
			a, completed := s.Send(ctx, req)
			if completed != tc.completed || a.Class != tc.class {
				t.Errorf("Send = %+v, %v, want %q, %v", a, completed, tc.class, tc.completed)
			}
			if served.Load() != 2 || s.Resent() != 0 {
				t.Errorf("%d requests came, %d were sent again", served.Load(), s.Resent())
			}
		})
	}
}

// A request that broke has been sent, whatever keeps it from going out again. That it did
// not go out again is not counted.
func TestAResendThatCannotConnect(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		proxied bool // so that it is a fault of our own
		class   webhook.ErrorClass
	}{
		{"to the receiver", false, webhook.ErrConnect},
		{"to the proxy", true, webhook.ErrReset},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var served atomic.Int32
			var gone net.Listener
			r := newReceiver(t, afterFirst(&served, func(_ int32, c net.Conn) bool {
				gone.Close()
				return reset("")(c)
			}))
			gone = r.listener
			s := testSender(t, func(c *SenderConfig) {
				if !tc.proxied {
					return
				}
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				gone = l
				p := &testProxy{map[string]string{"80": r.addr()}, make(chan string, 10)}
				go func() {
					if conn, err := l.Accept(); err == nil {
						p.connect(conn)
					}
				}()
				c.ProxyURL, c.Guard.Nets = &url.URL{Scheme: "http", Host: l.Addr().String(), User: url.UserPassword(proxyUser, proxyPassword)}, nil
			})
			req := testRequest(s, r.url("http"))
			if tc.proxied {
				req = testRequest(s, "http://example.com/")
			}
			if a, _ := s.Send(t.Context(), req); Judge(a) != Delivered {
				t.Fatalf("Send = %+v", a)
			}
			a, completed := s.Send(t.Context(), req)
			if !completed || a.Class != tc.class || a.OwnFault != "" {
				t.Errorf("Send = %+v, %v, want class %q", a, completed, tc.class)
			}
			if served.Load() != 2 || s.Resent() != 0 {
				t.Errorf("%d requests came, %d were sent again", served.Load(), s.Resent())
			}
		})
	}
}

// The resend has what is left of the attempt's time.
func TestAResendEndsInTime(t *testing.T) {
	t.Parallel()
	const timeout = 4 * time.Second
	var served atomic.Int32
	s := testSender(t, func(c *SenderConfig) { c.Timeout = timeout })
	r := newReceiver(t, afterFirst(&served, func(n int32, c net.Conn) bool {
		if n == 2 {
			time.Sleep(timeout / 2)
			return false
		}
		return silent("")(c)
	}))
	req := testRequest(s, r.url("http"))
	s.Send(t.Context(), req)
	if a, _ := s.Send(t.Context(), req); a.Class != webhook.ErrTimeout || a.Duration > timeout+timeout/4 || s.Resent() != 1 {
		t.Errorf("Send = %+v, %d sent again", a, s.Resent())
	}
}
