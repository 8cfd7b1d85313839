package outbox

import (
	"maps"
	"time"

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

func queueConsequences(b *pgx.Batch, s *Store, fence Fence, health []EndpointHealth, records []Record) {
	var exhausted []*Record
	var gone []told
	for i := range records {
		r := &records[i]
		if r.Exhausted && !IsOwnType(r.EventType) {
			exhausted = append(exhausted, r)
		}
		if r.Gone {
			gone = append(gone, told{r.EndpointID, r.Attempt.EndedAt, IsOwnType(r.EventType)})
		}
	}
	var recovered, failing, open []uuid.UUID
	var long []told
	for _, h := range health {
		if h.Recovered {
			recovered = append(recovered, h.EndpointID)
		}
		switch {
		case h.Failing && h.Open:
			open = append(open, h.EndpointID)
		case h.Failing:
			failing = append(failing, h.EndpointID)
		}
		if h.Failing && h.Look && s.disableAfter > 0 {
			long = append(long, told{h.EndpointID, h.At, h.Own})
		}
	}
	queue := func(sql string, n int, more pgx.NamedArgs) {
		if n > 0 {
			args := s.fenceArgs(fence)
			maps.Copy(args, more)
			b.Queue(sql, args)
		}
	}
	queue(insertExhausted, len(exhausted), exhaustedArgs(exhausted))
	queue(deleteFailures, len(recovered), pgx.NamedArgs{"ids": asUUIDs(recovered)})
	queue(insertFailures, len(failing), pgx.NamedArgs{"ids": asUUIDs(failing), "open": false})
	queue(insertFailures, len(open), pgx.NamedArgs{"ids": asUUIDs(open), "open": true})
	queue(disableFailing, len(long), disableArgs(long, reasonFailing, s.disableAfter))
	queue(disableGone, len(gone), disableArgs(gone, reasonGone, 0))
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

func exhaustedArgs(records []*Record) pgx.NamedArgs {
	ids, own, attempts := make([]pgtype.UUID, len(records)), make([]pgtype.UUID, len(records)), make([]int32, len(records))
	for i, r := range records {
		ids[i], attempts[i] = asUUID(r.ID), int32(r.Attempts)
		own[i] = asUUID(ownEventID(r.Attempt.EndedAt, r.ID, r.Attempts))
	}
	return pgx.NamedArgs{"ids": ids, "own_ids": own, "attempts": attempts}
}

const deleteFailures = `
DELETE FROM webhook_endpoint_failures WHERE endpoint_id = ANY(@ids::uuid[]) AND ` + fenced

// A failure that comes in after the endpoint was disabled does not count: once
// it is enabled again, it begins anew.
const insertFailures = `
INSERT INTO webhook_endpoint_failures AS f (endpoint_id, failing_since, breaker_opened_at)
SELECT DISTINCT r.id, now(), CASE WHEN @open::bool THEN now() END FROM unnest(@ids::uuid[]) AS r(id) JOIN webhook_endpoints e ON e.id = r.id
WHERE e.enabled AND ` + fenced + `
ON CONFLICT (endpoint_id) DO UPDATE SET breaker_opened_at = excluded.breaker_opened_at
WHERE (f.breaker_opened_at IS NULL) <> (excluded.breaker_opened_at IS NULL)`

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

// A told is an endpoint that is to be disabled, and the attempt that says so.
type told struct {
	endpoint uuid.UUID
	at       time.Time // its end
	own      bool      // it was for one of our own events
}

func disableArgs(endpoints []told, reason string, failingFor time.Duration) pgx.NamedArgs {
	ids, own, tell := make([]pgtype.UUID, len(endpoints)), make([]pgtype.UUID, len(endpoints)), make([]bool, len(endpoints))
	for i, e := range endpoints {
		ids[i], tell[i] = asUUID(e.endpoint), !e.own
		own[i] = asUUID(ownEventID(e.at, e.endpoint, 0))
	}
	return pgx.NamedArgs{"ids": ids, "own_ids": own, "tell": tell, "reason": reason, "failing_ms": failingFor.Milliseconds()}
}
