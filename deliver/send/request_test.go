package send

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
	"github.com/walhook/walhook/sign"
)

var (
	testEventID    = uuid.MustParse("0193a1f0-7c00-7abc-8def-0123456789aa")
	testDeliveryID = uuid.MustParse("0193a1f0-7c00-7abc-8def-0123456789ab")
)

const testSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

func testEvent() *outbox.Event {
	return &outbox.Event{
		ID: testEventID, OrganizationID: "org_1", Type: "payment.succeeded", Payload: []byte(`{"amount": 4200, "note": "<ö>"}`),
		CreatedAt: time.Date(2026, 11, 23, 13, 0, 0, 987_654, time.FixedZone("CET", 3600)),
	}
}

func TestGoldenBody(t *testing.T) {
	t.Parallel()
	const want = `{"id":"0193a1f0-7c00-7abc-8def-0123456789aa","event":"payment.succeeded","data":{"amount": 4200, "note": "<ö>"},"organizationId":"org_1","timestamp":"2026-11-23T12:00:00.000Z"}`
	if got := string(Body(testEvent())); got != want {
		t.Errorf("Body =\n%s\nwant\n%s", got, want)
	}
}

func TestBodyQuotesWhatItHasTo(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"org_1":           `"org_1"`,
		`a"b\c`:           `"a\"b\\c"`,
		"a\nb\x00\x1f":    `"a\u000ab\u0000\u001f"`,
		"<a&b>\u2028\x7f": "\"<a&b>\u2028\x7f\"",
		"ö\U0001F600":     "\"ö\U0001F600\"",
		"a\xffb":          "\"a\uFFFDb\"",
	} {
		if got := string(appendQuoted(nil, in)); got != want {
			t.Errorf("appendQuoted(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestBodyIsJSONOfOneAllocation(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		e := testEvent()
		e.OrganizationID = string(rapid.SliceOf(rapid.Byte()).Draw(t, "organization"))
		e.Type = rapid.String().Draw(t, "type")
		body := Body(e)
		if want := len(body) + timestampRoom - len(timestampLayout); cap(body) != want {
			t.Fatalf("capacity %d, want %d", cap(body), want)
		}
		var got struct {
			ID             uuid.UUID
			Event          string
			OrganizationID string
		}
		if err := json.Unmarshal(body, &got); err != nil || !utf8.Valid(body) {
			t.Fatalf("%v: %q", err, body)
		}
		if got.ID != e.ID || got.Event != e.Type || got.OrganizationID != string([]rune(e.OrganizationID)) {
			t.Fatalf("%+v does not match %+v", got, e)
		}
	})
}

// unhurried is a timeout that does not run out on a machine that does other things too, unless something hangs.
const unhurried = 30 * time.Second

// runsOut is a timeout for an attempt that a test expects to end so: short if it is to run out, and unhurried if not.
func runsOut(short time.Duration, class webhook.ErrorClass) time.Duration {
	if class == webhook.ErrTimeout {
		return short
	}
	return unhurried
}

