package admin

import (
	"net"
	"net/http"
	"slices"
	"sync"
)

// maxConnections is more than all probes, scrapers and browsers of an installation open at
// once. It bounds the descriptors that deliveries cannot have, and some 20 KiB of memory each.
const maxConnections = 256

// A crowd is a listener with at most maxConnections open. A new connection always gets in:
// the one that has been idle for longest goes for it, and one that is being answered only if
// all are. So clients that hang keep nobody out, a health check least of all.
type crowd struct {
	net.Listener

	mu   sync.Mutex
	open []*guest // the one that has been idle for longest first
}

// A guest is a connection of a crowd.
type guest struct {
	net.Conn
	crowd    *crowd
	answered bool // a request is being answered; the crowd's mutex guards it
}

// Accept is net.Listener's.
func (c *crowd) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	g := &guest{Conn: conn, crowd: c}
	if out := c.enter(g); out != nil {
		_ = out.Close() // nobody is interested any more
	}
	return g, nil
}

// enter returns who has to go.
func (c *crowd) enter(g *guest) (out *guest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) >= maxConnections {
		i := max(0, slices.IndexFunc(c.open, func(g *guest) bool { return !g.answered }))
		out = c.open[i]
		c.open = slices.Delete(c.open, i, i+1)
	}
	c.open = append(c.open, g)
	return out
}

// Close is net.Conn's.
func (g *guest) Close() error {
	g.crowd.mu.Lock()
	g.crowd.open = slices.DeleteFunc(g.crowd.open, func(other *guest) bool { return other == g })
	g.crowd.mu.Unlock()
	return g.Conn.Close()
}

// noteState is http.Server's ConnState: it tells who is being answered.
func noteState(conn net.Conn, state http.ConnState) {
	if encrypted, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = encrypted.NetConn()
	}
	g, ok := conn.(*guest)
	if !ok || state != http.StateActive && state != http.StateIdle {
		return
	}
	c := g.crowd
	c.mu.Lock()
	defer c.mu.Unlock()
	g.answered = state == http.StateActive
	if i := slices.Index(c.open, g); i >= 0 {
		c.open = append(slices.Delete(c.open, i, i+1), g)
	}
}
