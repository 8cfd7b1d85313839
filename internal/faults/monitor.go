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
	seen     map[uuid.UUID]bool // events that have been looked at, and need not be again
	chunks   []Chunk            // of tallied events, that were not confirmed at the last look
	sampled  int                // tallied deliveries that have been looked at
	problems []string
	looks    int                // at rows
	events   map[uuid.UUID]bool // whose rows they have been at
	watched  time.Duration      // in which looks could be made: the database answered, and rows were to be looked at
	since    time.Time          // until when that is known
	senders  []int32
	peak     int64
	unseen   time.Duration // the longest time that rows were durable and not visible

	confirmed pglogrepl.LSN
	moved     time.Time     // when it was last seen to have moved
	stall     time.Duration // the longest time that it did not
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

// look makes one look. Positions are read before the time and that before rows, so
// that what was confirmed must have been committed by then.
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

// judge expects that the monitor did look, most of the time and at most of what was
// committed, and says what it saw. The last of it was confirmed a moment ago.
func (m *Monitor) judge() (figures string) {
	x := m.trial
	x.Helper()
	known := x.journal.Bound()
	for began := time.Now(); !m.hasLooked(known) && time.Since(began) < lookWithin; {
		time.Sleep(lookEvery)
	}
	x.expect(m.hasLooked(known), "the monitor has hardly looked at events")
	m.mu.Lock()
	defer m.mu.Unlock()
	x.expect(m.looks > 0 && 2*m.looks >= int(m.watched/lookEvery), "the monitor could look for %s, and has looked %d times", m.watched, m.looks)
	return fmt.Sprintf("stall=%.1fs looks=%d in %.1fs at %d of %d events and %d of %d tallied unseen=%s", m.stall.Seconds(), m.looks, m.watched.Seconds(),
		len(m.events), known, m.sampled, x.tallied, m.unseen.Round(100*time.Microsecond))
}

// hasLooked says whether it has looked at half of so many events, and at some of the
// tallied ones.
func (m *Monitor) hasLooked(known int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return 2*len(m.events) >= known && (m.sampled > 0 || m.trial.tallied == 0)
}

// lookBelow looks at the rows of events that are confirmed, and were not before.
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

// withoutRowsNow leaves those of the deliveries that have no row which was committed by
// now. It looks again where a row cannot be seen: a commit is streamed when it is in
// the WAL, and is visible a moment later. Its time is taken before it is in the WAL:
// rows that were only being written are no excuse.
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

// A Chunk is some deliveries of tallied events of one transaction, which no journal has.
type Chunk struct {
	deliveries []uuid.UUID
	bound      pglogrepl.LSN // its commit lies before
}

// sample adds deliveries of tallied events that are confirmed: of the chunk that came
// last, because what is confirmed too early is in it. All of a million would take the
// machine from what is tested.
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

// add has a chunk looked at when it is confirmed; chunks come in the order of their commits.
func (m *Monitor) add(c Chunk) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.chunks = append(m.chunks, c)
}

// owed is the events' deliveries, and what to say where one has no row.
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

// A row keeps the id of the transaction that inserted it in a column of the trial's
// own, because an update changes xmin. Without a time, whatever can be seen counts.
const selectMissing = `
SELECT r.id FROM unnest($1::uuid[]) AS r(id)
LEFT JOIN webhook_deliveries d ON d.id = r.id AND ($2::timestamptz IS NULL OR pg_xact_commit_timestamp(d.faults_inserted::xid) <= $2)
WHERE d.id IS NULL`

// withoutRows leaves those of the deliveries that have no row in a database which was
// committed by a time, of its clock; the zero time is none.
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
