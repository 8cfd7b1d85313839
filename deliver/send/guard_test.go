package send

import (
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestAllowed(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		address string
		want    Reason // "": allowed
	}{
		{"public", "93.184.215.14:443", ""},
		{"public over http", "93.184.215.14:80", ""},
		{"public IPv6", "[2606:2800:21f:cb07:6820:80da:af6b:8b2c]:443", ""},
		{"public as an IPv4-mapped address, which dials the same", "[::ffff:93.184.215.14]:443", ""},
		{"another port", "93.184.215.14:22", ReasonPort},
		{"another port of IPv6", "[2606:2800:21f:cb07:6820:80da:af6b:8b2c]:5432", ReasonPort},
		{"port 0", "93.184.215.14:0", ReasonPort},

		{"loopback", "127.0.0.1:443", ReasonAddress},
		{"all of loopback", "127.255.255.254:443", ReasonAddress},
		{"this network", "0.0.0.0:443", ReasonAddress},
		{"all of this network", "0.1.2.3:443", ReasonAddress},
		{"private 10/8", "10.0.0.1:443", ReasonAddress},
		{"private 172.16/12", "172.31.255.255:443", ReasonAddress},
		{"beside private 172.16/12", "172.32.0.1:443", ""},
		{"private 192.168/16", "192.168.1.1:443", ReasonAddress},
		{"carrier-grade NAT", "100.64.0.1:443", ReasonAddress},
		{"metadata of Alibaba", "100.100.100.200:80", ReasonAddress},
		{"link-local, metadata of most clouds", "169.254.169.254:80", ReasonAddress},
		{"metadata of ECS tasks", "169.254.170.2:80", ReasonAddress},
		{"metadata of Oracle", "192.0.0.192:80", ReasonAddress},
		{"WireServer of Azure", "168.63.129.16:80", ReasonAddress},
		{"documentation 1", "192.0.2.1:443", ReasonAddress},
		{"documentation 2", "198.51.100.1:443", ReasonAddress},
		{"documentation 3", "203.0.113.1:443", ReasonAddress},
		{"benchmarking", "198.18.0.1:443", ReasonAddress},
		{"6to4 relay", "192.88.99.1:443", ReasonAddress},
		{"multicast", "224.0.0.1:443", ReasonAddress},
		{"multicast with a scope", "239.255.255.250:443", ReasonAddress},
		{"reserved", "240.0.0.1:443", ReasonAddress},
		{"broadcast", "255.255.255.255:443", ReasonAddress},

		{"unspecified IPv6", "[::]:443", ReasonAddress},
		{"loopback IPv6", "[::1]:443", ReasonAddress},
		{"mapped loopback", "[::ffff:127.0.0.1]:443", ReasonAddress},
		{"mapped metadata in hex", "[::ffff:a9fe:a9fe]:80", ReasonAddress},
		{"IPv4-compatible loopback", "[::127.0.0.1]:443", ReasonAddress},
		{"IPv4-translated (RFC 2765)", "[::ffff:0:127.0.0.1]:443", ReasonAddress},
		{"NAT64 of loopback", "[64:ff9b::7f00:1]:443", ReasonAddress},
		{"NAT64 of a public address", "[64:ff9b::5db8:d70e]:443", ReasonAddress},
		{"NAT64 for local use", "[64:ff9b:1::7f00:1]:443", ReasonAddress},
		{"6to4 of loopback", "[2002:7f00:1::1]:443", ReasonAddress},
		{"6to4 of metadata", "[2002:a9fe:a9fe::]:80", ReasonAddress},
		{"Teredo", "[2001:0:4136:e378:8000:63bf:3fff:fdd2]:443", ReasonAddress},
		{"ORCHIDv2", "[2001:20::1]:443", ReasonAddress},
		{"documentation IPv6", "[2001:db8::1]:443", ReasonAddress},
		{"documentation IPv6, the newer", "[3fff::1]:443", ReasonAddress},
		{"unique local", "[fd00::1]:443", ReasonAddress},
		{"metadata of AWS", "[fd00:ec2::254]:80", ReasonAddress},
		{"unique local fc00", "[fc00::1]:443", ReasonAddress},
		{"link-local IPv6", "[fe80::1]:443", ReasonAddress},
		{"link-local IPv6 with a zone", "[fe80::1%eth0]:443", ReasonAddress},
		{"loopback with a zone", "[::1%lo]:443", ReasonAddress},
		{"site-local", "[fec0::1]:443", ReasonAddress},
		{"multicast IPv6", "[ff02::1]:443", ReasonAddress},
		{"discard", "[100::1]:443", ReasonAddress},
		{"segment routing", "[5f00::1]:443", ReasonAddress},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			checkReason(t, NewGuard(GuardConfig{AllowHTTP: true}).Allowed(netip.MustParseAddrPort(tc.address)), tc.want)
		})
	}
}

