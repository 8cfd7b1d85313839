package send

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/webhook"
)

const proxyUser, proxyPassword = "user", "secret-token"

// A testProxy tunnels what it is asked to connect to the receiver for the asked port,
// whatever the host is.
type testProxy struct {
	receivers map[string]string // port → address
	asked     chan string
}

// connect answers CONNECT.
func (p *testProxy) connect(conn net.Conn) {
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	if auth := req.Header.Get("Proxy-Authorization"); req.Method != http.MethodConnect || auth != basicAuth(url.UserPassword(proxyUser, proxyPassword)) {
		fmt.Fprintf(conn, "HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
		return
	}
	p.tunnel(conn, req.Host, func() { fmt.Fprintf(conn, "HTTP/1.1 100 Wait\r\n\r\nHTTP/1.1 200 Connected\r\n\r\n") })
}

// socks speaks SOCKS5 (RFC 1928).
func (p *testProxy) socks(conn net.Conn) {
	read := func(n int) []byte {
		b := make([]byte, n)
		io.ReadFull(conn, b)
		return b
	}
	read(int(read(2)[1]))
	conn.Write([]byte{5, 2})
	user := read(int(read(2)[1]))
	password := read(int(read(1)[0]))
	if string(user) != proxyUser || string(password) != proxyPassword {
		conn.Write([]byte{1, 1})
		return
	}
	conn.Write([]byte{1, 0})
	var host string
	switch read(4)[3] {
	case 1:
		host = net.IP(read(4)).String()
	case 3:
		host = string(read(int(read(1)[0])))
	case 4:
		host = net.IP(read(16)).String()
	}
	port := fmt.Sprint(binary.BigEndian.Uint16(read(2)))
	p.tunnel(conn, net.JoinHostPort(host, port), func() { conn.Write([]byte{5, 0, 0, 3, 4, 'h', 'o', 's', 't', 0, 80}) })
}

func (p *testProxy) tunnel(conn net.Conn, target string, connected func()) {
	p.asked <- target
	_, port, _ := net.SplitHostPort(target)
	there, err := net.Dial("tcp", p.receivers[port])
	if err != nil {
		return
	}
	defer there.Close()
	connected()
	var wg sync.WaitGroup
	wg.Go(func() {
		io.Copy(there, conn)
		there.Close()
	})
	io.Copy(conn, there)
	conn.Close()
	wg.Wait()
}

func secureListen(t *testing.T, play func(net.Conn)) (address string, trusted *x509.CertPool) {
	t.Helper()
	own := httptest.NewTLSServer(nil)
	own.Close()
	trusted = x509.NewCertPool()
	trusted.AddCert(own.Certificate())
	return listen(t, func(conn net.Conn) { play(tls.Server(conn, &tls.Config{Certificates: own.TLS.Certificates})) }), trusted
}

// Through each kind of proxy, an answer is the receiver's: the proxy opens tunnels only.
func TestProxies(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"http", "https", "socks5"} {
		for _, tc := range []struct{ url, asked string }{
			{"http://example.com/", "example.com:80"},
			{"https://example.com/", "example.com:443"}, // the name in httptest's certificate
			{"http://93.184.215.14/", "93.184.215.14:80"},
			{"http://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/", "[2606:2800:21f:cb07:6820:80da:af6b:8b2c]:80"},
		} {
			t.Run(kind+" to "+tc.url, func(t *testing.T) {
				t.Parallel()
				play := respond("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nreceiver")
				plain := newReceiver(t, play)
				secure, trusted := newSecureReceiver(t, play)
				p := &testProxy{map[string]string{"80": plain.addr(), "443": secure.addr()}, make(chan string, 10)}
				through := &url.URL{Scheme: kind, User: url.UserPassword(proxyUser, proxyPassword)}
				switch kind {
				case "http":
					through.Host = listen(t, p.connect)
				case "https":
					through.Host, _ = secureListen(t, p.connect)
				case "socks5":
					through.Host = listen(t, p.socks)
				}
				s := testSender(t, func(c *SenderConfig) { c.ProxyURL, c.RootCAs, c.Guard.Nets = through, trusted, nil })
				for range 2 {
					if a, _ := s.Send(t.Context(), testRequest(s, tc.url)); Judge(a) != Delivered || a.Response != "receiver" {
						t.Fatalf("Send = %+v", a)
					}
				}
				if asked := <-p.asked; asked != tc.asked || len(p.asked) != 0 {
					t.Errorf("the proxy was asked for %s, and %d times more, want %s once", asked, len(p.asked), tc.asked)
				}
				s.Close()
			})
		}
	}
}

func TestACertificateIsVerifiedThroughAProxy(t *testing.T) {
	t.Parallel()
	secure, trusted := newSecureReceiver(t, respond("HTTP/1.1 204 No Content\r\n\r\n"))
	p := &testProxy{map[string]string{"443": secure.addr()}, make(chan string, 10)}
	through := &url.URL{Scheme: "http", User: url.UserPassword(proxyUser, proxyPassword), Host: listen(t, p.connect)}
	s := testSender(t, func(c *SenderConfig) { c.ProxyURL, c.RootCAs = through, trusted })
	if a, _ := s.Send(t.Context(), testRequest(s, "https://name.test/")); a.Class != webhook.ErrTLS || a.OwnFault != "" {
		t.Errorf("Send = %+v", a)
	}
}

