package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
)

// runDoctor prints what the preflight finds, and what else an operator should know. It changes
// nothing, and exits as run would.
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
	checks = append(checks, encryption(cfg)...)
	if err == nil {
		checks = append(checks, db.store.Inspect(ctx)...)
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

// encryption judges each connection string. A string that cannot be read now is the
// connection's failure.
func encryption(cfg *config.Config) (checks []store.Check) {
	if sql, err := cfg.SQL(); err == nil {
		checks = append(checks, encrypted("WALHOOK_DATABASE_URL", &sql.ConnConfig.Config))
	}
	if cfg.Pooled() {
		if cc, err := cfg.Replication(); err == nil {
			checks = append(checks, encrypted("WALHOOK_REPLICATION_URL", &cc.Config))
		}
	}
	return checks
}

// encrypted says whether a connection may leave this machine as plaintext. sslmode=prefer, the
// default, takes plaintext from whoever is in between and says that there is no TLS.
func encrypted(variable string, cc *pgconn.Config) store.Check {
	c := store.Check{Name: "encryption", State: store.CheckOK, Found: variable + " stays on this machine"}
	ways := append([]*pgconn.FallbackConfig{{Host: cc.Host, TLSConfig: cc.TLSConfig}}, cc.Fallbacks...)
	for _, way := range ways {
		switch {
		case local(way.Host):
		case way.TLSConfig == nil:
			return store.Check{Name: c.Name, State: store.CheckWarn, Found: fmt.Sprintf("%s may send passwords, secrets and payloads to %s as plaintext", variable, way.Host),
				Fix: "add sslmode=verify-full and sslrootcert (or sslmode=require, which checks no certificate) to " + variable}
		case way.TLSConfig.InsecureSkipVerify && way.TLSConfig.VerifyPeerCertificate == nil:
			c.Found = variable + " is encrypted; the server's certificate is not checked (sslmode=verify-full checks it)"
		default:
			c.Found = variable + " is encrypted, and the server's certificate is checked"
		}
	}
	return c
}

// local reports whether a host of a connection string is this machine.
func local(host string) bool {
	addr, err := netip.ParseAddr(host)
	return strings.HasPrefix(host, "/") || host == "localhost" || err == nil && addr.IsLoopback()
}
