package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/walhook/walhook/internal/status"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/terminal"
)

const (
	// statusEvery is how often --watch looks.
	statusEvery = 2 * time.Second

	// lookWithin bounds one look, of which a database that is well needs a hundredth.
	lookWithin = 5 * time.Second
)

// redrawn returns a screen that takes the place of the one before. It goes over it line by line and
// erases only what is left, in one write: a terminal that is erased first flickers.
func redrawn(screen string) string {
	const home, eraseLine, eraseBelow = "\x1b[H", "\x1b[K", "\x1b[J"
	return home + strings.ReplaceAll(screen, "\n", eraseLine+"\n") + eraseBelow
}

// runStatus shows how walhook stands, from what the database knows.
func runStatus(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := newFlags("status")
	asJSON := flags.Bool("json", false, "")
	watch := flags.Bool("watch", false, "")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	err := withStore(ctx, "status", nil, stderr, func(db *database) error {
		v := &viewer{db: db, out: stdout, asJSON: *asJSON, redraws: *watch && !*asJSON && terminal.Is(stdout), paint: terminal.PaintFor(stdout)}
		err := v.show(ctx)
		if *watch && err == nil {
			v.goesOn = true
			err = v.watch(ctx)
		}
		return err
	})
	if *watch && ctx.Err() != nil {
		return nil // it was told to end
	}
	return err
}

// A viewer shows one look after the other.
type viewer struct {
	db      *database
	out     io.Writer
	asJSON  bool // one line for each look
	redraws bool // each look takes the place of the one before
	goesOn  bool // a look that fails is shown as such, and not the last
	paint   terminal.Paint
}

// watch goes on until the context ends. A database that cannot be reached any more may come back.
func (v *viewer) watch(ctx context.Context) error {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := v.show(ctx); errors.Is(err, store.ErrNotPrepared) || ctx.Err() != nil {
			return err
		}
	}
}

// show shows what can be read, and returns why the rest cannot.
func (v *viewer) show(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	s, err := status.Take(ctx, v.db.store, version, v.db.cfg.Slot)
	if err != nil {
		err = v.db.refusedSQL(err)
	}
	if v.asJSON {
		return errors.Join(err, json.NewEncoder(v.out).Encode(s))
	}
	screen := s.Screen(time.Now(), v.paint)
	if err != nil && v.goesOn {
		screen += "cannot look: " + terminal.Printable(err.Error()) + "\n"
	}
	if v.redraws {
		screen = redrawn(screen)
	}
	fmt.Fprint(v.out, screen)
	return err
}
