package admin

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/testkit"
)

// A served is a server that runs as long as its test.
type served struct {
	*testing.T
	addr string
	log  *testkit.Output
}

func serve(t *testing.T, c *Certificate, h http.Handler) *served {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &served{T: t, addr: l.Addr().String(), log: &testkit.Output{}}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, c, h, slog.New(slog.NewTextHandler(s.log, nil))) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

// dial opens a connection, and writes to it.
func (s *served) dial(text string) net.Conn {
	s.Helper()
	conn, err := (&net.Dialer{}).DialContext(s.Context(), "tcp", s.addr)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, text); err != nil {
		s.Fatal(err)
	}
	return conn
}

// answer reads the status of the next answer on a connection.
func (s *served) answer(conn net.Conn) int {
	s.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		s.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

const request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

// Clients that connect and hang, whatever they have sent, keep nobody out.
func TestIdleConnectionsGiveWay(t *testing.T) {
	t.Parallel()
	s := serve(t, nil, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	var first net.Conn
	for i := range 3 * maxConnections {
		conn := s.dial([]string{"", "G", "GET / HTTP/1.1\r\nHost: loc"}[i%3])
		if i == 0 {
			first = conn
		}
	}
	if got := s.answer(s.dial(request)); got != http.StatusOK {
		t.Errorf("with a crowd that hangs a request got %d", got)
	}
	if err := first.SetReadDeadline(time.Now().Add(headerPatience / 2)); err != nil {
		t.Fatal(err)
	}
	if n, err := first.Read(make([]byte, 1)); n != 0 || err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the first one that hung was not closed: %d, %v", n, err)
	}
}

// Who is being answered stays while anybody idles, and goes where all are.
func TestAnsweredConnectionsStay(t *testing.T) {
	t.Parallel()
	entered, release := make(chan bool), make(chan bool)
	s := serve(t, nil, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		entered <- true
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	asked := func() net.Conn {
		conn := s.dial(request)
		<-entered
		return conn
	}
	oldest, second := asked(), asked()
	for range 2 * maxConnections {
		s.dial("")
	}
	for range maxConnections - 1 { // in place of those that idle, and then of the oldest
		asked()
	}
	if got := s.answer(oldest); got != 0 {
		t.Errorf("all were being answered, one more came, and the oldest was answered with %d", got)
	}
	close(release)
	if got := s.answer(second); got != http.StatusOK {
		t.Errorf("one that was being answered gave way to idle ones: got %d", got)
	}
}
