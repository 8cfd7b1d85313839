package send

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// tlsSessions bounds the cached TLS sessions, one for each host. Resuming a session
// costs half of a full handshake.
const tlsSessions = 1024

// A dialer makes connections: TCP, the proxy's tunnel if there is one, and TLS if the
// receiver speaks it.
type dialer struct {
	tcp   net.Dialer
	label net.Dialer // for names without a dot
	tls   *tls.Config
	proxy *proxy // nil: none
	live  func() bool

	resolver *resolver
}

// newDialer returns a dialer. It offers HTTP/1.1 only, on purpose: every receiver speaks
// it. HTTP/2 would put all deliveries to a host on one TCP connection. There, one lost
// packet or a full flow-control window delays all of them, the receiver's stream limit
// caps them, and a GOAWAY leaves the fate of many requests unknown.
func newDialer(cfg *SenderConfig, guard *Guard) *dialer {
	names := newResolver(cfg.Resolver)
	d := &dialer{
		// No keep-alive probes: deadlines bound attempts, and the pool bounds idling.
		tcp: net.Dialer{Resolver: names.Resolver, KeepAlive: -1},
		tls: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			NextProtos:         []string{"http/1.1"},
			ClientSessionCache: tls.NewLRUClientSessionCache(tlsSessions),
			RootCAs:            cfg.RootCAs,
		},
		live:     cfg.Live,
		resolver: names,
	}
	if cfg.RootCAs == nil {
		_, _ = x509.SystemCertPool() // loads it for good: without descriptors, a handshake could not; it tells what is wrong
	}
	if d.live == nil {
		d.live = func() bool { return true }
	}
	d.label = d.tcp
	if cfg.ProxyURL != nil {
		d.proxy = newProxy(cfg.ProxyURL) // and no guard: only the proxy is dialled, which the operator chose
	} else {
		d.tcp.Control, d.label.Control = guard.control, guard.controlLabel
	}
	return d
}

// dial makes a connection before the context's deadline.
func (d *dialer) dial(ctx context.Context, k key) (*conn, *failure) {
	c := &conn{key: k}
	f := d.connect(ctx, c)
	if f == nil && k.secure {
		f = d.handshake(ctx, c, k.address)
	}
	if f != nil {
		if c.wire != nil {
			c.abort()
		}
		return nil, f
	}
	return c, nil
}

// connect dials the receiver, or has the proxy dial it.
func (d *dialer) connect(ctx context.Context, c *conn) *failure {
	if d.proxy != nil {
		return d.dialProxy(ctx, c)
	}
	host, port, err := net.SplitHostPort(c.key.address)
	if err != nil {
		return dialFailure(ctx, err)
	}
	if isLabel(host) { // a final dot would keep it out of /etc/hosts
		return d.dialTCP(ctx, c, &d.label, c.key.address)
	}
	return d.dialTCP(ctx, c, &d.tcp, net.JoinHostPort(absolute(host), port))
}

// absolute returns a name with a final dot, so that the resolver takes it as it is: with
// the search domains of /etc/resolv.conf, a tenant's name might mean an internal one.
func absolute(host string) string {
	if _, err := netip.ParseAddr(host); err == nil || strings.HasSuffix(host, ".") {
		return host
	}
	return host + "."
}

func (d *dialer) dialTCP(ctx context.Context, c *conn, by *net.Dialer, address string) *failure {
	begun := time.Now()
	tcp, err := by.DialContext(ctx, "tcp", address)
	if err != nil {
		f := dialFailure(ctx, err)
		if dns, ok := errors.AsType[*net.DNSError](err); ok {
			f.fault = d.resolver.blame(ctx, dns, begun)
		}
		return f
	}
	raw, err := tcp.(syscall.Conn).SyscallConn()
	if err != nil {
		tcp.Close()
		return dialFailure(ctx, err)
	}
	c.wire = newWire(tcp, raw, d.live)
	c.Conn = c.wire
	return nil
}

// handshake puts TLS over what a connection has so far.
func (d *dialer) handshake(ctx context.Context, c *conn, address string) *failure {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return handshakeFailure(ctx, err)
	}
	config := d.tls.Clone()
	config.ServerName = host
	secure := tls.Client(c.Conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return handshakeFailure(ctx, err)
	}
	c.Conn = secure
	return nil
}

// A wire is a TCP connection that writes only while the process may send. A check before
// the attempt is not enough: a process may be frozen between that check and the write,
// and meanwhile another process holds the slot and sends.
type wire struct {
	net.Conn
	live  func() bool
	broke atomic.Bool // it was TCP that failed, and nothing above it

	raw   syscall.RawConn
	look  func(fd uintptr) // lookAt, allocated once
	empty bool             // what it saw
}

func newWire(tcp net.Conn, raw syscall.RawConn, live func() bool) *wire {
	w := &wire{Conn: tcp, raw: raw, live: live}
	w.look = w.lookAt
	return w
}

// Write is net.Conn's.
func (w *wire) Write(b []byte) (int, error) {
	if !w.live() {
		return 0, errNotLive
	}
	n, err := w.Conn.Write(b)
	return n, w.note(err)
}

// Read is net.Conn's.
func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	return n, w.note(err)
}

func (w *wire) note(err error) error {
	if err != nil {
		w.broke.Store(true)
	}
	return err
}
