package listen_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/walhook/walhook/internal/listen"
	"github.com/walhook/walhook/internal/testkit"
	"github.com/walhook/walhook/sign"
)

const (
	secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	other  = "another secret of the endpoint"
	body   = `{"id":"1","event":"payment.succeeded","data":{"amount": 42}}`
	id     = "0193a1f0-7c00-7abc-8def-0123456789ab"
)

// start listens until the test ends, and returns the URL.
func start(t *testing.T, cfg listen.Config) (base string, out *testkit.Output) {
	t.Helper()
	out = new(testkit.Output)
	cfg.Addr, cfg.Out = "127.0.0.1:0", out
	if cfg.Status == 0 {
		cfg.Status = http.StatusOK
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- listen.Run(ctx, cfg) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("listen ends with %v", err)
		}
	})
	address := regexp.MustCompile(`http://127\.0\.0\.1:\d+`)
	until(t, "it listens", func() bool { return address.MatchString(out.String()) })
	return address.FindString(out.String()), out
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// A webhook is a request as walhook makes it.
func webhook(t *testing.T, to, body string, secrets ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, to, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Webhook-Event", "payment.succeeded")
	req.Header.Set("X-Webhook-Delivery-ID", id)
	req.Header.Set("X-Webhook-Retry", "0")
	req.Header.Set(sign.HeaderID, id)
	now := time.Now().Unix()
	req.Header.Set(sign.HeaderTimestamp, strconv.FormatInt(now, 10))
	if len(secrets) == 0 {
		return req
	}
	signer, err := sign.New(secrets...)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(sign.HeaderBodySignature, signer.Body([]byte(body)))
	req.Header.Set(sign.HeaderSignature, signer.Standard(id, now, []byte(body)))
	return req
}

func send(t *testing.T, req *http.Request) (status int, text string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(got)
}

func TestVerdicts(t *testing.T) {
	t.Parallel()
	seed := bytes.Repeat([]byte{7}, ed25519.SeedSize)
	private := "whsk_" + base64.StdEncoding.EncodeToString(seed)
	public, err := sign.PublicKey(private)
	if err != nil {
		t.Fatal(err)
	}
	bySecret := "secret " + sign.Fingerprint(secret)
	byOther := "secret " + sign.Fingerprint(other)
	byPublic := "public key " + sign.Fingerprint(public)
	stale := func(req *http.Request) {
		signer, err := sign.New(secret)
		if err != nil {
			t.Error(err)
		}
		old := time.Now().Add(-time.Hour).Unix()
		req.Header.Set(sign.HeaderTimestamp, strconv.FormatInt(old, 10))
		req.Header.Set(sign.HeaderSignature, signer.Standard(id, old, []byte(body)))
	}
	for _, tt := range []struct {
		what           string
		has, made      []string
		change         func(*http.Request)
		body, standard string
	}{
		{"no secret", nil, []string{secret}, nil, "not verified: no --secret", "not verified: no --secret"},
		{"one", []string{secret}, []string{secret}, nil, "verified: made with " + bySecret, "verified: made with " + bySecret},
		{"the second of two", []string{other, secret}, []string{secret}, nil, "verified: made with " + bySecret, "verified: made with " + bySecret},
		{"a rotation", []string{secret, other}, []string{other, secret}, nil, "verified: made with " + byOther, "verified: made with " + bySecret + " and " + byOther},
		{"another", []string{secret}, []string{other}, nil, "REFUSED: not made with " + bySecret, "REFUSED: not made with " + bySecret},
		{"none", []string{secret}, nil, nil, "REFUSED: there is none", "REFUSED: there is none"},
		{"old", []string{secret}, []string{secret}, stale, "verified: made with " + bySecret, "REFUSED: made with " + bySecret + ", but webhook-timestamp is more than 5m0s from now"},
		{
			"no time", []string{secret}, []string{secret}, func(r *http.Request) { r.Header.Del(sign.HeaderTimestamp) },
			"verified: made with " + bySecret, "REFUSED: signature headers are malformed",
		},
		{"a public key", []string{public}, []string{private}, nil, "not verified: it is no signature of a public key", "verified: made with " + byPublic},
		{"a public key of others", []string{public}, []string{secret}, nil, "not verified: it is no signature of a public key", "REFUSED: not made with " + byPublic},
	} {
		to, out := start(t, listen.Config{Secrets: tt.has})
		req := webhook(t, to, body, tt.made...)
		if tt.change != nil {
			tt.change(req)
		}
		if status, _ := send(t, req); status != http.StatusOK {
			t.Errorf("%s: answered %d", tt.what, status)
		}
		for header, says := range map[string]string{sign.HeaderBodySignature: tt.body, sign.HeaderSignature: tt.standard} {
			if !regexp.MustCompile(`(?m)^ *` + header + ` +` + regexp.QuoteMeta(says)).MatchString(out.String()) {
				t.Errorf("%s: %s: want %q in\n%s", tt.what, header, says, out)
			}
		}
		for _, hidden := range []string{secret, other, private, public} {
			if strings.Contains(out.String(), hidden) {
				t.Errorf("%s: a secret is shown:\n%s", tt.what, out)
			}
		}
	}
}

