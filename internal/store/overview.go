package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// An Overview has the values of webhook_status in parts. A part that could not be read is
// nil, and the others are still valid.
type Overview struct {
	Slot      *SlotOverview
	Waiting   *WaitingOverview
	Endpoints *EndpointsOverview
	Overdue   *time.Duration // how long the oldest delivery that could be sent now has been due; 0: there is none
	Strays    *int64         // rows in the DEFAULT partitions, up to straysCounted of each
	Ahead     *int           // days from tomorrow on that have partitions
}

// A SlotOverview says how the slot stands, from the catalogue and webhook_state.
type SlotOverview struct {
	Environment string
	Slot        string // of the walhook that wrote last; "": none has
	Exists      bool
	Active      bool   // a walhook is connected to it
	LagBytes    int64  // WAL that PostgreSQL keeps for the slot
	SafeBytes   *int64 // WAL that may be written before the slot may be lost; nil: unlimited, or already lost
	WALStatus   string // as in pg_replication_slots
}

// An EndpointsOverview counts all endpoints by how they stand, each once.
type EndpointsOverview struct {
	OK       int64
	Failing  int64 // the last attempt failed
	Open     int64 // and the breaker is open
	Paused   int64
	Disabled int64
}

// Each part of webhook_status is read by a statement of its own. A statement on the view
// would wait for every table of every part, so one locked table would hide all of them.
const (
	selectSlotOverview = `
SELECT coalesce(s.environment, ''), coalesce(s.slot, ''), r.slot_name IS NOT NULL, coalesce(r.active, false),
       coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, r.restart_lsn), 0)::bigint,
       r.safe_wal_size, coalesce(r.wal_status, '')
FROM (SELECT) AS one LEFT JOIN (SELECT * FROM webhook_state ORDER BY updated_at DESC LIMIT 1) AS s ON true
LEFT JOIN pg_replication_slots AS r ON r.slot_name = coalesce(s.slot, 'walhook')::name AND r.database = current_database()`

	selectEndpointsOverview = `
SELECT count(*) FILTER (WHERE e.enabled AND e.paused_at IS NULL AND f.failing_since IS NULL),
       count(*) FILTER (WHERE e.enabled AND e.paused_at IS NULL AND f.failing_since IS NOT NULL AND f.breaker_opened_at IS NULL),
       count(*) FILTER (WHERE e.enabled AND e.paused_at IS NULL AND f.failing_since IS NOT NULL AND f.breaker_opened_at IS NOT NULL),
       count(*) FILTER (WHERE e.enabled AND e.paused_at IS NOT NULL),
       count(*) FILTER (WHERE NOT e.enabled)
FROM webhook_endpoints AS e LEFT JOIN webhook_endpoint_failures AS f ON f.endpoint_id = e.id`

	selectStrays = `SELECT (SELECT count(*) FROM (SELECT FROM webhook_outbox_default LIMIT $1::int) AS o)
                + (SELECT count(*) FROM (SELECT FROM webhook_deliveries_default LIMIT $1::int) AS d)`
)

// straysCounted bounds the rows that are counted in each DEFAULT partition. One is too many.
const straysCounted = 1000

// prepareCount has a statement on a table of thousands planned as PostgreSQL likes: for
// these, what prepareRead switches off is the quickest.
const prepareCount = `SELECT set_config('lock_timeout', '` + LockTimeout + `', true), set_config('row_security', 'off', true), set_config('jit', 'off', true)`

// Overview reads all parts. Its error joins those of the parts that could not be read. None
// costs more where more deliveries wait.
func (s *Store) Overview(ctx context.Context) (Overview, error) {
	var o Overview
	var errs []error
	o.Slot, errs = part(ctx, errs, s.slotOverview)
	o.Overdue, errs = part(ctx, errs, s.Overdue)
	o.Strays, errs = part(ctx, errs, func(ctx context.Context) (n int64, err error) {
		err = s.overview(ctx, prepareRead, selectStrays, []any{straysCounted}, &n)
		return n, err
	})
	o.Ahead, errs = part(ctx, errs, s.PartitionsAhead)
	o.Endpoints, errs = part(ctx, errs, func(ctx context.Context) (e EndpointsOverview, err error) {
		err = s.overview(ctx, prepareCount, selectEndpointsOverview, nil, &e.OK, &e.Failing, &e.Open, &e.Paused, &e.Disabled)
		return e, err
	})
	o.Waiting, errs = part(ctx, errs, s.waitingOverview)
	return o, errors.Join(errs...)
}

// part reads one, and returns nil and one error more if that fails.
func part[T any](ctx context.Context, errs []error, read func(context.Context) (T, error)) (*T, []error) {
	v, err := read(ctx)
	if err != nil {
		return nil, append(errs, err)
	}
	return &v, errs
}

// ServerVersion returns PostgreSQL's, such as 17.4.
func (s *Store) ServerVersion(ctx context.Context) (version string, err error) {
	if err := s.overview(ctx, prepareRead, `SELECT current_setting('server_version')`, nil, &version); err != nil {
		return "", err
	}
	return version, nil
}

func (s *Store) slotOverview(ctx context.Context) (o SlotOverview, err error) {
	err = s.overview(ctx, prepareRead, selectSlotOverview, nil, &o.Environment, &o.Slot, &o.Exists, &o.Active, &o.LagBytes, &o.SafeBytes, &o.WALStatus)
	return o, err
}

// overviewShare: each part may take half of the time that is left, so that a slow one
// leaves time for those after it.
const overviewShare = 2

// overview reads one row.
func (s *Store) overview(ctx context.Context, prepare, sql string, args []any, into ...any) error {
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/overviewShare)
		defer cancel()
	}
	// Not a batch: pgx prepares a batch's statements before it begins, and the lock timeout
	// has to bound that too.
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, prepare); err != nil {
			return err
		}
		return tx.QueryRow(ctx, sql, args...).Scan(into...)
	})
	if err != nil {
		return fmt.Errorf("read the overview: %w", err)
	}
	return nil
}
