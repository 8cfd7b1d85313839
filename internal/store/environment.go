package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Publication is the name of the publication of webhook_outbox, which schema.sql creates.
const Publication = "walhook"

// ErrHeldBack means that a guard keeps walhook from sending. The text says which.
var ErrHeldBack = errors.New("held back")

// lockState lets one process at a time read all rows of webhook_state and add its own.
// Nobody but walhook writes that table, so only walhook, schema.sql and VACUUM wait for
// each other. An advisory lock could be held for ever by any role of the database.
// Recording does not wait for this lock.
const lockState = `LOCK TABLE webhook_state IN SHARE UPDATE EXCLUSIVE MODE`

// If two start at the same time with different environments, one is held back.
const claimLockTimeout = `SELECT set_config('lock_timeout', '` + LockTimeout + `', true)`

// claimTries bounds how often to wait, for LockTimeout each, for a lock on webhook_state.
const claimTries = 5

const selectEnvironment = `SELECT environment FROM webhook_state WHERE environment IS NOT NULL ORDER BY slot LIMIT 1`

const rememberEnvironment = `
INSERT INTO webhook_state (slot, environment) VALUES (@slot, @environment)
ON CONFLICT (slot) DO UPDATE SET environment = excluded.environment`

// ClaimEnvironment compares the deployment's WALHOOK_ENVIRONMENT with the one that the
// database has stored, and stores the first. If they differ it returns ErrHeldBack: a copy
// of a production database must not call customers. With adopt it stores the new one
// instead, or none.
func (s *Store) ClaimEnvironment(ctx context.Context, environment string, adopt bool) error {
	return s.claim(ctx, "read the environment in webhook_state", func(tx pgx.Tx) error {
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

const hasMaxEndpoints = `SELECT coalesce(bool_and(max_endpoints = @most), false) FROM webhook_state`

// Every slot's row has the value, because it belongs to the database.
const rememberMaxEndpoints = `
WITH others AS (UPDATE webhook_state SET max_endpoints = @most WHERE slot <> @slot)
INSERT INTO webhook_state (slot, max_endpoints) VALUES (@slot, @most)
ON CONFLICT (slot) DO UPDATE SET max_endpoints = excluded.max_endpoints`

// SetMaxEndpoints stores WALHOOK_MAX_ENDPOINTS in the database, where the trigger of
// webhook_endpoints reads it. The value of the last process that started counts.
func (s *Store) SetMaxEndpoints(ctx context.Context, most int) error {
	var has bool
	args := pgx.NamedArgs{"slot": s.slot, "most": most}
	if err := s.pool.QueryRow(ctx, hasMaxEndpoints, args).Scan(&has); err != nil {
		return fmt.Errorf("read max_endpoints in webhook_state: %w", err)
	}
	if has {
		return nil
	}
	return s.claim(ctx, "store WALHOOK_MAX_ENDPOINTS in webhook_state", func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, rememberMaxEndpoints, args)
		return err
	})
}

// claim calls f in a transaction that no other start of a walhook, and no schema.sql, runs
// beside.
func (s *Store) claim(ctx context.Context, what string, f func(pgx.Tx) error) error {
	for try := 1; ; try++ {
		err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, claimLockTimeout); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, lockState); err != nil {
				return err
			}
			return f(tx)
		})
		if err == nil || errors.Is(err, ErrHeldBack) {
			return err
		}
		if !lockUnavailable(err) || try == claimTries {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// A walhook that streams from another slot, and has claimed that slot in the same session,
// has the same events. One that has not claimed yet does not count, because it will see our
// claim; otherwise each of two that start together would give way to the other. If the other
// session is hidden from this role, it counts.
const selectOtherActive = `
SELECT r.slot_name::text, r.active_pid
FROM webhook_state s JOIN pg_replication_slots r ON r.slot_name::text = s.slot
LEFT JOIN pg_stat_activity a ON a.pid = r.active_pid
WHERE s.slot <> @slot::text AND r.active_pid IS NOT NULL AND r.database = current_database() AND r.plugin::text = 'pgoutput'
  AND s.holder IS NOT NULL AND (a.backend_start IS NULL OR s.updated_at >= a.backend_start)
ORDER BY r.slot_name LIMIT 1`

// heldByOther returns ErrHeldBack if a walhook with another slot delivers from these
// tables: everything would be sent twice.
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
