package send

import (
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/walhook/walhook/internal/webhook"
)

// checkAnswer holds what must hold whatever a receiver sends: one attempt, in time,
// storable, and the next answer is never taken from what this one left over.
func checkAnswer(t *testing.T, answer string, closes bool) {
	t.Helper()
	// Many answers use up the timeout. It is too short where the receiver cannot even read the request in it.
	for timeout := 150 * time.Millisecond; !checkAnswerWithin(t, answer, closes, timeout); timeout *= 4 {
	}
}

// checkAnswerWithin reports whether the timeout was long enough.
func checkAnswerWithin(t *testing.T, answer string, closes bool, timeout time.Duration) bool {
	t.Helper()
	var served atomic.Int32
	r := newReceiver(t, func(c net.Conn) bool {
		if served.Add(1) > 1 {
			return respond("HTTP/1.1 299 The second\r\nContent-Length: 0\r\n\r\n")(c)
		}
		io.WriteString(c, answer)
		return !closes
	})
	defer r.listener.Close()
	s := testSender(t, func(c *SenderConfig) { c.Timeout = timeout })
	defer s.Close()
	req := testRequest(s, r.url("http"))
	a, completed := s.Send(t.Context(), req)
	n := served.Load()
	if n == 0 && a.Class == webhook.ErrTimeout && timeout < unhurried {
		return false
	}
	if !completed || a.Duration > unhurried {
		t.Errorf("%q: Send = %+v, %v", answer, a, completed)
	}
	checkStorable(t, a)
	if n != 1 {
		t.Errorf("%q: %d requests were sent, want 1", answer, n)
	}
	if a.StatusCode == 299 {
		t.Errorf("%q: the first answer is the second", answer)
	}
	req.Endpoint.timeout = unhurried // as Target sets it
	if second, _ := s.Send(t.Context(), req); second.StatusCode != 299 {
		t.Errorf("%q: after %+v, Send = %+v", answer, a, second)
	}
	return true
}

// pieces make answers that are nearly right.
var pieces = []string{
	"HTTP/1.1 200 OK\r\n", "HTTP/1.1 204 No Content\r\n", "HTTP/1.0 200 OK\r\n", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\n",
	"HTTP/1.1 101 Switching Protocols\r\n", "HTTP/1.1 304 Not Modified\r\n", "HTTP/1.1 500 No\r\n", "HTTP/1.1 000 \r\n", "HTTP/2.0 200 OK\r\n",
	"Content-Length: 0\r\n", "Content-Length: 5\r\n", "Content-Length: 500000\r\n", "Content-Length: -1\r\n", "content-length: 5, 5\r\n",
	"Transfer-Encoding: chunked\r\n", "Transfer-Encoding: gzip, chunked\r\n", "Connection: close\r\n", "Connection: keep-alive\r\n", "Trailer: X\r\n",
	"Upgrade: h2c\r\n", "Retry-After: 5\r\n", "X: \x00\xff\r\n", " folded\r\n", "no colon\r\n", ": no name\r\n", "\r\n", "\n", "\r", "hello",
	"5\r\nhello\r\n", "0\r\n\r\n", "0\r\nX: y\r\n\r\n", "5;x=y\r\nhello\r\n", "ffffffffffffffffff\r\n", "-1\r\n", "\x00", strings.Repeat("x", 5000),
}

func TestAnyAnswer(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		parts := rapid.SliceOfN(rapid.SampledFrom(pieces), 0, 8).Draw(rt, "pieces")
		answer := strings.Join(parts, "")
		if rapid.Bool().Draw(rt, "an HTTP answer at least") {
			answer = "HTTP/1.1 200 OK\r\n" + answer
		}
		checkAnswer(t, answer, rapid.Bool().Draw(rt, "closes"))
		if t.Failed() {
			rt.FailNow()
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for i, p := range pieces {
		f.Add([]byte("HTTP/1.1 200 OK\r\n"+p+pieces[(i*7)%len(pieces)]), i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, answer []byte, closes bool) {
		if len(answer) < 1<<20 {
			checkAnswer(t, string(answer), closes)
		}
	})
}
