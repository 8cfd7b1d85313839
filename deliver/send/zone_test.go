package send

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/walhook/walhook/internal/webhook"
)

// A zone is what a name server says: for each name its addresses, or one other name
// (CNAME). Each look-up of a kind takes the next of several sets; the last one stays.
type zone map[string][][]string

// A nameServer is a tenant's own, which answers what it likes. It remembers what it was
// asked for.
type nameServer struct {
	zone  zone
	mu    sync.Mutex
	asked []string
	turns map[dnsmessage.Question]int
}

// resolver returns a resolver that asks the server.
func (s *nameServer) resolver(t *testing.T) *net.Resolver {
	t.Helper()
	s.turns = map[dnsmessage.Question]int{}
	return serveDNS(t, func(query []byte) []byte {
		answer, _ := s.answer(query) // none to what is no query
		return answer
	})
}

func (s *nameServer) answer(query []byte) ([]byte, error) {
	var message dnsmessage.Message
	if err := message.Unpack(query); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := message.Questions[0]
	s.asked = append(s.asked, q.Name.String())
	message.Response, message.RecursionAvailable, message.Additionals = true, true, nil
	known := s.follow(&message, q, q.Name.String())
	if !known {
		message.RCode = dnsmessage.RCodeNameError
	}
	return message.Pack()
}

// follow adds the records of a name, and of the name that it is another one for.
func (s *nameServer) follow(message *dnsmessage.Message, q dnsmessage.Question, name string) (known bool) {
	sets, known := s.zone[strings.ToLower(strings.TrimSuffix(name, "."))]
	if !known {
		return false
	}
	turn := min(s.turns[q], len(sets)-1)
	s.turns[q]++
	for _, text := range sets[turn] {
		header := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET}
		addr, err := netip.ParseAddr(text)
		switch {
		case err != nil:
			message.Answers = append(message.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(text + ".")}})
			s.follow(message, q, text+".")
		case addr.Is4() && q.Type == dnsmessage.TypeA:
			message.Answers = append(message.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: addr.As4()}})
		case addr.Is6() && q.Type == dnsmessage.TypeAAAA:
			message.Answers = append(message.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
	return true
}

// Whatever a tenant's name server answers, nothing is reached but what is allowed, and no
// address gets into the error. Canaries listen where nothing may arrive; a good receiver
// listens at the same port of an allowed address, so that the port cannot be the reason.
func TestNoAnswerOfANameServerReachesTheCanary(t *testing.T) {
	t.Parallel()
	const blockedAlways, reached = webhook.ErrBlocked, webhook.ErrorClass("")
	r, port, canary := beside(t, respond("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"))
	denied := serve(t, "127.0.0.4:"+port, func(net.Conn) bool { return false })
	always := func(records ...string) [][]string { return [][]string{records} }
	server := &nameServer{zone: zone{
		"good.test":                always("127.0.0.2"),
		"alias-good.test":          always("good.test"),
		"private.test":             always("127.0.0.1"),
		"privates.test":            always("10.0.0.1", "192.168.0.1", "169.254.169.254", "172.16.0.1", "100.64.0.1", "0.0.0.0"),
		"six.test":                 always("::1", "fd00::1", "fe80::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "2002:7f00:1::"),
		"alias.test":               always("db.cluster.internal"),
		"db.cluster.internal":      always("127.0.0.1"),
		"chain.test":               always("chain1.test"),
		"chain1.test":              always("chain2.test"),
		"chain2.test":              always("alias.test"),
		"alias-metadata.test":      always("metadata.google.internal"),
		"metadata.google.internal": always("169.254.169.254"),
		"mixed.test":               always("127.0.0.1", "127.0.0.2", "10.0.0.1"),
		"mixed-families.test":      always("::1", "127.0.0.2"),
		"mixed-denied.test":        always("127.0.0.4", "127.0.0.1"),
		"denied.test":              always("127.0.0.4"),
		"nat64.test":               always("64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe"),
		"local-nat64.test":         always("64:ff9b:1:fffe::7f00:1", "64:ff9b:1:a00:0:100::"),
		"own-nat64.test":           always("2a00:64::7f00:1", "2a00:64::a9fe:a9fe"),
		"rebinding.test":           {{"127.0.0.2"}, {"127.0.0.1"}},
		"rebinding-alias.test":     {{"good.test"}, {"private.test"}},
		"nodata.test":              always(),
		"dangling.test":            always("nowhere.test"),
		"db":                       always("127.0.0.1"),
		"good":                     always("127.0.0.2"),
	}}
	s := testSender(t, func(c *SenderConfig) {
		c.Resolver = server.resolver(t)
		c.Guard.Ports = nil
		c.Guard.Nets, c.Guard.Deny = nil, []netip.Prefix{netip.MustParsePrefix("127.0.0.4/32"), netip.MustParsePrefix("2a00:64::/96")}
		for _, net := range []string{"127.0.0.2/32", "127.0.0.4/32", "64:ff9b::/96", "64:ff9b:1::/48", "2a00:64::/96"} {
			c.Guard.Nets = append(c.Guard.Nets, netip.MustParsePrefix(net))
		}
	})
	for _, tc := range []struct {
		host          string
		first, second webhook.ErrorClass
	}{
		{"good.test", reached, reached},
		{"alias-good.test", reached, reached},
		{"private.test", blockedAlways, blockedAlways},
		{"PRIVATE.test.", blockedAlways, blockedAlways},
		{"privates.test", blockedAlways, blockedAlways},
		{"six.test", blockedAlways, blockedAlways},
		{"alias.test", blockedAlways, blockedAlways},
		{"chain.test", blockedAlways, blockedAlways},
		{"alias-metadata.test", blockedAlways, blockedAlways},
		{"mixed.test", reached, reached},
		{"mixed-families.test", reached, reached},
		{"mixed-denied.test", blockedAlways, blockedAlways},
		{"denied.test", blockedAlways, blockedAlways},
		{"nat64.test", blockedAlways, blockedAlways},
		{"local-nat64.test", blockedAlways, blockedAlways},
		{"own-nat64.test", blockedAlways, blockedAlways},
		{"rebinding.test", reached, blockedAlways},
		{"rebinding-alias.test", reached, blockedAlways},
		{"nodata.test", webhook.ErrDNS, webhook.ErrDNS},
		{"dangling.test", webhook.ErrDNS, webhook.ErrDNS},
		{"nowhere.test", webhook.ErrDNS, webhook.ErrDNS},
		{"db", blockedAlways, blockedAlways},
		{"good", reached, reached},
	} {
		req := testRequest(s, "http://"+tc.host+":"+port+"/hook?key=secret-token")
		for i, want := range []webhook.ErrorClass{tc.first, tc.second} {
			a, completed := s.Send(t.Context(), req)
			if !completed || a.Class != want {
				t.Errorf("%s, look-up %d: Send = %+v, want class %q", tc.host, i+1, a, want)
			}
			checkTellsNothing(t, a.Error)
		}
	}
	if canary.Load() != 0 || len(denied.requests) != 0 {
		t.Errorf("the canaries saw %d connections and %d requests", canary.Load(), len(denied.requests))
	}
	if len(r.requests) == 0 {
		t.Error("the receiver that is allowed saw no request")
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	for _, name := range server.asked {
		if !strings.HasSuffix(strings.ToLower(name), ".test.") && !slices.ContainsFunc([]string{"db.", "good."}, func(label string) bool { return strings.HasPrefix(name, label) }) {
			t.Errorf("the resolver was asked for %q", name)
		}
	}
}
