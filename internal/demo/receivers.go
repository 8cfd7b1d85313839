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
	"time"

	"github.com/walhook/walhook/internal/oracle"
)

// receivers is an HTTP server on the loopback interface that plays all roles. Each
// endpoint has a path of its own: /receiver/organization.
type receivers struct {
	oracle.Receiver
	url    string
	roles  []role
	server *http.Server
}

// receiverPatience bounds how long a receiver reads a request: walhook is on the same
// machine.
const receiverPatience = 10 * time.Second

func openReceivers(ctx context.Context, roles []role) (*receivers, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("open the receivers: %w", err)
	}
	r := &receivers{url: "http://" + listener.Addr().String(), roles: roles}
	r.Receiver = oracle.Receiver{Journal: &oracle.Journal{}, Answer: r.answer}
	r.server = &http.Server{Handler: r, ReadTimeout: receiverPatience, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = r.server.Serve(listener) }() // ends with close, and has nothing more to tell
	return r, nil
}

// close closes all connections, held requests included.
func (r *receivers) close() error {
	if err := r.server.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close the receivers: %w", err)
	}
	return nil
}

// answer plays the role at the request's path.
func (r *receivers) answer(w http.ResponseWriter, req *http.Request, got *oracle.Request) {
	name, _, _ := strings.Cut(req.URL.Path[1:], "/")
	role, status := roleOf(r.roles, name), http.StatusNoContent
	switch {
	case role.fails == forever:
		<-req.Context().Done() // walhook hangs up
		return
	case r.Journal.Requests(got.Delivery) <= role.fails:
		status = http.StatusInternalServerError
	case got.Malformed != "":
		status = http.StatusUnauthorized
	}
	r.Journal.Answered(got, status)
	if status >= http.StatusBadRequest {
		http.Error(w, strings.ToLower(http.StatusText(status)), status)
		return
	}
	w.WriteHeader(status)
}
