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

// GuardConfig sets which addresses endpoints may have, besides https on the public
// internet.
type GuardConfig struct {
	AllowHTTP bool           // WALHOOK_ALLOW_HTTP
	Ports     []uint16       // WALHOOK_ALLOW_PORTS: on the public internet; nil: 80 and 443
	Nets      []netip.Prefix // WALHOOK_ALLOW_NETS: beyond the public internet, on any port
	Deny      []netip.Prefix // WALHOOK_DENY_NETS: never dialled, whatever the others allow
	Protected *Protected     // never dialled either; nil: none
}

// A Guard decides which addresses may be dialled, so that a tenant's URL cannot reach
// internal services. It checks the address after the name was resolved, right before
// connecting. So DNS rebinding does not help an attacker.
type Guard struct {
	allowHTTP bool
	ports     []uint16
	nets      []netip.Prefix
	deny      []netip.Prefix
	protected *Protected
	public    *ssrf.Guardian
}

// A Reason is the part of an address that was refused.
type Reason string

// The reasons, each with the setting that would allow it.
const (
	ReasonScheme  Reason = "scheme"  // WALHOOK_ALLOW_HTTP
	ReasonPort    Reason = "port"    // WALHOOK_ALLOW_PORTS
	ReasonAddress Reason = "address" // WALHOOK_ALLOW_NETS
	ReasonDenied  Reason = "denied"  // WALHOOK_DENY_NETS, unless it is the database's or the admin server's
	ReasonLabel   Reason = "label"   // WALHOOK_ALLOW_NETS: a name without a dot
	ReasonHost    Reason = "host"    // no setting: the URL has to be spelled differently
)

// A BlockedError is the guard's refusal. Its text names the setting that would allow the
// address, if there is one, and never the address: a name has resolved to it.
type BlockedError struct {
	Reason Reason
	text   string
}

// Error returns the text.
func (e *BlockedError) Error() string { return e.text }

func blocked(reason Reason, format string, args ...any) error {
	return &BlockedError{reason, fmt.Sprintf(format, args...)}
}

// hostServices are public addresses that clouds route to services of the host. Azure's
// WireServer gives out a machine's configuration.
var hostServices = []netip.Prefix{netip.MustParsePrefix("168.63.129.16/32")}

// NewGuard returns a Guard.
func NewGuard(cfg GuardConfig) *Guard {
	g := &Guard{
		allowHTTP: cfg.AllowHTTP,
		ports:     cfg.Ports,
		nets:      unmapPrefixes(cfg.Nets),
		deny:      unmapPrefixes(cfg.Deny),
		protected: cfg.Protected,
		public:    ssrf.New(ssrf.WithDeniedV4Prefixes(hostServices...)),
	}
	if g.ports == nil {
		g.ports = []uint16{80, 443}
	}
	return g
}

// unmapPrefixes turns prefixes of IPv4-mapped IPv6 addresses into IPv4 prefixes.
func unmapPrefixes(prefixes []netip.Prefix) (plain []netip.Prefix) {
	for _, p := range prefixes {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		plain = append(plain, p.Masked())
	}
	return plain
}

