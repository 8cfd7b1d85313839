package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/received"
)

// An endpoint is a row of webhook_endpoints, and who is there.
type endpoint struct {
	role   role
	id     uuid.UUID
	secret string
}

// An arrival is one request as its receiver saw it.
type arrival struct {
	received.Request
	endpoint uuid.NullUUID // at whose URL it came in; none: at no endpoint's
	body     []byte
	status   int // what was answered; 0: nothing
}

// A receiver is an HTTP server on the loopback interface that plays all roles, at
// a path for each endpoint. It remembers everything that came.
type receiver struct {
	url    string
	server *http.Server

	mu        sync.Mutex
	endpoints map[string]endpoint // by path
	arrivals  []arrival
}

// receiverPatience bounds how long a receiver waits for a request: walhook is
// on the same machine.
const receiverPatience = 10 * time.Second

func openReceiver(ctx context.Context) (*receiver, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("open the receivers: %w", err)
	}
	r := &receiver{url: "http://" + listener.Addr().String(), endpoints: map[string]endpoint{}}
	r.server = &http.Server{Handler: r, ReadTimeout: receiverPatience, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = r.server.Serve(listener) }() // ends with close, and has no more to tell
	return r, nil
}

// close hangs up, also on requests that are held.
func (r *receiver) close() error {
	if err := r.server.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close the receivers: %w", err)
	}
	return nil
}

func (r *receiver) add(path string, e endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endpoints[path] = e
}

func (r *receiver) remembered() []arrival {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.arrivals)
}

// ServeHTTP takes a request, and answers as the endpoint's role says.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // it did not arrive
	}
	switch status := r.take(req, body); {
	case status == 0:
		<-req.Context().Done() // the client hangs up
	case status >= http.StatusBadRequest:
		http.Error(w, strings.ToLower(http.StatusText(status)), status)
	default:
		w.WriteHeader(status)
	}
}

func (r *receiver) take(req *http.Request, body []byte) (status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, known := r.endpoints[req.URL.Path]
	a := arrival{Request: received.Read(req.Header, body, e.secret), endpoint: uuid.NullUUID{UUID: e.id, Valid: known}, body: body}
	before := 0
	for _, other := range r.arrivals {
		if other.Delivery == a.Delivery {
			before++
		}
	}
	switch {
	case !known:
		a.status = http.StatusNotFound
	case e.role.fails == forever:
	case before < e.role.fails:
		a.status = http.StatusInternalServerError
	case a.Problem != nil:
		a.status = http.StatusUnauthorized
	default:
		a.status = http.StatusNoContent
	}
	r.arrivals = append(r.arrivals, a)
	return a.status
}
