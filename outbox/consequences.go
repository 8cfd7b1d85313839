package outbox

import (
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// What an outcome means beyond its own row is written in the transaction that
// records it: an endpoint that answered 410 is disabled, an organization is
// told. Every statement here is fenced, and idempotent by its ids.

// The texts of disabled_reason.
const (
	reasonGone    = "answered 410 Gone"
	reasonFailing = "nothing but failures for longer than WALHOOK_DISABLE_AFTER"
)

func queueConsequences(b *pgx.Batch, s *Store, fence Fence, records []Record) {
	c := consequencesOf(records)
	if len(c.exhausted) > 0 {
		b.Queue(insertExhausted, exhaustedArgs(s.fenceArgs(fence), c.exhausted))
	}
	if len(c.recovered) > 0 {
		b.Queue(deleteFailures, endpointArgs(s.fenceArgs(fence), c.recovered))
	}
	if len(c.failing) > 0 {
		b.Queue(insertFailures, endpointArgs(s.fenceArgs(fence), c.failing))
	}
	if len(c.stillFailing) > 0 && s.disableAfter > 0 {
		args := disableArgs(s.fenceArgs(fence), c.stillFailing, reasonFailing)
		args["failing_ms"] = s.disableAfter.Milliseconds()
		b.Queue(disableFailing, args)
	}
	if len(c.gone) > 0 {
		b.Queue(disableGone, disableArgs(s.fenceArgs(fence), c.gone, reasonGone))
	}
}

type consequences struct{ exhausted, recovered, failing, stillFailing, gone []*Record }

// consequencesOf sorts out what records mean beyond their rows. Attempts come in
// the order in which they ended, so the last one says how its endpoint is: one
// that failed and recovered within a batch must not be left as failing.
func consequencesOf(records []Record) (c consequences) {
	last := map[uuid.UUID]int{}
	for i := range records {
		switch r := &records[i]; r.Health {
		case Recovered, Failing, StillFailing:
			last[r.EndpointID] = i
		}
	}
	for i := range records {
		r := &records[i]
		if r.Exhausted && !IsOwnType(r.EventType) {
			c.exhausted = append(c.exhausted, r)
		}
		if r.Health == Gone {
			c.gone = append(c.gone, r)
		}
		if at, news := last[r.EndpointID]; !news || at != i {
			continue
		}
		switch r.Health {
		case Recovered:
			c.recovered = append(c.recovered, r)
		case StillFailing:
			c.stillFailing = append(c.stillFailing, r)
			c.failing = append(c.failing, r)
		case Failing:
			c.failing = append(c.failing, r)
		}
	}
	return c
}

// Not status = 'failed', or the plan may be to read all dead letters and pick these.
const insertExhausted = `
INSERT INTO webhook_outbox (id, organization_id, event_type, payload)
SELECT r.own_id, d.organization_id, '` + TypeDeliveryExhausted + `', jsonb_build_object(
       'deliveryId', d.id, 'eventId', d.event_id, 'event', d.event_type, 'endpointId', d.endpoint_id,
       'attempts', d.attempts, 'statusCode', d.status_code, 'errorClass', d.error_class, 'error', d.error)
FROM unnest(@ids::uuid[], @own_ids::uuid[], @attempts::int[]) AS r(id, own_id, attempts)
JOIN webhook_deliveries d ON d.id = r.id AND d.attempts = r.attempts AND d.status IS NOT DISTINCT FROM 'failed'
WHERE ` + fenced + `
ON CONFLICT (id) DO NOTHING`

func exhaustedArgs(args pgx.NamedArgs, records []*Record) pgx.NamedArgs {
	ids, own, attempts := make([]pgtype.UUID, len(records)), make([]pgtype.UUID, len(records)), make([]int32, len(records))
	for i, r := range records {
		ids[i], attempts[i] = asUUID(r.ID), int32(r.Attempts)
		own[i] = asUUID(ownEventID(r.Attempt.EndedAt, r.ID, r.Attempts))
	}
	args["ids"], args["own_ids"], args["attempts"] = ids, own, attempts
	return args
}

const deleteFailures = `
DELETE FROM webhook_endpoint_failures WHERE endpoint_id = ANY(@ids::uuid[]) AND ` + fenced

// A failure that comes in after the endpoint was disabled does not count: once
// it is enabled again, it begins anew.
const insertFailures = `
INSERT INTO webhook_endpoint_failures (endpoint_id, failing_since)
SELECT r.id, now() FROM unnest(@ids::uuid[]) AS r(id) JOIN webhook_endpoints e ON e.id = r.id
WHERE e.enabled AND ` + fenced + `
ON CONFLICT (endpoint_id) DO NOTHING`

func endpointArgs(args pgx.NamedArgs, records []*Record) pgx.NamedArgs {
	ids := make([]pgtype.UUID, len(records))
	for i, r := range records {
		ids[i] = asUUID(r.EndpointID)
	}
	args["ids"] = ids
	return args
}

// disableEndpoints disables those of @ids that a condition picks. An endpoint
// whose row an operator holds locked is left for the next failure, rather than
// hold up everybody's outcomes. A delivery of one of our own events disables its
// endpoint too, but tells nobody, so that events about events cannot go round.
func disableEndpoints(condition string) string {
	return `
WITH picked AS (
    SELECT e.id FROM webhook_endpoints e
    WHERE e.id = ANY(@ids::uuid[]) AND e.enabled AND ` + condition + ` AND ` + fenced + `
    FOR NO KEY UPDATE OF e SKIP LOCKED
), off AS (
    UPDATE webhook_endpoints e SET enabled = false, disabled_at = now(), disabled_reason = @reason::text
    FROM picked WHERE e.id = picked.id AND e.enabled
    RETURNING e.id, e.organization_id
), anew AS (
    DELETE FROM webhook_endpoint_failures f USING off WHERE f.endpoint_id = off.id
)
INSERT INTO webhook_outbox (id, organization_id, event_type, payload)
SELECT DISTINCT ON (off.id) r.own_id, off.organization_id, '` + TypeEndpointDisabled + `',
       jsonb_build_object('endpointId', off.id, 'reason', @reason::text)
FROM off JOIN unnest(@ids::uuid[], @own_ids::uuid[], @tell::bool[]) AS r(id, own_id, tell) ON r.id = off.id
WHERE r.tell
ORDER BY off.id, r.own_id
ON CONFLICT (id) DO NOTHING`
}

var (
	disableGone    = disableEndpoints(`true`)
	disableFailing = disableEndpoints(`EXISTS (SELECT FROM webhook_endpoint_failures f
        WHERE f.endpoint_id = e.id AND f.failing_since < now() - @failing_ms::bigint * interval '1 ms')`)
)

func disableArgs(args pgx.NamedArgs, records []*Record, reason string) pgx.NamedArgs {
	ids, own, tell := make([]pgtype.UUID, len(records)), make([]pgtype.UUID, len(records)), make([]bool, len(records))
	for i, r := range records {
		ids[i], tell[i] = asUUID(r.EndpointID), !IsOwnType(r.EventType)
		own[i] = asUUID(ownEventID(r.Attempt.EndedAt, r.EndpointID, 0))
	}
	args["ids"], args["own_ids"], args["tell"], args["reason"] = ids, own, tell, reason
	return args
}
