package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/outbox"
)

// This file reads what the page of the admin server shows. Every statement reads a bounded number
// of rows by an index, whatever is in the tables, and ends after browseTimeout.

// browseTimeout ends a statement of the page: ten times what the slowest takes.
const browseTimeout = "2s"

const (
	prepareBrowse      = `SELECT set_config('statement_timeout', '` + browseTimeout + `', true)`
	endpointsShown     = 25   // of a list of endpoints
	waitingCounted     = 1000 // deliveries of each endpoint that are counted: 25 endpoints cost some 30 ms
	deliveriesShown    = 25   // of a list of deliveries: each may have a payload of 256 KiB to be cut
	deliveriesScanned  = 5000 // rows that one list reads at most: some 15 ms
	daysScanned        = 7    // so far back one list looks, so that few partitions are touched
	payloadExcerpt     = 500  // characters in a list
	responseExcerpt    = 500
	payloadShown       = 32 << 10 // characters on a delivery's page
	wholeResponse      = 16 << 10 // more than walhook keeps of any
	unfinishedStatuses = `('pending', 'retrying')`
)

// An EndpointView is an endpoint as operators see it.
type EndpointView struct {
	ID              uuid.UUID
	OrganizationID  string
	Host            string // scheme, host and port: the rest of a URL may hold credentials
	Description     string
	EventTypes      []string
	Enabled         bool
	DisabledAt      *time.Time
	DisabledReason  string
	FailingSince    *time.Time
	BreakerOpenedAt *time.Time
	PausedAt        *time.Time

	Waiting     int64      // deliveries that are pending or retrying
	WaitingMore bool       // there are more than were counted
	NextAt      *time.Time // when the first of them is, or was, due
	Last        *LastFailure
}

// Trouble reports whether the endpoint is not getting all that it is owed.
func (e *EndpointView) Trouble() bool {
	return !e.Enabled || e.FailingSince != nil || e.PausedAt != nil
}

// A LastFailure is the newest failed delivery that is still in the table as such.
type LastFailure struct {
	Delivery   uuid.UUID
	At         time.Time
	StatusCode int // 0: no answer came
	Class      string
	Error      string
}

const (
	endpointView = `
SELECT e.id, e.organization_id, e.url, coalesce(e.description, ''), e.event_types, e.enabled, e.disabled_at, coalesce(e.disabled_reason, ''),
       f.failing_since, f.breaker_opened_at, e.paused_at
FROM webhook_endpoints AS e LEFT JOIN webhook_endpoint_failures AS f ON f.endpoint_id = e.id
WHERE `
	worstFirst = `
ORDER BY CASE WHEN NOT e.enabled THEN 3 WHEN e.paused_at IS NOT NULL THEN 2 WHEN f.breaker_opened_at IS NOT NULL THEN 0 WHEN f.failing_since IS NOT NULL THEN 1 ELSE 4 END,
         coalesce(f.failing_since, e.disabled_at, e.paused_at, e.created_at), e.id LIMIT @limit::int`

	selectTroubled       = endpointView + `f.endpoint_id IS NOT NULL OR NOT e.enabled OR e.paused_at IS NOT NULL` + worstFirst
	selectOrganizationOf = endpointView + `e.organization_id = @organization::text` + worstFirst
	selectEndpointView   = endpointView + `e.id = @id::uuid`

	// The dead letters' index has the order (endpoint_id, id). A row comparison, where endpoint_id
	// = … would do, leaves no other index with that order to be chosen.
	selectStanding = `
SELECT r.id, least(w.n, @counted::int), w.n > @counted::int, CASE WHEN isfinite(w.next_at) THEN w.next_at END,
       l.id, l.updated_at, coalesce(l.status_code, 0), coalesce(l.error_class, ''), coalesce(left(l.error, 500), '')
FROM pg_catalog.unnest(@ids::uuid[]) AS r(id)
CROSS JOIN LATERAL (
    SELECT count(*) AS n, min(greatest(d.next_attempt_at, d.created_at)) AS next_at,
           (array_agg(d.id ORDER BY d.updated_at DESC) FILTER (WHERE d.attempts > 0 AND d.error_class IS NOT NULL))[1] AS failed
    FROM (SELECT * FROM webhook_deliveries AS d WHERE d.endpoint_id = r.id AND d.status IN ` + unfinishedStatuses + `
          ORDER BY d.next_attempt_at, d.id LIMIT @counted::int + 1) AS d) AS w
LEFT JOIN LATERAL (
    SELECT d.id FROM webhook_deliveries AS d
    WHERE d.status IN ('failed', 'cancelled') AND w.failed IS NULL AND (d.endpoint_id, d.id) <= (r.id, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
      AND (d.endpoint_id, d.id) >= (r.id, '00000000-0000-0000-0000-000000000000'::uuid)
    ORDER BY d.endpoint_id DESC, d.id DESC LIMIT 1) AS dead ON true
LEFT JOIN webhook_deliveries AS l ON l.id = coalesce(w.failed, dead.id)`
)

