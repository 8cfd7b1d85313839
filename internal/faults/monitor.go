package faults

import (
	"context"
	"fmt"
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
		m.peak = max(m.peak, p.resident())
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
	missing, err := m.withoutRows(ctx, m.trial.pool, events)
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

const selectMissing = `
SELECT r.id FROM unnest($1::uuid[]) AS r(id) LEFT JOIN webhook_deliveries d ON d.id = r.id WHERE d.id IS NULL`

// withoutRows says which of the events' deliveries have no row in a database.
func (m *Monitor) withoutRows(ctx context.Context, pool *pgxpool.Pool, events []Event) ([]string, error) {
	owed := map[uuid.UUID]string{}
	var ids []uuid.UUID
	for _, e := range events {
		for i := range m.trial.endpoints {
			if endpoint := &m.trial.endpoints[i]; endpoint.owed(e.Org, e.Type) {
				id := outbox.DeliveryID(e.ID, endpoint.ID)
				ids = append(ids, id)
				owed[id] = fmt.Sprintf("event %s, committed at or before %s (%s), has no row for endpoint %d", e.ID, e.Bound, e.Began.Format("15:04:05.000"), i)
			}
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	rows, err := pool.Query(ctx, selectMissing, ids)
	if err != nil {
		return nil, err
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, err
	}
	var texts []string
	for _, id := range missing {
		texts = append(texts, owed[id])
	}
	return texts, nil
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
