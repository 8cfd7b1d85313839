package outbox

import (
	"context"
	"fmt"
	"time"
)

// An Overview is the row of webhook_status.
type Overview struct {
	Environment string
	Slot        string
	SlotExists  bool
	SlotActive  bool
	LagBytes    int64  // of WAL that PostgreSQL keeps for the slot
	WALStatus   string // as pg_replication_slots has it
	Pending     int64
	Retrying    int64
	Overdue     time.Duration // how long the first delivery that waits has been due
	Strays      int64         // rows outside of the daily partitions

	PartitionsAhead int // days from tomorrow on that have partitions
}

const selectOverview = `
SELECT coalesce(environment, ''), coalesce(slot, ''), slot_exists, slot_active, coalesce(lag_bytes, 0), coalesce(wal_status, ''),
       pending, retrying, coalesce(greatest(extract(epoch FROM now() - oldest_due_at), 0), 0)::float8,
       outbox_default_rows + deliveries_default_rows
FROM webhook_status`

// Overview reads how things stand. It counts what waits, which takes a while
// when that is millions.
func (s *Store) Overview(ctx context.Context) (Overview, error) {
	var o Overview
	var overdue float64
	err := s.pool.QueryRow(ctx, selectOverview).Scan(&o.Environment, &o.Slot, &o.SlotExists, &o.SlotActive, &o.LagBytes, &o.WALStatus,
		&o.Pending, &o.Retrying, &overdue, &o.Strays)
	if err != nil {
		return Overview{}, fmt.Errorf("read webhook_status: %w", err)
	}
	o.Overdue = time.Duration(overdue * float64(time.Second))
	o.PartitionsAhead, err = s.PartitionsAhead(ctx)
	return o, err
}