// checkReason also checks that the refusal names the setting that would allow the address.
func checkReason(t *testing.T, err error, want Reason) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	refusal, ok := err.(*BlockedError)
	if !ok || refusal.Reason != want {
		t.Fatalf("got %v, want reason %q", err, want)
	}
	setting := map[Reason]string{
		ReasonScheme: "WALHOOK_ALLOW_HTTP", ReasonPort: "WALHOOK_ALLOW_PORTS", ReasonAddress: "WALHOOK_ALLOW_NETS", ReasonDenied: "WALHOOK_DENY_NETS",
		ReasonLabel: "WALHOOK_ALLOW_NETS",
	}[want]
	if !strings.Contains(err.Error(), setting) {
		t.Errorf("%q does not name %s", err, setting)
	}
}

func TestAllowedWithNetsAndPorts(t *testing.T) {
	t.Parallel()
	nets := func(texts ...string) (ps []netip.Prefix) {
		for _, text := range texts {
			ps = append(ps, netip.MustParsePrefix(text))
		}
		return ps
	}
	for _, tc := range []struct {
		name    string
		cfg     GuardConfig
		address string
		want    Reason
	}{
		{"an allowed net, on any port", GuardConfig{Nets: nets("10.1.0.0/16")}, "10.1.2.3:8080", ""},
		{"its mapped form", GuardConfig{Nets: nets("10.1.0.0/16")}, "[::ffff:10.1.2.3]:8080", ""},
		{"not beside it", GuardConfig{Nets: nets("10.1.0.0/16")}, "10.2.0.1:443", ReasonAddress},
		{"a net with host bits", GuardConfig{Nets: nets("10.1.2.3/16")}, "10.1.0.1:443", ""},
		{"a net in mapped form", GuardConfig{Nets: nets("::ffff:10.1.0.0/112")}, "10.1.2.3:443", ""},
		{"its NAT64 form leads elsewhere", GuardConfig{Nets: nets("10.1.0.0/16")}, "[64:ff9b::a01:203]:443", ReasonAddress},
		{"its 6to4 form leads elsewhere", GuardConfig{Nets: nets("10.1.0.0/16")}, "[2002:a01:203::1]:443", ReasonAddress},
		{"the NAT64 net leads to the public internet", GuardConfig{Nets: nets("64:ff9b::/96")}, "[64:ff9b::5db8:d70e]:443", ""},
		{"the NAT64 net does not lead home", GuardConfig{Nets: nets("64:ff9b::/96")}, "[64:ff9b::7f00:1]:443", ReasonAddress},
		{"nor to metadata", GuardConfig{Nets: nets("64:ff9b::/96")}, "[64:ff9b::a9fe:a9fe]:80", ReasonAddress},
		{"unless that is allowed too", GuardConfig{Nets: nets("64:ff9b::/96", "10.0.0.0/8")}, "[64:ff9b::a01:203]:443", ""},
		{"the 6to4 net does not lead home", GuardConfig{Nets: nets("2002::/16")}, "[2002:7f00:1::1]:443", ReasonAddress},
		{"all of IPv6 does not allow what it carries", GuardConfig{Nets: nets("::/0")}, "[64:ff9b::7f00:1]:443", ReasonAddress},
		{"all of IPv6 is not the mapped IPv4", GuardConfig{Nets: nets("::/0")}, "[::ffff:127.0.0.1]:443", ReasonAddress},
		{"a link-local net with a zone", GuardConfig{Nets: nets("fe80::/10")}, "[fe80::1%eth0]:8080", ""},
		{"an allowed port", GuardConfig{Ports: []uint16{8443}}, "93.184.215.14:8443", ""},
		{"takes the place of the default", GuardConfig{Ports: []uint16{8443}}, "93.184.215.14:443", ReasonPort},
		{"an allowed port does not allow an address", GuardConfig{Ports: []uint16{8443}}, "10.0.0.1:8443", ReasonAddress},
		{"no port at all", GuardConfig{Ports: []uint16{}}, "93.184.215.14:443", ReasonPort},
		{"the local NAT64 net does not lead home", GuardConfig{Nets: nets("64:ff9b:1::/48")}, "[64:ff9b:1:fffe::7f00:1]:443", ReasonAddress},
		{"nor by all of its bits", GuardConfig{Nets: nets("64:ff9b:1::/48")}, "[64:ff9b:1:a00:0:100::]:443", ReasonAddress},
		{"it leads to the public internet", GuardConfig{Nets: nets("64:ff9b:1::/48")}, "[64:ff9b:1:fffe::5db8:d70e]:443", ""},
		{"by all of its bits as well", GuardConfig{Nets: nets("64:ff9b:1::/48")}, "[64:ff9b:1:5db8:d7:e00::]:443", ""},
		{"a network's own NAT64 prefix looks like any other", GuardConfig{}, "[2a00:1:2:3::a00:1]:443", ""},
		{"so it has to be denied", GuardConfig{Deny: nets("2a00:1:2:3::/96")}, "[2a00:1:2:3::a00:1]:443", ReasonDenied},
		{"a denied net", GuardConfig{Deny: nets("93.184.0.0/16")}, "93.184.215.14:443", ReasonDenied},
		{"its mapped form", GuardConfig{Deny: nets("93.184.0.0/16")}, "[::ffff:93.184.215.14]:443", ReasonDenied},
		{"a denied net in mapped form", GuardConfig{Deny: nets("::ffff:93.184.0.0/112")}, "93.184.215.14:443", ReasonDenied},
		{"not beside it", GuardConfig{Deny: nets("93.184.0.0/24")}, "93.184.215.14:443", ""},
		{"a denied net wins over an allowed one", GuardConfig{Nets: nets("10.0.0.0/8"), Deny: nets("10.1.0.0/16")}, "10.1.2.3:443", ReasonDenied},
		{"also if it is the larger one", GuardConfig{Nets: nets("10.1.0.0/16"), Deny: nets("10.0.0.0/8")}, "10.1.2.3:443", ReasonDenied},
		{"beside it, the allowed one holds", GuardConfig{Nets: nets("10.0.0.0/8"), Deny: nets("10.1.0.0/16")}, "10.2.0.1:443", ""},
		{"NAT64 does not lead around a denied net", GuardConfig{Nets: nets("64:ff9b::/96"), Deny: nets("93.184.0.0/16")}, "[64:ff9b::5db8:d70e]:443", ReasonDenied},
		{"nor to an allowed one that is denied", GuardConfig{Nets: nets("64:ff9b::/96", "10.0.0.0/8"), Deny: nets("10.1.0.0/16")}, "[64:ff9b::a01:203]:443", ReasonDenied},
		{"a denied address with a zone", GuardConfig{Nets: nets("fe80::/10"), Deny: nets("fe80::1/128")}, "[fe80::1%eth0]:443", ReasonDenied},
		{"what is not allowed anyway does not tell that it is denied", GuardConfig{Deny: nets("10.0.0.0/8")}, "10.1.2.3:443", ReasonAddress},
		{"Azure's service, where it is wanted", GuardConfig{Nets: nets("168.63.129.16/32")}, "168.63.129.16:80", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			checkReason(t, NewGuard(tc.cfg).Allowed(netip.MustParseAddrPort(tc.address)), tc.want)
		})
	}
}

