package cdc

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestBlackHole(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	p := newProxy(t, d.url)
	config := d.config()
	config.Server = at(p.url)
	r := start(t, config)
	r.streaming(1)
	d.insert(1)
	r.wantPayloads(number(1))
	r.eventually("the confirmation", func() bool { return d.confirmed() >= r.newest() })
	p.swallow() // this connection for ever; new ones are fine
	began := time.Now()
	d.insert(2)
	r.wantPayloads(number(1))
	r.eventually("the end of the session", func() bool { return r.Status().Role != Streaming })
	t.Logf("noticed after %s", time.Since(began))
	r.eventually("the next event", func() bool { return r.count() == 2 })
}

func TestSlowLineIsNotSilence(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	p := newProxy(t, d.url)
	config := d.config()
	config.Server = at(p.url)
	r := start(t, config, shortTimeout) // so that silence is 1.2 s
	r.streaming(1)
	p.slow.Store(64 << 10)
	d.exec(`INSERT INTO webhook_outbox (payload) SELECT jsonb_build_object('x', string_agg(gen_random_uuid()::text, '')) FROM generate_series(1, 7000)`)
	r.eventually("the event of 250 KB", func() bool { return r.count() == 1 })
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sessions) != 1 {
		t.Errorf("%d sessions", len(r.sessions))
	}
}

// A proxy stands between a stream and its server.
type proxy struct {
	url  string
	slow atomic.Int64 // bytes per second to the client; 0: no limit

	mu    sync.Mutex
	holes []*atomic.Bool // of every connection: swallow what comes
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	server := u.Host
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u.Host = listener.Addr().String()
	p := &proxy{url: u.String()}
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		listener.Close()
		all.Wait()
	})
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			backend, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			hole := &atomic.Bool{}
			p.mu.Lock()
			p.holes = append(p.holes, hole)
			p.mu.Unlock()
			stop := context.AfterFunc(ctx, func() { client.Close(); backend.Close() })
			all.Go(func() { p.copy(backend, client, hole, nil) })
			all.Go(func() { defer stop(); p.copy(client, backend, hole, &p.slow) })
		}
	})
	return p
}

func (p *proxy) copy(to, from net.Conn, hole *atomic.Bool, slow *atomic.Int64) {
	buffer := make([]byte, 4096)
	for {
		n, err := from.Read(buffer)
		if n > 0 && !hole.Load() {
			if slow != nil && slow.Load() > 0 {
				time.Sleep(time.Duration(n) * time.Second / time.Duration(slow.Load())) // this is the line's speed
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) && !hole.Load() {
				to.Close()
			}
			return
		}
	}
}

// swallow makes black holes of the connections there are.
func (p *proxy) swallow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, hole := range p.holes {
		hole.Store(true)
	}
}
