package send

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"golang.org/x/net/idna"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
	"github.com/walhook/walhook/sign"
)

// timestampLayout is the format of "timestamp" in the body: UTC with milliseconds.
const timestampLayout = "2006-01-02T15:04:05.000Z"

// timestampRoom is the space that AppendFormat needs: it writes nanoseconds, and cuts
// them to milliseconds.
const timestampRoom = len(timestampLayout) + 6

// Body returns the body of all requests for an event. The bytes are the same for each
// endpoint, attempt and process: they are signed, and receivers may compare them. The
// payload is PostgreSQL's own text.
func Body(e *outbox.Event) []byte {
	const frame = len(`{"id":"","event":,"data":,"organizationId":,"timestamp":""}`) + 36 + timestampRoom
	b := make([]byte, 0, frame+quotedLen(e.Type)+len(e.Payload)+quotedLen(e.OrganizationID))
	b = append(b, `{"id":"`...)
	b = appendUUID(b, e.ID)
	b = append(b, `","event":`...)
	b = appendQuoted(b, e.Type)
	b = append(b, `,"data":`...)
	b = append(b, e.Payload...)
	b = append(b, `,"organizationId":`...)
	b = appendQuoted(b, e.OrganizationID)
	b = append(b, `,"timestamp":"`...)
	b = e.CreatedAt.UTC().AppendFormat(b, timestampLayout)
	return append(b, `"}`...)
}

// appendUUID appends the text of UUID.String without its allocation.
func appendUUID(b []byte, id uuid.UUID) []byte {
	for i, group := range [...][]byte{id[:4], id[4:6], id[6:8], id[8:10], id[10:]} {
		if i > 0 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, group)
	}
	return b
}

const hexDigits = "0123456789abcdef"

// appendQuoted appends a JSON string. It escapes only what JSON requires (not HTML), and
// writes U+FFFD for invalid UTF-8.
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < ' ':
			b = append(b, '\\', 'u', '0', '0', hexDigits[r>>4], hexDigits[r&0xf])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

// quotedLen returns the number of bytes that appendQuoted appends.
func quotedLen(s string) int {
	n := len(`""`)
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			n += 2
		case r < ' ':
			n += 6
		default:
			n += utf8.RuneLen(r)
		}
	}
	return n
}

// The headers of every request, besides those of package sign, spelled as receivers see
// them.
const (
	headerEvent      = "X-Webhook-Event"
	headerDeliveryID = "X-Webhook-Delivery-ID"
	headerRetry      = "X-Webhook-Retry"
	headerUserAgent  = "User-Agent"
	headerType       = "Content-Type"
	headerLength     = "Content-Length"
)

// reserved has the headers that an endpoint cannot set, in lower case: ours, those that
// frame the message, and those of the connection (RFC 9110, section 7.6.1, and its
// predecessors). Headers with one of reservedPrefixes are reserved, too. The database
// refuses the same: see webhook_headers_problem in schema.sql.
var reserved = []string{
	"content-type", "content-length", "content-encoding", "user-agent",
	"host", "connection", "expect", "http2-settings", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade",
}

var reservedPrefixes = []string{"x-webhook-", "webhook-", "proxy-"}

func isReserved(name string) bool {
	lower := strings.ToLower(name)
	return slices.Contains(reserved, lower) || slices.ContainsFunc(reservedPrefixes, func(p string) bool { return strings.HasPrefix(lower, p) })
}

// customHeaders returns an endpoint's own headers. The database refuses reserved and
// invalid ones at INSERT; any that got past it are left out. Of two spellings of one
// name, the first in byte order counts.
func customHeaders(headers map[string]string) http.Header {
	custom := http.Header{}
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		canonical := textproto.CanonicalMIMEHeaderKey(name)
		if isReserved(name) || seen[canonical] || !validName(name) || !validValue(headers[name]) {
			continue
		}
		seen[canonical] = true
		custom[name] = []string{headers[name]}
	}
	return custom
}

