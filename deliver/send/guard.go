package send

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"code.dny.dev/ssrf"
)

// GuardConfig says which addresses endpoints may have, beyond https on the
// public internet.
type GuardConfig struct {
	AllowHTTP bool           // WALHOOK_ALLOW_HTTP
	Ports     []uint16       // WALHOOK_ALLOW_PORTS: on the public internet; nil: 80 and 443
	Nets      []netip.Prefix // WALHOOK_ALLOW_NETS: beyond the public internet, on any port
}

// A Guard decides which addresses may be dialled, so that a URL in a table
// cannot reach what stands beside the database. It checks the address that a
// connection is about to be made to, after the name was resolved: a name that
// changes its answer gains nothing.
type Guard struct {
	allowHTTP bool
	ports     []uint16
	nets      []netip.Prefix
	public    *ssrf.Guardian
}

// A Reason says what about an address was refused.
type Reason string

// The reasons, each with the setting that would allow it.
const (
	ReasonScheme  Reason = "scheme"  // WALHOOK_ALLOW_HTTP
	ReasonPort    Reason = "port"    // WALHOOK_ALLOW_PORTS
	ReasonAddress Reason = "address" // WALHOOK_ALLOW_NETS
	ReasonHost    Reason = "host"    // none: the URL has to be written otherwise
)

// A BlockedError is the guard's refusal. Its text names the setting that would
// allow the address.
type BlockedError struct {
	Reason Reason
	text   string
}

// Error returns the text.
func (e *BlockedError) Error() string { return e.text }

func blocked(reason Reason, format string, args ...any) error {
	return &BlockedError{reason, fmt.Sprintf(format, args...)}
}

// hostServices are addresses of the public internet that clouds route to the
// host's own services: Azure's WireServer hands out a machine's configuration.
var hostServices = []netip.Prefix{netip.MustParsePrefix("168.63.129.16/32")}

// NewGuard returns a Guard.
func NewGuard(cfg GuardConfig) *Guard {
	g := &Guard{
		allowHTTP: cfg.AllowHTTP,
		ports:     cfg.Ports,
		public:    ssrf.New(ssrf.WithDeniedV4Prefixes(hostServices...)),
	}
	if g.ports == nil {
		g.ports = []uint16{80, 443}
	}
	for _, p := range cfg.Nets {
		g.nets = append(g.nets, unmapPrefix(p))
	}
	return g
}

// unmapPrefix turns a prefix of IPv4-mapped IPv6 addresses into the IPv4 prefix.
func unmapPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// Allowed reports, as a nil error, that an address may be dialled; otherwise the
// error is a *BlockedError. It is a pure function of its argument and the
// guard's configuration.
func (g *Guard) Allowed(ap netip.AddrPort) error {
	addr := ap.Addr().WithZone("").Unmap()
	if g.inNets(addr) {
		return nil
	}
	if err := g.public.SafeAddr(addr); err != nil || !addr.IsValid() {
		return blocked(ReasonAddress, "%s is not on the public internet: WALHOOK_ALLOW_NETS would allow it", ap.Addr())
	}
	return g.allowedPort(ap.Port())
}

// inNets reports whether an address is allowed beyond the public internet. An
// address that only carries an IPv4 address through a translator has to be
// allowed twice, once as it stands and once as what it leads to: who allows the
// NAT64 prefix for the sake of a network without IPv4 does not mean 127.0.0.1.
func (g *Guard) inNets(addr netip.Addr) bool {
	if !slices.ContainsFunc(g.nets, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return false
	}
	inner, ok := embeddedV4(addr)
	return !ok || g.inNets(inner) || g.public.SafeAddr(inner) == nil
}

var sixToFour = netip.MustParsePrefix("2002::/16")

// embeddedV4 returns the IPv4 address that a NAT64 (RFC 6052) or 6to4 (RFC 3056)
// address leads to.
func embeddedV4(addr netip.Addr) (netip.Addr, bool) {
	b := addr.As16()
	switch {
	case ssrf.IPv6NAT64Prefix.Contains(addr):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case sixToFour.Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	default:
		return netip.Addr{}, false
	}
}

func (g *Guard) allowedPort(port uint16) error {
	if !slices.Contains(g.ports, port) {
		return blocked(ReasonPort, "port %d is not allowed on the public internet: WALHOOK_ALLOW_PORTS would allow it", port)
	}
	return nil
}

// control is the net.Dialer's hook: it sees every address that is about to be
// connected to, also each of those that a name has.
func (g *Guard) control(network, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp4" && network != "tcp6" {
		return blocked(ReasonAddress, "%s over %s is no TCP address", address, network)
	}
	return g.Allowed(ap)
}

// allowedURL checks what can be known before a name is resolved: the scheme, and
// a host that is an address. With a proxy, which resolves names itself, it is
// the only check, so it also holds names to the ports and refuses the spellings
// of an address that a proxy might understand.
func (g *Guard) allowedURL(u *url.URL, proxied bool) error {
	if u.Scheme == "http" && !g.allowHTTP {
		return blocked(ReasonScheme, "http:// is not allowed: WALHOOK_ALLOW_HTTP would allow it")
	}
	host, port := u.Hostname(), urlPort(u)
	if addr, err := netip.ParseAddr(host); err == nil {
		return g.Allowed(netip.AddrPortFrom(addr, port))
	}
	if looksNumeric(host) {
		return blocked(ReasonHost, "the host is a number, but not an IP address in its plain form")
	}
	if !proxied {
		return nil
	}
	return g.allowedProxiedName(host, port)
}

func (g *Guard) allowedProxiedName(host string, port uint16) error {
	if strings.ContainsFunc(host, func(r rune) bool { return r > 0x7f }) {
		return blocked(ReasonHost, "with a proxy, the host has to be written in ASCII (xn--…)")
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return g.Allowed(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port))
	}
	return g.allowedPort(port)
}

// urlPort returns the port that a URL leads to; 0 is none that can be dialled.
func urlPort(u *url.URL) uint16 {
	switch port := u.Port(); {
	case port != "":
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil { // n is then the largest port
			return 0
		}
		return uint16(n)
	case u.Scheme == "http":
		return 80
	default:
		return 443
	}
}

// looksNumeric reports whether a host ends in a number, as URL parsers of
// browsers define it: "2130706433", "0x7f.1" and "0177.0.0.1" are addresses to
// them and to some resolvers. No public name ends so.
func looksNumeric(host string) bool {
	host = strings.TrimSuffix(host, ".")
	last := strings.ToLower(host[strings.LastIndexByte(host, '.')+1:])
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return last != "" && strings.Trim(last, "0123456789") == ""
}
