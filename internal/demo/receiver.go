package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// The receivers' names.
const (
	steady = "steady"
	flaky  = "flaky"
	silent = "silent"
)

// failures is how often the flaky receiver fails for each delivery.
const failures = 2

// A role is how a receiver behaves, and what that makes of its deliveries.
type role struct {
	name   string
	does   string // for people
	answer answer
	ends   ending
}

// An ending is what a delivery's row has to say at the end.
type ending struct {
	status   string
	attempts int
}

// An answer decides the status of a response: of the nth request for a delivery.
// 0 is none: it waits until the client hangs up.
type answer func(a *arrival, nth int) int

var roles = []role{
	{steady, "verifies both signatures, answers 204", verifies, ending{"success", 1}},
	{flaky, fmt.Sprintf("answers 500 to every delivery %d times, then 204", failures), failsAtFirst(failures), ending{"success", failures + 1}},
	{silent, "takes every request, and never answers", hangs, ending{"failed", waits + 1}},
}

func verifies(a *arrival, _ int) int {
	if a.problem != nil {
		return http.StatusUnauthorized
	}
	return http.StatusNoContent
}

func failsAtFirst(times int) answer {
	return func(a *arrival, nth int) int {
		if nth <= times {
			return http.StatusInternalServerError
		}
		return verifies(a, nth)
	}
}

func hangs(*arrival, int) int { return 0 }

// An endpoint is a row of webhook_endpoints, and where it leads.
type endpoint struct {
	subscription
	id     uuid.UUID
	secret string
	ends   ending
}

// A receiver is one HTTP server on the loopback interface, with a path for each
// organization. It remembers everything that came.
type receiver struct {
	role
	url    string
	server *http.Server

	mu        sync.Mutex
	endpoints map[string]*endpoint // by path
	arrivals  []*arrival           // written to under mu
	strays    int                  // requests to paths that nobody was given
	seen      map[uuid.UUID]int    // requests of each delivery
}

// receiverPatience bounds how long a receiver waits for a request: walhook is
// on the same machine.
const receiverPatience = 10 * time.Second

func openReceiver(ctx context.Context, r role) (*receiver, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("open the %s receiver: %w", r.name, err)
	}
	receiver := &receiver{
		role: r, url: "http://" + listener.Addr().String(),
		endpoints: map[string]*endpoint{}, seen: map[uuid.UUID]int{},
	}
	receiver.server = &http.Server{Handler: receiver, ReadTimeout: receiverPatience, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = receiver.server.Serve(listener) }() // ends with close, and has no more to tell
	return receiver, nil
}

// close hangs up, also on requests that are held.
func (r *receiver) close() error {
	if err := r.server.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// register gives an endpoint its path.
func (r *receiver) register(e *endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.ends = r.ends
	r.endpoints["/"+e.organization] = e
}

// ServeHTTP takes a request and answers as the role says.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // it did not arrive
	}
	a, status := r.take(req, body)
	if a == nil {
		http.NotFound(w, req)
		return
	}
	if status == 0 {
		<-req.Context().Done()
		return
	}
	r.mu.Lock()
	a.status = status
	r.mu.Unlock()
	if status >= http.StatusBadRequest {
		http.Error(w, strings.ToLower(http.StatusText(status)), status)
		return
	}
	w.WriteHeader(status)
}

func (r *receiver) take(req *http.Request, body []byte) (*arrival, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.endpoints[req.URL.Path]
	if e == nil {
		r.strays++
		return nil, 0
	}
	a := readArrival(e, req.Header, body)
	r.arrivals = append(r.arrivals, a)
	r.seen[a.delivery]++
	return a, r.answer(a, r.seen[a.delivery])
}

// remembered returns copies of what has come so far.
func (r *receiver) remembered() (arrivals []arrival, strays int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.arrivals {
		arrivals = append(arrivals, *a)
	}
	return arrivals, r.strays
}
