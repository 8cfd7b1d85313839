package send

import (
	"context"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/webhook"
)

// dialling returns a resolver whose server is at an address.
func dialling(address string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
}

// A resolver that is away, or refuses everything, is our own fault. A name that does not
// exist, or whose own servers are broken, is its endpoint's.
func TestWhoseFaultItIsThatANameDoesNotResolve(t *testing.T) {
	t.Parallel()
	broken := func(name string, _ uint16) []string {
		if name == "name.test" {
			return serverFails
		}
		return nil
	}
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	for _, tc := range []struct {
		name  string
		names *net.Resolver
		class webhook.ErrorClass
		fault webhook.OwnFault
	}{
		{"nobody listens", dialling("127.0.0.1:1"), webhook.ErrDNS, webhook.FaultResolver},
		{"silence", dialling(silent.LocalAddr().String()), webhook.ErrTimeout, webhook.FaultResolver},
		{"everything fails", dnsServerOf(t, func(string, uint16) []string { return serverFails }), webhook.ErrDNS, webhook.FaultResolver},
		{"this name's servers fail", dnsServerOf(t, broken), webhook.ErrDNS, ""},
		{"no such name", dnsServer(t, nil), webhook.ErrDNS, ""},
		{"no descriptors", &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "udp", Err: os.NewSyscallError("socket", syscall.EMFILE)}
		}}, webhook.ErrDNS, webhook.FaultDescriptors},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := testSender(t, func(c *SenderConfig) { c.Timeout, c.Resolver = runsOut(500*time.Millisecond, tc.class), tc.names })
			a, completed := s.Send(t.Context(), testRequest(s, "http://name.test/"))
			if !completed || a.Class != tc.class || a.OwnFault != tc.fault {
				t.Errorf("Send = %+v, %v, want class %s and fault %q", a, completed, tc.class, tc.fault)
			}
		})
	}
}

// Many attempts at once that find the resolver away ask one question, and the word of a
// moment ago that it is well does not count.
func TestAResolverIsAskedOnceForAll(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	var away atomic.Bool
	names := dnsServerOf(t, func(name string, _ uint16) []string {
		if name == "" {
			asked.Add(1)
		}
		if name != "" || away.Load() {
			return serverFails
		}
		return nil
	})
	s := testSender(t, func(c *SenderConfig) { c.Resolver = names })
	r := testRequest(s, "http://name.test/")
	if a, _ := s.Send(t.Context(), r); a.OwnFault != "" {
		t.Errorf("Send = %+v", a)
	}
	away.Store(true)
	before := asked.Load()
	for range 10 {
		if a, _ := s.Send(t.Context(), r); a.OwnFault != webhook.FaultResolver {
			t.Errorf("Send = %+v", a)
		}
	}
	if n := asked.Load() - before; n > 2*queriesEach {
		t.Errorf("%d questions", n)
	}
}

// queriesEach bounds how often Go's resolver repeats a query that its server fails.
const queriesEach = 4