// What a stranger sends stays text, and is bounded.
func TestWhatIsPrinted(t *testing.T) {
	t.Parallel()
	to, out := start(t, listen.Config{})
	req := webhook(t, to+"/hooks/%1b[2J?token=hunter2", body)
	req.Header.Set("Authorization", "Bearer hunter2")
	send(t, req)
	until(t, "it is printed", func() bool { return strings.Contains(out.String(), "#1  answered 200 OK\n") })
	for _, want := range []string{
		"POST /hooks/%1b[2J?…\n", "X-Webhook-Event        payment.succeeded\n", "webhook-id             " + id + "\n", "other headers          Authorization\n",
		"    {\n      \"id\": \"1\",\n", `        "amount": 42` + "\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("want %q in\n%s", want, out)
		}
	}
	if strings.Contains(out.String(), "hunter2") {
		t.Errorf("a credential is shown:\n%s", out)
	}
	for _, hostile := range []string{
		"\x1b]0;owned\a\x1b[31m\u202e\u2066\u0085\r\x00\xff", `{"a":"` + "\x1b[2J\u202e" + `"}`, strings.Repeat("[", 500_000),
		strings.Repeat("[", 60) + strings.Repeat("]", 60), "{" + strings.Repeat(`"a":[[[[[[[[`, 2000), strings.Repeat("ä", 200_000), strings.Repeat("\xff", 100_000),
		strings.Repeat("\n", 100_000),
	} {
		before := len(out.String())
		req := webhook(t, to, hostile)
		req.Header.Set("User-Agent", "x\u202e\u009b"+strings.Repeat("y", 10_000))
		if status, _ := send(t, req); status != http.StatusOK {
			t.Errorf("answered %d", status)
		}
		until(t, "it is printed", func() bool {
			return strings.HasSuffix(out.String(), "answered 200 OK\n\n") && len(out.String()) > before
		})
		printed := out.String()[before:]
		if bad := regexp.MustCompile(`[^\P{C}\n]|[\x{2028}\x{2029}\x{FFFD}]`).FindString(printed); bad != "" {
			t.Errorf("%q is printed for %.20q", bad, hostile)
		}
		if len(printed) > 80_000 { // 16 KiB, each byte of which may become four characters
			t.Errorf("%d bytes are printed for %d", len(printed), len(hostile))
		}
		if lines := strings.Count(printed, "\n"); lines > 440 {
			t.Errorf("%d lines are printed for %.20q", lines, hostile)
		}
	}
	if status, _ := send(t, webhook(t, to, strings.Repeat("x", 1<<20+1))); status != http.StatusRequestEntityTooLarge {
		t.Errorf("a body of more than a MiB is answered %d", status)
	}
	until(t, "it is printed", func() bool { return strings.Contains(out.String(), "its body is larger than 1024 KiB: answered 413") })
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	to, out := start(t, listen.Config{Fail: 2, Status: 503})
	for range 2 { // each delivery by itself
		other := webhook(t, to, body)
		other.Header.Set("X-Webhook-Delivery-ID", fmt.Sprint(time.Now()))
		if status, text := send(t, other); status != 503 || !strings.Contains(text, "attempt 1 of the first 2") {
			t.Errorf("another delivery: %d %q", status, text)
		}
	}
	for i, want := range []int{503, 503, 200, 200} {
		if got, _ := send(t, webhook(t, to, body)); got != want {
			t.Errorf("attempt %d: %d, want %d", i+1, got, want)
		}
	}
	until(t, "it is printed", func() bool {
		return strings.Contains(out.String(), "#3  answered 503 Service Unavailable: attempt 1 of the first 2, which fail\n")
	})

	to, _ = start(t, listen.Config{Status: 410})
	if got, _ := send(t, webhook(t, to, body)); got != 410 {
		t.Errorf("without --fail: %d", got)
	}

	to, out = start(t, listen.Config{Delay: time.Hour})
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if resp, err := http.DefaultClient.Do(webhook(t, to, body).WithContext(ctx)); err == nil {
			resp.Body.Close()
			t.Error("answered, an hour early")
		}
	}()
	until(t, "it is printed before it is answered", func() bool { return strings.Contains(out.String(), `"amount": 42`) })
	leave()
	<-ended
	until(t, "that the sender has left", func() bool { return strings.Contains(out.String(), "#1  not answered") })
}

