// Package listen is a receiver for people: it prints each webhook that arrives, with the verdict of
// both signatures, and answers as it is told.
//
//	listen   the server, and what is answered
//	verdict  which secret has made a signature
//	page     what is printed
//	forward  the application behind it
//	attempts how many attempts a delivery has had
//
// It keeps nothing, knows no database, and is not made for the public internet. What arrives is a
// stranger's: it is bounded, and printed as text that no terminal obeys.
package listen

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"maps"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/netutil"

	"github.com/walhook/walhook/internal/terminal"
)

// The bounds of what strangers can take.
const (
	maxBody        = 1 << 20          // bytes; walhook sends 256 KiB of payload, and little around it
	maxHeader      = 64 << 10         // bytes; walhook adds 4 KiB of an endpoint's own headers at most
	maxConnections = 256              // each holds a body; walhook makes 32 attempts at one endpoint at once
	readWithin     = time.Minute      // a whole request; walhook's longest attempt is a minute
	idleFor        = 2 * time.Minute  // a connection without a request; walhook closes it after some seconds
	endWithin      = 2 * time.Second  // for answers that are being written at the end
	forwardWithin  = 65 * time.Second // for the application's answer; walhook has given up by then
)

// Config says where to listen, and what to answer.
type Config struct {
	Addr    string
	Secrets []string      // each of which sign.Verifier takes
	Forward *url.URL      // nil: it answers by itself
	Fail    int           // this many attempts of each delivery get Status; 0: see Status
	Status  int           // without Fail and Forward the status of every answer
	Delay   time.Duration // before each answer
	Out     io.Writer
	Paint   terminal.Paint
}

// Run listens until the context ends.
func Run(ctx context.Context, cfg Config) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s is taken: another program listens there; stop it, or choose another port with --addr", cfg.Addr)
	case err != nil:
		return fmt.Errorf("listen on %s: %w", cfg.Addr, err)
	}
	r := &receiver{cfg: cfg, page: newPage(cfg.Out, cfg.Paint), forward: newForward(cfg.Forward)}
	server := &http.Server{
		// net/http takes the end of the time for reading for the sender's leaving, also while it waits for the answer.
		Handler: r, ReadTimeout: readWithin + cfg.Delay + forwardWithin, IdleTimeout: idleFor, MaxHeaderBytes: maxHeader,
		ErrorLog:    stdlog.New(io.Discard, "", 0), // it quotes what strangers sent
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
		defer cancel()
		if server.Shutdown(end) != nil {
			_ = server.Close()
		}
	})
	r.page.begin(cfg, listener.Addr())
	err = server.Serve(netutil.LimitListener(listener, maxConnections))
	if stop() {
		return fmt.Errorf("listen on %s: %w", cfg.Addr, err)
	}
	<-ended
	return nil
}

// A receiver answers requests.
type receiver struct {
	cfg      Config
	page     *page
	forward  *forward // nil: it answers by itself
	attempts attempts
	count    atomic.Int64
}

// A request is one that arrived, with all of its body.
type request struct {
	*http.Request
	number  int64
	at      time.Time
	body    []byte
	attempt int // of its delivery that came here
}

// An answer is what a request gets, and from whom.
type answer struct {
	status int
	header http.Header
	body   []byte
	why    string // for people
}

// ServeHTTP prints a request, and what it is answered with.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	in := &request{Request: req, number: r.count.Add(1), at: time.Now()}
	var err error
	if in.body, err = io.ReadAll(http.MaxBytesReader(w, req.Body, maxBody)); err != nil {
		status := http.StatusBadRequest
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			status = http.StatusRequestEntityTooLarge
		}
		w.WriteHeader(status)
		r.page.refused(in, status)
		return
	}
	in.attempt = r.attempts.add(req.Header)
	r.page.request(in, verdicts(req.Header, in.body, r.cfg.Secrets))
	if !wait(req.Context(), r.cfg.Delay) {
		r.page.left(in)
		return
	}
	a := r.answer(req.Context(), in)
	maps.Copy(w.Header(), a.header)
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // whoever sent the request may have left
	r.page.answer(in, a)
}

// answer decides what a request gets.
func (r *receiver) answer(ctx context.Context, in *request) answer {
	switch {
	case in.attempt <= r.cfg.Fail:
		why := fmt.Sprintf("attempt %d of the first %d, which fail", in.attempt, r.cfg.Fail)
		return answer{status: r.cfg.Status, why: why, body: []byte("walhook listen: " + why + "\n")}
	case r.forward != nil:
		return r.forward.pass(ctx, in)
	case r.cfg.Fail == 0:
		return answer{status: r.cfg.Status}
	default:
		return answer{status: http.StatusOK}
	}
}

// wait reports whether the time has passed before the sender left.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