func TestProtectedAddressesAreDenied(t *testing.T) {
	t.Parallel()
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, protected, address string
		want                     Reason
	}{
		{"an address", "10.0.0.7:5432", "10.0.0.7:5432", ReasonDenied},
		{"its mapped form", "10.0.0.7:5432", "[::ffff:10.0.0.7]:5432", ReasonDenied},
		{"a mapped address", "[::ffff:10.0.0.7]:5432", "10.0.0.7:5432", ReasonDenied},
		{"its NAT64 form", "10.0.0.7:5432", "[64:ff9b::a00:7]:5432", ReasonDenied},
		{"its 6to4 form", "10.0.0.7:5432", "[2002:a00:7::]:5432", ReasonDenied},
		{"an address with a zone", "[fe80::1%eth0]:5432", "[fe80::1]:5432", ReasonDenied},
		{"another service of the machine may be a receiver", "10.0.0.7:5432", "10.0.0.7:8080", ""},
		{"another machine", "10.0.0.7:5432", "10.0.0.8:5432", ""},
		{"another address of this machine", "127.0.0.1:5432", "127.0.0.2:5432", ReasonDenied},
		{"this machine over IPv6", "127.0.0.1:5432", "[::1]:5432", ReasonDenied},
		{"what is dialled as this machine", "127.0.0.1:5432", "0.0.0.0:5432", ReasonDenied},
		{"a server that listens everywhere", "[::]:8080", "127.0.0.1:8080", ReasonDenied},
		{"it leaves other machines alone", "[::]:8080", "10.0.0.7:8080", ""},
		{"another service of this machine", "[::]:8080", "127.0.0.1:8081", ""},
		{"an address of an interface", "[::]:8080", netip.AddrPortFrom(netip.MustParsePrefix(own[len(own)-1].String()).Addr(), 8080).String(), ReasonDenied},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			protected := new(Protected)
			protected.Add(netip.MustParseAddrPort(tc.protected))
			g := NewGuard(GuardConfig{Nets: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}, Protected: protected})
			checkReason(t, g.Allowed(netip.MustParseAddrPort(tc.address)), tc.want)
		})
	}
}

