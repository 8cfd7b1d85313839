package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/outbox"
)

// poolConns bounds the SQL connections: one each for the recorder, the retrier,
// the directory and the fan-out, one for upkeep, checks and reconciling, one for
// the admin server. With the replication connection and the listener they are 8.
const poolConns = 6

// newPool makes the pool without connecting: the database may not be up yet.
func newPool(ctx context.Context, cfg *config.Config) (*pgxpool.Pool, error) {
	pc, err := pgxpool.ParseConfig(string(cfg.DatabaseURL))
	if err != nil {
		return nil, fmt.Errorf("%w: WALHOOK_DATABASE_URL: %w", errConfig, err)
	}
	pc.MaxConns = poolConns
	pc.MaxConnIdleTime = 5 * time.Minute
	if pc.ConnConfig.ConnectTimeout == 0 {
		pc.ConnConfig.ConnectTimeout = connectTimeout
	}
	if pc.ConnConfig.RuntimeParams["application_name"] == "" && !pooled(cfg) {
		pc.ConnConfig.RuntimeParams["application_name"] = "walhook"
	}
	// Also for what is parsed before a transaction has set its own.
	if _, set := pc.ConnConfig.RuntimeParams["lock_timeout"]; !set && !pooled(cfg) {
		pc.ConnConfig.RuntimeParams["lock_timeout"] = outbox.LockTimeout
	}
	// A pooler that shares connections between transactions forgets prepared statements.
	if pooled(cfg) && !strings.Contains(string(cfg.DatabaseURL), "default_query_exec_mode") {
		pc.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(ctx), pc)
	if err != nil {
		return nil, fmt.Errorf("%w: WALHOOK_DATABASE_URL: %w", errConfig, err)
	}
	return pool, nil
}

// newStore makes the store, which seals secrets where there is a key.
func newStore(cfg *config.Config, pool *pgxpool.Pool) (*outbox.Store, error) {
	store := outbox.NewStore(pool, cfg.Slot, cfg.DisableAfter)
	if len(cfg.SecretKey) == 0 {
		return store, nil
	}
	sealer, err := outbox.NewSealer(cfg.SecretKey)
	if err != nil {
		return nil, fmt.Errorf("%w: WALHOOK_SECRET_KEY: %w", errConfig, err)
	}
	store.Sealing(sealer)
	return store, nil
}

// pooled says that SQL may go through a pooler, which is why there is another
// URL for the replication connection.
func pooled(cfg *config.Config) bool { return cfg.ReplicationURL != cfg.DatabaseURL }

const (
	// connectTimeout bounds one try to connect, where the URL does not.
	connectTimeout = 5 * time.Second

	// connectPause and connectPauseMax bound the pause between tries.
	connectPause    = 100 * time.Millisecond
	connectPauseMax = time.Second
)

// prepare sees to it that the database is as it must be: schema, publication,
// environment. A database that cannot be reached is waited for, for ever.
func prepare(ctx context.Context, cfg *config.Config, store *outbox.Store, r *readiness, log *slog.Logger) error {
	pause, said := connectPause, ""
	for {
		err := prepareOnce(ctx, cfg, store)
		if err == nil {
			r.waiting(nil)
		}
		if err == nil || ctx.Err() != nil || errors.Is(err, errConfig) ||
			errors.Is(err, outbox.ErrNotPrepared) || errors.Is(err, outbox.ErrHeldBack) {
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

func prepareOnce(ctx context.Context, cfg *config.Config, store *outbox.Store) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	schemaErr := store.CheckSchema(ctx)
	if cfg.AutoInit && errors.Is(schemaErr, outbox.ErrNotPrepared) {
		schemaErr = store.Migrate(ctx, schema)
	}
	if schemaErr != nil {
		return refused(schemaErr)
	}
	return store.ClaimEnvironment(ctx, cfg.Environment, false)
}

// refused tells a server that is away from one that will not have us, ever.
func refused(err error) error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return err
	}
	switch pg.Code {
	case "28P01", "28000": // invalid_password, invalid_authorization_specification
		return fmt.Errorf("%w: WALHOOK_DATABASE_URL: %w", errConfig, err)
	case "3D000": // invalid_catalog_name
		return fmt.Errorf("%w: %w; CREATE DATABASE it, or mend WALHOOK_DATABASE_URL", outbox.ErrNotPrepared, err)
	}
	return err
}

// runInit prepares the database, the slot included, and starts nothing.
func runInit(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := newFlags("init", stderr)
	adopt := flags.Bool("adopt", false, "take over a database of another WALHOOK_ENVIRONMENT")
	return withConfig(flags, args, stderr, func(cfg *config.Config, log *slog.Logger) error {
		pool, err := newPool(ctx, cfg)
		if err != nil {
			return err
		}
		defer pool.Close()
		store := outbox.NewStore(pool, cfg.Slot, cfg.DisableAfter)
		if err := store.Migrate(ctx, schema); err != nil {
			return refused(err)
		}
		if err := store.ClaimEnvironment(ctx, cfg.Environment, *adopt); err != nil {
			return err
		}
		created, err := cdc.Prepare(ctx, cdc.Config{URL: string(cfg.ReplicationURL), Slot: cfg.Slot, Publication: outbox.Publication, CreateSlot: true,
			Creating: store.AwaitSlot, Logger: log})
		if err != nil {
			return err
		}
		how := "exists"
		if created {
			how = "created"
		}
		fmt.Fprintf(stdout, "schema version %d, publication %s, slot %s (%s): ready for `walhook run`\n",
			outbox.SchemaVersion, outbox.Publication, cfg.Slot, how)
		return nil
	})
}

// runUninstall takes back what init made. The tables stay unless asked for.
func runUninstall(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := newFlags("uninstall", stderr)
	tables := flags.Bool("tables", false, "drop the tables too, with everything in them")
	return withConfig(flags, args, stderr, func(cfg *config.Config, _ *slog.Logger) error {
		pool, err := newPool(ctx, cfg)
		if err != nil {
			return err
		}
		defer pool.Close()
		store := outbox.NewStore(pool, cfg.Slot, cfg.DisableAfter)
		dropped, err := store.DropSlot(ctx)
		if err != nil {
			return refused(err)
		}
		if err := store.DropPublication(ctx); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "slot %s dropped: %t; publication %s dropped\n", cfg.Slot, dropped, outbox.Publication)
		if !*tables {
			return nil
		}
		if err := store.DropTables(ctx, schema); err != nil {
			return err
		}
		fmt.Fprintln(stdout, "tables, views and functions dropped")
		return nil
	})
}

// healthTimeout bounds the question; Docker's default for a health check is 30 s.
const healthTimeout = 3 * time.Second

// runHealthcheck asks the walhook of this container whether its loops turn.
func runHealthcheck(ctx context.Context, args []string, _, stderr io.Writer) error {
	return withConfig(newFlags("healthcheck", stderr), args, stderr, func(cfg *config.Config, _ *slog.Logger) error {
		if cfg.AdminAddr == "" {
			return fmt.Errorf("%w: WALHOOK_ADMIN_ADDR is empty: there is nobody to ask", errConfig)
		}
		host, port, err := net.SplitHostPort(cfg.AdminAddr)
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
	})
}

func newFlags(name string, stderr io.Writer) *flag.FlagSet {
	flags := flag.NewFlagSet("walhook "+name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	return flags
}
