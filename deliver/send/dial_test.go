package send

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/webhook"
)

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
		{"refused", "https://127.0.0.1:" + closedPort(t), nil, webhook.ErrConnect},
		{"no such name", "https://nowhere.test", nil, webhook.ErrDNS},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := testSender(t, func(c *SenderConfig) {
				c.Timeout, c.RootCAs, c.Resolver = runsOut(time.Second, tc.class), tc.pool, names
			})
			a, completed := s.Send(t.Context(), testRequest(s, tc.url))
			if !completed || a.Class != tc.class {
				t.Errorf("Send = %+v, %v, want class %q", a, completed, tc.class)
			}
			checkStorable(t, a)
		})
	}
}

func TestDialFailure(t *testing.T) {
	t.Parallel()
	op := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	system := func(errno syscall.Errno) error { return op(os.NewSyscallError("connect", errno)) }
	toward := func(ip string) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.ParseIP(ip), Port: 443}, Err: os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)}
	}
	for _, tc := range []struct {
		name  string
		err   error
		class webhook.ErrorClass
		fault webhook.OwnFault
	}{
		{"no such name", op(&net.DNSError{IsNotFound: true}), webhook.ErrDNS, ""},
		{"a name that did not resolve in time", op(&net.DNSError{IsTimeout: true}), webhook.ErrDNS, ""}, // see TestWhoseFaultItIsThatANameDoesNotResolve
		{"no route", system(syscall.EHOSTUNREACH), webhook.ErrConnect, ""},
		{"no network", system(syscall.ENETUNREACH), webhook.ErrConnect, ""},
		{"refused", system(syscall.ECONNREFUSED), webhook.ErrConnect, ""},
		{"the kernel's own timeout", system(syscall.ETIMEDOUT), webhook.ErrTimeout, ""},
		{"no descriptors of the process", system(syscall.EMFILE), webhook.ErrConnect, webhook.FaultDescriptors},
		{"no descriptors of the machine", system(syscall.ENFILE), webhook.ErrConnect, webhook.FaultDescriptors},
		{"no ports", system(syscall.EADDRNOTAVAIL), webhook.ErrConnect, webhook.FaultPorts},
		{"no ports towards an IPv4 address", toward("192.0.2.1"), webhook.ErrConnect, webhook.FaultPorts},
		{"no IPv6", toward("2001:db8::1"), webhook.ErrConnect, ""},
		{"no buffers", system(syscall.ENOBUFS), webhook.ErrConnect, webhook.FaultDescriptors},
		{"a block wins", op(&BlockedError{}), webhook.ErrBlocked, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if f := dialFailure(t.Context(), tc.err); f.class != tc.class || f.fault != tc.fault {
				t.Errorf("%v is %s and %q, want %s and %q", tc.err, f.class, f.fault, tc.class, tc.fault)
			}
		})
	}
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
		c.Resolver = names
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
