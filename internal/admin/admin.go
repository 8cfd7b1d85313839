// Package admin is walhook's HTTP server for operators: health, metrics, a test
// webhook, a status page.
//
//	admin        the routes, and the server
//	crowd        how many connections there may be
//	certificate  TLS
//	guard        who may ask
//	throttle     how often the log says what anybody can bring about
//	database     one statement at a time
//	health       /healthz and /readyz, for everybody
//	metrics      /metrics
//	testwebhook  POST /api/test-webhook
//	page         the page at /, and those of an endpoint and of a delivery
//	forms        the buttons on them
//	samples      what this process did in the last minutes
//	chart        drawn of them
//	words        whether it is well
//
// What it changes, it changes by the functions that operators have in SQL. Nothing waits for
// it: without it deliveries go on all the same.
package admin

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/store"
)

// Options are what the server asks, and whom it answers. All but Tokens are required.
type Options struct {
	Version string
	Tokens  []string // each will do, for everything but health; none: only requests to a loopback name are answered
	Log     *slog.Logger

	// Alive returns an error where a loop no longer turns. See Reason.
	Alive func() error
	// Ready returns the role, "active" or "standby", or an error that says why
	// there is none: the database is away, or not prepared. See Reason.
	Ready func(context.Context) (role string, err error)

	Metrics *Metrics
	Stats   func() schedule.Stats
	Samples *Samples // of Stats; who serves runs them
	Stream  func() cdc.Status
	Store   *store.Store
}

// databasePatience bounds how long a request waits for the database before it
// says that it cannot be reached. Probes and scrapers give up after 10 s.
const databasePatience = 5 * time.Second

// New returns the server's handler.
func New(o Options) http.Handler {
	db := newDatabase(o.Store)
	restricted := http.NewServeMux()
	page := &page{Options: o, db: db, forms: newForms()}
	restricted.HandleFunc("GET /{$}", page.overview)
	restricted.HandleFunc("GET /live", page.fragments)
	restricted.HandleFunc("GET /endpoints/{id}", page.endpoint)
	restricted.HandleFunc("GET /deliveries/{id}", page.delivery)
	restricted.Handle("POST /endpoints/{id}/retry", page.button(page.retryNow))
	restricted.Handle("POST /endpoints/{id}/test", page.button(page.test))
	restricted.Handle("POST /endpoints/{id}/pause", page.button(page.pause))
	restricted.Handle("POST /endpoints/{id}/resume", page.button(page.resume))
	restricted.Handle("POST /endpoints/{id}/enable", page.button(page.enable))
	restricted.Handle("POST /endpoints/{id}/replay", page.button(page.replayFailed))
	restricted.Handle("POST /deliveries/{id}/replay", page.button(page.replay))
	restricted.Handle("GET /metrics", metricsHandler(o, db))
	restricted.Handle("POST /api/test-webhook", testWebhook(db))
	restricted.Handle("/api/test-webhook", onlyPost())

	g := &guard{tokens: o.Tokens, log: o.Log}
	all := http.NewServeMux()
	all.Handle("GET /healthz", healthz(g, o.Alive))
	all.Handle("GET /readyz", readyz(g, o.Ready))
	all.Handle("/", g.operators(restricted))
	return http.MaxBytesHandler(g.everybody(all), maxTestBody)
}

// These bound what a client can hold of the process, which has better things to do.
const (
	headerPatience = 5 * time.Second  // for the request's head, and the TLS handshake before it
	readPatience   = 10 * time.Second // for its body, at most maxTestBody
	writePatience  = 15 * time.Second // to answer: twice databasePatience, and more
	idlePatience   = 5 * time.Second  // until the next request: to connect again costs little
	maxHeader      = 16 << 10
	stopPatience   = 2 * time.Second // for the requests under way at the end
)

// Serve answers on a listener until the context ends, and then lets the requests
// under way end. It closes the listener. Without a certificate it speaks plain HTTP.
func Serve(ctx context.Context, l net.Listener, c *Certificate, h http.Handler, log *slog.Logger) error {
	l = &crowd{Listener: l}
	if c != nil {
		l = tls.NewListener(l, c.config())
	}
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerPatience,
		ReadTimeout:       readPatience,
		WriteTimeout:      writePatience,
		IdleTimeout:       idlePatience,
		MaxHeaderBytes:    maxHeader,
		ConnState:         noteState,
		ErrorLog:          stdlog.New(&troubleLog{log: log}, "", 0),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("admin server: %w", err)
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer cancel()
	err := server.Shutdown(ending)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	if served := <-failed; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err != nil {
		return fmt.Errorf("stop the admin server: %w", err)
	}
	return nil
}

// answer writes JSON.
func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client has gone: there is nobody to tell
}

// refuse writes why not, as {"error":"…"}.
func refuse(w http.ResponseWriter, status int, reason string) {
	answer(w, status, map[string]string{"error": reason})
}
