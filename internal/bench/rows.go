//go:build linux

// Rows inserted by SQL: endpoints, and deliveries as an earlier walhook would have left
// them, with a slot that has passed them all.

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// An audience is endpoints.
type audience struct {
	n, first     int    // numbered from first on
	organization string // the i-th belongs to this, with _i appended …
	together     bool   // … unless all belong to this one
	url          string
}

const insertEndpoints = `
INSERT INTO webhook_endpoints (organization_id, url)
SELECT @organization::text || CASE WHEN @together::bool THEN '' ELSE '_' || i END, @url::text FROM generate_series(@first::int, @first + @n::int - 1) AS i`

func (a audience) insert(ctx context.Context, db *database) error {
	args := pgx.NamedArgs{"n": a.n, "first": a.first, "organization": a.organization, "together": a.together, "url": a.url}
	if _, err := db.Exec(ctx, insertEndpoints, args); err != nil {
		return fmt.Errorf("insert %d endpoints: %w", a.n, err)
	}
	return nil
}

// others is the organization of the endpoints outside the load.
const others = "org_other"

// A history is deliveries that are in the table before walhook starts. Each has had one
// attempt, and an event of its own.
type history struct {
	n             int
	organization  string
	organizations int // in rotation: organization_0 and so on, each with one endpoint
	status        string
	from, to      time.Duration // from now: waiting deliveries are due in between, evenly spread
	events        bool          // their events are in the outbox too; without them none of these may become due
}

const inventEvents = `
WITH events AS MATERIALIZED (
    SELECT webhook_uuidv7() AS id, @organization::text || '_' || i % @organizations::int AS organization_id
    FROM generate_series(@first::int, @last::int) AS i
)`

// The events are owed to nobody, so that the stream brings nothing; the rows below make
// them deliveries.
const insertEvents = `
WITH events AS (
    INSERT INTO webhook_outbox (organization_id, event_type, payload, endpoint_ids)
    SELECT @organization::text || '_' || i % @organizations::int, @type::text,
           (rpad(format('{"n": %s, "note": "', i), @bytes::int - 2, @note::text) || '"}')::jsonb, '{}'
    FROM generate_series(@first::int, @last::int) AS i
    RETURNING id, organization_id
)`

const insertDeliveries = `
INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, duration_ms,
                                next_attempt_at, status_code, error_class, error, completed_at)
SELECT webhook_delivery_id(v.id, e.id), v.id, e.id, v.organization_id, @type::text, @status::text, 1, 10,
       CASE WHEN s.waits THEN now() + @from::interval + random() * (@to::interval - @from::interval) END,
       CASE WHEN s.waits THEN 503 ELSE 200 END,
       CASE WHEN s.waits THEN 'http_5xx' END,
       CASE WHEN s.waits THEN '503 Service Unavailable' END,
       CASE WHEN NOT s.waits THEN now() END
FROM events AS v JOIN webhook_endpoints AS e USING (organization_id)
CROSS JOIN (SELECT @status::text = 'retrying' AS waits) AS s`

// historyChunk bounds the rows of one statement, because PostgreSQL holds them in memory.
const historyChunk = 50_000

func (h history) insert(ctx context.Context, db *database) error {
	if _, err := db.Exec(ctx, "SET synchronous_commit = off"); err != nil { // as for a backlog
		return err
	}
	text := payload(0, payloadBytes)
	args := pgx.NamedArgs{
		"organization": h.organization, "organizations": h.organizations, "type": eventType, "status": h.status,
		"from": h.from, "to": h.to, "bytes": payloadBytes, "note": string(text[len(`{"n": 0, "note": "`) : len(text)-len(`"}`)]),
	}
	source := inventEvents
	if h.events {
		source = insertEvents
	}
	for first := 0; first < h.n; first += historyChunk {
		args["first"], args["last"] = first, min(first+historyChunk, h.n)-1
		if _, err := db.Exec(ctx, source+insertDeliveries, args); err != nil {
			return fmt.Errorf("insert %d deliveries: %w", h.n, err)
		}
	}
	return db.vacuum(ctx, "webhook_outbox, webhook_deliveries")
}

// remember inserts a history into a fresh database, with the slot behind it: as if
// walhook had delivered it long ago.
func (b *bench) remember(ctx context.Context, db *database, h history) error {
	if err := b.settle(ctx, db); err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	if err := h.insert(ctx, db); err != nil {
		return err
	}
	return db.skip(ctx)
}

// skip makes the slot anew, so that it begins behind everything written so far.
// PostgreSQL would otherwise decode that during the measurement; a slot that is only
// advanced still decodes from its old position.
func (db *database) skip(ctx context.Context) error {
	for _, again := range []string{"SELECT pg_drop_replication_slot($1)", "SELECT pg_create_logical_replication_slot($1, 'pgoutput')"} {
		if _, err := db.Exec(ctx, again, db.name); err != nil {
			return fmt.Errorf("recreate the slot: %w", err)
		}
	}
	return nil
}

const (
	insertFirst = `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ($1, $2, '{}')`

	selectSettled = `SELECT durable_lsn IS NOT NULL AND reconcile_from IS NULL FROM webhook_state WHERE slot = $1`
)

// settle has walhook deliver one event to an endpoint that gets no other. The next start
// is then an ordinary one: from a recorded position, without a comparison of the whole
// outbox.
func (b *bench) settle(ctx context.Context, db *database) error {
	const first = "org_first"
	if err := (audience{n: 1, organization: first, together: true, url: b.receiver.url(pathCount)}).insert(ctx, db); err != nil {
		return err
	}
	if _, err := db.Exec(ctx, insertFirst, first, eventType); err != nil {
		return err
	}
	w, err := b.startWalhook(db, "")
	if err != nil {
		return err
	}
	defer w.kill()
	if err := awaitSoon(ctx, db, w, selectSettled); err != nil {
		return err
	}
	return w.stop()
}
