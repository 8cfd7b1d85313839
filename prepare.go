package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
)

const (
	// connectPause and connectPauseMax bound the pause between tries: short, so that
	// walhook is ready soon after the database.
	connectPause    = 100 * time.Millisecond
	connectPauseMax = time.Second
)

// prepare prepares the database: schema, publication, environment. It waits for ever for a
// database that it cannot reach.
func prepare(ctx context.Context, db *database, r *readiness, log *slog.Logger) error {
	wait, said := connectPause, ""
	for {
		checks, err := prepareOnce(ctx, db)
		if err == nil {
			r.waiting(nil)
			warnings(ctx, checks, log)
			db.sayWarned(ctx, log)
		}
		if ctx.Err() != nil {
			return nil // what the stop cut is no failure
		}
		if err == nil || errors.Is(err, errConfig) || errors.Is(err, store.ErrNotPrepared) || errors.Is(err, store.ErrHeldBack) {
			return err
		}
		r.waiting(err)
		if err.Error() != said {
			said = err.Error()
			log.WarnContext(ctx, "waiting for the database", "error", err)
		}
		if !pause(ctx, wait) {
			return nil
		}
		wait = min(2*wait, connectPauseMax)
	}
}

// prepareOnce changes nothing before the preflight has passed.
func prepareOnce(ctx context.Context, db *database) ([]store.Check, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	want := intent(db.cfg)
	want.Waits = true
	checks, err := preflight(ctx, db, want)
	if err != nil {
		return nil, err
	}
	if err := store.FirstFailure(checks); err != nil {
		return nil, err
	}
	left, err := makeReady(ctx, db)
	if err != nil {
		return nil, db.refusedSQL(err)
	}
	checks = append(checks, left...)
	if err := db.store.ClaimEnvironment(ctx, db.cfg.Environment, false); err != nil {
		return nil, err
	}
	if err := db.store.SetMaxEndpoints(ctx, db.cfg.MaxEndpoints); err != nil {
		return nil, err
	}
	return checks, checkSecrets(ctx, db)
}

// checkSecrets returns errConfig for keys with which nothing could be sent.
func checkSecrets(ctx context.Context, db *database) error {
	err := db.store.CheckSecrets(ctx)
	if errors.Is(err, store.ErrSecretKey) {
		return fmt.Errorf("%w: %w", errConfig, err)
	}
	return err
}

// makeReady applies the schema if something is missing; with WALHOOK_AUTO_INIT=false it only
// checks. If that fails, but delivering needs nothing of it, the failure is a warning.
func makeReady(ctx context.Context, db *database) (left []store.Check, err error) {
	if !db.cfg.AutoInit {
		return nil, db.store.CheckSchema(ctx)
	}
	if err := createSchema(ctx, db); err != nil {
		return nil, err
	}
	err = db.store.Migrate(ctx, schema)
	if err == nil || db.store.CheckSchema(ctx) != nil {
		return nil, err
	}
	return []store.Check{{Name: "other objects", State: store.CheckWarn, Found: "not repaired: " + err.Error(),
		Fix: "run `walhook init` with a role that owns the tables; nothing that delivering needs is missing"}}, nil
}

// createSchema creates the schema that WALHOOK_SCHEMA names, if it is missing.
func createSchema(ctx context.Context, db *database) error {
	if db.cfg.Schema == "" {
		return nil
	}
	return db.store.CreateSchema(ctx, db.cfg.Schema)
}

// sayDropped logs the parameters of the connection string that are ignored.
func sayDropped(ctx context.Context, cfg *config.Config, log *slog.Logger) {
	if dropped := cfg.Dropped(); len(dropped) > 0 {
		log.InfoContext(ctx, "ignored parameters of the connection string; WALHOOK_SCHEMA sets the schema of walhook's tables", "parameters", dropped)
	}
}

// preflight checks, before anything is created, whether walhook can do what it is going to do:
// a failure half way would leave tables that belong to the wrong role. run, init and doctor
// begin with it. An error means that it could not find out.
func preflight(ctx context.Context, db *database, want store.Intent) ([]store.Check, error) {
	checks, err := db.store.Preflight(ctx, want)
	if err != nil {
		return nil, db.refusedSQL(err)
	}
	replication := store.Check{Name: "replication", State: store.CheckOK, Found: "the role may replicate"}
	if err := probeReplication(ctx, db); err != nil {
		replication = store.FailedCheck(replication.Name, err)
	}
	checks = append(checks, replication)
	if db.store.CheckSchema(ctx) == nil { // else there are no secrets yet, or they cannot be read
		keys := store.Check{Name: "secret key", State: store.CheckOK, Found: "opens the sealed secrets"}
		if err := checkSecrets(ctx, db); err != nil {
			keys = store.FailedCheck(keys.Name, err)
		}
		checks = append(checks, keys)
	}
	return checks, nil
}

// probeReplication checks that the role may replicate, and that both connection strings lead to
// one database: the stream of another one would carry none of this one's events, and say nothing.
func probeReplication(ctx context.Context, db *database) error {
	streamed, err := cdc.Probe(ctx, cdc.Config{Server: db.replication, Slot: db.cfg.Slot})
	if err != nil {
		return db.refusedReplication(err)
	}
	if !db.cfg.Pooled() {
		return nil
	}
	name, err := db.store.Database(ctx) // a pooler may have another name for it in its connection string
	if err != nil {
		return db.refusedSQL(err)
	}
	if streamed != name {
		return fmt.Errorf("%w: WALHOOK_REPLICATION_URL leads to database %q, and WALHOOK_DATABASE_URL to %q: give both the same database", errConfig, streamed, name)
	}
	return nil
}

// intent returns what run does with the database.
func intent(cfg *config.Config) store.Intent {
	return store.Intent{Apply: cfg.AutoInit, Schema: cfg.Schema, Environment: cfg.Environment}
}

// warnings logs the checks that do not prevent a start.
func warnings(ctx context.Context, checks []store.Check, log *slog.Logger) {
	for _, c := range checks {
		if c.State == store.CheckWarn {
			log.WarnContext(ctx, "preflight: "+c.Name, "found", c.Found, "fix", c.Fix)
		}
	}
}
