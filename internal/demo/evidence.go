package demo

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

// Evidence is what everyone knows at one moment: the application, which knows
// what it committed; the database; the receivers.
type evidence struct {
	committed  map[uuid.UUID]enqueued
	rolledBack map[uuid.UUID]enqueued
	endpoints  map[uuid.UUID]*endpoint

	events     []event
	deliveries []delivery
	listed     map[uuid.UUID]int // rows in webhook_attempts, by delivery

	arrivals []arrival
	strays   int // requests to URLs that no endpoint has
}

// An event is a row of webhook_outbox, walhook's own events included.
type event struct {
	ID             uuid.UUID
	OrganizationID string
	Type           string
	Payload        string
	EndpointIDs    []uuid.UUID
}

// A delivery is a row of webhook_deliveries.
type delivery struct {
	ID             uuid.UUID
	EventID        uuid.UUID
	EndpointID     uuid.UUID
	OrganizationID string
	Type           string
	Status         string
	Attempts       int
	StatusCode     int
	Error          string
	DueIn          float64 // seconds
}

// An owed delivery is one that has to be.
type owed struct {
	event    *event
	endpoint *endpoint // nil: of nobody that we know
	id       uuid.UUID
}

// owed computes from the committed events which deliveries there have to be.
func (e *evidence) owed() []owed {
	var all []owed
	for i := range e.events {
		ev := &e.events[i]
		for _, id := range ev.EndpointIDs {
			all = append(all, owed{ev, e.endpoints[id], outbox.DeliveryID(ev.ID, id)})
		}
	}
	return all
}

func (e *evidence) rows() map[uuid.UUID]delivery {
	rows := make(map[uuid.UUID]delivery, len(e.deliveries))
	for _, d := range e.deliveries {
		rows[d.ID] = d
	}
	return rows
}

// requests groups the arrivals by delivery.
func (e *evidence) requests() map[uuid.UUID][]arrival {
	requests := map[uuid.UUID][]arrival{}
	for _, a := range e.arrivals {
		requests[a.delivery] = append(requests[a.delivery], a)
	}
	return requests
}

// atRest reports that nothing more is to be expected.
func (e *evidence) atRest() bool {
	rows := e.rows()
	for _, o := range e.owed() {
		if d, written := rows[o.id]; !written || !d.ended() {
			return false
		}
	}
	return true
}

func (d *delivery) ended() bool {
	return d.Status != string(store.Pending) && d.Status != string(store.Retrying)
}

const selectEvents = `
SELECT id, organization_id, event_type, payload::text, endpoint_ids FROM webhook_outbox ORDER BY id`

const selectDeliveries = `
SELECT id, event_id, endpoint_id, organization_id, event_type, status, attempts, coalesce(status_code, 0), coalesce(error, ''),
       coalesce(extract(epoch FROM next_attempt_at - clock_timestamp()), 0)::float8
FROM webhook_deliveries ORDER BY id`

const selectListed = `
SELECT delivery_id FROM webhook_attempts`

// look reads both tables in one snapshot: what is owed and what became of it.
func (e *evidence) look(ctx context.Context, db *pgx.Conn) error {
	snapshot := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err := pgx.BeginTxFunc(ctx, db, snapshot, func(tx pgx.Tx) (err error) {
		if e.events, err = collect[event](ctx, tx, selectEvents); err != nil {
			return err
		}
		e.deliveries, err = collect[delivery](ctx, tx, selectDeliveries)
		return err
	})
	if err != nil {
		return fmt.Errorf("look at webhook_outbox and webhook_deliveries: %w", err)
	}
	return nil
}

func collect[T any](ctx context.Context, tx pgx.Tx, sql string) ([]T, error) {
	rows, err := tx.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[T])
}

// list counts what the view of attempts has of each delivery.
func (e *evidence) list(ctx context.Context, db *pgx.Conn) error {
	rows, err := db.Query(ctx, selectListed)
	if err != nil {
		return fmt.Errorf("look at webhook_attempts: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return fmt.Errorf("look at webhook_attempts: %w", err)
	}
	e.listed = map[uuid.UUID]int{}
	for _, id := range ids {
		e.listed[id]++
	}
	return nil
}