func TestTheOldestProtectedAddressIsForgotten(t *testing.T) {
	t.Parallel()
	p := new(Protected)
	at := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 5432)
	}
	for i := range maxProtected + 1 {
		p.Add(at(i))
		p.Add(at(1))
	}
	if p.covers(at(0)) || !p.covers(at(1)) || !p.covers(at(2)) || !p.covers(at(maxProtected)) {
		t.Error("not the address that was added longest ago was forgotten")
	}
}

func TestTheInvalidAddressIsRefused(t *testing.T) {
	t.Parallel()
	checkReason(t, NewGuard(GuardConfig{}).Allowed(netip.AddrPort{}), ReasonAddress)
}

// The oracle is the standard library's classification of special addresses.
func TestNoSpecialAddressIsAllowed(t *testing.T) {
	t.Parallel()
	g := NewGuard(GuardConfig{})
	rapid.Check(t, func(t *rapid.T) {
		var addr netip.Addr
		if rapid.Bool().Draw(t, "v4") {
			addr = netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "addr")))
		} else {
			addr = netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "addr")))
		}
		special := !net.IP(addr.Unmap().AsSlice()).IsGlobalUnicast() || addr.Unmap().IsPrivate()
		if special && g.Allowed(netip.AddrPortFrom(addr, 443)) == nil {
			t.Fatalf("%v is allowed", addr)
		}
	})
}

