package faults

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// A nameServer is a resolver that knows one host, which is 127.0.0.1. It comes and goes.
type nameServer struct {
	t       *testing.T
	host    dnsmessage.Name
	address string // an IP address: the port is 53
	conn    net.PacketConn
	refuses atomic.Bool
	wg      sync.WaitGroup
}

// newNameServer skips the test where port 53 of no loopback address can be had.
func newNameServer(t *testing.T, host string) *nameServer {
	t.Helper()
	r := &nameServer{t: t, host: dnsmessage.MustNewName(host + ".")}
	const first, last = 153, 200
	var err error
	for n := first; n < last; n++ {
		r.address = fmt.Sprintf("127.0.0.%d", n)
		if r.conn, err = net.ListenPacket("udp", net.JoinHostPort(r.address, "53")); err == nil {
			r.serve()
			t.Cleanup(r.stop)
			return r
		}
	}
	t.Skipf("a resolver needs port 53: %v", err)
	return nil
}

func (r *nameServer) start() {
	r.t.Helper()
	var err error
	if r.conn, err = net.ListenPacket("udp", net.JoinHostPort(r.address, "53")); err != nil {
		r.t.Fatal(err)
	}
	r.serve()
}

func (r *nameServer) stop() {
	r.conn.Close()
	r.wg.Wait()
}

func (r *nameServer) serve() {
	conn := r.conn
	r.wg.Go(func() {
		const most = 1500 // of a datagram
		buf := make([]byte, most)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer := r.answer(buf[:n]); answer != nil {
				_, _ = conn.WriteTo(answer, from) // the asker asks again
			}
		}
	})
}

// answer returns nil for what is no query.
func (r *nameServer) answer(query []byte) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Header = dnsmessage.Header{ID: m.ID, Response: true, RecursionDesired: true, RecursionAvailable: true}
	m.Additionals = nil
	switch {
	case r.refuses.Load():
		m.RCode = dnsmessage.RCodeRefused
	case q.Name != r.host:
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class},
			Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
		}}
	}
	answer, err := m.Pack()
	if err != nil {
		return nil
	}
	return answer
}

// withResolver returns a command that runs the binary with a resolv.conf of its own, in a
// mount namespace. It skips the test where there can be none.
func withResolver(t *testing.T, binary, address string) string {
	t.Helper()
	folder := t.TempDir()
	conf, script := filepath.Join(folder, "resolv.conf"), filepath.Join(folder, "walhook")
	const only = "nameserver %s\noptions timeout:1 attempts:1\n"
	const runs = `#!/bin/sh
exec unshare -m sh -c 'mount --bind "$0" /etc/resolv.conf && exec "$@"' %q %q "$@"
`
	if err := errors.Join(os.WriteFile(conf, fmt.Appendf(nil, only, address), 0o644), os.WriteFile(script, fmt.Appendf(nil, runs, conf, binary), 0o755)); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.CommandContext(t.Context(), script, "version").CombinedOutput(); err != nil {
		t.Skipf("walhook can have no resolv.conf of its own here: %v: %s", err, output)
	}
	return script
}
