package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
)

// newStore makes the store, which seals secrets where there is a key.
func newStore(cfg *config.Config, pool *pgxpool.Pool) (*store.Store, error) {
	st := store.New(pool, cfg.Slot, cfg.DisableAfter)
	st.Expects(schema)
	if len(cfg.SecretKey) == 0 {
		return st, nil
	}
	sealer, err := store.NewSealer(cfg.SecretKey, cfg.OldKey)
	if err != nil {
		return nil, fmt.Errorf("%w: WALHOOK_SECRET_KEY: %w", errConfig, err)
	}
	st.Sealing(sealer)
	return st, nil
}

const (
	// connectPause and connectPauseMax bound the pause between tries.
	connectPause    = 100 * time.Millisecond
	connectPauseMax = time.Second
)

// prepare sees to it that the database is as it must be: schema, publication,
// environment. A database that cannot be reached is waited for, for ever.
func prepare(ctx context.Context, s *sessions, st *store.Store, r *readiness, log *slog.Logger) error {
	pause, said := connectPause, ""
	for {
		checks, err := prepareOnce(ctx, s, st)
		if err == nil {
			r.waiting(nil)
			warnings(ctx, checks, log)
		}
		if err == nil || ctx.Err() != nil || errors.Is(err, errConfig) ||
			errors.Is(err, store.ErrNotPrepared) || errors.Is(err, store.ErrHeldBack) {
			return err
		}
		r.waiting(err)
		if err.Error() != said {
			said = err.Error()
			log.WarnContext(ctx, "waiting for the database", "error", err)
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, connectPauseMax)
		case <-ctx.Done():
			return nil
		}
	}
}

// prepareOnce makes nothing before the preflight has found that all of it can be made.
func prepareOnce(ctx context.Context, s *sessions, st *store.Store) ([]store.Check, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	want := intent(s.cfg)
	want.Waits = true
	checks, err := preflight(ctx, s, st, want)
	if err != nil {
		return nil, err
	}
	if err := store.FirstFailure(checks); err != nil {
		return nil, err
	}
	left, err := makeReady(ctx, s, st)
	if err != nil {
		return nil, s.refusedSQL(err)
	}
	checks = append(checks, left...)
	if err := st.ClaimEnvironment(ctx, s.cfg.Environment, false); err != nil {
		return nil, err
	}
	return checks, checkSecrets(ctx, st)
}

// checkSecrets refuses keys with which nothing could be sent.
func checkSecrets(ctx context.Context, st *store.Store) error {
	err := st.CheckSecrets(ctx)
	if errors.Is(err, store.ErrSecretKey) {
		return fmt.Errorf("%w: %w", errConfig, err)
	}
	return err
}

// makeReady only looks where WALHOOK_AUTO_INIT is false. Where nothing that delivering
// needs is missing, what could not be mended is left.
func makeReady(ctx context.Context, s *sessions, st *store.Store) (left []store.Check, err error) {
	if !s.cfg.AutoInit {
		return nil, st.CheckSchema(ctx)
	}
	if err := createSchema(ctx, s, st); err != nil {
		return nil, err
	}
	err = st.Migrate(ctx, schema)
	if err == nil || st.CheckSchema(ctx) != nil {
		return nil, err
	}
	return []store.Check{{Name: "other objects", State: store.CheckWarn, Found: "not mended: " + err.Error(),
		Remedy: "run `walhook init` with a role that owns the tables; nothing that delivering needs is missing"}}, nil
}

// createSchema makes the schema that WALHOOK_SCHEMA names, where it is missing.
func createSchema(ctx context.Context, s *sessions, st *store.Store) error {
	if s.cfg.Schema == "" {
		return nil
	}
	return st.CreateSchema(ctx, s.cfg.Schema)
}

// sayDropped names the parameters that were meant for somebody else.
func sayDropped(ctx context.Context, cfg *config.Config, log *slog.Logger) {
	if dropped := cfg.Dropped(); len(dropped) > 0 {
		log.InfoContext(ctx, "parameters of the connection string mean nothing to walhook; WALHOOK_SCHEMA says where its tables are", "parameters", dropped)
	}
}

// runInit prepares the database, the slot included, and starts nothing.
func runInit(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := newFlags("init")
	adopt := flags.Bool("adopt", false, "take over a database of another WALHOOK_ENVIRONMENT")
	return withConfig(flags, args, stderr, func(cfg *config.Config, log *slog.Logger) error {
		return initialize(ctx, cfg, *adopt, stdout, log)
	})
}

func initialize(ctx context.Context, cfg *config.Config, adopt bool, stdout io.Writer, log *slog.Logger) error {
	sessions := newSessions(cfg)
	sayDropped(ctx, cfg, log)
	pool, err := sessions.pool(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	st, err := newStore(cfg, pool)
	if err != nil {
		return err
	}
	want := intent(cfg)
	want.Apply, want.Adopt = true, adopt
	checks, err := preflight(ctx, sessions, st, want)
	if err != nil {
		return err
	}
	if err := store.FirstFailure(checks); err != nil {
		return err
	}
	warnings(ctx, checks, log)
	if err := applySchema(ctx, sessions, st, log); err != nil {
		return err
	}
	if err := st.ClaimEnvironment(ctx, cfg.Environment, adopt); err != nil {
		return err
	}
	if err := checkSecrets(ctx, st); err != nil {
		return err
	}
	created, err := cdc.Prepare(ctx, cdc.Config{Server: sessions.replication, Slot: cfg.Slot, Publication: store.Publication, CreateSlot: true,
		Creating: st.AwaitSlot, Logger: log})
	if err != nil {
		return sessions.refusedReplication(err)
	}
	how := "exists"
	if created {
		how = "created"
	}
	fmt.Fprintf(stdout, "schema version %d, publication %s, slot %s (%s): ready for `walhook run`\n",
		store.SchemaVersion, store.Publication, cfg.Slot, how)
	return nil
}

// applySchema applies the schema whatever is there, which mends also what no check
// finds. Where nothing that is looked for is missing, it is no reason to stop that
// somebody is in the way, or that a newer walhook has been here.
func applySchema(ctx context.Context, s *sessions, st *store.Store, log *slog.Logger) error {
	if err := createSchema(ctx, s, st); err != nil {
		return s.refusedSQL(err)
	}
	err := st.Apply(ctx, schema)
	if err == nil {
		return nil
	}
	if st.CheckSchema(ctx) != nil {
		return s.refusedSQL(err)
	}
	log.WarnContext(ctx, "the schema was not applied again; nothing that walhook needs is missing", "reason", err)
	return nil
}

// healthTimeout bounds the question; Docker's default for a health check is 30 s.
const healthTimeout = 3 * time.Second

// runHealthcheck asks the walhook of this container whether its loops turn. Where to
// ask is all that it needs to know.
func runHealthcheck(ctx context.Context, args []string) error {
	if err := parseFlags(newFlags("healthcheck"), args); err != nil {
		return err
	}
	addr, err := config.AdminAddr(os.Environ())
	if err != nil {
		return fmt.Errorf("%w: %w", errConfig, err)
	}
	if addr == "" {
		return fmt.Errorf("%w: WALHOOK_ADMIN_ADDR is empty: there is nobody to ask", errConfig)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%w: WALHOOK_ADMIN_ADDR: %w", errConfig, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/healthz", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: &http.Transport{}}).Do(req) // no proxy: it is this machine
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return fmt.Errorf("unhealthy: %s: %s", resp.Status, text)
	}
	return nil
}
