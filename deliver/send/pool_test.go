package send

import (
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

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

// idleConns returns a Sender's idle connections, the oldest first.
func idleConns(s *Sender) (conns []*conn) {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	for e := s.pool.order.Front(); e != nil; e = e.Next() {
		conns = append(conns, e.Value.(*conn))
	}
	return conns
}

func TestATLSConnectionIsUsedAgain(t *testing.T) {
	t.Parallel()
	conns := make(chan net.Addr, 100)
	r, trusted := newSecureReceiver(t, func(c net.Conn) bool {
		conns <- c.RemoteAddr()
		return respond("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")(c)
	})
	s := testSender(t, func(c *SenderConfig) { c.RootCAs = trusted })
	for range 2 {
		if a, _ := s.Send(t.Context(), testRequest(s, r.url("https"))); Judge(a) != Delivered {
			t.Fatalf("Send = %+v", a)
		}
	}
	if a, b := <-conns, <-conns; a.String() != b.String() {
		t.Errorf("two requests used %v and %v", a, b)
	}
}

// What comes behind a response, now or later, must not become the next one.
func TestNoResponseIsReadFromLeftovers(t *testing.T) {
	t.Parallel()
	const first, leftover = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 500 Leftover\r\nContent-Length: 0\r\n\r\n"
	for _, tc := range []struct {
		name   string
		secure bool
		play   func(c net.Conn)
	}{
		{"in one piece", false, func(c net.Conn) { io.WriteString(c, first+leftover) }},
		{"beyond the buffer", false, func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"+strings.Repeat("x", 5000)+leftover)
		}},
		{"behind a 204", false, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n"+leftover) }},
		{"behind chunks", false, func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"+leftover)
		}},
		{"in one record", true, func(c net.Conn) { io.WriteString(c, first+leftover) }},
		{"in a record that came with it", true, func(c net.Conn) { atOnceOverTLS(c, first, leftover) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var served atomic.Int32
			play := func(c net.Conn) bool {
				if served.Add(1) == 1 {
					tc.play(c)
					return true
				}
				return respond("HTTP/1.1 204 No Content\r\n\r\n")(c)
			}
			r, scheme, trusted := (*receiver)(nil), "http", (*x509.CertPool)(nil)
			if tc.secure {
				scheme = "https"
				r, trusted = newSecureReceiver(t, play)
			} else {
				r = newReceiver(t, play)
			}
			s := testSender(t, func(c *SenderConfig) { c.RootCAs = trusted })
			for range 2 {
				if a, _ := s.Send(t.Context(), testRequest(s, r.url(scheme))); Judge(a) != Delivered {
					t.Fatalf("Send = %+v", a)
				}
			}
			if n := s.Resent(); n != 0 || served.Load() != 2 {
				t.Errorf("%d requests came, %d were sent again", served.Load(), n)
			}
		})
	}
}

// What an idle connection brings, be it its end, is noticed before it is used.
func TestAnIdleConnectionThatSpokeIsNotUsed(t *testing.T) {
	t.Parallel()
	const leftover = "HTTP/1.1 500 Leftover\r\nContent-Length: 0\r\n\r\n"
	for _, tc := range []struct {
		name string
		say  func(c net.Conn)
	}{
		{"a late answer", func(c net.Conn) { io.WriteString(c, leftover) }},
		{"the end of its own side", func(c net.Conn) { c.(interface{ CloseWrite() error }).CloseWrite() }},
		{"the end", func(c net.Conn) { c.Close() }},
	} {
		for _, scheme := range []string{"http", "https"} {
			t.Run(tc.name+" over "+scheme, func(t *testing.T) {
				t.Parallel()
				conns := make(chan net.Conn, 2)
				play := func(c net.Conn) bool {
					conns <- c
					return respond("HTTP/1.1 204 No Content\r\n\r\n")(c)
				}
				r, trusted := (*receiver)(nil), (*x509.CertPool)(nil)
				if scheme == "https" {
					r, trusted = newSecureReceiver(t, play)
				} else {
					r = newReceiver(t, play)
				}
				s := testSender(t, func(c *SenderConfig) { c.RootCAs = trusted })
				if a, _ := s.Send(t.Context(), testRequest(s, r.url(scheme))); Judge(a) != Delivered {
					t.Fatalf("Send = %+v", a)
				}
				tc.say(<-conns)
				idle := idleConns(s)
				eventually(t, "it has come", func() bool { return len(idle) == 1 && !idle[0].quiet() })
				if a, _ := s.Send(t.Context(), testRequest(s, r.url(scheme))); Judge(a) != Delivered {
					t.Errorf("Send = %+v", a)
				}
				if n := s.Resent(); n != 0 || len(conns) != 1 {
					t.Errorf("%d requests were sent again, %d came on other connections", n, len(conns))
				}
			})
		}
	}
}

// A receiver that closes after each response, without having said so, costs a connection
// for each, and no attempt fails.
func TestAReceiverThatClosesInSilenceGetsEachRequest(t *testing.T) {
	t.Parallel()
	s := testSender(t, nil)
	r := newReceiver(t, func(c net.Conn) bool {
		respond("HTTP/1.1 204 No Content\r\n\r\n")(c)
		return false
	})
	for range 50 {
		if a, completed := s.Send(t.Context(), testRequest(s, r.url("http"))); !completed || Judge(a) != Delivered {
			t.Fatalf("Send = %+v, %v", a, completed)
		}
	}
	if n := len(r.requests); n != 50 {
		t.Errorf("%d requests were read, want 50", n)
	}
}