// EndpointViews returns the endpoints in trouble, the worst first; of an organization, all of its
// endpoints, in that order. There may be more than it returns: more says so.
func (s *Store) EndpointViews(ctx context.Context, organization string) (found []EndpointView, more bool, err error) {
	sql, args := selectTroubled, pgx.NamedArgs{"limit": endpointsShown + 1}
	if organization != "" {
		sql, args["organization"] = selectOrganizationOf, organization
	}
	if found, err = s.endpointViews(ctx, sql, args); err != nil {
		return nil, false, err
	}
	if more = len(found) > endpointsShown; more {
		found = found[:endpointsShown]
	}
	return found, more, s.standing(ctx, found)
}

// EndpointView returns one endpoint; nil: there is none of that id.
func (s *Store) EndpointView(ctx context.Context, id uuid.UUID) (*EndpointView, error) {
	found, err := s.endpointViews(ctx, selectEndpointView, pgx.NamedArgs{"id": asUUID(id)})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return &found[0], s.standing(ctx, found)
}

func (s *Store) endpointViews(ctx context.Context, sql string, args pgx.NamedArgs) (found []EndpointView, err error) {
	err = s.browse(ctx, prepareCount, sql, args, func(rows pgx.Rows) error {
		found, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (e EndpointView, err error) {
			var url string
			err = row.Scan(&e.ID, &e.OrganizationID, &url, &e.Description, &e.EventTypes, &e.Enabled, &e.DisabledAt, &e.DisabledReason, &e.FailingSince, &e.BreakerOpenedAt, &e.PausedAt)
			e.Host = hostOf(url)
			return e, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	return found, nil
}

// standing adds how many deliveries wait for each endpoint, and its last failure.
func (s *Store) standing(ctx context.Context, endpoints []EndpointView) error {
	ids, at := make([]uuid.UUID, len(endpoints)), make(map[uuid.UUID]*EndpointView, len(endpoints))
	for i := range endpoints {
		ids[i], at[endpoints[i].ID] = endpoints[i].ID, &endpoints[i]
	}
	err := s.browse(ctx, prepareRead, selectStanding, pgx.NamedArgs{"ids": asUUIDs(ids), "counted": waitingCounted}, func(rows pgx.Rows) error {
		for rows.Next() {
			var id uuid.UUID
			var read EndpointView
			var delivery *uuid.UUID
			var failedAt *time.Time
			var last LastFailure
			if err := rows.Scan(&id, &read.Waiting, &read.WaitingMore, &read.NextAt, &delivery, &failedAt, &last.StatusCode, &last.Class, &last.Error); err != nil {
				return err
			}
			e := at[id]
			e.Waiting, e.WaitingMore, e.NextAt = read.Waiting, read.WaitingMore, read.NextAt
			if delivery != nil {
				last.Delivery, last.At = *delivery, *failedAt
				e.Last = &last
			}
		}
		return rows.Err()
	})
	if err != nil {
		return fmt.Errorf("count what waits for %d endpoints: %w", len(endpoints), err)
	}
	return nil
}

// hostOf returns a URL's scheme, host and port.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return "(not a URL)"
	}
	return u.Scheme + "://" + u.Host
}

// A DeliveryFilter chooses deliveries. Fields that are empty choose all.
type DeliveryFilter struct {
	OrganizationID string
	EndpointID     uuid.UUID
	EventType      string
	Statuses       []string
	Before         uuid.UUID // deliveries of events before this one; Nil: from the newest on
}

// A DeliveryView is a delivery as operators see it, in a list with its beginnings only.
type DeliveryView struct {
	ID, EventID, EndpointID uuid.UUID
	OrganizationID          string
	EventType               string
	Status                  string
	Host                    string // of the endpoint; "": it is deleted
	Attempts                int
	NextAt                  *time.Time
	StatusCode              int // 0: no answer came
	Class                   string
	Error                   string
	Response                string
	CreatedAt, UpdatedAt    time.Time
	Payload                 *string // nil: the event is deleted
	PayloadMore             bool    // it is longer
}

// A DeliveryPage is a part of a list, the newest first.
type DeliveryPage struct {
	Deliveries []DeliveryView
	Next       uuid.UUID // Before of the part that follows; Nil: this is the end
	LookedBack time.Time // what is older was not looked at; zero: the part is full, or the end
}

const (
	deliveryView = `d.id, d.event_id, d.endpoint_id, d.organization_id, d.event_type, d.status, coalesce(e.url, ''), d.attempts,
       CASE WHEN d.status IN ` + unfinishedStatuses + ` AND isfinite(d.next_attempt_at) THEN d.next_attempt_at END, coalesce(d.status_code, 0), coalesce(d.error_class, ''), coalesce(d.error, ''),
       left(coalesce(d.response, ''), @response::int), d.created_at, d.updated_at, left(o.payload, @payload::int), coalesce(length(o.payload) > @payload::int, false)`

	chosen = `(@organization::text = '' OR s.organization_id = @organization::text)
      AND (@endpoint::text = '' OR s.endpoint_id = nullif(@endpoint::text, '')::uuid)
      AND (@type::text = '' OR s.event_type = @type::text)
      AND (cardinality(@statuses::text[]) = 0 OR s.status = ANY (@statuses::text[]))`

	// What is read is bounded before the filter, so that a filter which fits nothing costs no more.
	// The outer query has no order, or an index of all rows would look cheaper than sorting 25.
	selectDeliveries = `
WITH scanned AS MATERIALIZED (
    SELECT d.id, d.endpoint_id, d.organization_id, d.event_type, d.status FROM webhook_deliveries AS d
    WHERE d.id < @before::uuid AND d.id >= @from::uuid ORDER BY d.id DESC LIMIT @scan::int
)` + chosenPage

	// An endpoint's dead letters, by their index: see selectStanding.
	selectDead = `
WITH scanned AS MATERIALIZED (
    SELECT d.id, d.endpoint_id, d.organization_id, d.event_type, d.status FROM webhook_deliveries AS d
    WHERE d.status IN ('failed', 'cancelled') AND (d.endpoint_id, d.id) < (@endpoint::text::uuid, @before::uuid)
      AND (d.endpoint_id, d.id) >= (@endpoint::text::uuid, @from::uuid)
    ORDER BY d.endpoint_id DESC, d.id DESC LIMIT @scan::int
)` + chosenPage

	// An endpoint's unfinished deliveries, those that are due first. They are sorted by id, so
	// where there are more than are read, the list has no end: see Deliveries.
	selectUnfinished = `
WITH scanned AS MATERIALIZED (
    SELECT d.id, d.endpoint_id, d.organization_id, d.event_type, d.status
    FROM (SELECT * FROM webhook_deliveries AS d WHERE d.endpoint_id = @endpoint::text::uuid AND d.status IN ` + unfinishedStatuses + `
          ORDER BY d.next_attempt_at, d.id LIMIT @scan::int) AS d
    WHERE d.id < @before::uuid AND d.id >= @from::uuid
)` + chosenPage

	chosenPage = `, page AS MATERIALIZED (
    SELECT s.id FROM scanned AS s WHERE ` + chosen + ` ORDER BY s.id DESC LIMIT @limit::int
)
SELECT x.n, x.oldest, p.*
FROM (SELECT count(*) AS n, (array_agg(scanned.id ORDER BY scanned.id))[1] AS oldest FROM scanned) AS x
LEFT JOIN LATERAL (
    SELECT ` + deliveryView + `
    FROM page JOIN webhook_deliveries AS d ON d.id = page.id LEFT JOIN webhook_endpoints AS e ON e.id = d.endpoint_id
    LEFT JOIN LATERAL (SELECT o.payload::text AS payload FROM webhook_outbox AS o WHERE o.id = d.event_id LIMIT 1) AS o ON true
) AS p ON true`
)

// Deliveries returns a part of a list. It reads deliveriesScanned rows at most: the newest; of an
// endpoint that is named, its dead letters if only such are asked for, and of its unfinished
// deliveries those that are due first.
func (s *Store) Deliveries(ctx context.Context, f DeliveryFilter) (page DeliveryPage, err error) {
	before := f.Before
	if before == uuid.Nil {
		before = outbox.TimeID(time.Now().Add(time.Hour)) // applications' clocks may be ahead
	}
	sql, from, back := selectDeliveries, outbox.TimeID(idTime(before).AddDate(0, 0, -daysScanned)), true
	switch {
	case f.EndpointID == uuid.Nil || len(f.Statuses) == 0:
	case only(f.Statuses, "failed", "cancelled"):
		sql, from, back = selectDead, uuid.Nil, true
	case only(f.Statuses, "pending", "retrying"):
		sql, from, back = selectUnfinished, uuid.Nil, false
	}
	endpoint := ""
	if f.EndpointID != uuid.Nil {
		endpoint = f.EndpointID.String()
	}
	var scanned int
	var oldest *uuid.UUID
	err = s.browse(ctx, prepareRead, sql, pgx.NamedArgs{
		"before": asUUID(before), "from": asUUID(from), "scan": deliveriesScanned, "limit": deliveriesShown,
		"organization": f.OrganizationID, "endpoint": endpoint, "type": f.EventType, "statuses": append([]string{}, f.Statuses...),
		"response": responseExcerpt, "payload": payloadExcerpt,
	}, func(rows pgx.Rows) error {
		for rows.Next() {
			if rows.RawValues()[2] == nil { // nothing was chosen
				return errors.Join(rows.Scan(append([]any{&scanned, &oldest}, make([]any, 17)...)...), rows.Err())
			}
			var d DeliveryView
			if err := rows.Scan(append([]any{&scanned, &oldest}, d.fields()...)...); err != nil {
				return err
			}
			page.Deliveries = append(page.Deliveries, d.shown())
		}
		return rows.Err()
	})
	if err != nil {
		return DeliveryPage{}, fmt.Errorf("list deliveries: %w", err)
	}
	slices.SortFunc(page.Deliveries, func(a, b DeliveryView) int { return bytes.Compare(b.ID[:], a.ID[:]) })
	switch {
	case len(page.Deliveries) == deliveriesShown:
		page.Next = page.Deliveries[deliveriesShown-1].ID
	case back && scanned == deliveriesScanned:
		page.Next, page.LookedBack = *oldest, idTime(*oldest)
	case back && scanned > 0 && from != uuid.Nil:
		page.Next, page.LookedBack = from, idTime(from)
	}
	return page, nil
}

// only reports whether all of the statuses are among some.
func only(statuses []string, some ...string) bool {
	return !slices.ContainsFunc(statuses, func(status string) bool { return !slices.Contains(some, status) })
}

// idTime returns the time in a UUIDv7.
func idTime(id uuid.UUID) time.Time {
	ms := int64(id[0])<<40 | int64(id[1])<<32 | int64(id[2])<<24 | int64(id[3])<<16 | int64(id[4])<<8 | int64(id[5])
	return time.UnixMilli(ms)
}

// fields are where a row of deliveryView is read to. Host takes the whole URL: see shown.
func (d *DeliveryView) fields() []any {
	return []any{&d.ID, &d.EventID, &d.EndpointID, &d.OrganizationID, &d.EventType, &d.Status, &d.Host, &d.Attempts, &d.NextAt,
		&d.StatusCode, &d.Class, &d.Error, &d.Response, &d.CreatedAt, &d.UpdatedAt, &d.Payload, &d.PayloadMore}
}

// shown cuts the URL that fields read down to what operators see.
func (d *DeliveryView) shown() DeliveryView {
	if d.Host != "" {
		d.Host = hostOf(d.Host)
	}
	return *d
}

// A DeliveryDetail is a delivery with all of its attempts that the table has, the newest first.
type DeliveryDetail struct {
	DeliveryView
	DurationMS  int
	Log         []AttemptView
	CompletedAt *time.Time
}

// An AttemptView is one HTTP request.
type AttemptView struct {
	Attempt    int       `json:"attempt"`
	At         time.Time `json:"at"`
	StatusCode int       `json:"status_code"`
	Class      string    `json:"error_class"`
	Error      string    `json:"error"`
	DurationMS int       `json:"duration_ms"`
}

// As in the view webhook_attempts, which walhook run may not read: a delivery's only attempt is in
// its own columns.
const selectDelivery = `
SELECT ` + deliveryView + `, coalesce(d.duration_ms, 0), d.completed_at,
       CASE WHEN jsonb_typeof(d.attempt_log) = 'array' THEN d.attempt_log WHEN d.attempts = 1 THEN ` + firstEntry + ` ELSE '[]'::jsonb END::text
FROM webhook_deliveries AS d LEFT JOIN webhook_endpoints AS e ON e.id = d.endpoint_id
LEFT JOIN LATERAL (SELECT jsonb_pretty(o.payload) AS payload FROM webhook_outbox AS o WHERE o.id = d.event_id LIMIT 1) AS o ON true
WHERE d.id = @id::uuid`

// Delivery returns one delivery; nil: there is no row of that id.
func (s *Store) Delivery(ctx context.Context, id uuid.UUID) (found *DeliveryDetail, err error) {
	args := pgx.NamedArgs{"id": asUUID(id), "response": wholeResponse, "payload": payloadShown}
	err = s.browse(ctx, prepareRead, selectDelivery, args, func(rows pgx.Rows) error {
		for rows.Next() {
			var d DeliveryDetail
			var log []byte
			if err := rows.Scan(append(d.fields(), &d.DurationMS, &d.CompletedAt, &log)...); err != nil {
				return err
			}
			if err := json.Unmarshal(log, &d.Log); err != nil {
				d.Log = nil // somebody else has written it
			}
			slices.Reverse(d.Log)
			d.DeliveryView = d.shown()
			found = &d
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("read delivery %s: %w", id, err)
	}
	return found, nil
}

// browse is read with the page's own time limit.
func (s *Store) browse(ctx context.Context, prepare, sql string, args pgx.NamedArgs, collect func(pgx.Rows) error) error {
	var b pgx.Batch
	b.Queue(prepare)
	b.Queue(prepareBrowse)
	b.Queue(sql, args).Query(collect)
	return s.send(ctx, &b)
}

// ErrNothingThere means that an action names an endpoint or a delivery that does not exist.
var ErrNothingThere = errors.New("it does not exist, or no longer")

// The actions of the page are the functions that operators call from SQL. The tables' triggers
// write into webhook_audit what they change.
const (
	retryNow = `SELECT webhook_retry_now($1::uuid)`
	replay   = `SELECT webhook_replay($1::uuid)`
	sendTest = `SELECT webhook_send_test($1::uuid)`
	pause    = `SELECT webhook_pause($1::uuid)`
	resume   = `SELECT webhook_resume($1::uuid)`
)

// RetryNow makes all that waits for an endpoint due now, and returns how much that is.
func (s *Store) RetryNow(ctx context.Context, endpoint uuid.UUID) (waiting int64, err error) {
	return waiting, s.act(ctx, retryNow, endpoint, &waiting)
}

// Replay sends a delivery again, whatever its status.
func (s *Store) Replay(ctx context.Context, delivery uuid.UUID) error {
	var there bool
	if err := s.act(ctx, replay, delivery, &there); err != nil || there {
		return err
	}
	return ErrNothingThere
}

// SendTestTo sends a test event to an endpoint, and returns the delivery that it becomes.
func (s *Store) SendTestTo(ctx context.Context, endpoint uuid.UUID) (delivery uuid.UUID, err error) {
	var event uuid.UUID
	if err := s.act(ctx, sendTest, endpoint, &event); err != nil {
		return uuid.Nil, err
	}
	return outbox.DeliveryID(event, endpoint), nil
}

// Pause has what is owed to an endpoint wait until Resume.
func (s *Store) Pause(ctx context.Context, endpoint uuid.UUID) error {
	return s.act(ctx, pause, endpoint, nil)
}

// Resume ends a pause.
func (s *Store) Resume(ctx context.Context, endpoint uuid.UUID) error {
	return s.act(ctx, resume, endpoint, nil)
}

// act calls a function. It gives up where that takes longer than a page may, and says what to
// type instead.
func (s *Store) act(ctx context.Context, sql string, id uuid.UUID, into any) error {
	var b pgx.Batch
	b.Queue(claimLockTimeout)
	b.Queue(prepareBrowse)
	b.Queue(sql, asUUID(id)).QueryRow(func(row pgx.Row) error { return row.Scan(into) })
	err := s.send(ctx, &b)
	typed := strings.Replace(sql, "$1::uuid", "'"+id.String()+"'", 1)
	pg, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case err == nil:
		return nil
	case ok && pg.Code == "P0002": // no_data_found
		return ErrNothingThere
	case ok && pg.Code == "57014": // query_canceled
		return fmt.Errorf("it takes longer than %s, so nothing was changed; in psql it has the time it needs: %s", browseTimeout, typed)
	case ok && pg.Code == "42501": // insufficient_privilege
		return fmt.Errorf("walhook's role may not do this: apply roles.sql (walhook init --roles) again, or do it as another role: %s: %w", typed, err)
	}
	return fmt.Errorf("%s: %w", typed, err)
}
