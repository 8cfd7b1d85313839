package faults

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/outbox"
)

const (
	// lookEvery is how often the monitor looks.
	lookEvery = 200 * time.Millisecond

	// lookWithin bounds one look: a database that is away is no finding.
	lookWithin = 3 * time.Second

	// visibleWithin is how long a commit may take from the WAL, where the stream has
	// it, to be visible: PostgreSQL does that next, but on a busy machine it waits for
	// a CPU in between.
	visibleWithin = time.Second
)

// A Monitor looks, while the load runs, whether everything at or below what is
// confirmed has its rows: that is what a crash at this moment would need. It
// also keeps who held the slot, and the most memory that a process used.
type Monitor struct {
	trial *Trial

	mu       sync.Mutex
	paused   bool               // rows are not looked at
	seen     map[uuid.UUID]bool // events that have been looked at
	problems []string
	looks    int // that could be made
	senders  []int32
	peak     int64
	unseen   time.Duration // the longest time that rows were durable and not visible

	confirmed pglogrepl.LSN
	moved     time.Time     // when it was last seen to have moved
	stall     time.Duration // the longest time that it did not
}

func newMonitor(t *Trial) *Monitor { return &Monitor{trial: t, seen: map[uuid.UUID]bool{}} }

func (m *Monitor) run(ctx context.Context) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			m.look(ctx)
		}
	}
}

// pause keeps the monitor from looking at rows: they are locked, or a fault
// makes the slot's position mean nothing.
func (m *Monitor) pause(paused bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = paused
}

// forget has everything looked at again, after the database has crashed.
func (m *Monitor) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.seen)
}

// look makes one look. Positions are read before rows, so that what was
// confirmed must be there.
func (m *Monitor) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.trial.living() {
		m.peak = max(m.peak, m.trial.resident(p))
	}
	slot, err := readSlot(ctx, m.trial.pool)
	if err != nil {
		return
	}
	if n := len(m.senders); slot.PID != 0 && (n == 0 || m.senders[n-1] != slot.PID) {
		m.senders = append(m.senders, slot.PID)
	}
	if now := time.Now(); slot.Confirmed != m.confirmed || m.moved.IsZero() {
		m.confirmed, m.moved = slot.Confirmed, now
	} else {
		m.stall = max(m.stall, now.Sub(m.moved))
	}
	if m.paused {
		return
	}
	events := m.trial.journal.takeBelow(slot.Safe, m.seen)
	missing, err := withoutRows(ctx, m.trial.pool, m.owed(events), anyXID)
	if err == nil && len(missing) > 0 {
		missing, err = m.stillMissing(ctx, missing)
	}
	if err != nil {
		for _, e := range events {
			delete(m.seen, e.ID)
		}
		return
	}
	m.looks++
	for _, what := range missing {
		m.problems = append(m.problems, fmt.Sprintf("%s: %s is confirmed, and %s", time.Now().Format("15:04:05.000"), slot.Safe, what))
	}
}

// stillMissing looks again: a commit is streamed when it is in the WAL, and is
// visible a moment later. Only what was begun by now is waited for: rows of a
// transaction that begins after their event was confirmed are no excuse.
func (m *Monitor) stillMissing(ctx context.Context, missing map[uuid.UUID]string) (map[uuid.UUID]string, error) {
	began := time.Now()
	var next int64
	err := m.trial.pool.QueryRow(ctx, `SELECT pg_current_xact_id()::text::bigint`).Scan(&next)
	for err == nil && len(missing) > 0 && time.Since(began) < visibleWithin {
		missing, err = withoutRows(ctx, m.trial.pool, missing, next)
		m.unseen = max(m.unseen, time.Since(began))
	}
	return missing, err
}

// owed is the events' deliveries, and what to say where one has no row.
func (m *Monitor) owed(events []Event) map[uuid.UUID]string {
	owed := map[uuid.UUID]string{}
	for _, e := range events {
		for i := range m.trial.endpoints {
			if endpoint := &m.trial.endpoints[i]; endpoint.owed(e.Org, e.Type) {
				id := outbox.DeliveryID(e.ID, endpoint.ID)
				owed[id] = fmt.Sprintf("event %s, committed at or before %s (%s), has no row for endpoint %d", e.ID, e.Bound, e.Began.Format("15:04:05.000"), i)
			}
		}
	}
	return owed
}

// anyXID is beyond all transactions of a throwaway server.
const anyXID = math.MaxUint32

const selectMissing = `
SELECT r.id FROM unnest($1::uuid[]) AS r(id) LEFT JOIN webhook_deliveries d ON d.id = r.id AND d.xmin::text::bigint < $2 WHERE d.id IS NULL`

// withoutRows leaves those of the deliveries that have no row in a database which a
// transaction before another has written.
func withoutRows(ctx context.Context, pool *pgxpool.Pool, owed map[uuid.UUID]string, before int64) (missing map[uuid.UUID]string, err error) {
	missing = map[uuid.UUID]string{}
	if len(owed) == 0 {
		return missing, nil
	}
	rows, err := pool.Query(ctx, selectMissing, slices.Collect(maps.Keys(owed)), before)
	if err != nil {
		return nil, err
	}
	var id uuid.UUID
	_, err = pgx.ForEachRow(rows, []any{&id}, func() error {
		missing[id] = owed[id]
		return nil
	})
	return missing, err
}

// A Slot is where the replication slot stands.
type Slot struct {
	PID       int32         // of the walsender; 0: nobody streams
	Confirmed pglogrepl.LSN // what PostgreSQL was told
	Safe      pglogrepl.LSN // the greater of that and of webhook_state's: what a restart will not stream again
	Epoch     int64         // 0: never acquired
	Holder    string
}

const selectSlot = `
SELECT coalesce(s.active_pid, 0), coalesce(s.confirmed_flush_lsn, '0/0')::text,
       greatest(s.confirmed_flush_lsn, st.durable_lsn, '0/0')::text, coalesce(st.epoch, 0), coalesce(st.holder::text, '')
FROM pg_replication_slots s LEFT JOIN webhook_state st ON st.slot = s.slot_name
WHERE s.slot_name = '` + slotName + `'`

func readSlot(ctx context.Context, pool *pgxpool.Pool) (Slot, error) {
	var s Slot
	var confirmed, safe string
	if err := pool.QueryRow(ctx, selectSlot).Scan(&s.PID, &confirmed, &safe, &s.Epoch, &s.Holder); err != nil {
		return Slot{}, fmt.Errorf("look at the slot: %w", err)
	}
	var err error
	if s.Confirmed, err = pglogrepl.ParseLSN(confirmed); err != nil {
		return Slot{}, err
	}
	s.Safe, err = pglogrepl.ParseLSN(safe)
	return s, err
}