// The application gets the same bytes and headers, and its answer goes back.
func TestForward(t *testing.T) {
	t.Parallel()
	oracle, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	var got *http.Request
	var gotBody string
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		all, _ := io.ReadAll(r.Body)
		got, gotBody = r, string(all)
		w.Header().Set("X-App", "yes")
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "no\x1b[2J coffee")
	}))
	t.Cleanup(app.Close)
	for path, want := range map[string]string{"": "/hooks/a%20b?q=1", "/": "/hooks/a%20b?q=1", "/in?own=2": "/in?own=2"} {
		to, out := start(t, listen.Config{Forward: parse(t, app.URL+path), Secrets: []string{secret}})
		odd := `{ "b": 1,` + "\r\n\t" + `"a":2.0, "ä": "\u00e4"}  `
		req := webhook(t, to+"/hooks/a%20b?q=1", odd, secret)
		req.Header.Set("Authorization", "Bearer hunter2")
		req.Header.Set("Connection", "X-Hop")
		req.Header.Set("X-Hop", "one connection's")
		req.Header["User-Agent"] = nil
		sent := req.Header.Clone()
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusTeapot || resp.Header.Get("X-App") != "yes" || resp.Header.Get("Retry-After") != "7" || string(answer) != "no\x1b[2J coffee" {
			t.Errorf("answered %d %v %q", resp.StatusCode, resp.Header, answer)
		}
		if gotBody != odd || got.Method != http.MethodPost || got.RequestURI != want {
			t.Errorf("the application got %s %s %q, want %s", got.Method, got.RequestURI, gotBody, want)
		}
		for name, values := range sent {
			if name == "Connection" || name == "X-Hop" || name == "User-Agent" {
				if got.Header.Get(name) != "" {
					t.Errorf("%s reached the application: %q", name, got.Header.Get(name))
				}
			} else if strings.Join(got.Header.Values(name), "|") != strings.Join(values, "|") {
				t.Errorf("%s became %q, was %q", name, got.Header.Values(name), values)
			}
		}
		for name := range got.Header {
			if sent.Get(name) == "" && name != "Content-Length" && name != "Accept-Encoding" { // which this test's own client adds
				t.Errorf("the application got %s too", name)
			}
		}
		if err := oracle.Verify([]byte(gotBody), got.Header); err != nil {
			t.Errorf("the official library: %v", err)
		}
		until(t, "the answer is printed", func() bool {
			return strings.Contains(out.String(), "answered 418 I'm a teapot: "+app.URL+" said so in ")
		})
		if !strings.Contains(out.String(), `no\x1b[2J coffee`) || strings.Contains(out.String(), "own=2") {
			t.Errorf("printed:\n%s", out)
		}
	}
}

func TestForwardFails(t *testing.T) {
	t.Parallel()
	app := httptest.NewServer(http.RedirectHandler("/elsewhere", http.StatusFound))
	to, _ := start(t, listen.Config{Forward: parse(t, app.URL), Fail: 1, Status: 500})
	for i, want := range []int{500, 302} { // first not asked, then asked, and not followed
		if got, err := http.DefaultTransport.RoundTrip(webhook(t, to, body)); err != nil || got.StatusCode != want {
			t.Errorf("attempt %d: %v, %v", i+1, got, err)
		} else {
			got.Body.Close()
		}
	}
	app.Close()
	to, out := start(t, listen.Config{Forward: parse(t, app.URL+"/?token=hunter2")})
	if status, text := send(t, webhook(t, to, body)); status != http.StatusBadGateway || !strings.Contains(text, "did not answer") {
		t.Errorf("%d %q", status, text)
	}
	until(t, "why", func() bool { return strings.Contains(out.String(), "connection refused") })
	if strings.Contains(out.String(), "hunter2") {
		t.Errorf("a credential is shown:\n%s", out)
	}
}

func parse(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestThePortIsTaken(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	addr := server.Listener.Addr().String()
	err := listen.Run(t.Context(), listen.Config{Addr: addr, Out: io.Discard})
	if err == nil || !strings.Contains(err.Error(), addr+" is taken") || !strings.Contains(err.Error(), "--addr") {
		t.Errorf("got %v", err)
	}
}
