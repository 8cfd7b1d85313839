package send

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"strings"
	"testing"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/webhook"
)

// A tunnelled listener is a CONNECT proxy that is every receiver itself.
type tunnelled struct {
	net.Listener
	conns chan net.Conn
}

func (l *tunnelled) Accept() (net.Conn, error) {
	c, open := <-l.conns
	if !open {
		return nil, net.ErrClosed
	}
	return c, nil
}

// serveEverywhere has a handler answer requests to any host over http, and returns the
// proxy by which it is reached.
func serveEverywhere(t *testing.T, h http.HandlerFunc) *url.URL {
	t.Helper()
	real, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &tunnelled{real, make(chan net.Conn)}
	server := &http.Server{Handler: h}
	go server.Serve(l)
	go func() {
		defer close(l.conns)
		for {
			c, err := real.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil { // nothing comes behind it yet
				io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
				l.conns <- c
			}
		}
	}()
	t.Cleanup(func() { server.Close() })
	return &url.URL{Scheme: "http", Host: real.Addr().String()}
}

// one returns one of some texts.
func one(r *rand.Rand, of ...string) string { return of[r.IntN(len(of))] }

// text returns some characters of an alphabet, of which now and then one is hostile.
func text(r *rand.Rand, most int, alphabet string) string {
	var b strings.Builder
	for range r.IntN(most + 1) {
		switch r.IntN(60) {
		case 0:
			b.WriteRune([]rune(" \t\r\n\x01\x7f\"<>\\^`{|}#%@[]äÄ\u0130\u202e\u3002中\u0085\u00a0")[r.IntN(28)])
		case 1:
			b.WriteString(one(r, "%20", "%2F", "%00", "%zz", "%", "%C3%A4", "%0d%0a", "..", "//", "/./", "?", "??", "&", ";"))
		default:
			b.WriteByte(alphabet[r.IntN(len(alphabet))])
		}
	}
	return b.String()
}

const (
	alphanumeric = "abcXYZ019"
	inPath       = alphanumeric + "/-._~!$&'()*+,;=:@"
	inQuery      = inPath + "?[]"
	inHost       = alphanumeric + "-_..."
)

func hostileURL(r *rand.Rand) string {
	scheme := one(r, "http", "http", "http", "HTTP", "hTTps", "https", "ftp", "") + one(r, "://", "://", "://", "://", "://", ":/", ":", "//")
	host := one(r, "example.com", "a.b.", "EXAMPLE.com", "1.2.3.4", "8.8.8.8", "0x7f.1", "1.2.3", "db", "_x-.y", "-", "a..b", "",
		"[::1]", "[2606:2800::1]", "[::ffff:1.2.3.4]", "[1.2.3.4]", "[::]", "[1::2::3]", "[::1%25lo]", "[::1%lo]", "[::00001]", "[fe80::1]", "[::1.2.3]", "[v1.a]", "[]",
		"[1:2:3:4:5:6:7:8]", "[1:2:3:4:5:6:7:8:9]", "[1:2:3:4:5:6:7::]", "[::1.2.3.04]", "[::1.2.3.256]", "[12345::]", "[0::0:0]", "[:1::]", "[1:]", "[.1::]",
		strings.Repeat("a", 64)+".com", strings.Repeat("a.", 126)+"b", "user@a.b", text(r, 12, inHost), text(r, 12, inHost))
	port := one(r, "", "", "", ":80", ":0080", ":443", ":65535", ":65536", ":0", ":", ":x", ":-1", ":+1", ":1e1", ":"+text(r, 3, "0123456789"))
	rest := one(r, "", "/", "/", "/") + text(r, 20, inPath)
	if r.IntN(2) == 0 {
		rest += "?" + text(r, 20, inQuery)
	}
	if r.IntN(30) == 0 {
		rest += "#" + text(r, 5, inPath)
	}
	return scheme + host + port + rest
}

func hostileHeaders(r *rand.Rand) map[string]string {
	headers := map[string]string{}
	for range r.IntN(4) {
		name := one(r, "X-A", "x-a", "Cookie", "AUTHORIZATION", "Range", "If-Match", "Idempotency-Key", "accept-ENCODING", "Via", "Date", "Trailers",
			"Host", "Connection", "Webhook-X", "Proxy-X", "TE", "user-agent", text(r, 8, alphanumeric+"!#$%&'*+-.^_`|~"))
		headers[name] = one(r, "", " ", " a ", "a\tb", "a  b", text(r, 30, inQuery+" <>\"{}\\^`|#%"), text(r, 30, inQuery))
	}
	return headers
}

// acceptedBy returns which texts a function of the schema has no problem with.
func acceptedBy(t *testing.T, db *pgtest.DB, expression string, texts []string) []bool {
	t.Helper()
	var accepted []bool
	err := db.Pool.QueryRow(t.Context(), `SELECT array_agg(`+expression+` IS NULL ORDER BY n) FROM unnest($1::text[]) WITH ORDINALITY AS x(given, n)`, texts).Scan(&accepted)
	if err != nil {
		t.Fatal(err)
	}
	return accepted
}

