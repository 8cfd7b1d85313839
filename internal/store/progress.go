package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/webhook"
)

// The column is not fenced: it is for people, and webhook_status passes over what is old.
const noteProgress = `
UPDATE webhook_state SET progress = nullif(pg_catalog.jsonb_concat(coalesce(progress, '{}'::jsonb) - @task::text,
    CASE WHEN @progress::jsonb IS NULL THEN '{}'::jsonb ELSE pg_catalog.jsonb_build_object(@task::text, pg_catalog.jsonb_concat(@progress::jsonb, pg_catalog.jsonb_build_object('at'::text, now()))) END), '{}'::jsonb)
WHERE slot = @slot`

// NoteProgress notes for webhook_status how far a task is, or that it has ended.
func (s *Store) NoteProgress(ctx context.Context, p webhook.Progress) error {
	args := pgx.NamedArgs{"slot": s.slot, "task": p.Task, "progress": nil}
	if !p.Ended {
		text, err := json.Marshal(p)
		if err != nil {
			return fmt.Errorf("note the progress of %s: %w", p.Task, err)
		}
		args["progress"] = string(text)
	}
	if _, err := s.pool.Exec(ctx, noteProgress, args); err != nil {
		return fmt.Errorf("note the progress of %s: %w", p.Task, err)
	}
	return nil
}

const selectDueNow = `SELECT count(*) FROM webhook_deliveries WHERE status IN ('pending', 'retrying') AND next_attempt_at <= now()`

// DueNow counts the deliveries that are due now, also those that a breaker, a rate or a pause
// holds.
func (s *Store) DueNow(ctx context.Context) (n int64, err error) {
	err = s.read(ctx, selectDueNow, nil, func(rows pgx.Rows) error {
		n, err = pgx.CollectExactlyOneRow(rows, pgx.RowTo[int64])
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("count the due deliveries: %w", err)
	}
	return n, nil
}

// What a pass over all secrets and headers reads: as many as there are endpoints, or few more.
const selectSealable = `
SELECT (SELECT count(*) FROM webhook_secrets) + (SELECT count(*) FROM webhook_endpoints WHERE headers <> '{}'::jsonb)`

// Sealable counts the rows that Reseal passes over.
func (s *Store) Sealable(ctx context.Context) (n int, err error) {
	if err := s.pool.QueryRow(ctx, selectSealable).Scan(&n); err != nil {
		return 0, fmt.Errorf("count the signing secrets: %w", err)
	}
	return n, nil
}
