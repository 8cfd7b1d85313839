package faults

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"time"

	"github.com/walhook/walhook/internal/oracle"
)

const (
	// fastest and slowest bound how long a receiver takes to answer.
	fastest = 5 * time.Millisecond
	slowest = 50 * time.Millisecond

	// failShare is the share of requests that are answered with 500 or a reset.
	failShare = 0.02
)

// A Receiver plays all endpoints of a trial, each at a path of its own.
type Receiver struct {
	*oracle.Receiver
	server *httptest.Server

	mu        sync.Mutex
	hanging   map[int]chan struct{} // endpoint → closed when it answers again
	hostile   map[int]answer        // endpoint → what it does instead of answering
	first     func(*oracle.Request) // called before each answer; nil: nothing
	failShare float64
}

// An answer is a hostile receiver's reaction to a request that it has read.
type answer struct {
	status int // as far as the answer has one; 0: none
	write  func(net.Conn)
	breaks bool // it breaks the connection instead
}

// newReceiver listens at an address, by default at 127.0.0.1.
func newReceiver(j *oracle.Journal, address string) (*Receiver, error) {
	r := &Receiver{Receiver: &oracle.Receiver{Journal: j}, hanging: map[int]chan struct{}{}, failShare: failShare}
	r.Answer = r.answer
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

// close releases hanging requests and closes the server.
func (r *Receiver) close() {
	r.mu.Lock()
	for i := range r.hanging {
		r.release(i)
	}
	r.mu.Unlock()
	r.server.CloseClientConnections()
	r.server.Close()
}

func (r *Receiver) url(endpoint int) string { return r.server.URL + path(endpoint) }

func path(endpoint int) string { return fmt.Sprintf("/%d", endpoint) }

// turn makes endpoints hostile; nil makes all of them friendly.
func (r *Receiver) turn(hostile map[int]answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hostile = hostile
}

// does makes all endpoints call a function before they answer.
func (r *Receiver) does(first func(*oracle.Request)) {
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

// answer answers a request that is in the journal.
func (r *Receiver) answer(w http.ResponseWriter, req *http.Request, noted *oracle.Request) {
	r.mu.Lock()
	hanging, hostile, share, first := r.hanging[noted.Endpoint], r.hostile[noted.Endpoint], r.failShare, r.first
	r.mu.Unlock()
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
	if hostile.breaks {
		r.reset(w, noted)
		return
	}
	if hostile.write != nil {
		r.Journal.Answered(noted, hostile.status)
		hijack(w, hostile.write)
		return
	}
	switch roll := rand.Float64(); {
	case roll < share/2:
		r.reset(w, noted)
	case roll < share:
		r.Journal.Answered(noted, http.StatusInternalServerError)
		w.WriteHeader(http.StatusInternalServerError)
	default:
		r.Journal.Answered(noted, http.StatusOK)
		w.Header().Set("Content-Length", "0") // or the answer would end only when we return
		w.WriteHeader(http.StatusOK)
		if http.NewResponseController(w).Flush() == nil {
			r.Journal.AnsweredWhole(noted)
		}
	}
}

// expectWhole expects that every request is in the journal. Only a request whose sender
// was killed may have an incomplete body.
func (x *Trial) expectWhole(r *Receiver, killed bool) {
	x.Helper()
	strays, torn := r.Unread()
	if len(strays) > 0 {
		x.expect(false, "%d requests came to no endpoint: %s", len(strays), strays[0])
	}
	if len(torn) > 0 && !killed {
		x.expect(false, "%d requests broke off, and nobody was killed: %s", len(torn), torn[0])
	}
}

// killed reports whether a process has ended with an error or a signal.
func (x *Trial) killed() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.ContainsFunc(x.processes, func(p *Process) bool { return !p.Running() && p.Err != nil })
}

// reset breaks the connection without an answer.
func (r *Receiver) reset(w http.ResponseWriter, noted *oracle.Request) {
	r.Journal.Broke(noted)
	hijack(w, breakOff)
}

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
