package store

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// The consequences of an outcome are written in the transaction that records it: an endpoint
// that answered 410 is disabled, an organization is told. Every statement here is fenced, and
// idempotent because its ids are computed. If the database refuses one, the rows are written
// without the consequences, and WriteConsequence writes those later.

// The texts of disabled_reason.
const (
	reasonGone    = "answered 410 Gone"
	reasonFailing = "nothing but failures for longer than WALHOOK_DISABLE_AFTER"
)

// A Consequence is one kind of consequence of outcomes, for one or many endpoints or
// deliveries.
type Consequence struct {
	Health    []webhook.EndpointHealth // to be written
	gone      []disabling              // answered 410: to be disabled
	disabled  []disabling              // disabled for reason: their organizations are to be told
	reason    string
	exhausted []exhaustion // their organizations are to be told
}

// An exhaustion is a delivery whose last attempt has failed.
type exhaustion struct {
	delivery uuid.UUID
	at       time.Time // the attempt's end
	attempts int
}

// Consequences returns the consequences of records, and the endpoints' health.
func Consequences(health []webhook.EndpointHealth, records []webhook.Record) []Consequence {
	var gone, exhausted Consequence
	for i := range records {
		r := &records[i]
		if r.Exhausted && !outbox.IsOwnType(r.EventType) {
			exhausted.exhausted = append(exhausted.exhausted, exhaustion{r.ID, r.Attempt.EndedAt, r.Attempts})
		}
		if r.Gone {
			gone.gone = append(gone.gone, disabling{r.EndpointID, r.Attempt.EndedAt, outbox.IsOwnType(r.EventType)})
		}
	}
	var all []Consequence
	for _, c := range []Consequence{exhausted, {Health: health}, gone} {
		if c.Len() > 0 {
			all = append(all, c)
		}
	}
	return all
}

// Len returns how many endpoints or deliveries the consequence is about.
func (c Consequence) Len() int {
	return len(c.Health) + len(c.gone) + len(c.disabled) + len(c.exhausted)
}

// Endpoints returns those that are to be disabled, and so get nothing more.
func (c Consequence) Endpoints() (ids []uuid.UUID) {
	for _, e := range c.gone {
		ids = append(ids, e.endpoint)
	}
	return ids
}

// Halves splits a consequence of several, to bisect what the database refuses.
func (c Consequence) Halves() [2]Consequence {
	a, b := c, c
	a.Health, b.Health = halves(c.Health)
	a.gone, b.gone = halves(c.gone)
	a.disabled, b.disabled = halves(c.disabled)
	a.exhausted, b.exhausted = halves(c.exhausted)
	return [2]Consequence{a, b}
}

func halves[T any](all []T) (a, b []T) { return all[:len(all)/2], all[len(all)/2:] }

// WriteConsequence writes one consequence in a transaction of its own. An endpoint is disabled whether
// or not its organization can be told; telling it is returned as the rest.
func (s *Store) WriteConsequence(ctx context.Context, fence webhook.Fence, c Consequence) (rest []Consequence, err error) {
	var b pgx.Batch
	s.queueFence(&b, fence, webhook.Mark{})
	off := func(from []disabling, reason string) func(pgx.Rows) error {
		return func(rows pgx.Rows) error {
			ids := map[uuid.UUID]bool{}
			err := collectIDs(rows, ids)
			for _, e := range from {
				if ids[e.endpoint] && !e.own {
					rest = append(rest, Consequence{disabled: []disabling{e}, reason: reason})
				}
				delete(ids, e.endpoint) // tell once per endpoint
			}
			return err
		}
	}
	queue := s.queuer(&b, fence)
	queue(insertExhausted, len(c.exhausted), exhaustedArgs(c.exhausted))
	s.queueHealth(queue, c.Health)
	if long := s.failingLong(c.Health); len(long) > 0 {
		queue(onlyDisableFailing, len(long), disableArgs(long, reasonFailing, s.disableAfter)).Query(off(long, reasonFailing))
	}
	if len(c.gone) > 0 {
		queue(onlyDisableGone, len(c.gone), disableArgs(c.gone, reasonGone, 0)).Query(off(c.gone, reasonGone))
	}
	queue(insertDisabled, len(c.disabled), disableArgs(c.disabled, c.reason, 0))
	if err := s.send(ctx, &b); err != nil {
		return nil, fmt.Errorf("write the consequences of outcomes: %w", err)
	}
	return rest, nil
}

