//go:build linux

package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"

	"github.com/google/uuid"

	"github.com/walhook/walhook/sign"
)

// A leanPoster is one connection of the lean client: one write per request, one read per
// response, no goroutine, and nothing that a receiver could do wrong is provided for. No
// sender is faster, so it is a bound.
type leanPoster struct {
	conn   net.Conn
	reader *bufio.Reader
	head   []byte // the same in all requests
	buffer []byte
	signer *sign.Signer
}

func newLeanPoster(j job) (*leanPoster, error) {
	u, err := url.Parse(j.URL)
	if err != nil {
		return nil, err
	}
	p := &leanPoster{head: fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\n", u.RequestURI(), u.Host)}
	if p.signer, err = sign.New(j.Secret); err != nil {
		return nil, err
	}
	trust, err := trustOf(j)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "https" {
		p.conn, err = tls.Dial("tcp", u.Host, trust)
	} else {
		p.conn, err = net.Dial("tcp", u.Host)
	}
	if err != nil {
		return nil, err
	}
	p.reader = bufio.NewReader(p.conn)
	return p, nil
}

func (p *leanPoster) post(id uuid.UUID, body []byte) error {
	b := append(p.buffer[:0], p.head...)
	for _, h := range headers(p.signer, id, body) {
		b = append(append(append(append(b, h[0]...), ": "...), h[1]...), "\r\n"...)
	}
	b = append(fmt.Appendf(b, "Content-Length: %d\r\n\r\n", len(body)), body...)
	p.buffer = b
	if _, err := p.conn.Write(b); err != nil {
		return err
	}
	resp, err := http.ReadResponse(p.reader, nil)
	if err != nil {
		return err
	}
	return accepted(resp)
}

// postLean is the lean client's process. Its connections are open before it begins.
func postLean(j job, ready func(string) error) error {
	free := make(chan *leanPoster, inFlight)
	for range inFlight {
		p, err := newLeanPoster(j)
		if err != nil {
			return err
		}
		defer p.conn.Close()
		free <- p
	}
	ids, bodies := requests(j)
	return timed(j, ready, func() error {
		return together(j.N, inFlight, func(i int) error {
			p := <-free
			defer func() { free <- p }()
			return p.post(ids[i], bodies[i])
		})
	})
}
