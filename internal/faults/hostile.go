package faults

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"time"

	"github.com/walhook/walhook/internal/webhook"
)

// A hostility is a receiver's bad behaviour, and what walhook must record for it.
type hostility struct {
	name   string
	answer answer
	class  webhook.ErrorClass // "": it is a success
	text   string             // the stored answer, if that is a failure
	https  bool               // the endpoint's URL is https, and the receiver speaks plain HTTP
	url    string             // of a server of its own; "": a path of the receiver
}

// always reports whether the hostility cannot be switched off.
func (h *hostility) always() bool { return h.https || h.url != "" }

// hostileFor bounds how long a receiver goes on: much longer than walhook's timeouts.
const hostileFor = time.Minute

// hostilities returns all of them. The impostor is a TLS server with an untrusted
// certificate.
func hostilities(impostor string) []hostility {
	bomb := gzipBomb(64 << 20)
	endless := strings.Repeat("endless ", 4<<10)
	header := "X-Padding: " + strings.Repeat("p", 8<<10) + "\r\n"
	return []hostility{
		{name: "NUL", class: webhook.ErrHTTP5xx, text: "ab", answer: says(500, "a\x00b\x00")},
		{name: "invalid UTF-8", class: webhook.ErrHTTP4xx, text: "\uFFFD \uFFFD(", answer: says(400, "\xff\xfe\xed\xa0\x80 \xc3\x28")},
		{name: "endless body", answer: goesOn(200, "HTTP/1.1 200 OK\r\n\r\n", endless, 0)},
		{name: "50 MB body", answer: answer{status: 200, write: func(c net.Conn) {
			begin(c)
			flood(c, "HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n", endless, 50_000_000)
		}}},
		{name: "gzip bomb", answer: says(200, string(bomb), "Content-Encoding: gzip")},
		{name: "body that trickles", answer: goesOn(200, "HTTP/1.1 200 OK\r\n\r\n", ".", 200*time.Millisecond)},
		{name: "head that trickles", class: webhook.ErrTimeout, answer: goesOn(0, "HTTP/1.1 200 OK\r\nX-Slow: ", ".", 200*time.Millisecond)},
		{name: "10 MB of headers", class: webhook.ErrProtocol, answer: answer{write: func(c net.Conn) { begin(c); flood(c, "HTTP/1.1 200 OK\r\n", header, 10<<20) }}},
		{name: "1xx flood", class: webhook.ErrProtocol, answer: goesOn(0, "", "HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n", 0)},
		{name: "no HTTP", class: webhook.ErrProtocol, answer: answer{write: func(c net.Conn) { begin(c); _, _ = io.WriteString(c, "220 mail.example ESMTP\r\n") }}},
		{name: "reset", class: webhook.ErrReset, answer: answer{breaks: true}},
		{name: "redirect loop", class: webhook.ErrRedirect, answer: says(302, "", "Location: .")},
		{name: "no TLS", class: webhook.ErrTLS, https: true},
		{name: "a certificate of its own making", class: webhook.ErrTLS, url: impostor},
	}
}

// An Impostor speaks TLS with a certificate that no authority has signed. A request that
// reaches it should never have been sent.
type Impostor struct {
	server   *httptest.Server
	requests atomic.Int64
}

func newImpostor() *Impostor {
	i := &Impostor{}
	i.server = httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { i.requests.Add(1) }))
	i.server.Config.ErrorLog = log.New(io.Discard, "", 0) // it would report every handshake that walhook aborts
	i.server.StartTLS()
	return i
}

// begin bounds what follows.
func begin(conn net.Conn) { _ = conn.SetDeadline(time.Now().Add(hostileFor)) }

// says writes a status and a body at once.
func says(status int, body string, headers ...string) answer {
	var b strings.Builder
	fmt.Fprintf(&b, "HTTP/1.1 %d Whatever\r\nContent-Length: %d\r\nConnection: close\r\n", status, len(body))
	for _, h := range headers {
		b.WriteString(h + "\r\n")
	}
	b.WriteString("\r\n" + body)
	return answer{status: status, write: func(conn net.Conn) {
		begin(conn)
		_, _ = io.WriteString(conn, b.String())
	}}
}

// goesOn writes a head and then the same bytes again and again, until the other side
// closes the connection.
func goesOn(status int, head, again string, every time.Duration) answer {
	return answer{status: status, write: func(conn net.Conn) {
		begin(conn)
		_, err := io.WriteString(conn, head)
		for err == nil {
			time.Sleep(every)
			_, err = io.WriteString(conn, again)
		}
	}}
}

// flood writes a head and then the same bytes again, up to a number of bytes.
func flood(conn net.Conn, head, again string, size int) {
	_, err := io.WriteString(conn, head)
	for ; err == nil && size > 0; size -= len(again) {
		_, err = io.WriteString(conn, again[:min(len(again), size)])
	}
}

// gzipBomb is some KiB that decompress to size bytes.
func gzipBomb(size int) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	nothing := make([]byte, 1<<20)
	for range size >> 20 {
		_, _ = w.Write(nothing) // to a bytes.Buffer
	}
	_ = w.Close()
	return b.Bytes()
}