// queueConsequences adds all consequences of the records to a batch.
func queueConsequences(b *pgx.Batch, s *Store, fence webhook.Fence, mark webhook.Mark, records []webhook.Record) {
	if mark.Alone {
		return
	}
	queue := s.queuer(b, fence)
	for _, c := range Consequences(mark.Health, records) {
		queue(insertExhausted, len(c.exhausted), exhaustedArgs(c.exhausted))
		s.queueHealth(queue, c.Health)
		long := s.failingLong(c.Health)
		queue(disableFailing, len(long), disableArgs(long, reasonFailing, s.disableAfter))
		queue(disableGone, len(c.gone), disableArgs(c.gone, reasonGone, 0))
	}
}

// queuer returns a function that adds a fenced statement to a batch, if n is not 0.
func (s *Store) queuer(b *pgx.Batch, fence webhook.Fence) func(sql string, n int, more pgx.NamedArgs) *pgx.QueuedQuery {
	return func(sql string, n int, more pgx.NamedArgs) *pgx.QueuedQuery {
		if n == 0 {
			return nil
		}
		args := s.fenceArgs(fence)
		maps.Copy(args, more)
		return b.Queue(sql, args)
	}
}

// queueHealth writes the endpoints' health into webhook_endpoint_failures.
func (s *Store) queueHealth(queue func(string, int, pgx.NamedArgs) *pgx.QueuedQuery, health []webhook.EndpointHealth) {
	var recovered, failing, open []webhook.EndpointHealth
	for _, h := range health {
		if h.Recovered {
			recovered = append(recovered, h)
		}
		switch {
		case h.Failing && h.Open:
			open = append(open, h)
		case h.Failing:
			failing = append(failing, h)
		}
	}
	queue(deleteFailures, len(recovered), healthArgs(recovered, recoveredNumber))
	queue(closeBreakers, len(failing), healthArgs(failing, recoveredNumber))
	queue(insertFailures, len(failing), healthArgs(failing, failingNumber))
	queue(openBreakers, len(open), healthArgs(open, failingNumber))
}

// Numbers that tell the events about one endpoint at one time apart. webhook.endpoint.disabled
// has 0.
const (
	failingNumber   = 1
	recoveredNumber = 2
)

func healthArgs(health []webhook.EndpointHealth, number int) pgx.NamedArgs {
	ids, own, tell, class := make([]pgtype.UUID, len(health)), make([]pgtype.UUID, len(health)), make([]bool, len(health)), make([]pgtype.Text, len(health))
	for i, h := range health {
		ids[i], own[i] = asUUID(h.EndpointID), asUUID(outbox.OwnEventID(h.At, h.EndpointID, number))
		tell[i], class[i] = h.Tell, textOrNull(string(h.Class))
	}
	return pgx.NamedArgs{"ids": ids, "own_ids": own, "tell": tell, "classes": class}
}

// failingLong returns the endpoints that may have been failing for disableAfter.
func (s *Store) failingLong(health []webhook.EndpointHealth) (long []disabling) {
	for _, h := range health {
		if h.Failing && h.CheckDisable && s.disableAfter > 0 {
			long = append(long, disabling{h.EndpointID, h.At, h.Own})
		}
	}
	return long
}

// Not status = 'failed': that matches a partial index, and the plan might read all failed
// deliveries and pick these.
const insertExhausted = `
INSERT INTO webhook_outbox (id, organization_id, event_type, payload)
SELECT r.own_id, d.organization_id, '` + outbox.TypeDeliveryExhausted + `', pg_catalog.jsonb_build_object(
       'deliveryId', d.id, 'eventId', d.event_id, 'event', d.event_type, 'endpointId', d.endpoint_id,
       'attempts', d.attempts, 'statusCode', d.status_code, 'errorClass', d.error_class, 'error', d.error)
FROM unnest(@ids::uuid[], @own_ids::uuid[], @attempts::int[]) AS r(id, own_id, attempts)
JOIN webhook_deliveries d ON d.id = r.id AND d.attempts = r.attempts AND d.status IS NOT DISTINCT FROM 'failed'
WHERE ` + fenced + `
ON CONFLICT (id) DO NOTHING`

