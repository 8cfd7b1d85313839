package pgtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"testing"
)

// A Proxy stands between a client and PostgreSQL. It may lie about pids, and swallow
// everything.
type Proxy struct {
	URL      string // of the database, by way of the proxy
	upstream string
	pid      func(uint32) uint32 // nil: as it is
	holes    chan struct{}       // closed: nothing passes any more
}

// NewProxy starts a proxy before a database that is given by its URL. It tells clients
// another pid of their backend than PostgreSQL does; nil: the same.
func NewProxy(t testing.TB, database string, pid func(uint32) uint32) *Proxy {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{upstream: u.Host, pid: pid, holes: make(chan struct{})}
	u.Host = l.Addr().String()
	p.URL = u.String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.serve(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		l.Close()
		<-done
	})
	return p
}

// Swallow lets nothing pass any more, and closes nothing.
func (p *Proxy) Swallow() { close(p.holes) }

func (p *Proxy) serve(ctx context.Context, l net.Listener) {
	for {
		client, err := l.Accept()
		if err != nil {
			return
		}
		server, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.upstream)
		if err != nil {
			client.Close()
			continue
		}
		context.AfterFunc(ctx, func() {
			client.Close()
			server.Close()
		})
		go p.pass(server, client, func([]byte) {})
		go p.pass(client, server, p.rewrite)
	}
}

// pass copies until a side ends, or everything is swallowed.
func (p *Proxy) pass(to, from net.Conn, change func([]byte)) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		select {
		case <-p.holes: // and the other side never hears that this one has ended
			_, _ = io.Copy(io.Discard, from)
			return
		default:
		}
		change(buffer[:n])
		if _, writeErr := to.Write(buffer[:n]); err != nil || writeErr != nil {
			to.Close()
			return
		}
	}
}

// rewrite changes BackendKeyData where it stands.
func (p *Proxy) rewrite(data []byte) {
	head := []byte{'K', 0, 0, 0, 12}
	if at := bytes.Index(data, head); p.pid != nil && at >= 0 && len(data) >= at+9 {
		pid := data[at+len(head):]
		binary.BigEndian.PutUint32(pid, p.pid(binary.BigEndian.Uint32(pid)))
	}
}
