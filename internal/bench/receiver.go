//go:build linux

package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The paths of the receiver. All answer with an empty body, and with 200 unless stated
// otherwise. The first three count arrivals; the others are counted apart.
//
// Unlike the receiver of the demo and the faults, this one neither reads nor verifies
// requests: that would take CPU time from what is measured.
const (
	pathCount  = "/count"  // only counts: as fast as net/http
	pathStamp  = "/stamp"  // counts, and notes when each event arrived
	pathSlow   = "/slow"   // counts after 10 ms
	pathHang   = "/hang"   // hangs until the receiver is reset or the client gives up
	pathAnswer = "/answer" // answers with ?status= after ?after=
)

// arrivals is the receiver's report.
type arrivals struct {
	Count       int64
	First, Last time.Duration            // by now()
	Stamps      map[string]time.Duration // first arrivals, by event id
	Repeated    int                      // later arrivals of the same events
}

// A sink is the receiver's state since the last reset.
type sink struct {
	count, first, last atomic.Int64
	elsewhere          atomic.Int64

	mu       sync.Mutex
	stamps   map[string]time.Duration
	repeated int
	released chan struct{}
}

func newSink() *sink {
	return &sink{stamps: map[string]time.Duration{}, released: make(chan struct{})}
}

func (s *sink) arrived(at time.Duration) {
	if s.count.Add(1) == 1 {
		s.first.Store(int64(at))
	}
	s.last.Store(int64(at))
}

// stamp reads the event's id, with which walhook's body begins.
func (s *sink) stamp(at time.Duration, body io.Reader) {
	var head [len(`{"id":"`) + 36]byte
	if _, err := io.ReadFull(body, head[:]); err != nil {
		return
	}
	id := string(head[len(`{"id":"`):])
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.stamps[id]; known {
		s.repeated++
		return
	}
	s.stamps[id] = at
	s.arrived(at)
}

func (s *sink) arrivals() arrivals {
	s.mu.Lock()
	defer s.mu.Unlock()
	return arrivals{
		Count: s.count.Load(), First: time.Duration(s.first.Load()), Last: time.Duration(s.last.Load()),
		Stamps: s.stamps, Repeated: s.repeated,
	}
}

// wait returns when n have arrived, the time is over, or the client is gone.
func (s *sink) wait(ctx context.Context, n int64, within time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for s.count.Load() < n {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// hold returns after a time, when the sink is reset, or when the client is gone.
func (s *sink) hold(r *http.Request, after <-chan time.Time) {
	s.elsewhere.Add(1)
	_, _ = io.Copy(io.Discard, r.Body) // the server notices that the client is gone only after the body was read
	select {
	case <-after:
	case <-s.released:
	case <-r.Context().Done():
	}
}

// answer answers as the URL's parameters say.
func (s *sink) answer(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	after, _ := time.ParseDuration(query.Get("after")) // none: at once
	status, err := strconv.Atoi(query.Get("status"))
	if err != nil {
		status = http.StatusOK
	}
	s.hold(r, time.After(after))
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(status)
}

// receive is the receiver's process. Its control and TLS have ports of their own.
func receive(j job, ready func(string) error) error {
	var current atomic.Pointer[sink]
	current.Store(newSink())
	hooks := http.NewServeMux()
	hooks.HandleFunc(pathCount, func(http.ResponseWriter, *http.Request) { current.Load().arrived(now()) })
	hooks.HandleFunc(pathStamp, func(_ http.ResponseWriter, r *http.Request) { current.Load().stamp(now(), r.Body) })
	hooks.HandleFunc(pathSlow, func(http.ResponseWriter, *http.Request) {
		time.Sleep(10 * time.Millisecond)
		current.Load().arrived(now())
	})
	hooks.HandleFunc(pathHang, func(_ http.ResponseWriter, r *http.Request) { current.Load().hold(r, nil) })
	hooks.HandleFunc(pathAnswer, func(w http.ResponseWriter, r *http.Request) { current.Load().answer(w, r) })
	control := http.NewServeMux()
	control.HandleFunc("/reset", func(http.ResponseWriter, *http.Request) { close(current.Swap(newSink()).released) })
	control.HandleFunc("/wait", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.FormValue("n"), 10, 64) // 0: answer at once
		within, _ := time.ParseDuration(r.FormValue("within"))
		s := current.Load()
		s.wait(r.Context(), n, within)
		_ = json.NewEncoder(w).Encode(s.arrivals())
	})
	control.HandleFunc("/elsewhere", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(current.Load().elsewhere.Load())
	})
	died := make(chan error, 2)
	var addresses []string
	for _, handler := range []http.Handler{hooks, control} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		addresses = append(addresses, listener.Addr().String())
		go func() { died <- http.Serve(listener, handler) }()
	}
	secure := httptest.NewUnstartedServer(hooks)
	secure.StartTLS()
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	if err := os.WriteFile(j.Certificate, certificate, 0o600); err != nil {
		return err
	}
	addresses = append(addresses, secure.Listener.Addr().String())
	if err := ready(strings.Join(addresses, " ")); err != nil {
		return err
	}
	return <-died
}

// A receiver is the receiver's process as its parent sees it.
type receiver struct {
	*childProcess
	hooks, control, secure string // addresses
	certificate            string // a file: of the secure one
}

func startReceiver(ctx context.Context, folder string) (*receiver, error) {
	certificate := filepath.Join(folder, "receiver.pem")
	p, err := startChild(context.WithoutCancel(ctx), "receiver", job{Certificate: certificate})
	if err != nil {
		return nil, err
	}
	r := &receiver{childProcess: p, certificate: certificate}
	if _, err := fmt.Sscan(p.ready, &r.hooks, &r.control, &r.secure); err != nil {
		p.stop()
		return nil, err
	}
	return r, p.begin()
}

func (r *receiver) url(path string) string { return "http://" + r.hooks + path }

func (r *receiver) secureURL(path string) string { return "https://" + r.secure + path }

// reset forgets all arrivals and releases hanging requests.
func (r *receiver) reset(ctx context.Context) error { return r.ask(ctx, "/reset", nil) }

// wait returns the arrivals when there are n, or when the time is over.
func (r *receiver) wait(ctx context.Context, n int, within time.Duration) (arrivals, error) {
	var a arrivals
	if err := r.ask(ctx, fmt.Sprintf("/wait?n=%d&within=%s", n, within), &a); err != nil {
		return a, fmt.Errorf("wait for %d arrivals: %w", n, err)
	}
	return a, nil
}

// elsewhere returns how many requests came to the paths that are counted apart.
func (r *receiver) elsewhere(ctx context.Context) (n int64, err error) {
	if err := r.ask(ctx, "/elsewhere", &n); err != nil {
		return 0, fmt.Errorf("ask for the requests to other paths: %w", err)
	}
	return n, nil
}

func (r *receiver) ask(ctx context.Context, path string, answer any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.control+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if answer == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}