func TestAllowedURL(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		url     string
		direct  Reason
		proxied Reason
	}{
		{"a name", "https://example.com/hook", "", ""},
		{"a name on another port", "https://example.com:8443/", ReasonPort, ReasonPort},
		{"a name over http", "http://example.com/", ReasonScheme, ReasonScheme},
		{"a private address", "https://10.0.0.1/", ReasonAddress, ReasonAddress},
		{"a private IPv6 address", "https://[fd00::1]/", ReasonAddress, ReasonAddress},
		{"an address with a zone", "https://[fe80::1%25eth0]/", ReasonAddress, ReasonAddress},
		{"a mapped address", "https://[::ffff:127.0.0.1]/", ReasonAddress, ReasonAddress},
		{"a decimal host", "https://2130706433/", ReasonHost, ReasonHost},
		{"a hexadecimal host", "https://0x7f000001/", ReasonHost, ReasonHost},
		{"an empty hexadecimal part", "https://127.0.0.0x/", ReasonHost, ReasonHost},
		{"an octal host", "https://0177.0.0.1/", ReasonHost, ReasonHost},
		{"a short host", "https://127.1/", ReasonHost, ReasonHost},
		{"an address with a final dot", "https://127.0.0.1./", ReasonHost, ReasonHost},
		{"a name that ends in a number", "https://example.1/", ReasonHost, ReasonHost},
		{"a name with a number", "https://1.example.com/", "", ""},
		{"localhost", "https://localhost/", ReasonLabel, ReasonLabel},
		{"localhost with a final dot", "https://LOCALHOST./", ReasonLabel, ReasonLabel},
		{"another name without a dot", "https://db:443/", ReasonLabel, ReasonLabel},
		{"a top-level domain", "https://com./", ReasonLabel, ReasonLabel},
		{"below localhost", "https://a.localhost/", "", ReasonAddress},
		{"full-width digits are for the dialler to judge", "https://１２７.0.0.１/", "", ReasonHost},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u, err := url.Parse(tc.url)
			if err != nil {
				t.Fatal(err)
			}
			g := NewGuard(GuardConfig{})
			checkReason(t, g.allowedURL(u, false), tc.direct)
			checkReason(t, g.allowedURL(u, true), tc.proxied)
		})
	}
}

// A name may lead to a net that is allowed on any port, so the dialler judges.
func TestAllowedNetsAllowNamesOnAnyPort(t *testing.T) {
	t.Parallel()
	g := NewGuard(GuardConfig{Nets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	checkReason(t, g.allowedURL(&url.URL{Scheme: "https", Host: "example.com:8443"}, false), "")
}

func TestAllowedNetsAllowNamesWithoutADot(t *testing.T) {
	t.Parallel()
	g := NewGuard(GuardConfig{Nets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	for _, text := range []string{"https://db/", "https://db./", "https://localhost/"} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		checkReason(t, g.allowedURL(u, false), "")
	}
	for address, want := range map[string]Reason{"10.0.0.1:80": "", "93.184.215.14:443": ReasonLabel, "192.168.0.1:443": ReasonLabel, "[::ffff:10.0.0.1]:80": ""} {
		checkReason(t, g.controlLabel("tcp4", address, nil), want)
	}
}

func TestNamesAreResolvedAsTheyAre(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"example.com": "example.com.", "example.com.": "example.com.",
		"192.0.2.1": "192.0.2.1", "::1": "::1", "fe80::1%eth0": "fe80::1%eth0",
	} {
		if got := absolute(host); got != want {
			t.Errorf("absolute(%q) = %q, want %q", host, got, want)
		}
	}
}