// pooled returns n connections to one receiver, and what is at their other ends.
func pooled(t *testing.T, n int) (conns []*conn, ends chan net.Conn) {
	t.Helper()
	ends = make(chan net.Conn, n)
	address := listen(t, func(c net.Conn) {
		ends <- c
		io.Copy(io.Discard, c)
	})
	d := testSender(t, nil).dialer
	for range n {
		c, f := d.dial(t.Context(), key{address: address})
		if f != nil {
			t.Fatal(f.err)
		}
		t.Cleanup(c.abort)
		conns = append(conns, c)
	}
	return conns, ends
}

func closed(c *conn) bool { return errors.Is(c.SetDeadline(past), net.ErrClosed) }

func TestAFullPoolClosesItsOldestConnection(t *testing.T) {
	t.Parallel()
	conns, _ := pooled(t, 4)
	conns[0].key.address, conns[3].key.address = "other:80", "other:80"
	p := newPool(2)
	now := time.Now()
	for i, c := range conns {
		p.put(c, now.Add(time.Duration(i)))
	}
	for i, want := range []bool{true, true, false, false} {
		if closed(conns[i]) != want {
			t.Errorf("connection %d is closed: %v", i, !want)
		}
	}
	if c := p.take(conns[3].key, now); c != conns[3] {
		t.Errorf("take = %p, want the newest of its key", c)
	}
	if c := p.take(conns[0].key, now); c != nil {
		t.Errorf("take = %p, want none", c)
	}
	if c := p.take(conns[2].key, now); c != conns[2] {
		t.Errorf("take = %p, want the other one that is left", c)
	}
	if len(p.idle) != 0 || p.order.Len() != 0 {
		t.Errorf("the empty pool keeps %d keys and %d connections", len(p.idle), p.order.Len())
	}
}

func TestThePoolKeepsConnectionsForALittleWhile(t *testing.T) {
	t.Parallel()
	conns, _ := pooled(t, 3)
	p := newPool(10)
	t.Cleanup(p.close)
	now := time.Now()
	for i, c := range conns {
		p.put(c, now.Add(time.Duration(i)*time.Second))
	}
	if c := p.take(conns[0].key, now.Add(2*time.Second+idleTimeout)); c != nil {
		t.Error("a connection was taken that had been idle for too long")
	}
	p.closeExpired(now.Add(time.Second + idleTimeout))
	for i, want := range []bool{true, true, false} {
		if closed(conns[i]) != want {
			t.Errorf("connection %d is closed: %v", i, !want)
		}
	}
}

// One timer closes the idle connections of a pool, and goes on as long as there are any.
func TestThePoolSweeps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPool(10)
		var ends []net.Conn
		idle := func() {
			here, there := net.Pipe()
			w := &wire{Conn: here}
			p.put(&conn{Conn: w, wire: w}, time.Now())
			ends = append(ends, there)
		}
		gone := func() (n int) {
			synctest.Wait()
			for _, there := range ends {
				there.SetReadDeadline(time.Now())
				if _, err := there.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
					n++
				}
			}
			return n
		}
		idle()
		time.Sleep(idleTimeout / 2)
		idle()
		for _, want := range []int{0, 1, 2} {
			if n := gone(); n != want {
				t.Errorf("%d connections are closed, want %d", n, want)
			}
			time.Sleep(idleTimeout / 2)
		}
		idle() // after the pool was empty
		time.Sleep(idleTimeout)
		if n := gone(); n != 3 {
			t.Errorf("%d connections are closed, want 3", n)
		}
	})
}

func TestAClosedPoolKeepsNothing(t *testing.T) {
	t.Parallel()
	conns, _ := pooled(t, 2)
	p := newPool(10)
	p.put(conns[0], time.Now())
	p.close()
	p.put(conns[1], time.Now())
	if !closed(conns[0]) || !closed(conns[1]) || p.order.Len() != 0 {
		t.Errorf("closed %v and %v, %d left", closed(conns[0]), closed(conns[1]), p.order.Len())
	}
}

// Idle connections have no goroutine, plain or over TLS.
func TestIdleConnectionsHaveNoGoroutine(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("group", func(t *testing.T) {
		r, trusted := newSecureReceiver(t, respond("HTTP/1.1 204 No Content\r\n\r\n"))
		s := testSender(t, func(c *SenderConfig) { c.RootCAs = trusted })
		before := goleak.IgnoreCurrent()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if a, _ := s.Send(t.Context(), testRequest(s, r.url("https"))); Judge(a) != Delivered {
					t.Errorf("Send = %+v", a)
				}
			})
		}
		wg.Wait()
		if err := goleak.Find(before, goleak.IgnoreAnyFunction("github.com/walhook/walhook/deliver/send.(*receiver).converse")); err != nil {
			t.Error(err)
		}
		if len(idleConns(s)) == 0 {
			t.Error("no connection is idle: the test tells nothing")
		}
	})
}
