package faults

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/walhook/walhook/internal/oracle"
	"github.com/walhook/walhook/sign"
)

// verifiedEvery is how many requests a Tally looks at one of in full: to verify all
// of them would slow down what is measured.
const verifiedEvery = 64

// A Tally is the endpoints of a million events: it answers at once, and counts the
// requests for each event, by the number in its payload. A journal of them all
// would take more memory and time than what is tested.
type Tally struct {
	server  *httptest.Server
	counts  []atomic.Uint32 // of requests, by the event's number
	heard   atomic.Int64    // events with a request
	beyond  atomic.Int64    // requests beyond the first of each
	hanging chan struct{}   // closed: it answers; nil: it always does

	mu        sync.Mutex
	endpoints []oracle.Endpoint
	wrong     []string       // requests that must not be
	repeats   map[string]int // requests beyond the first of each, by the walhook that sent them
}

// newTally counts events with numbers below n. It hangs until it is released.
func newTally(n int, hanging bool) *Tally {
	y := &Tally{counts: make([]atomic.Uint32, n), repeats: map[string]int{}}
	if hanging {
		y.hanging = make(chan struct{})
	}
	y.server = httptest.NewServer(y)
	return y
}

func (y *Tally) url(endpoint int) string { return fmt.Sprintf("%s/%d", y.server.URL, endpoint) }

func (y *Tally) close() {
	y.server.CloseClientConnections()
	y.server.Close()
}

// serve tells which endpoints there are: the number of an event, modulo theirs, is
// that of the endpoint which it is owed to.
func (y *Tally) serve(endpoints []oracle.Endpoint) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.endpoints = endpoints
}

// ServeHTTP counts one request, and answers it.
func (y *Tally) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil { // the sender was killed while it wrote
		return
	}
	switch count, err := y.count(req, body); {
	case err != nil:
		y.mu.Lock()
		y.wrong = append(y.wrong, err.Error())
		y.mu.Unlock()
	case count == 1:
		y.heard.Add(1)
	default:
		y.beyond.Add(1)
		y.mu.Lock()
		y.repeats[req.UserAgent()]++
		y.mu.Unlock()
	}
	if y.hanging != nil {
		select {
		case <-y.hanging:
		case <-req.Context().Done():
			return
		}
	}
	w.WriteHeader(http.StatusOK)
}

// count returns how many requests there were for the event, with this one.
func (y *Tally) count(req *http.Request, body []byte) (uint32, error) {
	n, err := numberOf(body)
	if err != nil || n >= len(y.counts) {
		return 0, fmt.Errorf("a body that no event of these has: %.200s", body)
	}
	count := y.counts[n].Add(1)
	if n%verifiedEvery != 0 {
		return count, nil
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	endpoint := y.endpoints[n%len(y.endpoints)]
	if !strings.HasSuffix(endpoint.URL, req.URL.Path) {
		return count, fmt.Errorf("event %d came to %s, and is owed to %s", n, req.URL.Path, endpoint.URL)
	}
	if wrong := oracle.Read(req.Header, body, endpoint.Secret).Malformed; wrong != "" {
		return count, fmt.Errorf("event %d, as delivery %s: %s", n, req.Header.Get(sign.HeaderID), wrong)
	}
	return count, nil
}

// numberOf reads the number from a body, as PostgreSQL prints the payload.
func numberOf(body []byte) (int, error) {
	const before = `"data":{"n": `
	_, text, found := bytes.Cut(body, []byte(before))
	if !found {
		return 0, errors.New("no number")
	}
	text, _, _ = bytes.Cut(text, []byte(","))
	return strconv.Atoi(string(text))
}

// lost is how many events no request came for.
func (y *Tally) lost() int { return len(y.counts) - int(y.heard.Load()) }

// tooMany says which walhooks have repeated more than they may: nothing where none
// has crashed before them, and else what the last crash has lost. What an earlier
// one has lost comes first of all in the life after it.
func (y *Tally) tooMany(crashes []oracle.Crash, began map[string]time.Time) (found []string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for name, n := range y.repeats {
		most := 0
		if slices.ContainsFunc(crashes, func(c oracle.Crash) bool { return c.From.Before(began[name]) }) {
			most = maxInFlight + unrecorded
		}
		if n > most {
			found = append(found, fmt.Sprintf("%s has sent %d events again, at most %d", name, n, most))
		}
	}
	return found
}