// validName reports whether a header's name is a token (RFC 9110, section 5.6.2).
func validName(name string) bool {
	for _, c := range []byte(name) {
		alphanumeric := '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !alphanumeric && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return name != ""
}

// validValue reports whether a header's value has no control characters.
func validValue(value string) bool {
	for _, c := range []byte(value) {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// A Target is an endpoint prepared for sending, built once for each version of its row.
// If the endpoint cannot be sent to, its target has a refusal, and attempts fail without
// a connection. A Target prints without path, query and secrets.
type Target struct {
	url     *url.URL
	key     key
	head    []byte // the request line, and the headers that are the same in all requests
	signer  *sign.Signer
	timeout time.Duration // of an attempt
	refusal refusal
}

// A refusal is the reason why a target cannot be sent to. The zero refusal is none.
type refusal struct {
	class webhook.ErrorClass
	text  string
}

// String returns scheme, host and port.
func (t *Target) String() string {
	if t.url == nil {
		return webhook.Site("")
	}
	return webhook.Site(t.url.String())
}

// Refused reports whether nothing can be sent to the target, and why.
func (t *Target) Refused() (class webhook.ErrorClass, text string, refused bool) {
	return t.refusal.class, t.refusal.text, t.refusal.class != ""
}

// Target prepares an endpoint for sending.
func (s *Sender) Target(e *webhook.Endpoint) *Target {
	t := &Target{timeout: cmp.Or(e.Timeout, s.timeout)}
	if e.Problem != "" {
		t.refusal = refusal{webhook.ErrBadRequest, cutText(e.Problem)}
		return t
	}
	u, err := endpointURL(e.URL)
	if err != nil {
		t.refusal = refusal{webhook.ErrBadRequest, err.Error()}
		return t
	}
	t.url = u
	if err := s.guard.allowedURL(u, s.dialer.proxy != nil); err != nil {
		t.refusal = refusal{webhook.ErrBlocked, cutText(err.Error())}
		return t
	}
	if t.signer, err = newSigner(e.Secrets); err != nil {
		t.refusal = refusal{webhook.ErrBadRequest, signerProblem(err)}
		return t
	}
	if t.key, t.head, err = prepare(u, s.headers(u, e.Headers)); err != nil {
		t.refusal = refusal{webhook.ErrBadRequest, errHostName.Error()}
	}
	return t
}

var (
	errURL    = errors.New("the endpoint's URL cannot be parsed") // the parser's own text quotes the URL
	errScheme = errors.New("the endpoint's URL begins with neither https:// nor http://")
	errHost   = errors.New("the endpoint's URL has no host")
	errPort   = errors.New("the endpoint's URL has no valid port")

	errHostName = errors.New("the endpoint's URL has a host that is no valid name")
)

func endpointURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, errURL
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, errScheme
	case u.Hostname() == "":
		return nil, errHost
	case urlPort(u) == 0:
		return nil, errPort
	}
	u.Fragment, u.RawFragment = "", ""
	u.RawQuery = escapeQuery(u.RawQuery)
	return u, nil
}

func signerProblem(err error) string {
	if errors.Is(err, sign.ErrKey) {
		return "a secret of the endpoint begins with whsk_, and is no Ed25519 key: webhook_set_secret replaces it"
	}
	return "the endpoint has no live secret: webhook_set_secret gives it one"
}

// escapeQuery percent-encodes the bytes that RFC 3986 does not allow in a query, as it is
// done for a path. net/url takes a query as it is, and a blank would end the request's
// target. The database refuses such a URL, but a row may have come past it.
func escapeQuery(query string) string {
	var b strings.Builder
	for _, c := range []byte(query) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte("\"<>\\^`{|}", c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func newSigner(secrets []webhook.Secret) (*sign.Signer, error) {
	texts := make([]string, len(secrets))
	for i, s := range secrets {
		texts[i] = string(s)
	}
	return sign.New(texts...)
}

// headers returns the headers that are the same in all requests to an endpoint.
func (s *Sender) headers(u *url.URL, custom map[string]string) http.Header {
	h := customHeaders(custom)
	authorized := slices.ContainsFunc(slices.Collect(maps.Keys(h)), func(name string) bool { return strings.EqualFold(name, "Authorization") })
	if u.User != nil && !authorized {
		h["Authorization"] = []string{basicAuth(u.User)}
	}
	h[headerType] = []string{"application/json"}
	h[headerUserAgent] = []string{s.userAgent}
	return h
}

// prepare returns the first part of the head of all requests to a URL, and which
// connections may carry them. net/http writes that part once: the request line, Host,
// User-Agent and the other headers, sorted. It knows how a host is spelled there.
func prepare(u *url.URL, h http.Header) (key, []byte, error) {
	var b bytes.Buffer
	get := http.Request{Method: http.MethodGet, URL: u, Header: h} // which has no length, as opposed to a POST
	if err := get.Write(&b); err != nil {
		return key{}, nil, err
	}
	head := append([]byte(http.MethodPost), bytes.TrimPrefix(b.Bytes(), []byte(http.MethodGet))...)
	head = bytes.TrimSuffix(head, []byte("\r\n"))
	host, err := lookupHost(u)
	return key{u.Scheme == "https", net.JoinHostPort(host, strconv.Itoa(int(urlPort(u))))}, head, err
}

// lookupHost returns a URL's host as it is looked up. Only international names are spelled
// differently there; an IPv6 address keeps its zone, which Host does not have.
func lookupHost(u *url.URL) (string, error) {
	host := u.Hostname()
	if !strings.ContainsFunc(host, func(r rune) bool { return r > unicode.MaxASCII }) {
		return host, nil
	}
	return idna.Lookup.ToASCII(host)
}

func basicAuth(user *url.Userinfo) string {
	password, _ := user.Password()
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password))
}

// appendHead appends the head of the request of an attempt, signed for the time at. It is
// a pure function, so that a request can be sent again.
func (r *Request) appendHead(b []byte, at time.Time) []byte {
	t, unix := r.Endpoint, at.Unix()
	id := r.DeliveryID.String()
	b = append(b, t.head...)
	for _, f := range [...]struct{ name, value string }{
		{headerLength, strconv.Itoa(len(r.Body))},
		{headerEvent, textproto.TrimString(r.EventType)},
		{headerDeliveryID, id},
		{headerRetry, strconv.Itoa(r.Retry)},
		{sign.HeaderBodySignature, t.signer.Body(r.Body)},
		{sign.HeaderID, id},
		{sign.HeaderTimestamp, strconv.FormatInt(unix, 10)},
		{sign.HeaderSignature, t.signer.Standard(id, unix, r.Body)},
	} {
		b = append(b, f.name...)
		b = append(b, ": "...)
		b = append(b, f.value...)
		b = append(b, "\r\n"...)
	}
	return append(b, "\r\n"...)
}
