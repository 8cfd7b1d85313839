package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
)

// runDoctor prints what the preflight finds, and changes nothing. It exits as run would.
func runDoctor(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	return withConfig(newFlags("doctor"), args, stderr, func(cfg *config.Config, _ *slog.Logger) error { return doctor(ctx, cfg, stdout) })
}

func doctor(ctx context.Context, cfg *config.Config, stdout io.Writer) error {
	db, err := openDatabase(ctx, cfg)
	if err != nil {
		return err
	}
	defer db.close()
	checks, err := preflight(ctx, db, intent(cfg))
	if err != nil {
		checks = []store.Check{store.FailedCheck("connection", err)}
	}
	report(stdout, checks)
	return store.FirstFailure(checks)
}

// report prints a line for each check and, if there is something to type, a second one.
func report(w io.Writer, checks []store.Check) {
	widest := 0
	for _, c := range checks {
		widest = max(widest, len(c.Name))
	}
	for _, c := range checks {
		fmt.Fprintf(w, "%-4s  %-*s  %s\n", c.State, widest, c.Name, c.Found)
		if c.Fix != "" {
			fmt.Fprintf(w, "%s-> %s\n", strings.Repeat(" ", widest+8), c.Fix)
		}
	}
}