// testSender returns a Sender that may send to this machine over http.
func testSender(t testing.TB, change func(*SenderConfig)) *Sender {
	t.Helper()
	cfg := SenderConfig{
		Timeout: unhurried,
		Guard:   GuardConfig{AllowHTTP: true, Nets: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
	}
	if change != nil {
		change(&cfg)
	}
	s := NewSender(cfg)
	t.Cleanup(s.Close)
	return s
}

func testEndpoint(url string) *webhook.Endpoint {
	return &webhook.Endpoint{URL: url, Secrets: []webhook.Secret{testSecret}}
}

func testRequest(s *Sender, url string) Request {
	return Request{
		Endpoint: s.Target(testEndpoint(url)), DeliveryID: testDeliveryID, EventType: "payment.succeeded",
		Body: Body(testEvent()),
	}
}

func TestGoldenRequest(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, respond("HTTP/1.1 204 No Content\r\n\r\n"))
	s := testSender(t, func(c *SenderConfig) { c.UserAgent = "Fabrk-Webhooks/1.0" })
	req := testRequest(s, "")
	req.Retry = 3
	req.Endpoint = s.Target(&webhook.Endpoint{
		URL:     r.url("http") + "/hook?token=1",
		Headers: map[string]string{"X-Tenant": "acme", "authorization": "Bearer abc"},
		Secrets: []webhook.Secret{"older-older-older!", testSecret},
	})
	a, completed := s.Send(t.Context(), req)
	if !completed || Judge(a) != Delivered {
		t.Fatalf("Send = %+v, %v", a, completed)
	}
	got := <-r.requests

	signer, err := sign.New("older-older-older!", testSecret)
	if err != nil {
		t.Fatal(err)
	}
	_, unix, _ := strings.Cut(got, "\r\nwebhook-timestamp: ")
	unix, _, _ = strings.Cut(unix, "\r\n")
	var at int64
	if _, err := fmt.Sscan(unix, &at); err != nil || time.Since(time.Unix(at, 0)).Abs() > time.Minute {
		t.Fatalf("webhook-timestamp %q: %v", unix, err)
	}
	want := strings.Join([]string{
		"POST /hook?token=1 HTTP/1.1",
		"Host: " + r.addr(),
		"User-Agent: Fabrk-Webhooks/1.0",
		"Content-Type: application/json",
		"X-Tenant: acme",
		"authorization: Bearer abc",
		fmt.Sprintf("Content-Length: %d", len(req.Body)),
		"X-Webhook-Event: payment.succeeded",
		"X-Webhook-Delivery-ID: 0193a1f0-7c00-7abc-8def-0123456789ab",
		"X-Webhook-Retry: 3",
		"X-Webhook-Signature: " + signer.Body(req.Body),
		"webhook-id: 0193a1f0-7c00-7abc-8def-0123456789ab",
		"webhook-timestamp: " + unix,
		"webhook-signature: " + signer.Standard("0193a1f0-7c00-7abc-8def-0123456789ab", at, req.Body),
		"", string(req.Body),
	}, "\r\n")
	if got != want {
		t.Errorf("request\n%s\nwant\n%s", got, want)
	}
}

