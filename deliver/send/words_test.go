package send

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/walhook/walhook/internal/webhook"
)

const hostile = "evil\u202egpj\x1b[31m\x07secret-name"

// certificateOf makes a certificate that is signed by itself, of a hostile subject.
func certificateOf(t *testing.T, name string, until time.Time) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: hostile}, DNSNames: []string{name},
		NotBefore: until.Add(-time.Hour), NotAfter: until, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func tlsListen(t *testing.T, config *tls.Config) (port string) {
	t.Helper()
	_, port, _ = net.SplitHostPort(listen(t, func(c net.Conn) {
		io.Copy(io.Discard, tls.Server(c, config)) // which includes the handshake
	}))
	return port
}

// closedPort returns a port of this machine at which nobody listens. A socket that is bound to it, and does not listen,
// keeps it from becoming another test's.
func closedPort(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(bound.(*syscall.SockaddrInet4).Port)
}

// spoken is a fault of a receiver, of the resolver or of the proxy.
type spoken struct {
	name   string
	url    string // with a query that must not be told
	change func(*SenderConfig)
	class  webhook.ErrorClass
	want   string
}

// Whatever goes wrong, a tenant reads our own words: no address, nothing that a receiver
// wrote, no query.
func TestAnErrorTellsNothing(t *testing.T) {
	t.Parallel()
	const query = "/hook?key=secret-token"
	names := dnsServer(t, map[string][]string{"receiver.test": {"127.0.0.1"}, "inside.test": {"10.11.12.13"}, "other.test": {"127.0.0.1"}})
	valid, trusted := certificateOf(t, "receiver.test", time.Now().Add(time.Minute))
	expired, trustedExpired := certificateOf(t, "receiver.test", time.Now().Add(-time.Minute))
	strange, trustedStrange := certificateOf(t, "evil\x1b[31m\x07secret-name", time.Now().Add(time.Minute))
	at := func(port string) string { return "https://receiver.test:" + port + query }
	roots := func(pool *x509.CertPool) func(*SenderConfig) { return func(c *SenderConfig) { c.RootCAs = pool } }
	answers := func(play script) string {
		_, port, _ := net.SplitHostPort(newReceiver(t, play).addr())
		return "http://receiver.test:" + port + query
	}
	raw := func(play func(net.Conn)) string {
		_, port, _ := net.SplitHostPort(listen(t, play))
		return at(port)
	}
	away := func(c *SenderConfig) {
		c.Resolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "udp", Addr: &net.UDPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 53}, Err: errors.New("secret-resolver")}
		}}
	}
	proxyAt := func(scheme, address string) func(*SenderConfig) {
		return func(c *SenderConfig) {
			c.ProxyURL = &url.URL{Scheme: scheme, Host: address, User: url.UserPassword("user", "secret-password")}
			c.Guard.Ports = []uint16{80, 443}
		}
	}
	proxy := func(answer string) func(*SenderConfig) {
		return proxyAt("http", newReceiver(t, respond(answer)).addr())
	}

	for _, tc := range []spoken{
		{"no such name", "https://nowhere.test" + query, nil, webhook.ErrDNS, "the host's name does not exist, or has no address"},
		{"a resolver that is away", "https://receiver.test" + query, away, webhook.ErrDNS, "the host's name could not be resolved"},
		{"refused", at(closedPort(t)), nil, webhook.ErrConnect, "the connection was refused"},
		{"an address inside", "https://inside.test" + query, nil, webhook.ErrBlocked, "the address is not on the public internet: WALHOOK_ALLOW_NETS would allow it"},
		{"an address that is denied", at(closedPort(t)), func(c *SenderConfig) { c.Guard.Deny = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")} },
			webhook.ErrBlocked, "the address is never dialled: it is in WALHOOK_DENY_NETS, or walhook's own"},
		{"a name without a dot", "https://db" + query, func(c *SenderConfig) { c.Guard.Nets = nil }, webhook.ErrBlocked, errLabel.Error()},

		{"an unknown authority", at(tlsListen(t, &tls.Config{Certificates: []tls.Certificate{valid}})), nil, webhook.ErrTLS,
			"the certificate is from no trusted authority: WALHOOK_CA_FILE would add one"},
		{"another name", strings.Replace(at(tlsListen(t, &tls.Config{Certificates: []tls.Certificate{valid}})), "receiver", "other", 1), roots(trusted), webhook.ErrTLS,
			"the certificate is for another name"},
		{"a hostile name", at(tlsListen(t, &tls.Config{Certificates: []tls.Certificate{strange}})), roots(trustedStrange), webhook.ErrTLS, ""},
		{"expired", at(tlsListen(t, &tls.Config{Certificates: []tls.Certificate{expired}})), roots(trustedExpired), webhook.ErrTLS,
			"the certificate has expired, or is not valid yet"},
		{"another version", at(tlsListen(t, &tls.Config{Certificates: []tls.Certificate{valid}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})), nil, webhook.ErrTLS,
			"the other side ended TLS with an alert: protocol version not supported"},
		{"a certificate of ours is wanted", at(tlsListen(t, &tls.Config{Certificates: []tls.Certificate{valid}, ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12})), roots(trusted), webhook.ErrTLS,
			"the other side ended TLS with an alert: handshake failure"},
		{"plain text", raw(func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 "+hostile+"\r\n\r\n") }), nil, webhook.ErrTLS, "what came is not TLS"},
		{"closed in the handshake", raw(func(c net.Conn) { c.Read(make([]byte, 1<<12)) }), nil, webhook.ErrTLS, "the connection was closed during the TLS handshake"},

		{"silence", answers(silent("")), nil, webhook.ErrTimeout, "no response within the timeout"},
		{"closed", answers(func(net.Conn) bool { return false }), nil, webhook.ErrReset, string(errClosed)},
		{"reset", answers(reset("")), nil, webhook.ErrReset, "the connection was reset"},
		{"no HTTP", answers(respond("POST " + query + hostile + "\r\n\r\n")), nil, webhook.ErrProtocol, string(errNotHTTP)},
		{"a redirect", answers(respond("HTTP/1.1 307 " + hostile + "\r\nLocation: https://a.test/\u202egpj\u0085?key=secret-token\r\nContent-Length: 0\r\n\r\n")), nil, webhook.ErrRedirect,
			"307 Temporary Redirect: redirects are not followed; it points to https://a.test/%E2%80%AEgpj%C2%85"},
		{"a failure", answers(respond("HTTP/1.1 500 " + hostile + "\r\nContent-Length: 0\r\n\r\n")), nil, webhook.ErrHTTP5xx, "500 Internal Server Error"},
		{"no URL", "https://receiver.test:secret-token/", nil, webhook.ErrBadRequest, errURL.Error()},

		{"a proxy that is away", "https://receiver.test" + query, proxyAt("http", "127.0.0.1:"+closedPort(t)), webhook.ErrConnect, "the proxy: the connection was refused"},
		{"a proxy without a name", "https://receiver.test" + query, proxyAt("http", "secret-proxy.test:3128"), webhook.ErrDNS, "the proxy: the host's name does not exist, or has no address"},
		{"a proxy that cannot be trusted", "https://receiver.test" + query, proxyAt("https", "receiver.test:"+tlsListen(t, &tls.Config{Certificates: []tls.Certificate{valid}})), webhook.ErrTLS,
			"the proxy: the certificate is from no trusted authority: WALHOOK_CA_FILE would add one"},
		{"a proxy that wants a password", "https://receiver.test" + query, proxy("HTTP/1.1 407 " + hostile + "\r\nContent-Length: 0\r\n\r\n"), webhook.ErrConnect,
			"the proxy: it answered CONNECT with 407 Proxy Authentication Required"},
		{"a proxy that does not reach the receiver", "https://receiver.test" + query, proxy("HTTP/1.1 502 10.11.12.13\r\nContent-Length: 0\r\n\r\n"), webhook.ErrConnect,
			"the proxy: it answered CONNECT with 502 Bad Gateway"},
		{"a proxy that resets", "https://receiver.test" + query, proxyAt("http", newReceiver(t, reset("")).addr()), webhook.ErrConnect, "the proxy: the connection was reset"},
		{"no SOCKS proxy", "https://receiver.test" + query, proxyAt("socks5", newReceiver(t, respond("HTTP/1.1 400\r\n\r\n")).addr()), webhook.ErrTimeout, "no response within the timeout"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := testSender(t, func(c *SenderConfig) {
				c.Timeout, c.Resolver = runsOut(time.Second, tc.class), names
				if tc.change != nil {
					tc.change(c)
				}
			})
			a, completed := s.Send(t.Context(), testRequest(s, tc.url))
			if !completed || a.Class != tc.class || tc.want != "" && a.Error != tc.want {
				t.Errorf("Send = %s: %q, want %s: %q", a.Class, a.Error, tc.class, tc.want)
			}
			checkStorable(t, a)
			checkTellsNothing(t, a.Error)
		})
	}
}

var anAddress = regexp.MustCompile(`\d+\.\d+\.\d+\.\d+|[0-9a-f]*:[0-9a-f]*:|:\d{2,}`)

func checkTellsNothing(t *testing.T, text string) {
	t.Helper()
	if anAddress.MatchString(text) {
		t.Errorf("%q has an address", text)
	}
	if strings.Contains(text, "secret") {
		t.Errorf("%q has a secret", text)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("%q has a character that cannot be shown", text)
	}
}

// An operator finds the address in the log, at debug.
func TestTheTechnicalTextIsLogged(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	port := closedPort(t)
	s := testSender(t, func(c *SenderConfig) {
		c.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	s.Send(t.Context(), testRequest(s, "http://127.0.0.1:"+port+"/hook?key=secret-token"))
	text := log.String()
	if !strings.Contains(text, "127.0.0.1:"+port) || !strings.Contains(text, testDeliveryID.String()) || strings.Contains(text, "secret") {
		t.Errorf("the log has %q", text)
	}
}

func TestCutTextIsSafeToShow(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"plain äöü 中":                   "plain äöü 中",
		"a\x00b\x1b[31m\u0085":          "a\uFFFDb\uFFFD[31m\uFFFD",
		"a\u202eb\u2066c\u200ed\u2028e": "a\uFFFDb\uFFFDc\uFFFDd\uFFFDe",
		"a\xffb":                        "a\uFFFDb",
	} {
		if got := cutText(text); got != want {
			t.Errorf("cutText(%q) = %q, want %q", text, got, want)
		}
	}
}
