package faults

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/oracle"
	"github.com/walhook/walhook/outbox"
)

const (
	// lookEvery is the monitor's interval.
	lookEvery = 200 * time.Millisecond

	// lookWithin bounds one check. A database that does not answer is not a finding.
	lookWithin = 3 * time.Second

	// visibleWithin bounds the time from a commit's record in the WAL, where the stream
	// sees it, until other sessions see it. PostgreSQL does that next, but on a busy
	// machine it has to wait for a CPU.
	visibleWithin = time.Second
)

// A Monitor checks during the load that every event up to the confirmed position has its
// rows: a crash at this moment must lose nothing. It also notes who held the slot, and
// the processes' peak memory.
type Monitor struct {
	trial *Trial

	mu       sync.Mutex
	paused   bool               // rows are not checked
	seen     map[uuid.UUID]bool // events that need no further check
	chunks   []Chunk            // of tallied events, not confirmed at the last check
	sampled  int                // checked tallied deliveries
	problems []string
	looks    int                // checks of rows
	events   map[uuid.UUID]bool // whose rows were checked
	watched  time.Duration      // in which checks were possible: the database answered, and the monitor was not paused
	since    time.Time          // the end of what watched covers
	senders  []int32
	peak     int64
	unseen   time.Duration // the longest time that rows were durable and not visible

	confirmed pglogrepl.LSN
	moved     time.Time     // when it was last seen to move
	stall     time.Duration // the longest time without a move
}

func newMonitor(t *Trial) *Monitor {
	return &Monitor{trial: t, seen: map[uuid.UUID]bool{}, events: map[uuid.UUID]bool{}, since: time.Now()}
}

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

// pause stops the checks of rows: the rows are locked, or a fault makes the slot's
// position meaningless.
func (m *Monitor) pause(paused bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = paused
}

// forget makes the monitor check everything again, after a crash of the database.
func (m *Monitor) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.seen)
}

// look makes one check. It reads the position before the time, and the time before the
// rows: what was confirmed must have been committed by then.
func (m *Monitor) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.trial.living() {
		m.peak = max(m.peak, m.trial.resident(p))
	}
	watching := m.trial.pool.Ping(ctx) == nil && !m.paused
	if now := time.Now(); watching {
		m.watched += now.Sub(m.since)
		m.since = now
	} else {
		defer func() { m.since = time.Now() }()
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
	if watching {
		m.lookBelow(ctx, slot.Safe)
	}
}

// judge expects that the monitor has checked most of the time, and most of the committed
// events, and returns its figures. The last events were confirmed a moment ago, so it
// waits for one more check.
func (m *Monitor) judge() (figures string) {
	x := m.trial
	x.Helper()
	known := x.journal.Bound()
	for began := time.Now(); !m.hasLooked(known) && time.Since(began) < lookWithin; {
		time.Sleep(lookEvery)
	}
	x.expect(m.hasLooked(known), "the monitor has checked too few events")
	m.mu.Lock()
	defer m.mu.Unlock()
	x.expect(m.looks > 0 && 2*m.looks >= int(m.watched/lookEvery), "the monitor could check for %s, and has checked %d times", m.watched, m.looks)
	return fmt.Sprintf("stall=%.1fs looks=%d in %.1fs at %d of %d events and %d of %d tallied unseen=%s", m.stall.Seconds(), m.looks, m.watched.Seconds(),
		len(m.events), known, m.sampled, x.tallied, m.unseen.Round(100*time.Microsecond))
}

// hasLooked reports whether half of so many events were checked, and some of the tallied
// ones.
func (m *Monitor) hasLooked(known int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return 2*len(m.events) >= known && (m.sampled > 0 || m.trial.tallied == 0)
}

// lookBelow checks the rows of the events that were confirmed since the last check.
func (m *Monitor) lookBelow(ctx context.Context, safe pglogrepl.LSN) {
	events := m.trial.journal.TakeBelow(safe, m.seen)
	owed, chunks := m.owed(events), m.chunks
	sampled := m.sample(safe, owed)
	missing, err := m.withoutRowsNow(ctx, owed)
	if err != nil {
		for _, e := range events {
			delete(m.seen, e.ID)
		}
		m.chunks = chunks
		return
	}
	m.looks++
	for _, e := range events {
		m.events[e.ID] = true
	}
	m.sampled += sampled
	for _, what := range missing {
		m.problems = append(m.problems, fmt.Sprintf("%s: %s is confirmed, and %s", oracle.Clock(time.Now()), safe, what))
	}
}

