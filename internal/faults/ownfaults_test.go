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

// ownFaults has the egress proxy go away, and then takes the file descriptors away.
func ownFaults(t *testing.T, s Setup) {
	const anyFiles = 8 // fewer than walhook has open
	e := newEgress(t)
	s.Env = append(s.Env, "WALHOOK_PROXY_URL=http://"+e.address)
	x := newTrial(t, s)
	p := x.start()
	var files unix.Rlimit
	limit := func(now, before *unix.Rlimit) {
		if err := unix.Prlimit(p.PID, unix.RLIMIT_NOFILE, now, before); err != nil {
			x.Fatal(err)
		}
	}
	x.suffer(p, []ownFault{
		{kind: "proxy", says: "the proxy does not connect", mend: "WALHOOK_PROXY_URL", begin: e.stop, end: e.start},
		{kind: "descriptors", says: "no file descriptors are left", begin: func() { // and nobody can ask the admin server
			limit(nil, &files)
			limit(&unix.Rlimit{Cur: anyFiles, Max: files.Max}, nil)
			e.stop() // so that no tunnel is left
			e.start()
		}, end: func() { limit(&files, nil) }},
	})
}

// resolverAway has the endpoints' host resolve through a resolver that goes away, and then
// one that refuses. walhook has a resolv.conf of its own.
func resolverAway(t *testing.T, s Setup) {
	const host = "receiver.test"
	r := newNameServer(t, host)
	s.Binary = withResolver(t, s.Binary, r.address)
	x := newTrial(t, s)
	x.exec(`UPDATE webhook_endpoints SET url = replace(url, '127.0.0.1', $1)`, host)
	p := x.start()
	const idle = 6 * time.Second // longer than walhook keeps a connection that nobody uses
	x.suffer(p, []ownFault{
		{kind: "away", says: "the resolver does not answer, or refuses", mend: "resolv.conf", begin: func() { <-time.After(idle); r.stop() }, end: r.start},
		{kind: "refuses", says: "the resolver does not answer, or refuses", mend: "resolv.conf", begin: func() { <-time.After(idle); r.refuses.Store(true) },
			end: func() { r.refuses.Store(false) }},
	})
}

// An ownFault is a fault of walhook's own surroundings, which no endpoint may pay for.
type ownFault struct {
	kind       string
	says       string // the warning
	mend       string // what /readyz names; "": it cannot be asked
	begin, end func()
}

// suffer has events come before and during each fault. No attempt is counted meanwhile, no
// endpoint pays, and afterwards everything is delivered.
func (x *Trial) suffer(p *Process, all []ownFault) {
	const (
		goesOn    = 20 * time.Second // 5 s until it is tried again, and what has waited
		enoughFor = 2 * time.Second
	)
	x.receiver.failShare = 0
	x.ready()
	var figures []string
	for _, fault := range all {
		<-x.drive(Load{Rate: *rate / 2, Duration: enoughFor})
		x.drain(time.Minute)
		warned := p.logged(fault.says)
		fault.begin()
		from := x.journal.Count()
		stop := x.driveOn(Load{Rate: *rate / 2})
		<-time.After(lasting(30 * time.Second))
		if fault.mend != "" {
			status, says := p.ready(x.Context())
			x.expect(status == http.StatusServiceUnavailable && strings.Contains(says, fault.mend), "/readyz is %d %s", status, says)
		}
		stop()
		x.load.Wait()
		x.expect(x.journal.Count() == from, "%s: %d requests arrived", fault.kind, x.journal.Count()-from)
		n := x.count(`SELECT count(*) FROM webhook_deliveries WHERE attempts > 1 OR status <> 'success' AND (attempts > 0 OR error_class IS NOT NULL)`)
		x.expect(n == 0, "%s: attempts of %d deliveries were charged", fault.kind, n)
		n = x.count(`SELECT count(*) FROM webhook_endpoint_failures`)
		x.expect(n == 0, "%s: %d endpoints count as failing", fault.kind, n)
		fault.end()
		took := x.drain(goesOn)
		warned = p.logged(fault.says) - warned
		x.expect(warned == 1, "%s: %d warnings", fault.kind, warned)
		figures = append(figures, fmt.Sprintf("%s=%s", fault.kind, took.Round(time.Millisecond)))
	}
	x.expect(x.count(`SELECT count(*) FROM webhook_deliveries WHERE attempts <> 1`) == 0, "not every delivery has one attempt")
	x.finish(time.Minute, figures...)
}

func (x *Trial) count(sql string) (n int) {
	x.Helper()
	if err := x.pool.QueryRow(x.Context(), sql).Scan(&n); err != nil {
		x.Fatal(err)
	}
	return n
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
