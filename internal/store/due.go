package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/walhook/walhook/internal/webhook"
)

// allVisible is true of a delivery's row if every transaction that was under way when the
// row was written has ended and is visible, the one that inserted its event included. The
// stream brings a commit as soon as it is in the WAL. Other sessions see it a moment later,
// or when a synchronous standby has confirmed it. So if this is false, a missing event or
// endpoint may be about to appear.
const allVisible = `age(d.xmin) > age(pg_snapshot_xmin(pg_current_snapshot())::xid)`

// Each page reads a short range of the index (endpoint_id, next_attempt_at, id).
const selectDue = `
SELECT d.id, d.endpoint_id, d.status, d.attempts, d.series_start, d.event_id, d.organization_id, d.event_type,
       o.payload::text, coalesce(o.created_at, d.created_at), o.id IS NULL AND d.all_visible, o.id IS NULL AND NOT d.all_visible, d.next_attempt_at,
       coalesce(` + reassigned + `, false)
FROM unnest(@ids::uuid[], @after_due::timestamptz[], @after_id::uuid[], @limits::int[]) AS p(id, after_due, after_id, size)
LEFT JOIN webhook_endpoints e ON e.id = p.id
CROSS JOIN LATERAL (
    SELECT d.*, ` + allVisible + ` AS all_visible FROM webhook_deliveries d
    WHERE d.endpoint_id = p.id AND d.status IN ('pending', 'retrying') AND d.next_attempt_at <= now()
      AND (d.next_attempt_at, d.id) > (p.after_due, p.after_id)
    ORDER BY d.next_attempt_at, d.id LIMIT p.size
) d
LEFT JOIN webhook_outbox o ON o.id = d.event_id`

// Due passes the pages' deliveries to take one by one, so that a page of large payloads is
// never in memory as a whole.
func (s *Store) Due(ctx context.Context, pages []webhook.Page, take func(*webhook.Due)) error {
	ids, limits := make([]pgtype.UUID, len(pages)), make([]int32, len(pages))
	afterDue, afterID := make([]pgtype.Timestamptz, len(pages)), make([]pgtype.UUID, len(pages))
	for i, p := range pages {
		ids[i], limits[i] = asUUID(p.EndpointID), int32(p.Limit)
		afterDue[i], afterID[i] = pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}, asUUID(p.After.ID)
		if p.After.DueAt.Valid {
			afterDue[i] = asTimestamptz(p.After.DueAt)
		}
	}
	args := pgx.NamedArgs{"ids": ids, "limits": limits, "after_due": afterDue, "after_id": afterID}
	err := s.read(ctx, selectDue, args, func(rows pgx.Rows) error {
		for rows.Next() {
			var d webhook.Due
			var status string
			var payload []byte
			var dueAt pgtype.Timestamptz
			if err := rows.Scan(asBytes(&d.ID), asBytes(&d.EndpointID), &status, &d.Attempts, &d.SeriesStart, &d.Event.ID, &d.Event.OrganizationID,
				&d.Event.Type, &payload, &d.Event.CreatedAt, &d.Orphaned, &d.Unseen, &dueAt, &d.Reassigned); err != nil {
				return err
			}
			d.Status, d.Event.Payload, d.DueAt = webhook.Status(status), payload, dueTime(dueAt)
			take(&d)
		}
		return rows.Err()
	})
	if err != nil {
		return fmt.Errorf("read due deliveries of %d endpoints: %w", len(pages), err)
	}
	return nil
}

// newlyDueLimit bounds one NewlyDue. Waiting finds the endpoints beyond it.
const newlyDueLimit = 5000

const selectNewlyDue = `
WITH due AS (
    SELECT endpoint_id FROM webhook_deliveries
    WHERE status IN ('pending', 'retrying') AND next_attempt_at <= now() AND next_attempt_at > @since::timestamptz
    ORDER BY next_attempt_at LIMIT @limit::int
)
SELECT now(), (SELECT count(*) FROM due), array(SELECT DISTINCT endpoint_id FROM due)`

// NewlyDue returns the endpoints with deliveries that became due after since by
// PostgreSQL's clock, the time by that clock, and whether these are all.
func (s *Store) NewlyDue(ctx context.Context, since time.Time) (endpoints []uuid.UUID, now time.Time, all bool, err error) {
	err = s.read(ctx, selectNewlyDue, pgx.NamedArgs{"since": since, "limit": newlyDueLimit}, func(rows pgx.Rows) error {
		var n int
		_, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (struct{}, error) {
			return struct{}{}, row.Scan(&now, &n, &endpoints)
		})
		all = n < newlyDueLimit
		return err
	})
	if err != nil {
		return nil, time.Time{}, false, fmt.Errorf("look for newly due deliveries: %w", err)
	}
	return endpoints, now, all, nil
}

// A loose index scan: one probe per endpoint and partition, however many rows the endpoint
// has.
const selectWaiting = `
WITH RECURSIVE walk AS (
    (SELECT endpoint_id FROM webhook_deliveries
     WHERE status IN ('pending', 'retrying') AND endpoint_id > @after::uuid
     ORDER BY endpoint_id LIMIT 1)
    UNION ALL
    SELECT (SELECT d.endpoint_id FROM webhook_deliveries d
            WHERE d.status IN ('pending', 'retrying') AND d.endpoint_id > walk.endpoint_id
            ORDER BY d.endpoint_id LIMIT 1)
    FROM walk WHERE walk.endpoint_id IS NOT NULL
)
SELECT walk.endpoint_id, coalesce(e.enabled, false)
FROM (SELECT * FROM walk WHERE endpoint_id IS NOT NULL LIMIT @limit::int) walk
LEFT JOIN webhook_endpoints e ON e.id = walk.endpoint_id`

// Waiting lists up to limit endpoints with unfinished deliveries, in order of id, after the
// given one. Fewer than limit means that there are no more.
func (s *Store) Waiting(ctx context.Context, after uuid.UUID, limit int) ([]webhook.Waiting, error) {
	var found []webhook.Waiting
	err := s.read(ctx, selectWaiting, pgx.NamedArgs{"after": after, "limit": limit}, func(rows pgx.Rows) error {
		var err error
		found, err = pgx.CollectRows(rows, pgx.RowToStructByPos[webhook.Waiting])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the endpoints with unfinished deliveries: %w", err)
	}
	return found, nil
}

const selectExisting = `
SELECT d.id FROM pg_catalog.unnest(@ids::uuid[]) AS r(id) JOIN webhook_deliveries d ON d.id = r.id`

// Existing adds to known those of the deliveries that have a row, including rows that are
// just being moved into another partition.
func (s *Store) Existing(ctx context.Context, ids []uuid.UUID, known map[uuid.UUID]bool) error {
	err := s.readPinned(ctx, pinDeliveries, selectExisting, pgx.NamedArgs{"ids": asUUIDs(ids)}, func(rows pgx.Rows) error { return collectIDs(rows, known) })
	if err != nil {
		return fmt.Errorf("look up %d deliveries: %w", len(ids), err)
	}
	return nil
}

func collectIDs(rows pgx.Rows, into map[uuid.UUID]bool) error {
	found, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	for _, id := range found {
		into[id] = true
	}
	return err
}
