package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/terminal"
	"github.com/walhook/walhook/internal/webhook"
)

// runUninstall drops what init created, and only what is this database's walhook's. It keeps
// the tables unless --tables is given, and then asks, because their contents go too.
func runUninstall(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := newFlags("uninstall")
	tables := flags.Bool("tables", false, "drop all tables and their contents too")
	yes := flags.Bool("yes", false, "with --tables: do not ask")
	return withConfig(flags, args, stderr, func(cfg *config.Config, _ *slog.Logger) error {
		if err := mayAsk(flags, *tables, *yes, stdout); err != nil {
			return err
		}
		return takeBack(ctx, cfg, *tables, *yes, stdout)
	})
}

func takeBack(ctx context.Context, cfg *config.Config, tables, yes bool, stdout io.Writer) error {
	db, err := openDatabase(ctx, cfg)
	if err != nil {
		return err
	}
	defer db.close()
	if err := db.store.MayUninstall(ctx, schema, tables); err != nil {
		return db.refusedSQL(err)
	}
	if tables && !yes {
		if err := confirm(ctx, db.store, os.Stdin, stdout); err != nil {
			return err
		}
	}
	return uninstall(ctx, cfg, db.store, tables, stdout)
}

// mayAsk refuses to drop tables without asking if there is no terminal to ask at.
func mayAsk(flags *flag.FlagSet, tables, yes bool, stdout io.Writer) error {
	switch {
	case yes && !tables:
		return fmt.Errorf("%w: --yes is for --tables: slot and publication are dropped without asking", errConfig)
	case tables && !yes && !terminal.Attended(os.Stdin, stdout):
		return fmt.Errorf("%w: %s --tables permanently drops all events, deliveries, endpoints and secrets, and there is no terminal to ask at; to drop them without asking, use --tables --yes",
			errConfig, flags.Name())
	}
	return nil
}

// confirm asks the user to type the database's name.
func confirm(ctx context.Context, st *store.Store, in io.Reader, out io.Writer) error {
	database, err := st.Database(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "This permanently drops all events, deliveries, endpoints and secrets in the database %q.\nType the database's name to continue: ", database)
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && answer == "" || strings.TrimSpace(answer) != database {
		return fmt.Errorf("%w: that is not the database's name; nothing was dropped", errConfig)
	}
	return nil
}

// uninstall drops the slot first: then PostgreSQL keeps no WAL, even if the rest fails.
func uninstall(ctx context.Context, cfg *config.Config, st *store.Store, tables bool, stdout io.Writer) error {
	dropped, err := st.DropSlot(ctx)
	if err != nil {
		return err
	}
	slot := "there is no slot " + cfg.Slot
	if dropped {
		slot = "slot " + cfg.Slot + " dropped"
	}
	publication, err := st.DropPublication(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s; %s\n", slot, publication)
	if !tables {
		return nil
	}
	var meter webhook.Meter
	dropped, err = st.DropTables(ctx, schema, func(done, total int) {
		if now := time.Now(); meter.Due(now) {
			p := meter.Progress("", now, float64(done)/float64(total))
			fmt.Fprintf(stdout, "%d of %d partitions dropped, %s left\n", done, total, p.Left)
		}
	})
	if err != nil {
		return err
	}
	if !dropped {
		fmt.Fprintln(stdout, "there are no tables of walhook's")
		return nil
	}
	fmt.Fprintln(stdout, "tables, views and functions dropped")
	return nil
}
