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

// verifiedEvery is how often a Tally verifies a request in full: to verify every one
// would slow down the measurement.
const verifiedEvery = 64

// A Tally plays the endpoints of a million events. It answers at once, and counts each
// event's requests by the number in the payload. A journal would take more memory and
// time than walhook.
type Tally struct {
	server  *httptest.Server
	counts  []atomic.Uint32 // of requests, by the event's number
	heard   atomic.Int64    // events with a request
	beyond  atomic.Int64    // requests beyond the first of each
	hanging chan struct{}   // closed to release the requests; nil: they do not hang

	mu        sync.Mutex
	endpoints []oracle.Endpoint
	wrong     []string       // requests that are not as promised
	repeats   map[string]int // requests beyond the first of each, by their sender
}

// newTally counts events with numbers below n. If hanging, it does not answer until it is
// released.
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

// serve sets the endpoints. Event n is owed to endpoint n modulo their number.
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

// count counts a request, and returns its event's count.
func (y *Tally) count(req *http.Request, body []byte) (uint32, error) {
	n, err := numberOf(body)
	if err != nil || n >= len(y.counts) {
		return 0, fmt.Errorf("a body of no event: %.200s", body)
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

// numberOf reads the event's number from a body.
func numberOf(body []byte) (int, error) {
	const before = `"data":{"n": `
	_, text, found := bytes.Cut(body, []byte(before))
	if !found {
		return 0, errors.New("no number")
	}
	text, _, _ = bytes.Cut(text, []byte(","))
	return strconv.Atoi(string(text))
}

// lost is the number of events without a request.
func (y *Tally) lost() int { return len(y.counts) - int(y.heard.Load()) }

// tooMany returns the walhooks that repeated more than they may: none before a crash, W
// after one. A walhook makes up for the last crash before its start: what an earlier
// crash lost was repeated by the one before it.
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
