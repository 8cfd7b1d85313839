package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// This file reads deliveries for the page of the admin server: see browse.go for the bounds.

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
       CASE WHEN d.status IN ` + unfinishedStatuses + ` AND isfinite(d.next_attempt_at) THEN greatest(d.next_attempt_at, d.created_at) END, coalesce(d.status_code, 0), coalesce(d.error_class, ''), coalesce(d.error, ''),
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
	sql, from, back := selectDeliveries, outbox.TimeID(outbox.IDTime(before).AddDate(0, 0, -daysScanned)), true
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
		page.Next, page.LookedBack = *oldest, outbox.IDTime(*oldest)
	case back && scanned > 0 && from != uuid.Nil:
		page.Next, page.LookedBack = from, outbox.IDTime(from)
	}
	return page, nil
}

// only reports whether all of the statuses are among some.
func only(statuses []string, some ...string) bool {
	return !slices.ContainsFunc(statuses, func(status string) bool { return !slices.Contains(some, status) })
}

// fields are where a row of deliveryView is read to. Host takes the whole URL: see shown.
func (d *DeliveryView) fields() []any {
	return []any{&d.ID, &d.EventID, &d.EndpointID, &d.OrganizationID, &d.EventType, &d.Status, &d.Host, &d.Attempts, &d.NextAt,
		&d.StatusCode, &d.Class, &d.Error, &d.Response, &d.CreatedAt, &d.UpdatedAt, &d.Payload, &d.PayloadMore}
}

// shown cuts the URL that fields read down to what operators see.
func (d *DeliveryView) shown() DeliveryView {
	if d.Host != "" {
		d.Host = webhook.Site(d.Host)
	}
	return *d
}

// A DeliveryDetail is a delivery with all of its attempts that the table has, the newest first.
type DeliveryDetail struct {
	DeliveryView
	DurationMS  int
	Log         []PastAttempt
	CompletedAt *time.Time
}

const selectDelivery = `
SELECT ` + deliveryView + `, coalesce(d.duration_ms, 0), d.completed_at, ` + pastAttempts + `
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
			d.Log = readAttempts(log)
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
