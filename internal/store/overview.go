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
	Slot    *SlotOverview
	Waiting *WaitingOverview
	Overdue *time.Duration // how long the oldest delivery that could be sent now has been due; 0: there is none
	Strays  *int64         // rows in the DEFAULT partitions
	Ahead   *int           // days from tomorrow on that have partitions
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

// A WaitingOverview counts the unfinished deliveries.
type WaitingOverview struct{ Pending, Retrying int64 }

// Each part of webhook_status is read by a statement of its own. A statement on the view
// would wait for every table of every part, so one locked table would hide all of them.
const (
	selectSlotOverview = `
SELECT coalesce(s.environment, ''), coalesce(s.slot, ''), r.slot_name IS NOT NULL, coalesce(r.active, false),
       coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, r.restart_lsn), 0)::bigint,
       r.safe_wal_size, coalesce(r.wal_status, '')
FROM (SELECT) AS one LEFT JOIN (SELECT * FROM webhook_state ORDER BY updated_at DESC LIMIT 1) AS s ON true
LEFT JOIN pg_replication_slots AS r ON r.slot_name = coalesce(s.slot, 'walhook')::name AND r.database = current_database()`

	selectWaitingOverview = `
SELECT count(*) FILTER (WHERE status = 'pending'), count(*) FILTER (WHERE status = 'retrying')
FROM webhook_deliveries WHERE status IN ('pending', 'retrying')`

	selectOverdue = `SELECT coalesce(greatest(extract(epoch FROM clock_timestamp() - since), 0), 0)::float8 FROM webhook_overdue`

	selectStrays = `SELECT (SELECT count(*) FROM webhook_outbox_default) + (SELECT count(*) FROM webhook_deliveries_default)`
)

// Overview reads all parts. Its error joins those of the parts that could not be read.
func (s *Store) Overview(ctx context.Context) (Overview, error) {
	var o Overview
	var slot SlotOverview
	var waiting WaitingOverview
	var overdue float64
	var strays int64
	errSlot := s.overview(ctx, selectSlotOverview, &slot.Environment, &slot.Slot, &slot.Exists, &slot.Active, &slot.LagBytes, &slot.SafeBytes, &slot.WALStatus)
	if errSlot == nil {
		o.Slot = &slot
	}
	errOverdue := s.overview(ctx, selectOverdue, &overdue)
	if errOverdue == nil {
		o.Overdue = new(time.Duration(overdue * float64(time.Second)))
	}
	errStrays := s.overview(ctx, selectStrays, &strays)
	if errStrays == nil {
		o.Strays = &strays
	}
	ahead, errAhead := s.PartitionsAhead(ctx)
	if errAhead == nil {
		o.Ahead = &ahead
	}
	errWaiting := s.overview(ctx, selectWaitingOverview, &waiting.Pending, &waiting.Retrying) // last, because there may be millions to count
	if errWaiting == nil {
		o.Waiting = &waiting
	}
	return o, errors.Join(errSlot, errOverdue, errStrays, errAhead, errWaiting)
}

// overviewShare: each part may take half of the time that is left, so that a slow one
// leaves time for those after it.
const overviewShare = 2

func (s *Store) overview(ctx context.Context, sql string, into ...any) error {
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/overviewShare)
		defer cancel()
	}
	// Not a batch: pgx prepares a batch's statements before it begins, and the lock timeout
	// has to bound that too.
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, prepareRead); err != nil {
			return err
		}
		return tx.QueryRow(ctx, sql).Scan(into...)
	})
	if err != nil {
		return fmt.Errorf("read the overview: %w", err)
	}
	return nil
}
