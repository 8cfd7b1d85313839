package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
)

// runInit prepares the database, including the slot, and starts nothing.
func runInit(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := newFlags("init")
	adopt := flags.Bool("adopt", false, "take over a database of another WALHOOK_ENVIRONMENT")
	withRoles := flags.Bool("roles", false, "create walhook's roles, give the tables to walhook_owner, and grant what each role needs")
	return withConfig(flags, args, stderr, func(cfg *config.Config, log *slog.Logger) error {
		return initialize(ctx, cfg, initOptions{adopt: *adopt, roles: *withRoles}, stdout, log)
	})
}

// initOptions are the flags of init.
type initOptions struct {
	adopt bool
	roles bool // apply roles.sql too
}

func initialize(ctx context.Context, cfg *config.Config, o initOptions, stdout io.Writer, log *slog.Logger) error {
	sayDropped(ctx, cfg, log)
	db, err := openDatabase(ctx, cfg)
	if err != nil {
		return err
	}
	defer db.close()
	want := intent(cfg)
	want.Apply, want.Adopt = true, o.adopt
	checks, err := preflight(ctx, db, want)
	if err != nil {
		return err
	}
	if err := store.FirstFailure(checks); err != nil {
		return err
	}
	warnings(ctx, checks, log)
	if err := applySchema(ctx, db, log); err != nil {
		return err
	}
	if o.roles {
		if err := db.store.ApplyRoles(ctx, roles); err != nil {
			return db.refusedSQL(err)
		}
	}
	db.sayWarned(ctx, log)
	if err := db.store.ClaimEnvironment(ctx, cfg.Environment, o.adopt); err != nil {
		return err
	}
	if err := db.store.SetMaxEndpoints(ctx, cfg.MaxEndpoints); err != nil {
		return err
	}
	if err := checkSecrets(ctx, db); err != nil {
		return err
	}
	created, err := cdc.Prepare(ctx, cdc.Config{Server: db.replication, Slot: cfg.Slot, Publication: store.Publication, CreateSlot: true,
		Creating: db.store.AwaitSlot, Logger: log})
	if err != nil {
		return db.refusedReplication(err)
	}
	version, err := db.store.Installed(ctx) // a newer walhook may have been here
	if err != nil {
		return err
	}
	how := "exists"
	if created {
		how = "created"
	}
	fmt.Fprintf(stdout, "schema version %d, publication %s, slot %s (%s): ready for `walhook run`\n",
		version, store.Publication, cfg.Slot, how)
	if o.roles {
		fmt.Fprintln(stdout, "the tables belong to walhook_owner; roles walhook_run, walhook_app, walhook_backend, walhook_ops and walhook_tenant have their grants: "+
			"give them passwords (ALTER ROLE walhook_run PASSWORD '...'), or make roles of yours members (GRANT walhook_app TO app)")
	}
	return nil
}

// applySchema applies the schema in any case, which also repairs what no check covers. If that
// fails, because somebody holds a lock or a newer walhook was here, and CheckSchema finds
// nothing missing, it only warns.
func applySchema(ctx context.Context, db *database, log *slog.Logger) error {
	if err := createSchema(ctx, db); err != nil {
		return db.refusedSQL(err)
	}
	err := db.store.Apply(ctx, schema)
	if err == nil {
		return nil
	}
	if db.store.CheckSchema(ctx) != nil {
		return db.refusedSQL(err)
	}
	log.WarnContext(ctx, "cannot apply the schema again; nothing that delivering needs is missing", "reason", err)
	return nil
}
