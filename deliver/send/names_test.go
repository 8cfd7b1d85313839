package send

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
)

// dnsServer returns a resolver that knows some names and their addresses.
func dnsServer(t *testing.T, names map[string][]string) *net.Resolver {
	t.Helper()
	return dnsServerOf(t, func(name string, _ uint16) []string { return names[name] })
}

// What a query asks for (RFC 1035, section 3.2.2, and RFC 3596).
const (
	kindA    = 1
	kindAAAA = 28
)

// serverFails is what a function says of a name whose servers are broken.
var serverFails = []string{"SERVFAIL"}

// dnsServerOf returns a resolver that calls a function for each query.
func dnsServerOf(t *testing.T, addresses func(name string, kind uint16) []string) *net.Resolver {
	t.Helper()
	return serveDNS(t, func(query []byte) []byte { return dnsAnswer(query, addresses) })
}

// serveDNS returns a resolver that has a function answer each message; nil: not at all.
func serveDNS(t *testing.T, answer func(message []byte) []byte) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if said := answer(buf[:n]); said != nil {
				conn.WriteTo(said, from)
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// dnsAnswer answers a query for one name (RFC 1035, section 4).
func dnsAnswer(query []byte, addresses func(name string, kind uint16) []string) []byte {
	var labels []string
	at := 12
	for query[at] != 0 {
		labels = append(labels, string(query[at+1:at+1+int(query[at])]))
		at += 1 + int(query[at])
	}
	question := query[12 : at+5]
	asked := binary.BigEndian.Uint16(query[at+1:])
	found := addresses(strings.ToLower(strings.Join(labels, ".")), asked)
	flags := uint16(0x8180)
	if len(found) == 0 {
		flags |= 3 // no such name
	}
	if slices.Equal(found, serverFails) {
		flags, found = 0x8182, nil
	}
	var answers []byte
	count := uint16(0)
	for _, text := range found {
		addr := netip.MustParseAddr(text)
		kind := uint16(kindA)
		if addr.Is6() {
			kind = kindAAAA
		}
		if kind != asked {
			continue
		}
		count++
		answers = append(answers, 0xc0, 12)
		answers = binary.BigEndian.AppendUint16(answers, kind)
		answers = append(answers, 0, 1, 0, 0, 0, 0)
		answers = binary.BigEndian.AppendUint16(answers, uint16(addr.BitLen()/8))
		answers = append(answers, addr.AsSlice()...)
	}
	msg := binary.BigEndian.AppendUint16(bytes.Clone(query[:2]), flags)
	msg = binary.BigEndian.AppendUint16(msg, 1)
	msg = binary.BigEndian.AppendUint16(msg, count)
	msg = append(append(msg, 0, 0, 0, 0), question...)
	return append(msg, answers...)
}

// Only the resolver gets the absolute name: TLS and the receiver see the URL's spelling.
func TestTheURLsSpellingIsSent(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var asked, named []string
	names := dnsServerOf(t, func(name string, _ uint16) []string {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, name)
		return []string{"127.0.0.1"}
	})
	r, trusted := newSecureReceiverThat(t, func(hello *tls.ClientHelloInfo) {
		mu.Lock()
		defer mu.Unlock()
		named = append(named, hello.ServerName)
	}, respond("HTTP/1.1 204 No Content\r\n\r\n"))
	_, port, _ := net.SplitHostPort(r.addr())
	s := testSender(t, func(c *SenderConfig) { c.Resolver, c.RootCAs = names, trusted })
	for _, host := range []string{"Example.com", "a.example.com."} {
		a, _ := s.Send(t.Context(), testRequest(s, "https://"+host+":"+port))
		if Judge(a) != Delivered {
			t.Fatalf("Send to %s = %+v", host, a)
		}
		if head := <-r.requests; !strings.Contains(head, "\r\nHost: "+host+":"+port+"\r\n") {
			t.Errorf("%s: the head is %q", host, head)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"Example.com", "a.example.com"}; !slices.Equal(named, want) { // TLS has no final dot
		t.Errorf("TLS named %q, want %q", named, want)
	}
	for _, name := range asked {
		if name != "example.com" && name != "a.example.com" {
			t.Errorf("the resolver was asked for %q", name)
		}
	}
}

// It is found in /etc/hosts.
func TestLocalhostIsReachedIfItsNetIsAllowed(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, respond("HTTP/1.1 204 No Content\r\n\r\n"))
	_, port, _ := net.SplitHostPort(r.addr())
	s := testSender(t, func(c *SenderConfig) { c.Guard.Nets = append(c.Guard.Nets, netip.MustParsePrefix("::1/128")) })
	if a, _ := s.Send(t.Context(), testRequest(s, "http://localhost:"+port)); Judge(a) != Delivered {
		t.Errorf("Send = %+v", a)
	}
}
