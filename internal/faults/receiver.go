package faults

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/sign"
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
	hanging   map[int]chan struct{} // endpoint → closed when it answers again
	failShare float64
}

func newReceiver(j *Journal) *Receiver {
	r := &Receiver{journal: j, hanging: map[int]chan struct{}{}, failShare: failShare}
	r.server = httptest.NewServer(r)
	return r
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
	hanging, share := r.hanging[index], r.failShare
	r.mu.Unlock()
	if err != nil || !known { // the sender was killed while it wrote: nobody could read that
		w.WriteHeader(http.StatusNotFound)
		return
	}
	noted := read(req.Header, body, endpoint.Secret)
	noted.Endpoint, noted.At = index, at
	r.journal.received(noted)
	if hanging != nil {
		select {
		case <-hanging:
		case <-req.Context().Done():
			return
		}
	}
	time.Sleep(fastest + rand.N(slowest-fastest))
	switch roll := rand.Float64(); {
	case roll < share/2:
		reset(w)
	case roll < share:
		r.journal.answered(noted, http.StatusInternalServerError)
		w.WriteHeader(http.StatusInternalServerError)
	default:
		r.journal.answered(noted, http.StatusOK)
		w.WriteHeader(http.StatusOK)
	}
}

// reset breaks the connection without an answer.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // what matters is that there is no answer
	}
	conn.Close()
}

// read makes a journal entry of a request, with everything that is wrong in it.
func read(h http.Header, body []byte, secret string) *Request {
	var content struct {
		ID    uuid.UUID
		Event string
		Data  struct{ N int64 }
	}
	var wrong []string
	if err := json.Unmarshal(body, &content); err != nil {
		wrong = append(wrong, err.Error())
	}
	if err := (sign.Verifier{Secrets: []string{secret}, StandardOnly: true}).Verify(h, body); err != nil {
		wrong = append(wrong, "webhook-signature: "+err.Error())
	}
	alone := http.Header{sign.HeaderBodySignature: h.Values(sign.HeaderBodySignature)}
	if err := sign.Verify(alone, body, secret); err != nil {
		wrong = append(wrong, sign.HeaderBodySignature+": "+err.Error())
	}
	delivery, err := uuid.Parse(h.Get("X-Webhook-Delivery-ID"))
	if err != nil || h.Get(sign.HeaderID) != delivery.String() {
		wrong = append(wrong, fmt.Sprintf("X-Webhook-Delivery-ID %q, %s %q", h.Get("X-Webhook-Delivery-ID"), sign.HeaderID, h.Get(sign.HeaderID)))
	}
	retry, err := strconv.Atoi(h.Get("X-Webhook-Retry"))
	if err != nil || retry < 0 {
		wrong = append(wrong, fmt.Sprintf("X-Webhook-Retry %q", h.Get("X-Webhook-Retry")))
	}
	if content.Event != h.Get("X-Webhook-Event") {
		wrong = append(wrong, fmt.Sprintf("X-Webhook-Event %q over %q", h.Get("X-Webhook-Event"), content.Event))
	}
	return &Request{
		Delivery: delivery, Event: content.ID, N: content.Data.N, Type: h.Get("X-Webhook-Event"), Retry: retry,
		Body: sha256.Sum256(body), Agent: h.Get("User-Agent"), Malformed: strings.Join(wrong, "; "),
	}
}
