package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/outbox"
)

// preflight looks, before anything is made, whether walhook can do what is intended:
// what failed half way would leave tables that belong to the wrong role. run, init and
// doctor begin with it. An error means that it could not be found out.
func preflight(ctx context.Context, s *sessions, store *outbox.Store, want outbox.Intent) ([]outbox.Check, error) {
	checks, err := store.Preflight(ctx, want)
	if err != nil {
		return nil, s.refusedSQL(err)
	}
	replication := outbox.Check{Name: "replication", State: outbox.CheckOK, Found: "the role may replicate"}
	if err := cdc.Probe(ctx, cdc.Config{Server: s.replication, Slot: s.cfg.Slot}); err != nil {
		replication = outbox.FailedCheck(replication.Name, s.refusedReplication(err))
	}
	checks = append(checks, replication)
	if store.CheckSchema(ctx) == nil { // else there is nothing yet, or it cannot be read
		keys := outbox.Check{Name: "secret key", State: outbox.CheckOK, Found: "it opens what is sealed"}
		if err := checkSecrets(ctx, store); err != nil {
			keys = outbox.FailedCheck(keys.Name, err)
		}
		checks = append(checks, keys)
	}
	return checks, nil
}

// intent is what run does with the database.
func intent(cfg *config.Config) outbox.Intent {
	return outbox.Intent{Apply: cfg.AutoInit, Schema: cfg.Schema, Environment: cfg.Environment}
}

// warnings logs what is no reason not to start.
func warnings(ctx context.Context, checks []outbox.Check, log *slog.Logger) {
	for _, c := range checks {
		if c.State == outbox.CheckWarn {
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
	store, err := newStore(cfg, pool)
	if err != nil {
		return err
	}
	checks, err := preflight(ctx, sessions, store, intent(cfg))
	if err != nil {
		checks = []outbox.Check{outbox.FailedCheck("connection", err)}
	}
	report(stdout, checks)
	return outbox.FirstFailure(checks)
}

// report prints a line for each check, and what to type under those that need it.
func report(w io.Writer, checks []outbox.Check) {
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