func TestCustomHeaders(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		in   map[string]string
		want map[string]string
	}{
		{"are sent as they are spelled", map[string]string{"X-API-Key": "k", "cookie": "a=b"}, map[string]string{"X-API-Key": "k", "cookie": "a=b"}},
		{"cannot be ours", map[string]string{
			"X-Webhook-Signature": "x", "x-webhook-event": "x", "X-Webhook-Delivery-Id": "x", "X-WEBHOOK-DELIVERY-ID": "x", "X-Webhook-Retry": "x",
			"Webhook-Id": "x", "webhook-timestamp": "x", "WEBHOOK-SIGNATURE": "x", "user-agent": "x", "content-type": "x",
		}, nil},
		{"cannot be Host or framing", map[string]string{"host": "x", "Content-Length": "0", "content-encoding": "gzip", "Expect": "100-continue"}, nil},
		{"cannot be hop-by-hop", map[string]string{
			"Connection": "close", "keep-alive": "x", "Proxy-Authorization": "x", "Proxy-Authenticate": "x", "Proxy-Connection": "x",
			"TE": "x", "te": "x", "Trailer": "x", "transfer-encoding": "chunked", "Upgrade": "h2c", "HTTP2-Settings": "x",
		}, nil},
		{"have to be valid", map[string]string{"": "x", "a b": "x", "a:b": "x", "ö": "x", "a\r\nb": "x", "X-A": "x\r\nX-B: y", "X-C": "x\x00", "X-D": "\x7f"}, nil},
		{"may hold a tab and other bytes", map[string]string{"X-A": "a\tö"}, map[string]string{"X-A": "a\tö"}},
		{"are sent once", map[string]string{"X-A": "1", "x-a": "2"}, map[string]string{"X-A": "1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := map[string]string{}
			for name, values := range customHeaders(tc.in) {
				got[name] = strings.Join(values, ",")
			}
			if !maps.Equal(got, tc.want) {
				t.Errorf("headers = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestUserinfoBecomesAuthorization(t *testing.T) {
	t.Parallel()
	s := testSender(t, nil)
	e := testEndpoint("https://user:p%40ss@example.com/")
	if got := authorization(t, s.Target(e)); got != "Basic dXNlcjpwQHNz" {
		t.Errorf("Authorization = %q", got)
	}
	e.Headers = map[string]string{"authorization": "Bearer abc"}
	if got := authorization(t, s.Target(e)); got != "Bearer abc" {
		t.Errorf("Authorization = %q, want the endpoint's own", got)
	}
}

func authorization(t *testing.T, target *Target) string {
	t.Helper()
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(string(target.head) + "\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	return req.Header.Get("Authorization")
}

func TestATargetThatCannotBeSentToSaysWhy(t *testing.T) {
	t.Parallel()
	s := NewSender(SenderConfig{Timeout: time.Second})
	for _, tc := range []struct {
		name, url string
		want      webhook.ErrorClass
	}{
		{"no URL", "", webhook.ErrBadRequest},
		{"no host", "https:///hook?token=secret-token", webhook.ErrBadRequest},
		{"only a port", "https://:443/hook?token=secret-token", webhook.ErrBadRequest},
		{"another scheme", "ftp://example.com/?token=secret-token", webhook.ErrBadRequest},
		{"a file", "file:///etc/passwd?token=secret-token", webhook.ErrBadRequest},
		{"a control character", "https://example.com/\x7f?token=secret-token", webhook.ErrBadRequest},
		{"a port that is none", "https://example.com:secret-token/", webhook.ErrBadRequest},
		{"a password with a slash", "https://user:secret-token/x@example.com/", webhook.ErrBadRequest},
		{"a port out of range", "https://example.com:65536/?token=secret-token", webhook.ErrBadRequest},
		{"port 0", "https://example.com:0/?token=secret-token", webhook.ErrBadRequest},
		{"http", "http://example.com/?token=secret-token", webhook.ErrBlocked},
		{"an address of this machine", "https://user:secret-token@127.0.0.1/?token=secret-token", webhook.ErrBlocked},
		{"a number", "https://2130706433/?token=secret-token", webhook.ErrBlocked},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a, completed := s.Send(t.Context(), testRequest(s, tc.url))
			if !completed || a.Class != tc.want || a.Error == "" || a.EndedAt.IsZero() || Judge(a) != Retry {
				t.Errorf("Send = %+v, %v, want class %s", a, completed, tc.want)
			}
			if text := a.Error + s.Target(testEndpoint(tc.url)).String(); strings.Contains(text, "secret-token") {
				t.Errorf("%q tells a secret", text)
			}
		})
	}
	t.Run("no secret", func(t *testing.T) {
		t.Parallel()
		r := testRequest(s, "")
		r.Endpoint = s.Target(&webhook.Endpoint{URL: "https://example.com/"})
		if a, _ := s.Send(t.Context(), r); a.Class != webhook.ErrBadRequest {
			t.Errorf("Send = %+v", a)
		}
	})
	t.Run("an event type that is no header value", func(t *testing.T) {
		t.Parallel()
		r := testRequest(s, "https://example.com/")
		r.EventType = "a\r\nb"
		if a, _ := s.Send(t.Context(), r); a.Class != webhook.ErrBadRequest {
			t.Errorf("Send = %+v", a)
		}
	})
}

func BenchmarkBody(b *testing.B) {
	e := testEvent()
	e.Payload = []byte(`{"text": "` + strings.Repeat("x", 1000) + `"}`)
	b.ReportAllocs()
	for b.Loop() {
		Body(e)
	}
}
