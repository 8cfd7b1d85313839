package send

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
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
	return serveOn(t, l, play)
}

// newSecureReceiver speaks TLS. It also returns who vouches for its certificate.
func newSecureReceiver(t testing.TB, play script) (*receiver, *x509.CertPool) {
	t.Helper()
	return newSecureReceiverThat(t, func(*tls.ClientHelloInfo) {}, play)
}

// newSecureReceiverThat also shows each client's greeting.
func newSecureReceiverThat(t testing.TB, greeted func(*tls.ClientHelloInfo), play script) (*receiver, *x509.CertPool) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	own := httptest.NewTLSServer(nil)
	own.Close()
	trusted := x509.NewCertPool()
	trusted.AddCert(own.Certificate())
	config := &tls.Config{Certificates: own.TLS.Certificates, GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		greeted(hello)
		return nil, nil
	}}
	return serveOn(t, secureListener{l, config}, play), trusted
}

// A secureListener's connections can gather what they write.
type secureListener struct {
	net.Listener
	config *tls.Config
}

func (l secureListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tls.Server(&gatheringConn{Conn: conn}, l.config), nil
}

// A gatheringConn keeps what is written while it gathers, and then writes it at once.
type gatheringConn struct {
	net.Conn
	gathers bool
	kept    []byte
}

func (c *gatheringConn) Write(b []byte) (int, error) {
	if !c.gathers {
		return c.Conn.Write(b)
	}
	c.kept = append(c.kept, b...)
	return len(b), nil
}

// atOnceOverTLS writes texts as records of their own in one write.
func atOnceOverTLS(conn net.Conn, texts ...string) {
	gathering := conn.(*tls.Conn).NetConn().(*gatheringConn)
	gathering.gathers = true
	for _, text := range texts {
		io.WriteString(conn, text)
	}
	gathering.gathers = false
	gathering.Conn.Write(gathering.kept)
	gathering.kept = nil
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func serveOn(t testing.TB, l net.Listener, play script) *receiver {
	t.Helper()
	r := &receiver{l, make(chan string, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	accept(t, l, func(conn net.Conn) { r.converse(ctx, conn, play) })
	t.Cleanup(cancel) // before accept's
	return r
}

// accept runs play on each connection to a listener, until the test has ended.
func accept(t testing.TB, l net.Listener, play func(net.Conn)) {
	t.Helper()
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
}

func (r *receiver) converse(ctx context.Context, conn net.Conn, play script) {
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

// listen runs play on each connection to an address of this machine.
func listen(t *testing.T, play func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accept(t, l, play)
	return l.Addr().String()
}
