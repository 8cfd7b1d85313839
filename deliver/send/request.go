package send

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

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

// The headers of every request, besides those of package sign. net/http writes a map's
// key as it is, so the spelling here is the spelling that receivers see.
const (
	headerEvent      = "X-Webhook-Event"
	headerDeliveryID = "X-Webhook-Delivery-ID"
	headerRetry      = "X-Webhook-Retry"
	headerUserAgent  = "User-Agent"
	headerType       = "Content-Type"
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

// A field is a header that is the same in all requests to a target.
type field struct {
	name   string
	values []string
}

// customFields returns an endpoint's own headers, sorted. The database refuses reserved
// and invalid ones at INSERT; any that got past it are left out. Of two spellings of one
// name, the first in byte order counts.
func customFields(headers map[string]string) []field {
	var fields []field
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		canonical := textproto.CanonicalMIMEHeaderKey(name)
		if isReserved(name) || seen[canonical] || !validName(name) || !validValue(headers[name]) {
			continue
		}
		seen[canonical] = true
		fields = append(fields, field{unreplayable(name), []string{headers[name]}})
	}
	return fields
}

// unreplayable lower-cases the two names that make net/http repeat a POST that was partly
// written: it looks for exactly these keys. Only the retry schedule repeats requests.
func unreplayable(name string) string {
	if name == "Idempotency-Key" || name == "X-Idempotency-Key" {
		return strings.ToLower(name)
	}
	return name
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
	request http.Request // the parts common to all requests
	fields  []field
	signer  *sign.Signer
	refusal refusal
}

// A refusal is the reason why a target cannot be sent to. The zero refusal is none.
type refusal struct {
	class webhook.ErrorClass
	text  string
}

// String returns scheme and host.
func (t *Target) String() string {
	if t.request.URL == nil {
		return "[invalid URL]"
	}
	return t.request.URL.Scheme + "://" + t.request.URL.Host
}

// Refused reports whether nothing can be sent to the target, and why.
func (t *Target) Refused() (class webhook.ErrorClass, text string, refused bool) {
	return t.refusal.class, t.refusal.text, t.refusal.class != ""
}

// Target prepares an endpoint for sending.
func (s *Sender) Target(e *webhook.Endpoint) *Target {
	t := &Target{}
	if e.Problem != "" {
		t.refusal = refusal{webhook.ErrBadRequest, cutText(e.Problem)}
		return t
	}
	u, err := endpointURL(e.URL)
	if err != nil {
		t.refusal = refusal{webhook.ErrBadRequest, err.Error()}
		return t
	}
	t.request = http.Request{Method: http.MethodPost, URL: u, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	if err := s.guard.allowedURL(u, s.proxied); err != nil {
		t.refusal = refusal{webhook.ErrBlocked, cutText(err.Error())}
		return t
	}
	if t.signer, err = newSigner(e.Secrets); err != nil {
		t.refusal = refusal{webhook.ErrBadRequest, "the endpoint has no live secret: webhook_set_secret gives it one"}
		return t
	}
	t.fields = s.fields(u, e.Headers)
	return t
}

var (
	errURL    = errors.New("the endpoint's URL cannot be parsed") // the parser's own text quotes the URL
	errScheme = errors.New("the endpoint's URL begins with neither https:// nor http://")
	errHost   = errors.New("the endpoint's URL has no host")
	errPort   = errors.New("the endpoint's URL has no valid port")
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
	return u, nil
}

func newSigner(secrets []webhook.Secret) (*sign.Signer, error) {
	texts := make([]string, len(secrets))
	for i, s := range secrets {
		texts[i] = string(s)
	}
	return sign.New(texts...)
}

// fields returns the headers that are the same in all requests to an endpoint.
func (s *Sender) fields(u *url.URL, headers map[string]string) []field {
	fields := append(customFields(headers),
		field{headerType, []string{"application/json"}},
		field{headerUserAgent, []string{s.userAgent}})
	authorized := slices.ContainsFunc(fields, func(f field) bool { return strings.EqualFold(f.name, "Authorization") })
	if u.User != nil && !authorized {
		fields = append(fields, field{"Authorization", []string{basicAuth(u.User)}})
	}
	return fields
}

func basicAuth(user *url.Userinfo) string {
	password, _ := user.Password()
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password))
}

// A call has the parts of one HTTP request that differ from others, in one allocation.
type call struct {
	body   bytes.Reader
	values [callHeaders]string
}

// begun reports whether any of the body was read. It may be called once the request has
// failed.
func (c *call) begun() bool { return int64(c.body.Len()) < c.body.Size() }

const callHeaders = 7 // the headers that differ between requests to a target

// newCall returns the request of an attempt, signed for the time at.
func newCall(ctx context.Context, r Request, at time.Time) (*http.Request, *call) {
	t, unix, id := r.Endpoint, at.Unix(), r.DeliveryID.String()
	c := &call{}
	c.body.Reset(r.Body)
	h := make(http.Header, callHeaders+len(t.fields))
	for _, f := range t.fields {
		h[f.name] = f.values
	}
	for i, f := range [callHeaders]struct{ name, value string }{
		{headerEvent, r.EventType},
		{headerDeliveryID, id},
		{headerRetry, strconv.Itoa(r.Retry)},
		{sign.HeaderBodySignature, t.signer.Body(r.Body)},
		{sign.HeaderID, id},
		{sign.HeaderTimestamp, strconv.FormatInt(unix, 10)},
		{sign.HeaderSignature, t.signer.Standard(id, unix, r.Body)},
	} {
		c.values[i] = f.value
		h[f.name] = c.values[i : i+1 : i+1]
	}
	req := t.request.WithContext(ctx)
	req.Header = h
	req.ContentLength = int64(len(r.Body))
	// net/http knows that this type is in memory, and writes headers and body together.
	req.Body = io.NopCloser(&c.body)
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(r.Body)), nil }
	return req, c
}
