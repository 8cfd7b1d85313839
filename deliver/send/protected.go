package send

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// maxProtected bounds the addresses that are remembered. A database has a handful, and a
// few more after each failover.
const maxProtected = 256

// Protected is the addresses that no endpoint may have, whatever the settings allow: the
// database's and the admin server's. An entry has a port, because other services of the
// same machine may be receivers. It is safe for concurrent use.
type Protected struct {
	mu    sync.Mutex
	known []netip.AddrPort // the most recently added one last
}

// Add protects an address. Beyond maxProtected it forgets the one that was not added for
// the longest time.
func (p *Protected) Add(ap netip.AddrPort) {
	ap = netip.AddrPortFrom(plain(ap.Addr()), ap.Port())
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known = slices.DeleteFunc(p.known, func(k netip.AddrPort) bool { return k == ap })
	p.known = append(p.known, ap)
	if len(p.known) > maxProtected {
		p.known = slices.Delete(p.known, 0, 1)
	}
}

// covers reports whether an address is protected. An address of this machine protects
// its port on all of them: a server that is reached on one may listen on each.
func (p *Protected) covers(ap netip.AddrPort) bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.known, func(k netip.AddrPort) bool {
		return k.Port() == ap.Port() && (k.Addr() == ap.Addr() || ofThisMachine(k.Addr()) && ofThisMachine(ap.Addr()))
	})
}

// ofThisMachine reports whether an address leads to this machine. The unspecified
// address does, too. Interfaces change, so they are asked for each time; that is rare.
func ofThisMachine(addr netip.Addr) bool {
	if addr.IsLoopback() || addr.IsUnspecified() {
		return true
	}
	interfaces, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(interfaces, func(a net.Addr) bool {
		prefix, err := netip.ParsePrefix(a.String())
		return err == nil && plain(prefix.Addr()) == addr
	})
}

// plain returns an address without zone, and an IPv4-mapped one as IPv4.
func plain(addr netip.Addr) netip.Addr { return addr.WithZone("").Unmap() }