func exhaustedArgs(exhausted []exhaustion) pgx.NamedArgs {
	ids, own, attempts := make([]pgtype.UUID, len(exhausted)), make([]pgtype.UUID, len(exhausted)), make([]int32, len(exhausted))
	for i, e := range exhausted {
		ids[i], attempts[i] = asUUID(e.delivery), int32(e.attempts)
		own[i] = asUUID(outbox.OwnEventID(e.at, e.delivery, e.attempts))
	}
	return pgx.NamedArgs{"ids": ids, "own_ids": own, "attempts": attempts}
}

// A breaker's opening and closing are events of its endpoint's organization, inserted by the
// statement that records them: told in webhook_endpoint_failures holds them to one each. Only
// failures of other events than walhook's own open a breaker that is told, so that no event
// causes events for ever.
const (
	healthRows = `unnest(@ids::uuid[], @own_ids::uuid[], @tell::bool[], @classes::text[]) AS r(id, own_id, tell, class)`

	// siteOfEndpoint is webhook_url_host(e.url), which walhook's own role may not execute: an upgrade
	// does not grant it before roles.sql is applied again.
	siteOfEndpoint = `substring(e.url, '^[A-Za-z]+://'::text) || substring(e.url, '^[A-Za-z]+://(?:[^/?#]*@)?([^/?#@]*)'::text)`

	// failed are rows of webhook_endpoint_failures.
	insertBreakerEvent = `
INSERT INTO webhook_outbox (id, organization_id, event_type, payload)
SELECT r.own_id, e.organization_id, @type::text, pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('endpointId', e.id,
       'url', ` + siteOfEndpoint + `,
       'since', to_char(failed.failing_since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'::text), 'errorClass', @class::text))
FROM failed JOIN ` + healthRows + ` ON r.id = failed.endpoint_id JOIN webhook_endpoints e ON e.id = r.id
WHERE failed.told
ON CONFLICT (id) DO NOTHING`
)

var (
	deleteFailures = `
WITH failed AS (
    DELETE FROM webhook_endpoint_failures WHERE endpoint_id = ANY(@ids::uuid[]) AND ` + fenced + `
    RETURNING endpoint_id, failing_since, told
)` + breakerEvent(outbox.TypeEndpointRecovered, `NULL::text`)

	// webhook_retry_now closes a breaker without a success.
	closeBreakers = `
WITH failed AS MATERIALIZED (
    SELECT f.endpoint_id, f.failing_since, f.told FROM webhook_endpoint_failures f
    WHERE f.endpoint_id = ANY(@ids::uuid[]) AND f.breaker_opened_at IS NOT NULL AND ` + fenced + `
), closed AS (
    UPDATE webhook_endpoint_failures f SET breaker_opened_at = NULL, told = false FROM failed WHERE f.endpoint_id = failed.endpoint_id
)` + breakerEvent(outbox.TypeEndpointRecovered, `NULL::text`)

	openBreakers = `
WITH failed AS (
    INSERT INTO webhook_endpoint_failures AS f (endpoint_id, failing_since, breaker_opened_at, told)
    SELECT DISTINCT ON (r.id) r.id, now(), now(), r.tell FROM ` + healthRows + ` JOIN webhook_endpoints e ON e.id = r.id
    WHERE e.enabled AND ` + fenced + `
    ON CONFLICT (endpoint_id) DO UPDATE SET breaker_opened_at = coalesce(f.breaker_opened_at, excluded.breaker_opened_at), told = excluded.told
    WHERE f.breaker_opened_at IS NULL OR excluded.told AND NOT f.told
    RETURNING f.endpoint_id, f.failing_since, f.told
)` + breakerEvent(outbox.TypeEndpointFailing, `r.class`)
)

// breakerEvent is told with the class of the failure, or NULL.
func breakerEvent(typ, class string) string {
	return strings.NewReplacer("@type::text", "'"+typ+"'", "@class::text", class).Replace(insertBreakerEvent)
}

// A failure recorded after the endpoint was disabled does not count: if the endpoint is
// enabled again, failures count from zero.
const insertFailures = `
INSERT INTO webhook_endpoint_failures AS f (endpoint_id, failing_since)
SELECT DISTINCT r.id, now() FROM pg_catalog.unnest(@ids::uuid[]) AS r(id) JOIN webhook_endpoints e ON e.id = r.id
WHERE e.enabled AND ` + fenced + `
ON CONFLICT (endpoint_id) DO NOTHING`

