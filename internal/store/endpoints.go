package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/webhook"
)

const selectEndpoints = `
SELECT e.id, e.organization_id, e.all_organizations, e.url, e.headers, e.enabled, coalesce(e.max_in_flight, 0), coalesce(e.rate_per_second, 0)::float8,
       array(SELECT s.secret FROM webhook_secrets s
             WHERE s.endpoint_id = e.id AND (s.expires_at IS NULL OR s.expires_at > now())
             ORDER BY s.created_at, s.id),
       coalesce(f.breaker_opened_at > coalesce(n.asked_at, '-infinity'), false), coalesce(n.asked_at, 'epoch'), e.paused_at IS NOT NULL, coalesce(e.disabled_reason, ''),
       CASE WHEN e.timeout IS NOT NULL THEN (least(greatest(extract(epoch FROM e.timeout), 0::numeric), 60::numeric) * 1000::numeric)::bigint END,
       CASE WHEN e.retry_schedule IS NOT NULL THEN array(
           SELECT (least(greatest(extract(epoch FROM w.wait), 0::numeric), 604800::numeric) * 1000::numeric)::bigint
           FROM pg_catalog.unnest(e.retry_schedule) WITH ORDINALITY AS w(wait, n) ORDER BY w.n) END
FROM pg_catalog.unnest(@ids::uuid[]) AS r(id) JOIN webhook_endpoints e ON e.id = r.id
LEFT JOIN webhook_endpoint_failures f ON f.endpoint_id = e.id
LEFT JOIN webhook_retries n ON n.endpoint_id = CASE WHEN f.breaker_opened_at IS NOT NULL THEN e.id END`

// minTimeout bounds an endpoint's own timeout, as its trigger does. A restore may have brought a
// row past that; the statement bounds the other end, and the waits.
const minTimeout = 100 * time.Millisecond

// maxSkew bounds how far walhook's clock may be from PostgreSQL's. Receivers refuse
// timestamps that are off by five minutes.
const maxSkew = 2 * time.Minute

// ErrSkewed means that the clocks of walhook and PostgreSQL are too far apart to sign
// timestamps.
var ErrSkewed = errors.New("walhook's clock and PostgreSQL's are more than two minutes apart; set the one that is wrong (NTP)")

// Endpoints returns those of the endpoints that exist, as committed now, with their live
// secrets, oldest first. A bad row, which a restore may have brought past the triggers, is
// reported in that endpoint's Problem. Secrets that walhook cannot open are not the
// endpoint's fault, and are reported in Sealed. If the clocks are too far apart, Endpoints
// returns ErrSkewed.
func (s *Store) Endpoints(ctx context.Context, ids []uuid.UUID) ([]webhook.Endpoint, error) {
	var endpoints []webhook.Endpoint
	var b pgx.Batch
	b.Queue(prepareRead)
	asked := time.Now()
	b.Queue("SELECT clock_timestamp()").QueryRow(func(row pgx.Row) error {
		var now time.Time
		if err := row.Scan(&now); err != nil {
			return err
		}
		if now.Before(asked.Add(-maxSkew)) || now.After(time.Now().Add(maxSkew)) {
			return fmt.Errorf("%w: walhook says %s, PostgreSQL %s (UTC)", ErrSkewed, time.Now().UTC().Format(time.DateTime), now.UTC().Format(time.DateTime))
		}
		return nil
	})
	b.Queue(selectEndpoints, pgx.NamedArgs{"ids": asUUIDs(ids)}).Query(func(rows pgx.Rows) error {
		var err error
		endpoints, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (webhook.Endpoint, error) {
			var e webhook.Endpoint
			var headers []byte
			var secrets []string
			var timeout *int64
			var schedule []int64 // milliseconds, likewise
			err := row.Scan(&e.ID, &e.OrganizationID, &e.ForAll, &e.URL, &headers, &e.Enabled, &e.MaxInFlight, &e.RatePerSecond, &secrets, &e.BreakerOpen, &e.RetriedAt,
				&e.Paused, &e.DisabledReason, &timeout, &schedule)
			if timeout != nil {
				e.Timeout = max(time.Duration(*timeout)*time.Millisecond, minTimeout)
			}
			if schedule != nil {
				e.RetrySchedule = make([]time.Duration, len(schedule))
			}
			for i, wait := range schedule {
				e.RetrySchedule[i] = time.Duration(wait) * time.Millisecond
			}
			if err == nil && json.Unmarshal(headers, &e.Headers) != nil {
				e.Problem = "the endpoint's headers are not a JSON object of name to text"
			}
			s.sealer.openEndpoint(&e, secrets)
			return e, err
		})
		return err
	})
	if err := s.send(ctx, &b); err != nil {
		return nil, fmt.Errorf("read %d endpoints: %w", len(ids), err)
	}
	return endpoints, nil
}

// A plan that was cached while a partition was small must not scan it when it has grown, so
// sequential scans, hash joins and merge joins are off: look-ups by id use the index
// whatever the statistics say. Then one generic plan fits all parameters, and is made once:
// with dozens of partitions, planning takes as long as reading.
//
// Sorting is off, so that ordered rows come from the index that has the order. After an
// UPDATE of many rows, sorting those of another index looks cheaper, but reads all of them
// for each page. The JIT is off because plans with these settings look so expensive that it
// would compile for seconds. Rows that row security hides would look like deliveries never
// made, or deleted events and endpoints; with row_security off they are an error.
const prepareRead = `
SELECT set_config('lock_timeout', '` + LockTimeout + `', true), set_config('row_security', 'off', true), set_config('enable_seqscan', 'off', true),
       set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
       set_config('enable_sort', 'off', true), set_config('enable_incremental_sort', 'off', true),
       set_config('jit', 'off', true), set_config('plan_cache_mode', 'force_generic_plan', true)`

// read runs one query in one round trip, with the settings of prepareRead.
func (s *Store) read(ctx context.Context, sql string, args pgx.NamedArgs, collect func(pgx.Rows) error) error {
	return s.readPinned(ctx, "", sql, args, collect)
}

// While rows move from the DEFAULT partition into one of their own, a statement that was
// planned before the ATTACH, with a snapshot from after it, sees them in neither. ATTACH
// locks the DEFAULT partition until its commit. So a transaction that first uses the DEFAULT
// partition, and only then plans and takes its snapshot, sees every row. These statements do
// just that: the nil id is of 1970, so it belongs to the DEFAULT partition. (LOCK TABLE
// would need a privilege on the partition.)
const (
	pinOutbox     = `SELECT FROM webhook_outbox WHERE id = '00000000-0000-0000-0000-000000000000'::uuid`
	pinDeliveries = `SELECT FROM webhook_deliveries WHERE id = '00000000-0000-0000-0000-000000000000'::uuid`
)

// readPinned is read for a query that must not miss rows that are just being moved. pin is
// pinOutbox or pinDeliveries.
func (s *Store) readPinned(ctx context.Context, pin, sql string, args pgx.NamedArgs, collect func(pgx.Rows) error) error {
	var b pgx.Batch
	b.Queue(prepareRead)
	if pin != "" {
		b.Queue(pin)
	}
	b.Queue(sql, args).Query(collect)
	return s.send(ctx, &b)
}
