package admin

import (
	"context"
	"errors"
	"io"
	"net/http"
)

// healthz answers whether the process is worth keeping: its loops turn. That the
// database is away is not a reason to restart it.
func healthz(alive func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if err := alive(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, err.Error())
			return
		}
		_, _ = io.WriteString(w, "ok")
	})
}

// A Reason is why walhook is not ready, in two forms: for everybody who reaches the
// port, and for who may see everything. The second can name hosts, users and databases.
type Reason struct {
	Class string
	Err   error
}

func (r *Reason) Error() string { return r.Err.Error() }
func (r *Reason) Unwrap() error { return r.Err }

// class is what everybody may know of an error.
func class(err error) string {
	if reason, ok := errors.AsType[*Reason](err); ok {
		return reason.Class
	}
	return "not ready"
}

// readyz answers whether walhook does its work, or would at once: a standby is ready.
// Everybody may ask, so why not is told in words that name nothing, but to who may see
// everything.
func readyz(tokens []string, ready func(context.Context) (string, error)) http.Handler {
	turn := newGate()
	ask := func(ctx context.Context) (string, error) {
		if err := turn.enter(ctx); err != nil {
			return "", err
		}
		defer turn.leave()
		return ready(ctx)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), databasePatience)
		defer cancel()
		role, err := ask(ctx)
		if err != nil {
			reason := class(err)
			if trusted(r, tokens) {
				reason = err.Error()
			}
			refuse(w, http.StatusServiceUnavailable, reason)
			return
		}
		answer(w, http.StatusOK, map[string]string{"role": role})
	})
}
