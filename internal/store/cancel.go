package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// cancelChunk bounds one transaction that cancels: about 10 ms of row locks.
const cancelChunk = 500

const disabled = `NOT EXISTS (SELECT FROM webhook_endpoints WHERE id = @endpoint::uuid AND enabled)`

// It also deletes the endpoint's failures: if it is enabled again, they count from zero.
const cancelRows = `
WITH picked AS (
    SELECT d.id, ` + allVisible + ` AS all_visible FROM webhook_deliveries d
    WHERE d.endpoint_id = @endpoint::uuid AND d.status IN ('pending', 'retrying')
      AND ` + disabled + ` AND ` + fenced + `
    ORDER BY d.next_attempt_at, d.id LIMIT @limit::int
    FOR NO KEY UPDATE SKIP LOCKED
), anew AS (
    DELETE FROM webhook_endpoint_failures WHERE endpoint_id = @endpoint::uuid AND ` + disabled + ` AND ` + fenced + `
), gone AS (
    UPDATE webhook_deliveries d SET status = 'cancelled', next_attempt_at = NULL, updated_at = now(), completed_at = now(),
           attempt_log = ` + keptLog + `,
           error = CASE WHEN d.attempts = 0 THEN @reason::text ELSE coalesce(d.error, @reason::text) END
    FROM picked WHERE d.id = picked.id AND picked.all_visible
    RETURNING d.id
)
SELECT (SELECT count(*) FROM gone), EXISTS (SELECT FROM picked WHERE NOT all_visible)`

// keptLog moves a row's only attempt into its attempt_log: the attempt's time is in
// updated_at, which is overwritten.
const keptLog = `CASE WHEN d.attempts > 0 AND d.attempt_log IS NULL THEN ` + firstEntry + ` ELSE d.attempt_log END`

// CancelRows cancels a chunk of the deliveries to an endpoint that is disabled or deleted. It
// returns how many it cancelled, and whether some have to wait: transactions that were under
// way when they were written may have created or enabled the endpoint, and may not be
// visible yet.
func (s *Store) CancelRows(ctx context.Context, fence webhook.Fence, endpoint uuid.UUID, reason string) (cancelled int, more bool, err error) {
	args := s.fenceArgs(fence)
	args["endpoint"], args["reason"], args["limit"] = endpoint, reason, cancelChunk
	var b pgx.Batch
	s.queueFence(&b, fence, webhook.Mark{})
	b.Queue(cancelRows, args).QueryRow(func(row pgx.Row) error { return row.Scan(&cancelled, &more) })
	if err := s.send(ctx, &b); err != nil {
		return 0, false, fmt.Errorf("cancel deliveries of endpoint %s: %w", endpoint, err)
	}
	return cancelled, more, nil
}

// The condition on status matches no partial index, or the plan might read all waiting
// deliveries and pick these.
const orphans = `
WITH gone AS (
    SELECT d.id FROM pg_catalog.unnest(@ids::uuid[]) AS r(id) JOIN webhook_deliveries d ON d.id = r.id
    WHERE d.status NOT IN ('success', 'failed', 'cancelled') AND ` + fenced

const eventGone = ` AND ` + allVisible + ` AND NOT EXISTS (SELECT FROM webhook_outbox o WHERE o.id = d.event_id OFFSET 0)`

const cancelMissing = `
    FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE webhook_deliveries d SET status = 'cancelled', next_attempt_at = NULL, updated_at = now(), completed_at = now(),
       attempt_log = ` + keptLog + `,
       error = 'the event was deleted from webhook_outbox'
FROM gone WHERE d.id = gone.id`

// CancelOrphans cancels those of the deliveries whose event was deleted. It checks that
// itself, because Due may have missed an event that was just moved into another partition.
// Deliveries that someone else has locked are skipped, and found again.
func (s *Store) CancelOrphans(ctx context.Context, fence webhook.Fence, ids []uuid.UUID) error {
	args := s.fenceArgs(fence)
	args["ids"] = asUUIDs(ids)
	var b pgx.Batch
	b.Queue(prepareWrite)
	b.Queue(pinOutbox) // before any row is locked, because it may have to wait
	s.queueFence(&b, fence, webhook.Mark{})
	b.Queue(orphans+eventGone+cancelMissing, args)
	if err := s.send(ctx, &b); err != nil {
		return fmt.Errorf("cancel %d deliveries without an event: %w", len(ids), err)
	}
	return nil
}

// reassigned is true of a delivery and its endpoint if the endpoint no longer gets the events
// of that organization. See webhook.Endpoint's Gets.
const reassigned = `(e.organization_id <> d.organization_id AND NOT (e.all_organizations AND starts_with(d.event_type, '` + outbox.OwnCategory + `.'::text)))`

// The condition on status is as in orphans.
const cancelReassigned = `
WITH gone AS (
    SELECT d.id FROM pg_catalog.unnest(@ids::uuid[]) AS r(id) JOIN webhook_deliveries d ON d.id = r.id
    JOIN webhook_endpoints e ON e.id = d.endpoint_id AND ` + reassigned + `
    WHERE d.status NOT IN ('success', 'failed', 'cancelled') AND ` + fenced + `
    FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE webhook_deliveries d SET status = 'cancelled', next_attempt_at = NULL, updated_at = now(), completed_at = now(),
       attempt_log = ` + keptLog + `,
       error = 'the endpoint belongs to another organization: its id was given again, or it no longer has all_organizations'
FROM gone WHERE d.id = gone.id`

// CancelReassigned cancels deliveries whose endpoint is another organization's now: what was
// owed to a deleted endpoint must not reach one that has its id, and what operators were to
// hear must not reach a customer.
func (s *Store) CancelReassigned(ctx context.Context, fence webhook.Fence, ids []uuid.UUID) error {
	args := s.fenceArgs(fence)
	args["ids"] = asUUIDs(ids)
	var b pgx.Batch
	s.queueFence(&b, fence, webhook.Mark{})
	b.Queue(cancelReassigned, args)
	if err := s.send(ctx, &b); err != nil {
		return fmt.Errorf("cancel %d deliveries to endpoints of other organizations: %w", len(ids), err)
	}
	return nil
}