// disableEndpoints disables those of @ids that meet a condition. An endpoint whose row an
// operator has locked is left for its next failure, so that it does not delay the outcomes
// of all others.
func disableEndpoints(condition, then string) string {
	return `
WITH picked AS (
    SELECT e.id FROM webhook_endpoints e
    WHERE e.id = ANY(@ids::uuid[]) AND e.enabled AND ` + condition + ` AND ` + fenced + `
    FOR NO KEY UPDATE OF e SKIP LOCKED
), off AS (
    UPDATE webhook_endpoints e SET enabled = false, disabled_at = now(), disabled_reason = @reason::text
    FROM picked WHERE e.id = picked.id AND e.enabled
    RETURNING e.id, e.organization_id, ` + siteOfEndpoint + ` AS url
), anew AS (
    DELETE FROM webhook_endpoint_failures f USING off WHERE f.endpoint_id = off.id
)` + then
}

const (
	unconditional  = `true`
	failingForLong = `e.paused_at IS NULL AND EXISTS (SELECT FROM webhook_endpoint_failures f LEFT JOIN webhook_retries n ON n.endpoint_id = f.endpoint_id
        WHERE f.endpoint_id = e.id AND greatest(f.failing_since, n.resumed_at) < now() - @failing_ms::bigint::float8 * interval '1 ms')`

	// A delivery of one of walhook's own events disables its endpoint too, but tells
	// nobody, so that events cannot cause events for ever.
	insertDisabledEvents = `
INSERT INTO webhook_outbox (id, organization_id, event_type, payload)
SELECT DISTINCT ON (off.id) r.own_id, off.organization_id, '` + outbox.TypeEndpointDisabled + `',
       pg_catalog.jsonb_build_object('endpointId', off.id, 'url', off.url, 'reason', @reason::text)
FROM off JOIN unnest(@ids::uuid[], @own_ids::uuid[], @tell::bool[]) AS r(id, own_id, tell) ON r.id = off.id
WHERE r.tell
ORDER BY off.id, r.own_id
ON CONFLICT (id) DO NOTHING`

	selectDisabled = `
SELECT id FROM off`
)

var (
	disableGone        = disableEndpoints(unconditional, insertDisabledEvents)
	disableFailing     = disableEndpoints(failingForLong, insertDisabledEvents)
	onlyDisableGone    = disableEndpoints(unconditional, selectDisabled)
	onlyDisableFailing = disableEndpoints(failingForLong, selectDisabled)
)

// An endpoint that was enabled again meanwhile needs no notice.
const insertDisabled = `
INSERT INTO webhook_outbox (id, organization_id, event_type, payload)
SELECT r.own_id, e.organization_id, '` + outbox.TypeEndpointDisabled + `',
       pg_catalog.jsonb_build_object('endpointId', e.id, 'url', ` + siteOfEndpoint + `, 'reason', @reason::text)
FROM unnest(@ids::uuid[], @own_ids::uuid[]) AS r(id, own_id) JOIN webhook_endpoints e ON e.id = r.id
WHERE NOT e.enabled AND e.disabled_reason = @reason::text AND ` + fenced + `
ON CONFLICT (id) DO NOTHING`

// A disabling is an endpoint to be disabled, and the attempt that is the reason.
type disabling struct {
	endpoint uuid.UUID
	at       time.Time // the attempt's end
	own      bool      // the attempt was for one of walhook's own events
}

func disableArgs(endpoints []disabling, reason string, failingFor time.Duration) pgx.NamedArgs {
	ids, own, tell := make([]pgtype.UUID, len(endpoints)), make([]pgtype.UUID, len(endpoints)), make([]bool, len(endpoints))
	for i, e := range endpoints {
		ids[i], tell[i] = asUUID(e.endpoint), !e.own
		own[i] = asUUID(outbox.OwnEventID(e.at, e.endpoint, 0))
	}
	return pgx.NamedArgs{"ids": ids, "own_ids": own, "tell": tell, "reason": reason, "failing_ms": failingFor.Milliseconds()}
}
