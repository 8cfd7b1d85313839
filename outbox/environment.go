package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Publication is the publication of webhook_outbox, which schema.sql makes.
const Publication = "walhook"

// ErrHeldBack marks that a guard keeps walhook from sending. Its text says which.
var ErrHeldBack = errors.New("held back")

// Of two that start at the same time with different environments, one is held back.
const oneClaims = `
SELECT set_config('lock_timeout', '` + LockTimeout + `', true), pg_advisory_xact_lock(hashtextextended('walhook environment', 0))`

const selectEnvironment = `SELECT environment FROM webhook_state WHERE environment IS NOT NULL ORDER BY slot LIMIT 1`

const rememberEnvironment = `
INSERT INTO webhook_state (slot, environment) VALUES (@slot, @environment)
ON CONFLICT (slot) DO UPDATE SET environment = excluded.environment`

// ClaimEnvironment compares the deployment's WALHOOK_ENVIRONMENT with the one
// that the database remembers, and remembers the first. Where they differ it
// returns ErrHeldBack: a copy of a production database must not call customers.
// adopt makes the database remember the new one instead, or none.
func (s *Store) ClaimEnvironment(ctx context.Context, environment string, adopt bool) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, oneClaims); err != nil {
			return err
		}
		if adopt {
			if _, err := tx.Exec(ctx, `UPDATE webhook_state SET environment = NULL WHERE environment IS NOT NULL`); err != nil {
				return err
			}
		}
		var known string
		err := tx.QueryRow(ctx, selectEnvironment).Scan(&known)
		switch {
		case errors.Is(err, pgx.ErrNoRows) && environment == "":
			return nil
		case errors.Is(err, pgx.ErrNoRows):
			_, err := tx.Exec(ctx, rememberEnvironment, pgx.NamedArgs{"slot": s.slot, "environment": environment})
			return err
		case err != nil:
			return err
		case known != environment:
			return fmt.Errorf("%w: this database belongs to the environment %q, and WALHOOK_ENVIRONMENT is %q; "+
				"if it is meant to be used here, run `walhook init --adopt`", ErrHeldBack, known, environment)
		}
		return nil
	})
	if err != nil && !errors.Is(err, ErrHeldBack) {
		return fmt.Errorf("read the environment in webhook_state: %w", err)
	}
	return err
}
