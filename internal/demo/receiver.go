package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/sign"
)

// An endpoint is a row of webhook_endpoints, and who is there.
type endpoint struct {
	role   role
	id     uuid.UUID
	secret string
}

// An arrival is one request as its receiver saw it.
type arrival struct {
	endpoint uuid.NullUUID // at whose URL it came in; none: at no endpoint's
	delivery uuid.UUID
	retry    int // X-Webhook-Retry
	message  message
	body     []byte
	status   int   // what was answered; 0: nothing
	problem  error // why it was not what walhook promises to send
}

// A message is the body of a webhook.
type message struct {
	ID             uuid.UUID       `json:"id"`
	Event          string          `json:"event"`
	Data           json.RawMessage `json:"data"`
	OrganizationID string          `json:"organizationId"`
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
	a := arrival{endpoint: uuid.NullUUID{UUID: e.id, Valid: known}, body: body}
	a.problem = errors.Join(a.read(req.Header), verify(req.Header, body, e.secret))
	before := 0
	for _, other := range r.arrivals {
		if other.delivery == a.delivery {
			before++
		}
	}
	switch {
	case !known:
		a.status = http.StatusNotFound
	case e.role.fails == forever:
	case before < e.role.fails:
		a.status = http.StatusInternalServerError
	case a.problem != nil:
		a.status = http.StatusUnauthorized
	default:
		a.status = http.StatusNoContent
	}
	r.arrivals = append(r.arrivals, a)
	return a.status
}

// read takes a request apart.
func (a *arrival) read(h http.Header) (err error) {
	if a.delivery, err = uuid.Parse(h.Get("X-Webhook-Delivery-ID")); err != nil {
		return fmt.Errorf("X-Webhook-Delivery-ID: %w", err)
	}
	if a.retry, err = strconv.Atoi(h.Get("X-Webhook-Retry")); err != nil {
		return fmt.Errorf("X-Webhook-Retry: %w", err)
	}
	if err := json.Unmarshal(a.body, &a.message); err != nil {
		return fmt.Errorf("the body: %w", err)
	}
	if event, id := h.Get("X-Webhook-Event"), h.Get(sign.HeaderID); event != a.message.Event || id != a.delivery.String() {
		return fmt.Errorf("the headers say %q and %q, want %q and %q", event, id, a.message.Event, a.delivery)
	}
	return nil
}

// verify checks both schemes. One is enough for sign.Verify, which is what
// receivers call, so it is asked twice.
func verify(h http.Header, body []byte, secret string) error {
	other := h.Clone()
	other.Del(sign.HeaderSignature)
	standard := sign.Verifier{Secrets: []string{secret}, StandardOnly: true}
	return errors.Join(standard.Verify(h, body), sign.Verify(other, body, secret))
}
