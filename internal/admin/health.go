package admin

import (
	"context"
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

// readyz answers whether walhook does its work, or would at once: a standby is ready.
func readyz(ready func(context.Context) (string, error)) http.Handler {
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
			refuse(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		answer(w, http.StatusOK, map[string]string{"role": role})
	})
}
