package store

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

// lockState lets one at a time look at all rows of webhook_state and add its own. Of
// walhook's tables it is the one that nobody else writes, so that only walhook, who
// applies schema.sql and VACUUM wait for each other; an advisory lock, every role of
// the database could hold for ever. Recording does not wait for it.
const lockState = `LOCK TABLE webhook_state IN SHARE UPDATE EXCLUSIVE MODE`

// Of two that start at the same time with different environments, one is held back.
const claimLockTimeout = `SELECT set_config('lock_timeout', '` + LockTimeout + `', true)`

// claimTries bounds how often somebody who has webhook_state locked is waited for.
const claimTries = 5

const selectEnvironment = `SELECT environment FROM webhook_state WHERE environment IS NOT NULL ORDER BY slot LIMIT 1`

const rememberEnvironment = `
INSERT INTO webhook_state (slot, environment) VALUES (@slot, @environment)
ON CONFLICT (slot) DO UPDATE SET environment = excluded.environment`

// ClaimEnvironment compares the deployment's WALHOOK_ENVIRONMENT with the one
// that the database remembers, and remembers the first. Where they differ it
// returns ErrHeldBack: a copy of a production database must not call customers.
// adopt makes the database remember the new one instead, or none.
func (s *Store) ClaimEnvironment(ctx context.Context, environment string, adopt bool) error {
	for try := 1; ; try++ {
		err := s.claimEnvironment(ctx, environment, adopt)
		if err == nil || errors.Is(err, ErrHeldBack) {
			return err
		}
		if !lockUnavailable(err) || try == claimTries {
			return fmt.Errorf("read the environment in webhook_state: %w", err)
		}
	}
}

func (s *Store) claimEnvironment(ctx context.Context, environment string, adopt bool) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, claimLockTimeout); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, lockState); err != nil {
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
			return fmt.Errorf("%w: this database belongs to the environment %q, but WALHOOK_ENVIRONMENT is %q; "+
				"to use it here all the same, run `walhook init --adopt`", ErrHeldBack, known, environment)
		}
		return nil
	})
}

// Who has another slot and has claimed it in the session that streams from it has
// the same events. One who is about to claim will see us: else each of two that start
// together would make way for the other. (What another role's session is, one may not
// see: then it counts.)
const selectOtherActive = `
SELECT r.slot_name::text, r.active_pid
FROM webhook_state s JOIN pg_replication_slots r ON r.slot_name::text = s.slot
LEFT JOIN pg_stat_activity a ON a.pid = r.active_pid
WHERE s.slot <> @slot::text AND r.active_pid IS NOT NULL AND r.database = current_database() AND r.plugin::text = 'pgoutput'
  AND s.holder IS NOT NULL AND (a.backend_start IS NULL OR s.updated_at >= a.backend_start)
ORDER BY r.slot_name LIMIT 1`

// heldByOther returns ErrHeldBack where a walhook with another slot delivers from
// these tables: everything would be sent twice.
func (s *Store) heldByOther(ctx context.Context, tx pgx.Tx) error {
	var slot string
	var pid int
	err := tx.QueryRow(ctx, selectOtherActive, pgx.NamedArgs{"slot": s.slot}).Scan(&slot, &pid)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: another walhook delivers from these tables through slot %s (pid %d), so everything would be sent twice; "+
		"stop that one, or set WALHOOK_SLOT to its slot to stand by for it", ErrHeldBack, slot, pid)
}
