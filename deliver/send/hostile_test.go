package send

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/walhook/walhook/internal/webhook"
)

func gzipBomb() string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.CopyN(w, zeros{}, 50<<20)
	w.Close()
	return b.String()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// A hostile response becomes an Attempt like any other: in time, storable, and without
// leaks.
func TestHostileReceivers(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("group", func(t *testing.T) {
		const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
		bomb := gzipBomb()
		for _, tc := range []struct {
			name   string
			play   script
			class  webhook.ErrorClass
			status int
			text   string // prefix of the kept response
		}{
			{"2xx without a body", respond("HTTP/1.1 204 No Content\r\n\r\n"), "", 204, ""},
			{"HTTP/1.0", func(c net.Conn) bool { io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\nok"); return false }, "", 200, "ok"},
			{"NUL", respond("HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\na\x00b"), webhook.ErrHTTP5xx, 500, "ab"},
			{"invalid UTF-8", respond("HTTP/1.1 500 \xff\xfe\r\nX: \xff\r\nContent-Length: 3\r\n\r\na\xffb"), webhook.ErrHTTP5xx, 500, "a\uFFFDb"},
			{"endless body", endless("HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("x", 1<<16)), "", 200, "xxx"},
			{"endless chunks", endless(chunked, "3\r\nabc\r\n"), "", 200, "abcabc"},
			{"endless chunk extension", endless(chunked+"3;", "xxxxxxxxxxxxxxxx"), "", 200, ""},
			{"endless trailers", endless(chunked+"3\r\nabc\r\n0\r\n", "A: b\r\n"), "", 200, "abc"},
			{"invalid chunk", respond(chunked + "zz\r\n"), "", 200, ""},
			{"50 MB body", endless("HTTP/1.1 400 No\r\nContent-Length: 52428800\r\n\r\n", strings.Repeat("x", 1<<16)), webhook.ErrHTTP4xx, 400, "xxx"},
			{"gzip bomb", respond(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", len(bomb), bomb)), "", 200, "\x1f\uFFFD"},
			{"trickling body", trickle("HTTP/1.1 200 OK\r\n\r\n"), "", 200, "xx"},
			{"trickling body of a failure", trickle("HTTP/1.1 503 No\r\n\r\n"), webhook.ErrHTTP5xx, 503, "xx"},
			{"body that does not come", silent("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), "", 200, ""},
			{"body that breaks", reset("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"), "", 200, ""},
			{"two lengths", respond("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"), webhook.ErrProtocol, 0, ""},
			{"10 MB of headers", endless("HTTP/1.1 200 OK\r\n", "X-Long: "+strings.Repeat("x", 1000)+"\r\n"), webhook.ErrProtocol, 0, ""},
			{"one endless header", endless("HTTP/1.1 200 OK\r\nX: ", strings.Repeat("x", 1000)), webhook.ErrProtocol, 0, ""},
			{"ten thousand headers, and then nothing", silent("HTTP/1.1 200 OK\r\n" + strings.Repeat("a:\r\n", 10_000)), webhook.ErrProtocol, 0, ""},
			{"four hundred headers", respond("HTTP/1.1 200 OK\r\n" + strings.Repeat("A: some value or other\r\n", 400) + "Content-Length: 2\r\n\r\nok"), "", 200, "ok"},
			{"a body of many lines", respond("HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + strings.Repeat("\n", 10_000)), "", 200, "\n\n"},
			{"endless status line", endless("HTTP/1.1 200 ", strings.Repeat("x", 1000)), webhook.ErrProtocol, 0, ""},
			{"1xx flood", endless("", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"), webhook.ErrProtocol, 0, ""},
			{"some 1xx, then 2xx", respond("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"), "", 204, ""},
			{"100, then nothing", silent("HTTP/1.1 100 Continue\r\n\r\n"), webhook.ErrTimeout, 0, ""},
			{"trickling 1xx", trickle("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 "), webhook.ErrTimeout, 0, ""},
			{"101", silent("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"), webhook.ErrProtocol, 101, ""},
			{"trickling headers", trickle("HTTP/1.1 200 OK\r\nX: "), webhook.ErrTimeout, 0, ""},
			{"no answer", silent(""), webhook.ErrTimeout, 0, ""},
			{"reset before the answer", reset(""), webhook.ErrReset, 0, ""},
			{"closed before the answer", func(net.Conn) bool { return false }, webhook.ErrReset, 0, ""},
			{"reset in the status line", reset("HTTP/1.1 200 O"), webhook.ErrReset, 0, ""},
			{"reset in the status", reset("HTTP/1.1 20"), webhook.ErrReset, 0, ""},
			{"reset in the headers", reset("HTTP/1.1 200 OK\r\nX: y"), webhook.ErrReset, 0, ""},
			{"closed in the headers", func(c net.Conn) bool { io.WriteString(c, "HTTP/1.1 200 OK\r\nX: y\r\n"); return false }, webhook.ErrReset, 0, ""},
			{"closed within a header", func(c net.Conn) bool { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Le"); return false }, webhook.ErrReset, 0, ""},
			{"redirect loop", func(c net.Conn) bool {
				fmt.Fprintf(c, "HTTP/1.1 302 Found\r\nLocation: http://%s/\r\nContent-Length: 0\r\n\r\n", c.LocalAddr())
				return true
			}, webhook.ErrRedirect, 302, ""},
			{"308", respond("HTTP/1.1 308 No\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"), webhook.ErrRedirect, 308, ""},
			{"304 with a body", respond("HTTP/1.1 304 No\r\n\r\nbody"), webhook.ErrRedirect, 304, ""},
			{"204 with a body", respond("HTTP/1.1 204 No\r\n\r\nbody"), "", 204, ""},
			{"HTTP/0.9", func(c net.Conn) bool { io.WriteString(c, "<html>hello</html>"); return false }, webhook.ErrProtocol, 0, ""},
			{"garbage", endless("", "\x00\xff\xfe\x01"), webhook.ErrProtocol, 0, ""},
			{"a TLS alert", func(c net.Conn) bool { io.WriteString(c, "\x15\x03\x01\x00\x02\x02\x46\n"); return false }, webhook.ErrProtocol, 0, ""},
			{"HTTP/2 preface", func(c net.Conn) bool { io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); return false }, webhook.ErrProtocol, 0, ""},
			{"status of two digits", respond("HTTP/1.1 20 OK\r\n\r\n"), webhook.ErrProtocol, 0, ""},
			{"status of four digits", respond("HTTP/1.1 2000 OK\r\n\r\n"), webhook.ErrProtocol, 0, ""},
			{"status 000", respond("HTTP/1.1 000 \r\nContent-Length: 0\r\n\r\n"), webhook.ErrProtocol, 0, ""},
			{"status 999", respond("HTTP/1.1 999 \r\nContent-Length: 0\r\n\r\n"), webhook.ErrHTTP5xx, 999, ""},
			{"401 without what authentication needs", respond("HTTP/1.1 401 \r\nContent-Length: 0\r\n\r\n"), webhook.ErrHTTP4xx, 401, ""},
			{"407", respond("HTTP/1.1 407 \r\nContent-Length: 0\r\n\r\n"), webhook.ErrHTTP4xx, 407, ""},
			{"410", respond("HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"), webhook.ErrHTTP4xx, 410, ""},
		} {
			t.Run(tc.name, func(t *testing.T) {
				t.Parallel()
				s := testSender(t, func(c *SenderConfig) { c.Timeout = runsOut(500*time.Millisecond, tc.class) })
				r := newReceiver(t, tc.play)
				a, completed := s.Send(t.Context(), testRequest(s, r.url("http")))
				if !completed || a.Class != tc.class || a.StatusCode != tc.status {
					t.Errorf("Send = %+v, %v, want class %q and status %d", a, completed, tc.class, tc.status)
				}
				if !strings.HasPrefix(a.Response, tc.text) {
					t.Errorf("response %.40q, want %q", a.Response, tc.text)
				}
				if a.Duration > unhurried/2 {
					t.Errorf("it took %v", a.Duration)
				}
				checkStorable(t, a)
				eventually(t, "the request was read", func() bool { return len(r.requests) > 0 })
				if n := len(r.requests); n != 1 {
					t.Errorf("%d requests were sent, want 1", n)
				}
			})
		}
	})
}

// checkStorable checks an attempt against the bounds of webhook.Attempt.
func checkStorable(t *testing.T, a webhook.Attempt) {
	t.Helper()
	if len(a.Error) > maxError || len(a.Response) > maxResponse {
		t.Errorf("%d bytes of error, %d of response", len(a.Error), len(a.Response))
	}
	if text := a.Error + a.Response; !utf8.ValidString(text) || strings.Contains(text, "\x00") {
		t.Errorf("not storable: %q", text)
	}
	if (a.Class == "") != (a.Error == "") {
		t.Errorf("class %q, but error %q", a.Class, a.Error)
	}
	if a.EndedAt.IsZero() || a.Duration <= 0 || a.RetryAfter < 0 {
		t.Errorf("times are missing: %+v", a)
	}
}

func TestAnEchoOfTheRequestDoesNotGetIntoTheError(t *testing.T) {
	t.Parallel()
	const echo = "POST /hook?token=secret-token HTTP/1.1\r\n"
	for name, response := range map[string]string{
		"as the status line": echo + "\r\n",
		"as the status":      "HTTP/1.1 /hook?token=secret-token\r\n\r\n",
		"as the reason":      "HTTP/1.1 302 /hook?token=secret-token\r\nLocation: /hook?token=secret-token\r\nContent-Length: 0\r\n\r\n",
		"as a place":         "HTTP/1.1 302 Found\r\nLocation: https://example.com/a/secret-token/b\r\nContent-Length: 0\r\n\r\n",
		"as a host":          "HTTP/1.1 302 Found\r\nLocation: https://secret-token.example.com/\r\nContent-Length: 0\r\n\r\n",
		"as a header":        "HTTP/1.1 200 OK\r\n" + echo + "\r\n",
		"as a length":        "HTTP/1.1 200 OK\r\nContent-Length: secret-token\r\n\r\n",
		"as an encoding":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: secret-token\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := testSender(t, nil)
			r := newReceiver(t, respond(response))
			a, _ := s.Send(t.Context(), testRequest(s, r.url("http")+"/hook?token=secret-token"))
			if a.Class == "" || strings.Contains(a.Error, "secret-token") {
				t.Errorf("Send = %+v", a)
			}
		})
	}
}

// What a receiver floods us with is not kept. Other tests must not run meanwhile.
func TestFloodsStayWithinMemory(t *testing.T) {
	const most = 8 << 20 // what parsing 64 KiB of the shortest headers allocates, most of it garbage at once
	var names strings.Builder
	for i := range 50_000 {
		fmt.Fprintf(&names, "%x:\r\n", i)
	}
	for name, play := range map[string]script{
		"headers":     endless("HTTP/1.1 200 OK\r\n", names.String()),
		"one header":  endless("HTTP/1.1 200 OK\r\nX: ", strings.Repeat("x", 1<<16)),
		"1xx":         endless("", strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", 1000)),
		"body":        endless("HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("x", 1<<16)),
		"tiny chunks": endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", strings.Repeat("1\r\nx\r\n", 10_000)),
		"trailers":    endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", strings.Repeat("A: b\r\n", 10_000)),
	} {
		t.Run(name, func(t *testing.T) {
			s := testSender(t, nil)
			r := newReceiver(t, play)
			req := testRequest(s, r.url("http"))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			a, _ := s.Send(t.Context(), req)
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > most {
				t.Errorf("%d bytes were allocated for status %d, class %q", n, a.StatusCode, a.Class)
			}
		})
	}
}
