package admin

import (
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walhook/walhook/internal/testkit"
)

// The log says who has asked to change something and what came of it, and that there are
// strangers, without letting them fill it. A token is never in it, nor a wrong one.
func TestTheLogSaysWhoAsked(t *testing.T) {
	t.Parallel()
	pool := away(t)
	synctest.Test(t, func(t *testing.T) {
		log := &testkit.Output{}
		o := options(t, pool)
		o.Log = slog.New(slog.NewTextHandler(log, nil))
		o.Tokens = []string{"t0ken", "t0ken-to-come"}
		h := New(o)
		read := 0
		said := func() string {
			all := log.String()
			text := all[read:]
			read = len(all)
			return text
		}
		ask(h, "POST", "/api/test-webhook", `{"events":1}`, "Authorization: Bearer t0ken")
		want := `level=INFO msg="admin server: answered a POST" remote=192.0.2.1:1234 path=/api/test-webhook status=400`
		if got := said(); !strings.Contains(got, want) || strings.Count(got, "\n") != 1 {
			t.Errorf("a POST: got %q, want %q", got, want)
		}
		ask(h, "GET", "/nothing", "", "Authorization: Bearer t0ken")
		if got := said(); got != "" {
			t.Errorf("a GET: %q", got)
		}
		for range 1000 {
			ask(h, "POST", "/api/test-webhook", "{}", "Authorization: Bearer wr0ng")
		}
		want = `level=WARN msg="admin server: refused a request" remote=192.0.2.1:1234 method=POST status=401`
		if got := said(); !strings.Contains(got, want) || strings.Count(got, "\n") != 1 || strings.Contains(got, "wr0ng") {
			t.Errorf("a thousand wrong tokens: got %.500q, want one line that says %q", got, want)
		}
		time.Sleep(noticeEvery)
		ask(h, "POST", "/api/test-webhook", "{}", "Authorization: Bearer t0ken", "Sec-Fetch-Site: cross-site")
		if got := said(); !strings.Contains(got, "status=403") || !strings.Contains(got, "others_since=999") {
			t.Errorf("another origin, later: %q", got)
		}
	})
}

// Nobody makes the server read more than the largest test webhook.
func TestBodiesAreBounded(t *testing.T) {
	t.Parallel()
	s := serve(t, nil, New(options(t, away(t))))
	conn := s.dial("POST /api/test-webhook HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
	chunk := "10000\r\n" + strings.Repeat(" ", 1<<16) + "\r\n"
	for range maxTestBody>>16 + 1 {
		if _, err := conn.Write([]byte(chunk)); err != nil {
			break // the answer is there already
		}
	}
	if got := s.answer(conn); got != http.StatusRequestEntityTooLarge {
		t.Errorf("got %d", got)
	}
	long := s.dial("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 2*maxHeader) + "\r\n\r\n")
	if got := s.answer(long); got != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a long header: got %d", got)
	}
}
