package send

import (
	"context"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

func TestARedirectSaysWhereToAndThatItIsNotFollowed(t *testing.T) {
	t.Parallel()
	for location, want := range map[string]string{
		"https://www.example.com/hooks?key=1#top": "301 Moved Permanently: redirects are not followed; it points to https://www.example.com/hooks",
		"https://user:pass@example.com/":          "301 Moved Permanently: redirects are not followed; it points to https://example.com/",
		"/elsewhere?x":                            "301 Moved Permanently: redirects are not followed; it points to http://HOST/elsewhere",
		"":                                        "301 Moved Permanently: redirects are not followed",
		"https://%zz/":                            "301 Moved Permanently: redirects are not followed",
		"mailto:somebody":                         "301 Moved Permanently: redirects are not followed",
		"https://example.com/" + strings.Repeat("a", 600): ("301 Moved Permanently: redirects are not followed; it points to https://example.com/" + strings.Repeat("a", 600))[:maxError],
	} {
		s := testSender(t, nil)
		r := newReceiver(t, respond("HTTP/1.1 301 Moved\r\nLocation: "+location+"\r\nContent-Length: 0\r\n\r\n"))
		a, _ := s.Send(t.Context(), testRequest(s, r.url("http")))
		want = strings.ReplaceAll(want, "HOST", strings.TrimPrefix(r.url("http"), "http://"))
		if a.Class != webhook.ErrRedirect || a.Error != want {
			t.Errorf("%q: %s: %q, want %q", location, a.Class, a.Error, want)
		}
		checkStorable(t, a)
	}
}

func TestATricklingBodyHoldsAnAttemptForASecond(t *testing.T) {
	t.Parallel()
	s := testSender(t, nil)
	r := newReceiver(t, trickle("HTTP/1.1 200 OK\r\n\r\n"))
	a, _ := s.Send(t.Context(), testRequest(s, r.url("http")))
	if Judge(a) != Delivered || a.Duration < bodyTimeout || a.Duration > unhurried/2 {
		t.Errorf("Send = %v after %v", Judge(a), a.Duration)
	}
}

func TestRetryAfterIsHandedOver(t *testing.T) {
	t.Parallel()
	s := testSender(t, nil)
	r := newReceiver(t, respond("HTTP/1.1 503 No\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n"))
	if a, _ := s.Send(t.Context(), testRequest(s, r.url("http"))); a.RetryAfter != 2*time.Minute {
		t.Errorf("RetryAfter = %v", a.RetryAfter)
	}
}

// A second write costs a fifth of the throughput, and a second packet on a slow path.
func TestAnOrdinaryRequestIsOneWrite(t *testing.T) {
	t.Parallel()
	var writes atomic.Int32 // Live is asked before each
	s := testSender(t, func(c *SenderConfig) {
		c.Live = func() bool { writes.Add(1); return true }
	})
	r := newReceiver(t, respond("HTTP/1.1 204 No Content\r\n\r\n"))
	req := testRequest(s, r.url("http"))
	e := testEvent()
	e.Payload = []byte(`"` + strings.Repeat("x", 14<<10) + `"`)
	req.Body = Body(e)
	if a, _ := s.Send(t.Context(), req); Judge(a) != Delivered {
		t.Fatalf("Send = %+v", a)
	}
	if n := writes.Load(); n != 1 {
		t.Errorf("the request took %d writes, want 1", n)
	}
}

func TestALargeBodyArrivesWhole(t *testing.T) {
	t.Parallel()
	s := testSender(t, nil)
	r := newReceiver(t, respond("HTTP/1.1 204 No Content\r\n\r\n"))
	req := testRequest(s, r.url("http"))
	e := testEvent()
	e.Payload = []byte(`"` + strings.Repeat("x", outbox.MaxPayloadBytes) + `"`)
	req.Body = Body(e)
	if a, _ := s.Send(t.Context(), req); Judge(a) != Delivered {
		t.Fatalf("Send = %+v", a)
	}
	if got := <-r.requests; !strings.HasSuffix(got, "\r\n\r\n"+string(req.Body)) {
		t.Errorf("%d bytes arrived, not ending in the body", len(got))
	}
}

func TestCancellationFromOutsideIsNoOutcome(t *testing.T) {
	t.Parallel()
	s := testSender(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	r := newReceiver(t, func(c net.Conn) bool {
		cancel()
		return silent("")(c)
	})
	if a, completed := s.Send(ctx, testRequest(s, r.url("http"))); completed || a != (webhook.Attempt{}) {
		t.Errorf("Send = %+v, %v", a, completed)
	}
	if a, completed := s.Send(ctx, testRequest(s, r.url("http"))); completed {
		t.Errorf("Send with a cancelled context = %+v, %v", a, completed)
	}
}

func TestCancellationAfterTheStatusLineIsAnOutcome(t *testing.T) {
	t.Parallel()
	s := testSender(t, nil)
	for tries := 1; ; tries++ { // a machine that does other things too may take a second for nothing
		ctx, cancel := context.WithCancel(t.Context())
		r := newReceiver(t, func(c net.Conn) bool {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")
			time.AfterFunc(200*time.Millisecond, cancel)
			return silent("")(c)
		})
		a, completed := s.Send(ctx, testRequest(s, r.url("http")))
		if !completed || Judge(a) != Delivered || a.Response != "ab" {
			t.Errorf("Send = %+v, %v", a, completed)
		}
		if a.Duration < bodyTimeout {
			return
		}
		if tries == 10 {
			t.Fatalf("it took %v, as if nobody had cancelled it", a.Duration)
		}
	}
}