// Whatever the database accepts as URL and headers of an endpoint is sent, as one
// well-formed request, with exactly this target, this host and these headers.
func TestWhatTheDatabaseAcceptsIsSentAsItIs(t *testing.T) {
	t.Parallel()
	const tries = 10_000
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	db := pgtest.New(t)
	requests := make(chan *http.Request, 1)
	proxy := serveEverywhere(t, func(w http.ResponseWriter, req *http.Request) {
		requests <- req
		w.WriteHeader(http.StatusNoContent)
	})
	s := testSender(t, func(c *SenderConfig) {
		c.ProxyURL = proxy
		c.Guard.Nets = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
		for port := range 65535 {
			c.Guard.Ports = append(c.Guard.Ports, uint16(port+1))
		}
	})
	urls, headers, asJSON := make([]string, tries), make([]map[string]string, tries), make([]string, tries)
	for i := range tries {
		urls[i], headers[i] = strings.ToValidUTF8(hostileURL(r), "?"), hostileHeaders(r)
		b, err := json.Marshal(headers[i])
		if err != nil {
			t.Fatal(err)
		}
		asJSON[i] = string(b)
	}
	goodURLs, goodHeaders := acceptedBy(t, db, `webhook_url_problem(given)`, urls), acceptedBy(t, db, `webhook_headers_problem(given::jsonb)`, asJSON)
	var sent, blockedHosts, withHeaders int
	for i, address := range urls {
		if !goodURLs[i] {
			continue
		}
		e := testEndpoint(address)
		if goodHeaders[i] {
			e.Headers = headers[i]
		}
		req := testRequest(s, address)
		req.Endpoint = s.Target(e)
		class, why, refused := req.Endpoint.Refused()
		if class == webhook.ErrBlocked {
			blockedHosts++ // that is the settings' to decide
			continue
		}
		if refused {
			t.Errorf("the database accepts %q, which is refused as %s: %s", address, class, why)
			continue
		}
		if !strings.HasPrefix(strings.ToLower(address), "http:") {
			continue
		}
		a, _ := s.Send(t.Context(), req)
		if Judge(a) != Delivered {
			t.Errorf("Send to %q with %q = %+v", address, e.Headers, a)
			continue
		}
		sent++
		withHeaders += min(len(e.Headers), 1)
		checkSentAsItIs(t, <-requests, address, e.Headers)
	}
	if sent < tries/50 || withHeaders < tries/200 || blockedHosts == 0 {
		t.Errorf("%d sent, %d with headers, %d blocked, of %d: that tells little", sent, withHeaders, blockedHosts, tries)
	}
	t.Logf("%d sent, %d of them with headers; %d blocked", sent, withHeaders, blockedHosts)
}

func checkSentAsItIs(t *testing.T, got *http.Request, address string, headers map[string]string) {
	t.Helper()
	_, rest, _ := strings.Cut(address, "://")
	end := strings.IndexAny(rest+"/", "/?")
	host, target := rest[:end], rest[end:]
	if !strings.HasPrefix(target, "/") {
		target = "/" + target
	}
	if got.RequestURI != target || got.Host != host {
		t.Errorf("%q came as %q to host %q, want %q to %q", address, got.RequestURI, got.Host, target, host)
	}
	own := len(testHeaderNames(got))
	if own != len(headers) {
		t.Errorf("%q: %d headers came beside ours, want %q", address, own, headers)
	}
	for name, value := range headers {
		values := got.Header[textproto.CanonicalMIMEHeaderKey(name)]
		if want := strings.Trim(value, " \t"); len(values) != 1 || values[0] != want { // RFC 9110, section 5.5: blanks around a value are no part of it
			t.Errorf("%q: header %s came as %q, want %q", address, name, values, want)
		}
	}
}

// testHeaderNames returns the names of a request's headers that are not walhook's.
func testHeaderNames(req *http.Request) (names []string) {
	for name := range req.Header {
		if !isReserved(name) {
			names = append(names, name)
		}
	}
	return names
}

// A row may have come past the database's check.
func TestAQueryWithBytesThatItCannotHave(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]string{
		"a=b c": "a=b%20c", "a=\"<>\\^`{|}": "a=%22%3C%3E%5C%5E%60%7B%7C%7D", "a=ä": "a=%C3%A4", "a=%20&b=[c]?/:@!$'()*+,;": "a=%20&b=[c]?/:@!$'()*+,;",
		" HTTP/1.1": "%20HTTP/1.1",
	} {
		s := testSender(t, nil)
		r := newReceiver(t, respond("HTTP/1.1 204 No Content\r\n\r\n"))
		a, _ := s.Send(t.Context(), testRequest(s, r.url("http")+"/hook?"+query))
		if Judge(a) != Delivered {
			t.Fatalf("%q: Send = %+v", query, a)
		}
		line, _, _ := strings.Cut(<-r.requests, "\r\n")
		if line != fmt.Sprintf("POST /hook?%s HTTP/1.1", want) {
			t.Errorf("%q: the request line is %q", query, line)
		}
	}
}