func contains(prefixes []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Allowed returns nil if an address may be dialled, and a *BlockedError otherwise. It
// depends only on its argument, the configuration and what is protected.
//
// The denial comes last, so that its text tells nothing about an address that is not
// allowed anyway: it would tell where the database is.
func (g *Guard) Allowed(ap netip.AddrPort) error {
	addr := plain(ap.Addr())
	if !g.inNets(addr) {
		if err := g.public.SafeAddr(addr); err != nil || !addr.IsValid() {
			return blocked(ReasonAddress, "the address is not on the public internet: WALHOOK_ALLOW_NETS would allow it")
		}
		if err := g.allowedPort(ap.Port()); err != nil {
			return err
		}
	}
	if g.denied(addr, ap.Port()) {
		return blocked(ReasonDenied, "the address is never dialled: it is in WALHOOK_DENY_NETS, or walhook's own")
	}
	return nil
}

// inNets reports whether WALHOOK_ALLOW_NETS allows an address. If the address embeds an
// IPv4 address for a translator, that one must be allowed or public, too: an operator
// who allows the NAT64 prefix for a network without IPv4 does not mean 127.0.0.1.
func (g *Guard) inNets(addr netip.Addr) bool {
	if !contains(g.nets, addr) {
		return false
	}
	inner, ok := embeddedV4(addr)
	return !ok || g.inNets(inner) || g.public.SafeAddr(inner) == nil
}

// denied reports whether an address, or the one that it leads to, is never dialled.
func (g *Guard) denied(addr netip.Addr, port uint16) bool {
	if contains(g.deny, addr) || g.protected.covers(netip.AddrPortFrom(addr, port)) {
		return true
	}
	inner, ok := embeddedV4(addr)
	return ok && g.denied(inner, port)
}

var (
	sixToFour  = netip.MustParsePrefix("2002::/16")
	localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48")
)

// embeddedV4 returns the IPv4 address that a NAT64 (RFC 6052, RFC 8215) or 6to4 (RFC
// 3056) address leads to. Of the prefix for local use, networks take a part of 96 bits
// with the address behind it, or all 48 with the address around bits 64 to 71 and zeros
// behind it.
func embeddedV4(addr netip.Addr) (netip.Addr, bool) {
	b := addr.As16()
	switch {
	case localNAT64.Contains(addr) && [4]byte(b[12:16]) == [4]byte{}:
		return netip.AddrFrom4([4]byte{b[6], b[7], b[9], b[10]}), true
	case ssrf.IPv6NAT64Prefix.Contains(addr), localNAT64.Contains(addr):
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

// control is the net.Dialer's hook. It is called with each address right before
// connecting, also if a name has several.
func (g *Guard) control(network, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp4" && network != "tcp6" {
		return blocked(ReasonAddress, "the address is not one of TCP")
	}
	return g.Allowed(ap)
}

// controlLabel is control for a name without a dot. It is a name of the operator's own
// network, so its addresses must be in WALHOOK_ALLOW_NETS.
func (g *Guard) controlLabel(network, address string, raw syscall.RawConn) error {
	if ap, err := netip.ParseAddrPort(address); err == nil && !g.inNets(plain(ap.Addr())) {
		return errLabel
	}
	return g.control(network, address, raw)
}

var errLabel = blocked(ReasonLabel, "the host has no dot, so it is no name of the public internet: WALHOOK_ALLOW_NETS would allow it")

// isLabel reports whether a host is a name without a dot, apart from the final one.
func isLabel(host string) bool {
	_, err := netip.ParseAddr(host)
	return err != nil && !strings.Contains(strings.TrimSuffix(host, "."), ".")
}

// allowedURL checks what is known before a name is resolved: the scheme, a host that is an
// address, and, unless WALHOOK_ALLOW_NETS has any, the port. A proxy resolves names itself, so
// then this is the only check. It then also checks a name's port in any case, and refuses
// spellings of addresses that a proxy might understand.
func (g *Guard) allowedURL(u *url.URL, proxied bool) error {
	if u.Scheme == "http" && !g.allowHTTP {
		return blocked(ReasonScheme, "http:// is not allowed: WALHOOK_ALLOW_HTTP would allow it")
	}
	host, port := u.Hostname(), urlPort(u)
	if addr, err := netip.ParseAddr(host); err == nil {
		return g.Allowed(netip.AddrPortFrom(addr, port))
	}
	if looksNumeric(host) {
		return blocked(ReasonHost, "the host looks like a number: write an IP address in its usual form")
	}
	switch {
	case isLabel(host) && len(g.nets) == 0:
		return errLabel
	case proxied:
		return g.allowedProxiedName(host, port)
	case len(g.nets) == 0: // whatever it resolves to, the public internet is all that is left
		return g.allowedPort(port)
	}
	return nil
}

func (g *Guard) allowedProxiedName(host string, port uint16) error {
	if strings.ContainsFunc(host, func(r rune) bool { return r > 0x7f }) {
		return blocked(ReasonHost, "with a proxy, the host must be written in ASCII (xn--…)")
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return g.Allowed(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port))
	}
	return g.allowedPort(port)
}

// urlPort returns a URL's port, or 0 if it is invalid.
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

// looksNumeric reports whether a host ends in a number, as the URL parsers of browsers
// define it. They and some resolvers take "2130706433", "0x7f.1" and "0177.0.0.1" for
// addresses. No public name ends in a number.
func looksNumeric(host string) bool {
	host = strings.TrimSuffix(host, ".")
	last := strings.ToLower(host[strings.LastIndexByte(host, '.')+1:])
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return last != "" && strings.Trim(last, "0123456789") == ""
}
