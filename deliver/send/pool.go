package send

import (
	"container/list"
	"errors"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"
)

// idleTimeout is how long a connection may be idle: less than the 5 s after which common
// servers close theirs, so that usually our side closes it, and no request meets a
// closed one.
const idleTimeout = 4 * time.Second

// A key tells which requests may share connections.
type key struct {
	secure  bool   // by TLS
	address string // host:port, as it is dialled
}

// A conn is a connection to a receiver, through the proxy if there is one.
type conn struct {
	net.Conn // the wire, or TLS over it
	wire     *wire
	key      key
	reused   bool // it has brought an answer before
	since    time.Time
	place    *list.Element // in the pool, while it is idle
}

// past is a deadline that ends reads and writes at once.
var past = time.Unix(1, 0)

// interrupt ends reads and writes under way, and all later ones.
func (c *conn) interrupt() { _ = c.SetDeadline(past) }

// abort closes the connection at once.
func (c *conn) abort() { c.wire.Close() }

// retire closes the connection, and says so to a receiver that speaks TLS. Saying so may
// block for 5 s, in which nobody waits.
func (c *conn) retire() {
	if c.overTLS() {
		go c.Close()
		return
	}
	c.Close()
}

// overTLS reports whether bytes may wait in TLS, be it the receiver's or the proxy's.
func (c *conn) overTLS() bool { return c.Conn != net.Conn(c.wire) }

// quiet reports whether nothing has come on an idle connection. What came, be it the end
// or the answer to a request that nobody has sent, must not become the next answer.
func (c *conn) quiet() bool {
	if !c.wire.quiet() {
		return false
	}
	if !c.overTLS() {
		return true
	}
	// A record may have been read together with the last answer. Past the deadline
	// only what TLS holds is read.
	if c.SetReadDeadline(past) != nil {
		return false
	}
	n, err := c.Read(make([]byte, 1))
	return n == 0 && isTimeout(err)
}

// quiet looks at the socket, without taking anything from it.
func (w *wire) quiet() bool { return w.raw.Control(w.look) == nil && w.empty }

// lookAt notes whether nothing has come on a socket, not even its end.
func (w *wire) lookAt(fd uintptr) {
	var b [1]byte
	_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	w.empty = errors.Is(err, syscall.EAGAIN)
}

// A pool has the idle connections. It is safe for concurrent use.
type pool struct {
	max int // connections, for all keys

	mu     sync.Mutex
	idle   map[key][]*conn // the newest last
	order  list.List       // of all of them, the oldest first
	sweep  *time.Timer     // runs while there are any
	closed bool
}

func newPool(limit int) *pool { return &pool{max: limit, idle: map[key][]*conn{}} }

// take returns the connection that has been idle for the shortest time, or nil. One that
// the receiver has closed, or on which it has sent something, is closed.
func (p *pool) take(k key, now time.Time) *conn {
	for {
		c := p.newest(k, now)
		if c == nil || c.quiet() {
			return c
		}
		c.abort()
	}
}

func (p *pool) newest(k key, now time.Time) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	conns := p.idle[k]
	if len(conns) == 0 || conns[len(conns)-1].expired(now) { // then all are, and the sweep takes them
		return nil
	}
	c := conns[len(conns)-1]
	p.remove(c, len(conns)-1)
	return c
}

func (c *conn) expired(now time.Time) bool { return now.Sub(c.since) >= idleTimeout }

// put takes an idle connection. A full pool closes its oldest one.
func (p *pool) put(c *conn, now time.Time) {
	if old := p.add(c, now); old != nil {
		old.retire()
	}
}

// add returns the connection for which there is no room, or nil.
func (p *pool) add(c *conn, now time.Time) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return c
	}
	c.reused, c.since = true, now
	p.idle[c.key] = append(p.idle[c.key], c)
	c.place = p.order.PushBack(c)
	if p.order.Len() == 1 {
		p.await(idleTimeout)
	}
	if p.order.Len() > p.max {
		return p.removeOldest()
	}
	return nil
}

// remove takes out a connection, given its place among those of its key.
func (p *pool) remove(c *conn, i int) {
	p.order.Remove(c.place)
	c.place = nil
	if rest := slices.Delete(p.idle[c.key], i, i+1); len(rest) > 0 {
		p.idle[c.key] = rest
	} else {
		delete(p.idle, c.key)
	}
}

func (p *pool) removeOldest() *conn {
	c := p.order.Front().Value.(*conn)
	p.remove(c, 0) // the oldest of all is the oldest of its key
	return c
}

// await has the sweep run after d.
func (p *pool) await(d time.Duration) {
	if p.sweep == nil {
		p.sweep = time.AfterFunc(d, func() { p.closeExpired(time.Now()) })
		return
	}
	p.sweep.Reset(d)
}

// closeExpired closes the connections that have been idle for too long, and awaits the
// next ones.
func (p *pool) closeExpired(now time.Time) {
	p.mu.Lock()
	var old []*conn
	for p.order.Len() > 0 {
		if oldest := p.order.Front().Value.(*conn); !oldest.expired(now) {
			p.await(idleTimeout - now.Sub(oldest.since))
			break
		}
		old = append(old, p.removeOldest())
	}
	p.mu.Unlock()
	for _, c := range old {
		c.retire()
	}
}

// close closes the idle connections, and those that become idle.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	var all []*conn
	for p.order.Len() > 0 {
		all = append(all, p.removeOldest())
	}
	if p.sweep != nil {
		p.sweep.Stop()
	}
	p.mu.Unlock()
	for _, c := range all {
		c.retire()
	}
}
