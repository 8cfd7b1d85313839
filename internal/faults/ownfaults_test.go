package faults

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ownFaults has the egress proxy go away, and then takes the file descriptors away. No
// attempt is counted meanwhile, no endpoint pays, and afterwards everything is delivered.
func ownFaults(t *testing.T, s Setup) {
	const (
		goesOn    = 20 * time.Second // 5 s until it is tried again, and what has waited
		anyFiles  = 8                // fewer than walhook has open
		enoughFor = 2 * time.Second
	)
	e := newEgress(t)
	s.Env = append(s.Env, "WALHOOK_PROXY_URL=http://"+e.address)
	x := newTrial(t, s)
	x.receiver.failShare = 0
	p := x.start()
	x.ready()
	<-x.drive(Load{Rate: *rate / 2, Duration: enoughFor})
	x.drain(time.Minute)
	count := func(sql string) (n int) {
		if err := x.pool.QueryRow(t.Context(), sql).Scan(&n); err != nil {
			x.Fatal(err)
		}
		return n
	}
	var files unix.Rlimit
	limit := func(now, before *unix.Rlimit) {
		if err := unix.Prlimit(p.PID, unix.RLIMIT_NOFILE, now, before); err != nil {
			x.Fatal(err)
		}
	}
	var figures []string
	for _, fault := range []struct {
		kind       string
		begin, end func()
		warned     func() int
	}{
		{"proxy", e.stop, e.start, func() int { return p.logged("the proxy does not connect") }},
		{"descriptors", func() {
			limit(nil, &files)
			limit(&unix.Rlimit{Cur: anyFiles, Max: files.Max}, nil)
			e.stop() // so that no tunnel is left
			e.start()
		}, func() { limit(&files, nil) }, func() int { return p.logged("no file descriptors are left") }},
	} {
		fault.begin()
		from := x.journal.Count()
		stop := x.driveOn(Load{Rate: *rate / 2})
		<-time.After(lasting(30 * time.Second))
		if fault.kind == "proxy" { // without descriptors nobody can ask
			status, says := p.ready(t.Context())
			x.expect(status == http.StatusServiceUnavailable && strings.Contains(says, "WALHOOK_PROXY_URL"), "/readyz is %d %s", status, says)
		}
		stop()
		x.load.Wait()
		x.expect(x.journal.Count() == from, "%s: %d requests arrived", fault.kind, x.journal.Count()-from)
		if n := count(`SELECT count(*) FROM webhook_deliveries WHERE attempts > 1 OR status <> 'success' AND (attempts > 0 OR error_class IS NOT NULL)`); n > 0 {
			x.expect(false, "%s: attempts of %d deliveries were charged", fault.kind, n)
		}
		if n := count(`SELECT count(*) FROM webhook_endpoint_failures`); n > 0 {
			x.expect(false, "%s: %d endpoints count as failing", fault.kind, n)
		}
		fault.end()
		took := x.drain(goesOn)
		x.expect(fault.warned() == 1, "%s: %d warnings", fault.kind, fault.warned())
		figures = append(figures, fmt.Sprintf("%s=%s", fault.kind, took.Round(time.Millisecond)))
	}
	x.expect(count(`SELECT count(*) FROM webhook_deliveries WHERE attempts <> 1`) == 0, "not every delivery has one attempt")
	x.finish(time.Minute, figures...)
}

// An egress is a proxy for CONNECT that comes and goes.
type egress struct {
	t        *testing.T
	address  string
	listener net.Listener

	mu    sync.Mutex
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

func newEgress(t *testing.T) *egress {
	e := &egress{t: t, address: "127.0.0.1:0", conns: map[net.Conn]bool{}}
	e.start()
	e.address = e.listener.Addr().String()
	t.Cleanup(e.stop)
	return e
}

func (e *egress) start() {
	e.t.Helper()
	var err error
	if e.listener, err = net.Listen("tcp", e.address); err != nil {
		e.t.Fatal(err)
	}
	e.wg.Go(func() {
		for {
			conn, err := e.listener.Accept()
			if err != nil {
				return
			}
			e.wg.Go(func() { e.connect(conn) })
		}
	})
}

// stop closes all tunnels too.
func (e *egress) stop() {
	e.listener.Close()
	e.mu.Lock()
	for c := range e.conns {
		c.Close()
	}
	e.mu.Unlock()
	e.wg.Wait()
}

// keep notes a connection until it is closed.
func (e *egress) keep(c net.Conn) (closed func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conns[c] = true
	return func() {
		c.Close()
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.conns, c)
	}
}

func (e *egress) connect(conn net.Conn) {
	defer e.keep(conn)()
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil || req.Method != http.MethodConnect {
		return
	}
	there, err := net.Dial("tcp", req.Host)
	if err != nil {
		return
	}
	defer e.keep(there)()
	if _, err := io.WriteString(conn, "HTTP/1.1 200 Connected\r\n\r\n"); err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(conn, there) // a tunnel ends however it ends
		conn.Close()
	})
	_, _ = io.Copy(there, conn)
	there.Close()
	back.Wait()
}
