package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/deliver"
	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/admin"
	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
)

// The classes of reasons for not being ready, for those who may not see the details.
const (
	starting    = "starting"
	unreachable = "database unreachable"
	unprepared  = "database not prepared"
	notWorking  = "not delivering"
	connecting  = "connecting to the replication slot"
)

// unready returns the reason for an error: ErrNotPrepared has a class of its own, others have
// the given one.
func unready(otherwise string, err error) error {
	class := otherwise
	if errors.Is(err, store.ErrNotPrepared) {
		class = unprepared
	}
	return &admin.Reason{Class: class, Err: err}
}

// A readiness remembers why walhook is not ready, until the database is prepared.
type readiness struct {
	mu  sync.Mutex
	err error
}

func newReadiness() *readiness { return &readiness{err: unready(starting, errors.New(starting))} }

// waiting sets why prepare still waits; nil: it is done.
func (r *readiness) waiting(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	if err != nil {
		r.err = unready(unreachable, err)
	}
}

func (r *readiness) check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// ready returns the role of this process, active or standby, or why it is not ready. A
// standby that waits for the slot is ready.
func ready(ctx context.Context, r *readiness, st *store.Store, current *pipelines) (role string, err error) {
	if err := r.check(); err != nil {
		return "", err
	}
	if err := current.engine().Ready(); err != nil {
		class := notWorking
		if ours, ok := errors.AsType[*deliver.OwnFaultError](err); ok {
			class += ": " + string(ours.Kind)
		}
		return "", unready(class, err)
	}
	if err := st.CheckSchema(ctx); err != nil {
		return "", unready(unreachable, err)
	}
	switch status := current.stream().Status(); {
	case status.Err != "":
		return "", unready(connecting, errors.New(status.Err))
	case status.Role == cdc.Streaming:
		return "active", nil
	case status.Role == cdc.Standby:
		return "standby", nil
	}
	return "", unready(connecting, errors.New(connecting))
}

// serveAdmin listens, and returns what serves until the context ends. Without an address that
// returns at once. Endpoints cannot have the address.
func serveAdmin(ctx context.Context, cfg *config.Config, o admin.Options, protected *send.Protected) (func(context.Context) error, error) {
	if cfg.AdminAddr == "" {
		return func(context.Context) error { return nil }, nil
	}
	var certificate *admin.Certificate
	if cfg.AdminTLSCertFile != "" {
		var err error
		if certificate, err = admin.LoadCertificate(cfg.AdminTLSCertFile, cfg.AdminTLSKeyFile, o.Log); err != nil {
			return nil, fmt.Errorf("%w: WALHOOK_ADMIN_TLS_CERT_FILE: %w", errConfig, err)
		}
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.AdminAddr)
	if err != nil {
		return nil, fmt.Errorf("WALHOOK_ADMIN_ADDR: %w", err)
	}
	if addr, ok := listener.Addr().(*net.TCPAddr); ok {
		protected.Add(addr.AddrPort())
	}
	return func(ctx context.Context) error {
		sampling, end := context.WithCancel(ctx)
		var parts sync.WaitGroup
		parts.Go(func() { o.Samples.Run(sampling) })
		defer parts.Wait()
		defer end()
		return admin.Serve(ctx, listener, certificate, admin.New(o), o.Log)
	}, nil
}

// adminOptions wires the admin server to the other parts.
func adminOptions(cfg *config.Config, r *readiness, st *store.Store, current *pipelines, metrics *admin.Metrics, log *slog.Logger) admin.Options {
	return admin.Options{
		Version: version,
		Tokens:  cfg.AdminTokens(),
		Log:     log,
		Alive:   current.alive,
		Ready:   func(ctx context.Context) (string, error) { return ready(ctx, r, st, current) },
		Metrics: metrics,
		Stats:   current.stats,
		Samples: admin.NewSamples(current.stats),
		Stream:  func() cdc.Status { return current.stream().Status() },
		Store:   st,
	}
}