// withoutRowsNow returns the deliveries without a row that was committed by now. If a row
// is not visible, it tries again for a moment, because a commit is streamed when it is in
// the WAL and is visible only then. Commit timestamps are taken before that, so this does
// not excuse a row that was still being written.
func (m *Monitor) withoutRowsNow(ctx context.Context, owed map[uuid.UUID]string) (missing map[uuid.UUID]string, err error) {
	var now time.Time
	if err := m.trial.pool.QueryRow(ctx, `SELECT pg_catalog.statement_timestamp()`).Scan(&now); err != nil {
		return nil, err
	}
	began := time.Now()
	missing, err = withoutRows(ctx, m.trial.pool, owed, now)
	for err == nil && len(missing) > 0 && time.Since(began) < visibleWithin {
		missing, err = withoutRows(ctx, m.trial.pool, missing, now)
		m.unseen = max(m.unseen, time.Since(began))
	}
	return missing, err
}

// A Chunk is a sample of the tallied deliveries of one transaction.
type Chunk struct {
	deliveries []uuid.UUID
	bound      pglogrepl.LSN // its commit lies before
}

// sample adds confirmed tallied deliveries: those of the last chunk, in which any that
// were confirmed too early are. To check a million would take too much of the machine.
func (m *Monitor) sample(safe pglogrepl.LSN, owed map[uuid.UUID]string) (n int) {
	passed := 0
	for passed < len(m.chunks) && m.chunks[passed].bound <= safe {
		passed++
	}
	if passed == 0 {
		return 0
	}
	c := m.chunks[passed-1]
	m.chunks = m.chunks[passed:]
	for _, id := range c.deliveries {
		owed[id] = fmt.Sprintf("tallied delivery %s, committed at or before %s, has no row", id, c.bound)
	}
	return len(c.deliveries)
}

// add adds a chunk, to be checked when it is confirmed. Chunks come in the order of their
// commits.
func (m *Monitor) add(c Chunk) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.chunks = append(m.chunks, c)
}

// owed returns the events' deliveries, each with the problem to report if it has no row.
func (m *Monitor) owed(events []oracle.Event) map[uuid.UUID]string {
	owed := map[uuid.UUID]string{}
	for _, e := range events {
		for i := range m.trial.endpoints {
			if endpoint := &m.trial.endpoints[i]; endpoint.Owed(e.Org, e.Type) {
				id := outbox.DeliveryID(e.ID, endpoint.ID)
				owed[id] = fmt.Sprintf("event %s, committed at or before %s (%s), has no row for endpoint %d", e.ID, e.Bound, e.Began.Format("15:04:05.000"), i)
			}
		}
	}
	return owed
}

// faults_inserted, a column of the trial's own, has the transaction that inserted the
// row. Without a time, every visible row counts.
const selectMissing = `
SELECT r.id FROM unnest($1::uuid[]) AS r(id)
LEFT JOIN webhook_deliveries d ON d.id = r.id AND ($2::timestamptz IS NULL OR pg_xact_commit_timestamp(d.faults_inserted::xid) <= $2)
WHERE d.id IS NULL`

// withoutRows returns the deliveries without a row that was committed by a time of the
// database's clock; zero: any time.
func withoutRows(ctx context.Context, pool *pgxpool.Pool, owed map[uuid.UUID]string, by time.Time) (missing map[uuid.UUID]string, err error) {
	missing = map[uuid.UUID]string{}
	if len(owed) == 0 {
		return missing, nil
	}
	var bound *time.Time
	if !by.IsZero() {
		bound = &by
	}
	rows, err := pool.Query(ctx, selectMissing, slices.Collect(maps.Keys(owed)), bound)
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

// A Slot is the state of the replication slot.
type Slot struct {
	PID       int32         // of the walsender; 0: nobody streams
	Confirmed pglogrepl.LSN // by PostgreSQL's account
	Safe      pglogrepl.LSN // the greater of that and webhook_state's: a restart streams only what is beyond
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
		return Slot{}, fmt.Errorf("read the slot: %w", err)
	}
	var err error
	if s.Confirmed, err = pglogrepl.ParseLSN(confirmed); err != nil {
		return Slot{}, err
	}
	s.Safe, err = pglogrepl.ParseLSN(safe)
	return s, err
}
