package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
)

// preflight looks, before anything is made, whether walhook can do what is intended:
// what failed half way would leave tables that belong to the wrong role. run, init and
// doctor begin with it. An error means that it could not be found out.
func preflight(ctx context.Context, s *sessions, st *store.Store, want store.Intent) ([]store.Check, error) {
	checks, err := st.Preflight(ctx, want)
	if err != nil {
		return nil, s.refusedSQL(err)
	}
	replication := store.Check{Name: "replication", State: store.CheckOK, Found: "the role may replicate"}
	if err := cdc.Probe(ctx, cdc.Config{Server: s.replication, Slot: s.cfg.Slot}); err != nil {
		replication = store.FailedCheck(replication.Name, s.refusedReplication(err))
	}
	checks = append(checks, replication)
	if st.CheckSchema(ctx) == nil { // else there is nothing yet, or it cannot be read
		keys := store.Check{Name: "secret key", State: store.CheckOK, Found: "it opens what is sealed"}
		if err := checkSecrets(ctx, st); err != nil {
			keys = store.FailedCheck(keys.Name, err)
		}
		checks = append(checks, keys)
	}
	return checks, nil
}

// intent is what run does with the database.
func intent(cfg *config.Config) store.Intent {
	return store.Intent{Apply: cfg.AutoInit, Schema: cfg.Schema, Environment: cfg.Environment}
}

// warnings logs what is no reason not to start.
func warnings(ctx context.Context, checks []store.Check, log *slog.Logger) {
	for _, c := range checks {
		if c.State == store.CheckWarn {
			log.WarnContext(ctx, "preflight: "+c.Name, "found", c.Found, "mend", c.Remedy)
		}
	}
}

// runDoctor tells what the preflight finds, and starts and changes nothing. It ends as
// run would.
func runDoctor(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	return withConfig(newFlags("doctor"), args, stderr, func(cfg *config.Config, _ *slog.Logger) error { return doctor(ctx, cfg, stdout) })
}

func doctor(ctx context.Context, cfg *config.Config, stdout io.Writer) error {
	sessions := newSessions(cfg)
	pool, err := sessions.pool(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	st, err := newStore(cfg, pool)
	if err != nil {
		return err
	}
	checks, err := preflight(ctx, sessions, st, intent(cfg))
	if err != nil {
		checks = []store.Check{store.FailedCheck("connection", err)}
	}
	report(stdout, checks)
	return store.FirstFailure(checks)
}

// report prints a line for each check, and what to type under those that need it.
func report(w io.Writer, checks []store.Check) {
	widest := 0
	for _, c := range checks {
		widest = max(widest, len(c.Name))
	}
	for _, c := range checks {
		fmt.Fprintf(w, "%-4s  %-*s  %s\n", c.State, widest, c.Name, c.Found)
		if c.Remedy != "" {
			fmt.Fprintf(w, "%s-> %s\n", strings.Repeat(" ", widest+8), c.Remedy)
		}
	}
}
