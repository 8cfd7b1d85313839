package admin

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

// healthEvery is how often health is looked up at most, however many ask. Probes ask every few
// seconds.
const healthEvery = time.Second

// A checkup is a health check whose result is shown for healthEvery. It returns the role, where
// it has one.
type checkup struct {
	look func(context.Context) (role string, err error)
	turn gate

	role  string // who has the gate's turn reads and writes these
	err   error
	until time.Time
}

func newCheckup(look func(context.Context) (string, error)) *checkup {
	return &checkup{look: look, turn: newGate()}
}

// result looks whether or not who asks stays: others may wait for it.
func (c *checkup) result(ctx context.Context) (role string, err error) {
	waiting, cancel := context.WithTimeout(ctx, databasePatience)
	defer cancel()
	if err := c.turn.enter(waiting); err != nil {
		return "", err
	}
	defer c.turn.leave()
	if time.Now().Before(c.until) {
		return c.role, c.err
	}
	looking, cancel := context.WithTimeout(context.WithoutCancel(ctx), databasePatience)
	defer cancel()
	c.role, c.err = c.look(looking)
	c.until = time.Now().Add(healthEvery)
	return c.role, c.err
}

// A Reason is why walhook is not healthy or not ready, in two forms: for everybody who reaches
// the port, and for who has the token. The second can name hosts, users and databases.
type Reason struct {
	Class string
	Err   error
}

func (r *Reason) Error() string { return r.Err.Error() }
func (r *Reason) Unwrap() error { return r.Err }

// why is what who asks may know of an error. otherwise is the class of errors that have none.
func (g *guard) why(r *http.Request, err error, otherwise string) string {
	if len(g.tokens) > 0 && g.presented(r) {
		return err.Error()
	}
	if reason, ok := errors.AsType[*Reason](err); ok {
		return reason.Class
	}
	return otherwise
}

// healthz answers whether the process is worth keeping: its loops turn. That the
// database is away is not a reason to restart it.
func healthz(g *guard, alive func() error) http.Handler {
	check := newCheckup(func(context.Context) (string, error) { return "", alive() })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := check.result(r.Context())
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, g.why(r, err, "not working"))
			return
		}
		_, _ = io.WriteString(w, "ok")
	})
}

// readyz answers whether walhook does its work, or would at once: a standby is ready.
// Everybody may ask, so why not is told in words that name nothing, but to who has the token.
func readyz(g *guard, ready func(context.Context) (string, error)) http.Handler {
	check := newCheckup(ready)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		role, err := check.result(r.Context())
		if err != nil {
			refuse(w, http.StatusServiceUnavailable, g.why(r, err, "not ready"))
			return
		}
		answer(w, http.StatusOK, map[string]string{"role": role})
	})
}
