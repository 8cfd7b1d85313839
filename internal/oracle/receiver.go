package oracle

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// A Receiver plays all endpoints, each at a path of its own. It notes every request
// in the journal before it answers.
type Receiver struct {
	Journal *Journal
	Answer  func(w http.ResponseWriter, req *http.Request, got *Request)

	mu      sync.Mutex
	paths   map[string]int // → endpoint
	secrets [][]string     // by endpoint, in the order of their making
	strays  []string       // requests to no endpoint: they go into no journal
	torn    []string       // requests whose body broke off
}

// Add gives the next endpoint a path.
func (r *Receiver) Add(path, secret string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.paths == nil {
		r.paths = map[string]int{}
	}
	r.paths[path] = len(r.secrets)
	r.secrets = append(r.secrets, []string{secret})
}

// Rotate gives an endpoint a new secret, beside those it had.
func (r *Receiver) Rotate(endpoint int, secret string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secrets[endpoint] = append(r.secrets[endpoint], secret)
}

// Unread returns the requests that are in no journal: those to no endpoint, and
// those whose body broke off.
func (r *Receiver) Unread() (strays, torn []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.strays), slices.Clone(r.torn)
}

// ServeHTTP takes one request, notes it, and has it answered.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	at := time.Now()
	body, err := io.ReadAll(req.Body)
	endpoint, secrets := r.find(req.URL.Path, len(body), err)
	if err != nil || secrets == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	got := Read(req.Header, body, secrets...)
	got.Endpoint, got.At = endpoint, at
	r.Journal.Received(got)
	r.Answer(w, req, got)
}

// find returns the endpoint at a path, and notes a request that cannot be read.
func (r *Receiver) find(path string, length int, err error) (endpoint int, secrets []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	endpoint, known := r.paths[path]
	switch {
	case !known:
		r.strays = append(r.strays, path)
		return 0, nil
	case err != nil:
		r.torn = append(r.torn, fmt.Sprintf("%s after %d bytes: %v", path, length, err))
	}
	return endpoint, r.secrets[endpoint]
}
