package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/sign"
)

// errUnopened means that the keys at hand do not open all that is sealed.
var errUnopened = errors.New("not everything that is sealed can be opened")

// runSecret looks at signing secrets, or seals them anew, with the keys at hand.
func runSecret(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	what := ""
	if len(args) > 0 {
		what, args = args[0], args[1:]
	}
	switch {
	case what == "show":
		endpoint, err := endpointArgument(args)
		if err != nil {
			return err
		}
		return withStore(ctx, "secret show", args[1:], stderr, func(db *database) error { return showSecrets(ctx, db.store, endpoint, stdout) })
	case what == "check" || what == "reseal":
		return withStore(ctx, "secret "+what, args, stderr, func(db *database) error { return resealNow(ctx, db.store, what == "check", stdout) })
	case isHelp(what):
		return flag.ErrHelp
	default:
		return fmt.Errorf("%w: walhook secret wants show, check or reseal; see `walhook secret --help`", errConfig)
	}
}

// isHelp reports whether a word asks for help, as package flag spells it.
func isHelp(word string) bool { return slices.Contains([]string{"--help", "-help", "--h", "-h"}, word) }

// endpointArgument returns the endpoint that the first argument names.
func endpointArgument(args []string) (uuid.UUID, error) {
	if len(args) == 0 {
		return uuid.Nil, fmt.Errorf("%w: walhook secret show wants the id of an endpoint: SELECT id, url FROM webhook_endpoints lists them", errConfig)
	}
	if isHelp(args[0]) {
		return uuid.Nil, flag.ErrHelp
	}
	endpoint, err := uuid.Parse(args[0])
	if err != nil {
		return uuid.Nil, fmt.Errorf("%w: %q is not the id of an endpoint: SELECT id, url FROM webhook_endpoints lists them", errConfig, args[0])
	}
	return endpoint, nil
}

// withStore runs f with the database, which must be prepared.
func withStore(ctx context.Context, name string, args []string, stderr io.Writer, f func(*database) error) error {
	return withConfig(newFlags(name), args, stderr, func(cfg *config.Config, _ *slog.Logger) error {
		db, err := openDatabase(ctx, cfg)
		if err != nil {
			return err
		}
		defer db.close()
		if err := db.store.CheckSchema(ctx); err != nil {
			return db.refusedSQL(err)
		}
		return f(db)
	})
}

// showSecrets prints the live secrets of an endpoint, and what each of them signs.
func showSecrets(ctx context.Context, st *store.Store, endpoint uuid.UUID, out io.Writer) error {
	live, err := st.LiveSecrets(ctx, endpoint)
	if err != nil {
		return err
	}
	if len(live) == 0 {
		return fmt.Errorf("%w: there is no endpoint %s, or it has no live secret: SELECT webhook_rotate_secret('%s', '0') makes one", errConfig, endpoint, endpoint)
	}
	for i, secret := range live {
		if secret.Err != nil {
			return fmt.Errorf("%w: a secret of endpoint %s: %w", errUnopened, endpoint, secret.Err)
		}
		signs := sign.HeaderSignature
		if i == 0 {
			signs = sign.HeaderBodySignature + " and " + signs
		}
		if public, err := sign.PublicKey(string(secret.Text)); err == nil {
			signs += " (v1a), for the public key " + public
		}
		until := "until it is replaced"
		if secret.ExpiresAt != nil {
			until = "until " + secret.ExpiresAt.UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(out, "%s\n    fingerprint %s, since %s, %s; signs %s\n", string(secret.Text), sign.Fingerprint(string(secret.Text)),
			secret.CreatedAt.UTC().Format(time.RFC3339), until, signs)
	}
	return nil
}

// resealNow seals all signing secrets and headers as they should be sealed, or only looks.
func resealNow(ctx context.Context, st *store.Store, look bool, out io.Writer) error {
	if !look && !st.Seals() {
		return fmt.Errorf("%w: walhook secret reseal needs WALHOOK_SECRET_KEY", errConfig)
	}
	walk := store.Resealing{Look: look}
	for said := time.Now(); !walk.Done; {
		if err := st.Reseal(ctx, &walk); err != nil {
			return err
		}
		if time.Since(said) > time.Second {
			said = time.Now()
			fmt.Fprintf(out, "%d seen so far\n", walk.Seen)
		}
	}
	todo := "sealed anew"
	if look {
		todo = "not sealed with this key"
	}
	fmt.Fprintf(out, "%s\n%d signing secrets and headers: %d %s, %d cannot be opened\n", st.Keys(), walk.Seen, walk.Stale, todo, walk.Unopened)
	if walk.Unopened > 0 {
		return fmt.Errorf("%w: set WALHOOK_SECRET_KEY_OLD to the key that has sealed the rest, or make new secrets with webhook_rotate_secret", errUnopened)
	}
	return nil
}
