package faults

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/walhook/walhook/internal/received"
)

const (
	// fastest and slowest bound how long a receiver takes to answer.
	fastest = 5 * time.Millisecond
	slowest = 50 * time.Millisecond

	// failShare of the requests are answered with 500, or with a reset.
	failShare = 0.02
)

// A Receiver is all endpoints of a trial: one HTTP server, a path for each.
type Receiver struct {
	journal *Journal
	server  *httptest.Server

	mu        sync.Mutex
	endpoints []Endpoint
	older     map[int][]string      // endpoint → secrets before its present one
	hanging   map[int]chan struct{} // endpoint → closed when it answers again
	hostile   map[int]answer        // endpoint → what it does instead of answering
	first     func(*Request)        // what it does before it answers; nil: nothing
	failShare float64
	strays    []string // requests that are to no endpoint, and went into no journal
	torn      []string // those whose body broke off
}

// An answer is what a hostile receiver does with a request that it has read.
type answer struct {
	status int // that was answered, as far as that can be said; 0: none
	write  func(net.Conn)
}

// newReceiver listens at an address, by default at 127.0.0.1.
func newReceiver(j *Journal, address string) (*Receiver, error) {
	r := &Receiver{journal: j, older: map[int][]string{}, hanging: map[int]chan struct{}{}, hostile: map[int]answer{}, failShare: failShare}
	r.server = httptest.NewUnstartedServer(r)
	if address != "" {
		listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
		if err != nil {
			return nil, fmt.Errorf("listen for webhooks: %w", err)
		}
		r.server.Listener.Close()
		r.server.Listener = listener
	}
	r.server.Start()
	return r, nil
}

// close ends what hangs, and the server.
func (r *Receiver) close() {
	r.mu.Lock()
	for i := range r.hanging {
		r.release(i)
	}
	r.mu.Unlock()
	r.server.CloseClientConnections()
	r.server.Close()
}

func (r *Receiver) url(endpoint int) string {
	return fmt.Sprintf("%s/%d", r.server.URL, endpoint)
}

func (r *Receiver) add(e Endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endpoints = append(r.endpoints, e)
}

// rotate gives an endpoint a new secret, beside those it had.
func (r *Receiver) rotate(endpoint int, secret string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.older[endpoint] = append(r.older[endpoint], r.endpoints[endpoint].Secret)
	r.endpoints[endpoint].Secret = secret
}

// turn makes endpoints hostile; nil makes all of them friendly.
func (r *Receiver) turn(hostile map[int]answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hostile = hostile
}

// does has all endpoints do something before they answer.
func (r *Receiver) does(first func(*Request)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.first = first
}

// hang makes endpoints take requests and never answer, until they are released.
func (r *Receiver) hang(endpoints ...int) (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range endpoints {
		r.hanging[i] = make(chan struct{})
	}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, i := range endpoints {
			r.release(i)
		}
	}
}

func (r *Receiver) release(endpoint int) {
	if hanging := r.hanging[endpoint]; hanging != nil {
		close(hanging)
		delete(r.hanging, endpoint)
	}
}

// ServeHTTP takes one request, notes it, and answers.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	at := time.Now()
	body, err := io.ReadAll(req.Body)
	index, wrong := strconv.Atoi(strings.TrimPrefix(req.URL.Path, "/"))
	r.mu.Lock()
	known := wrong == nil && index >= 0 && index < len(r.endpoints)
	var endpoint Endpoint
	if known {
		endpoint = r.endpoints[index]
	}
	hanging, share, first := r.hanging[index], r.failShare, r.first
	hostile, secrets := r.hostile[index], append(slices.Clone(r.older[index]), endpoint.Secret)
	switch {
	case !known:
		r.strays = append(r.strays, req.URL.Path)
	case err != nil:
		r.torn = append(r.torn, fmt.Sprintf("%s after %d bytes: %v", req.URL.Path, len(body), err))
	}
	r.mu.Unlock()
	if err != nil || !known {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	noted := read(req.Header, body, secrets)
	noted.Endpoint, noted.At = index, at
	r.journal.received(noted)
	if first != nil {
		first(noted)
	}
	if hanging != nil {
		select {
		case <-hanging:
		case <-req.Context().Done():
			return
		}
	}
	time.Sleep(fastest + rand.N(slowest-fastest))
	if hostile.write != nil {
		r.journal.answered(noted, hostile.status)
		hijack(w, hostile.write)
		return
	}
	switch roll := rand.Float64(); {
	case roll < share/2:
		reset(w)
	case roll < share:
		r.journal.answered(noted, http.StatusInternalServerError)
		w.WriteHeader(http.StatusInternalServerError)
	default:
		r.journal.answered(noted, http.StatusOK)
		w.Header().Set("Content-Length", "0") // or the end of the answer would come with our return
		w.WriteHeader(http.StatusOK)
		if http.NewResponseController(w).Flush() == nil {
			r.journal.answeredWhole(noted)
		}
	}
}

// expectWhole expects that every request went into the journal. Only one whose sender
// was killed while it wrote may have no whole body.
func (x *Trial) expectWhole(r *Receiver, killed bool) {
	x.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.strays) > 0 {
		x.expect(false, "%d requests came to no endpoint: %s", len(r.strays), r.strays[0])
	}
	if len(r.torn) > 0 && !killed {
		x.expect(false, "%d requests broke off, and nobody was killed: %s", len(r.torn), r.torn[0])
	}
}

// killed says whether a process has ended otherwise than by its own will.
func (x *Trial) killed() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.ContainsFunc(x.processes, func(p *Process) bool { return !p.Running() && p.Err != nil })
}

// reset breaks the connection without an answer.
func reset(w http.ResponseWriter) { hijack(w, breakOff) }

// breakOff ends a connection with a reset.
func breakOff(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // what matters is that there is no answer
	}
}

// hijack takes the connection, and closes it afterwards.
func hijack(w http.ResponseWriter, then func(net.Conn)) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	then(conn)
}

// read makes a journal entry of a request, with everything that is wrong in it.
func read(h http.Header, body []byte, secrets []string) *Request {
	r := received.Read(h, body, secrets...)
	var data struct{ N int64 }
	malformed := ""
	if err := errors.Join(r.Problem, json.Unmarshal(r.Message.Data, &data)); err != nil {
		malformed = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return &Request{
		Delivery: r.Delivery, Event: r.Message.ID, N: data.N, Type: h.Get("X-Webhook-Event"), Retry: r.Retry,
		Body: sha256.Sum256(body), Agent: h.Get("User-Agent"), Malformed: malformed, Signed: r.Standard, SignedBody: r.Body,
	}
}
