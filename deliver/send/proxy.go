package send

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"

	"github.com/walhook/walhook/internal/webhook"
)

// A proxy opens tunnels to receivers, also to those that speak plain HTTP. So an answer
// is never the proxy's own.
type proxy struct {
	scheme         string // http, https or socks5
	address        string // host:port
	user, password string
}

var proxyPorts = map[string]string{"http": "80", "https": "443", "socks5": "1080"}

func newProxy(u *url.URL) *proxy {
	password, _ := u.User.Password()
	return &proxy{
		scheme:  u.Scheme,
		address: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), proxyPorts[u.Scheme])),
		user:    u.User.Username(), password: password,
	}
}

// dialProxy has the proxy open a tunnel to the receiver.
func (d *dialer) dialProxy(ctx context.Context, c *conn) *failure {
	f := d.dialTCP(ctx, c, &d.tcp, d.proxy.address) // as the operator wrote it
	if f == nil && d.proxy.scheme == "https" {
		f = d.handshake(ctx, c, d.proxy.address)
	}
	if f != nil {
		blamed := viaProxy(f.class, f.err)
		blamed.fault = cmp.Or(f.fault, blamed.fault)
		return blamed
	}
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return viaProxy(webhook.ErrConnect, err)
	}
	defer context.AfterFunc(ctx, c.interrupt)() // should it come too late, the next step notices
	if d.proxy.scheme == "socks5" {
		return d.proxy.socks(c)
	}
	return d.proxy.connect(c)
}

// viaProxy is a failure of the proxy, whatever the receiver is like.
func viaProxy(class webhook.ErrorClass, err error) *failure {
	return &failure{class: class, fault: webhook.FaultProxy, err: &proxyError{err}}
}

// noTunnel classifies an error of talking to the proxy. A proxy that does not answer may
// be waiting for the receiver.
func noTunnel(err error) *failure {
	switch {
	case isTimeout(err):
		return timeout()
	case isEnd(err):
		return viaProxy(webhook.ErrConnect, words("it closed the connection"))
	default:
		return viaProxy(webhook.ErrConnect, err)
	}
}

// unreachable is the failure of a receiver that the proxy could not connect to.
func unreachable(format string, args ...any) *failure {
	return &failure{class: webhook.ErrConnect, err: &proxyError{words(fmt.Sprintf(format, args...))}}
}

// connect asks an HTTP proxy (RFC 9110, section 9.3.6).
func (p *proxy) connect(c *conn) *failure {
	head := "CONNECT " + c.key.address + " HTTP/1.1\r\nHost: " + c.key.address + "\r\n"
	if p.user != "" || p.password != "" {
		head += "Proxy-Authorization: " + basicAuth(url.UserPassword(p.user, p.password)) + "\r\n"
	}
	if _, err := io.WriteString(c, head+"\r\n"); err != nil {
		return noTunnel(err)
	}
	r := newReader(c)
	defer r.release()
	resp, err := r.head(&http.Request{Method: http.MethodConnect}) //nolint:bodyclose // closing reads all of it, and nobody wants it
	switch {
	case err != nil && r.err != nil:
		return noTunnel(r.err)
	case err != nil || resp.StatusCode < 200:
		return viaProxy(webhook.ErrConnect, words("its answer to CONNECT is not valid HTTP"))
	case resp.StatusCode >= 500: // so proxies say that the receiver is the trouble
		return unreachable("it answered CONNECT with %s", statusText(resp.StatusCode))
	case resp.StatusCode >= 300:
		return viaProxy(webhook.ErrConnect, words("it answered CONNECT with "+statusText(resp.StatusCode)))
	case r.buf.Buffered() > 0: // a receiver waits for the request, so these bytes are not its own
		return viaProxy(webhook.ErrConnect, words("it went on after its answer to CONNECT"))
	default:
		return nil
	}
}

// What SOCKS5 says (RFC 1928 and RFC 1929).
const (
	socksVersion  = 5
	socksPassword = 2 // a method; 0: no authentication
	socksConnect  = 1
	socksIPv4     = 1
	socksName     = 3
	socksIPv6     = 4
)

// socksUnreachable are the replies that blame the receiver.
var socksUnreachable = map[byte]string{3: "network unreachable", 4: "host unreachable", 5: "connection refused", 6: "TTL expired"}

const errNotSocks = words("it does not speak SOCKS5")

// socks asks a SOCKS5 proxy, which resolves names itself. It reads no byte too many.
func (p *proxy) socks(c *conn) *failure {
	hello := []byte{socksVersion, 1, 0} // the methods, after their number
	if p.user != "" {
		hello = []byte{socksVersion, 2, 0, socksPassword}
	}
	method, err := socksAsk(c, hello, 2)
	switch {
	case err != nil:
		return noTunnel(err)
	case method[0] != socksVersion:
		return viaProxy(webhook.ErrConnect, errNotSocks)
	case method[1] == socksPassword:
		login := slices.Concat([]byte{1}, socksText(p.user), socksText(p.password))
		if status, err := socksAsk(c, login, 2); err != nil {
			return noTunnel(err)
		} else if status[1] != 0 {
			return viaProxy(webhook.ErrConnect, words("it refused the user and password of WALHOOK_PROXY_URL"))
		}
	case method[1] != 0:
		return viaProxy(webhook.ErrConnect, words("it wants an authentication that walhook does not have"))
	}
	return p.socksConnect(c)
}

func (p *proxy) socksConnect(c *conn) *failure {
	request, err := socksRequest(c.key.address)
	if err != nil {
		return &failure{class: webhook.ErrConnect, err: err}
	}
	reply, err := socksAsk(c, request, 5) // version, reply, reserved, and of its own address the type and a byte
	if err != nil {
		return noTunnel(err)
	}
	if why, known := socksUnreachable[reply[1]]; known {
		return unreachable("%s", why)
	}
	rest, known := map[byte]int{socksIPv4: 3, socksIPv6: 15, socksName: int(reply[4])}[reply[3]]
	if reply[0] != socksVersion || !known {
		return viaProxy(webhook.ErrConnect, errNotSocks)
	}
	if reply[1] != 0 {
		return viaProxy(webhook.ErrConnect, words(fmt.Sprintf("it refused, with reply %d", reply[1])))
	}
	if _, err := socksAsk(c, nil, rest+2); err != nil { // the rest of the address, and the port
		return noTunnel(err)
	}
	return nil
}

// socksAsk writes a message, and reads the answer, of which the size is known.
func socksAsk(c *conn, message []byte, size int) ([]byte, error) {
	if _, err := c.Write(message); err != nil {
		return nil, err
	}
	answer := make([]byte, size)
	_, err := io.ReadFull(c, answer)
	return answer, err
}

// socksText is a text of at most 255 bytes, after its length.
func socksText(s string) []byte {
	s = s[:min(len(s), math.MaxUint8)]
	return append([]byte{byte(len(s))}, s...)
}

func socksRequest(address string) ([]byte, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	b := []byte{socksVersion, socksConnect, 0}
	switch addr, err := netip.ParseAddr(host); {
	case err == nil && addr.Is4():
		b = append(append(b, socksIPv4), addr.AsSlice()...)
	case err == nil:
		b = append(append(b, socksIPv6), addr.AsSlice()...)
	case len(host) > math.MaxUint8:
		return nil, words("the host's name is too long for a SOCKS5 proxy")
	default:
		b = append(append(b, socksName), socksText(host)...)
	}
	return binary.BigEndian.AppendUint16(b, uint16(number)), nil
}