// A proxy that is away or refuses is our own fault. A receiver that it cannot reach is
// not.
func TestProxiesThatDoNotConnect(t *testing.T) {
	t.Parallel()
	connect := func(answer string) func(*testing.T) string {
		return func(t *testing.T) string {
			return "http://user:secret-token@" + listen(t, func(c net.Conn) {
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, answer)
				io.Copy(io.Discard, c)
			})
		}
	}
	socks := func(answers ...[]byte) func(*testing.T) string {
		return func(t *testing.T) string {
			return "socks5://user:secret-token@" + listen(t, func(c net.Conn) {
				for _, answer := range answers {
					c.Read(make([]byte, 512))
					c.Write(answer)
				}
				io.Copy(io.Discard, c)
			})
		}
	}
	reply := func(code byte) []byte { return []byte{5, code, 0, 1, 0, 0, 0, 0, 0, 0} }
	for _, tc := range []struct {
		name  string
		proxy func(*testing.T) string
		class webhook.ErrorClass
		fault webhook.OwnFault
	}{
		{"it is away", func(*testing.T) string { return "http://127.0.0.1:1" }, webhook.ErrConnect, webhook.FaultProxy},
		{"its name is unknown", func(*testing.T) string { return "http://nowhere.test" }, webhook.ErrDNS, webhook.FaultProxy},
		{"nobody vouches for its certificate", func(t *testing.T) string {
			address, _ := secureListen(t, func(c net.Conn) { c.Read(make([]byte, 1)) })
			return "https://" + address
		}, webhook.ErrTLS, webhook.FaultProxy},
		{"its handshake is silent", func(t *testing.T) string {
			return "https://" + listen(t, func(c net.Conn) { io.Copy(io.Discard, c) })
		}, webhook.ErrTimeout, webhook.FaultProxy},
		{"403", connect("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"), webhook.ErrConnect, webhook.FaultProxy},
		{"410", connect("HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"), webhook.ErrConnect, webhook.FaultProxy},
		{"407", connect("HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n"), webhook.ErrConnect, webhook.FaultProxy},
		{"301", connect("HTTP/1.1 301 No\r\nContent-Length: 0\r\n\r\n"), webhook.ErrConnect, webhook.FaultProxy},
		{"101", connect("HTTP/1.1 101 No\r\n\r\n"), webhook.ErrConnect, webhook.FaultProxy},
		{"502", connect("HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n"), webhook.ErrConnect, ""},
		{"504", connect("HTTP/1.1 504 No\r\nContent-Length: 0\r\n\r\n"), webhook.ErrConnect, ""},
		{"no HTTP", connect("220 mail.example ESMTP\r\n"), webhook.ErrConnect, webhook.FaultProxy},
		{"endless headers", connect("HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("x", 1000)+"\r\n", 70)), webhook.ErrConnect, webhook.FaultProxy},
		{"it goes on", connect("HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 204 No\r\n\r\n"), webhook.ErrConnect, webhook.FaultProxy},
		{"it closes", func(t *testing.T) string {
			return "http://" + listen(t, func(c net.Conn) { http.ReadRequest(bufio.NewReader(c)) })
		}, webhook.ErrConnect, webhook.FaultProxy},
		{"it is silent, as if it waited for the receiver", connect(""), webhook.ErrTimeout, ""},
		{"SOCKS5: it refuses the password", socks([]byte{5, 2}, []byte{1, 1}), webhook.ErrConnect, webhook.FaultProxy},
		{"SOCKS5: it wants something else", socks([]byte{5, 0xff}), webhook.ErrConnect, webhook.FaultProxy},
		{"SOCKS5: it is something else", socks([]byte("HTTP/1.1 400 No\r\n\r\n")), webhook.ErrConnect, webhook.FaultProxy},
		{"SOCKS5: it becomes something else", socks([]byte{5, 0}, []byte("HTTP/1.1 400 No\r\n\r\n")), webhook.ErrConnect, webhook.FaultProxy},
		{"SOCKS5: its rules refuse", socks([]byte{5, 0}, reply(2)), webhook.ErrConnect, webhook.FaultProxy},
		{"SOCKS5: the host cannot be reached", socks([]byte{5, 0}, reply(4)), webhook.ErrConnect, ""},
		{"SOCKS5: the receiver refuses", socks([]byte{5, 0}, reply(5)), webhook.ErrConnect, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			through, err := url.Parse(tc.proxy(t))
			if err != nil {
				t.Fatal(err)
			}
			s := testSender(t, func(c *SenderConfig) {
				c.ProxyURL, c.Timeout, c.Guard.Nets, c.Resolver = through, runsOut(500*time.Millisecond, tc.class), nil, dnsServer(t, nil)
			})
			a, completed := s.Send(t.Context(), testRequest(s, "https://name.test/"))
			if !completed || a.Class != tc.class || a.OwnFault != tc.fault {
				t.Errorf("Send = %+v, %v, want class %s and fault %q", a, completed, tc.class, tc.fault)
			}
			if strings.Contains(a.Error, "secret-token") {
				t.Errorf("%q tells the password", a.Error)
			}
			checkStorable(t, a)
			if a.StatusCode != 0 || Judge(a) != Retry {
				t.Errorf("Send = %+v: an answer is never the proxy's", a)
			}
		})
	}
}

// What is known of an address is checked, although the proxy dials.
func TestAProxyDoesNotSwitchTheGuardOff(t *testing.T) {
	t.Parallel()
	s := testSender(t, func(c *SenderConfig) {
		c.ProxyURL, c.Guard.Nets = &url.URL{Scheme: "http", Host: "127.0.0.1:1"}, nil
	})
	for name, address := range map[string]string{
		"a literal address is still checked": "http://127.0.0.1/",
		"so is the port":                     "http://name.test:22/",
	} {
		if a, _ := s.Send(t.Context(), testRequest(s, address)); a.Class != webhook.ErrBlocked {
			t.Errorf("%s: Send = %+v", name, a)
		}
	}
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
