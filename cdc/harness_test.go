package cdc

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/testkit"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// minimalSchema is as much of schema.sql as a stream sees.
const minimalSchema = `
	CREATE TABLE webhook_outbox (
		id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
		organization_id text NOT NULL DEFAULT 'org_1',
		event_type text NOT NULL DEFAULT 'payment.succeeded',
		payload jsonb NOT NULL DEFAULT '{}',
		created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
		endpoint_ids uuid[] NOT NULL DEFAULT '{}',
		shard int NOT NULL DEFAULT 0);
	CREATE TABLE other (id bigserial, t text);
	CREATE PUBLICATION walhook FOR TABLE webhook_outbox WITH (publish = 'insert')`

// A database is what a stream of a test runs against.
type database struct {
	testing.TB
	url, slot string
	pool      *pgxpool.Pool
}

func newDatabase(t testing.TB) *database {
	t.Helper()
	db := pgtest.Empty(t)
	d := &database{TB: t, url: db.URL, slot: db.Slot, pool: db.Pool}
	d.exec(minimalSchema)
	return d
}

func (d *database) exec(sql string, args ...any) {
	d.Helper()
	if _, err := d.pool.Exec(context.Background(), sql, args...); err != nil {
		d.Fatalf("%s: %v", sql, err)
	}
}

// value returns the first column of the first row as text.
func (d *database) value(sql string, args ...any) (text string) {
	d.Helper()
	if err := d.pool.QueryRow(context.Background(), "SELECT coalesce(("+sql+")::text, '')", args...).Scan(&text); err != nil {
		d.Fatalf("%s: %v", sql, err)
	}
	return text
}

// insert commits one event with a number that names it.
func (d *database) insert(n int) {
	d.Helper()
	d.exec(`INSERT INTO webhook_outbox (payload) VALUES (jsonb_build_object('n', $1::int))`, n)
}

func (d *database) confirmed() pglogrepl.LSN {
	d.Helper()
	lsn, err := pglogrepl.ParseLSN(d.value(`SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1`, d.slot))
	if err != nil {
		d.Fatal(err)
	}
	return lsn
}

func (d *database) walsender() string {
	d.Helper()
	return d.value(`SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1`, d.slot)
}

// at connects as a connection string says.
func at(url string) func() (*pgconn.Config, error) {
	return func() (*pgconn.Config, error) { return pgconn.ParseConfig(url) }
}

// changed connects with a change.
func changed(server func() (*pgconn.Config, error), change func(*pgconn.Config)) func() (*pgconn.Config, error) {
	return func() (*pgconn.Config, error) {
		config, err := server()
		if err == nil {
			change(config)
		}
		return config, err
	}
}

func (d *database) config() Config {
	return Config{Server: at(d.url), Slot: d.slot, Publication: "walhook", CreateSlot: true, Start: d.start}
}

// start is Config.Start as far as every stream needs it: which table is the outbox.
func (d *database) start(ctx context.Context, s *webhook.Session, _ pglogrepl.LSN) error {
	return d.pool.QueryRow(ctx, `SELECT coalesce(to_regclass('webhook_outbox')::oid, 0)`).Scan(&s.Outbox)
}

// A run is a Stream with a consumer that keeps what it was handed.
type run struct {
	*Stream
	t      testing.TB
	cancel context.CancelFunc
	done   chan struct{}
	log    *testkit.Output

	mu       sync.Mutex
	err      error
	sessions []*webhook.Session
	events   []outbox.Event
	ends     []pglogrepl.LSN
	echoes   []string
	batches  []webhook.Batch // without events
	largest  int
	paused   chan struct{} // not nil: the consumer waits until it is closed
	holding  bool          // do not confirm
	problems []string
}

// start runs a stream until the test's end.
func start(t testing.TB, config Config, change ...func(*Stream)) *run {
	t.Helper()
	r := &run{t: t, done: make(chan struct{}), log: &testkit.Output{}}
	config.Logger = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r.Stream = New(config)
	for _, f := range change {
		f(r.Stream)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go r.consume()
	go func() {
		defer close(r.done)
		err := r.Run(ctx)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.err = err
	}()
	t.Cleanup(func() {
		r.resume()
		r.end()
		for _, p := range r.problems {
			t.Error(p)
		}
		if t.Failed() {
			t.Logf("the stream's log:\n%s", r.log)
		}
	})
	return r
}

func (r *run) end() error {
	r.t.Helper()
	r.cancel()
	select {
	case <-r.done:
	case <-time.After(10 * time.Second):
		r.t.Fatal("Run did not return within 10 s of its cancellation")
	}
	return r.error()
}

func (r *run) error() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *run) consume() {
	var session *webhook.Session
	var newest pglogrepl.LSN
	for b := range r.Batches() {
		r.mu.Lock()
		paused := r.paused
		r.mu.Unlock()
		if paused != nil {
			<-paused
		}
		r.mu.Lock()
		if b.Session != nil {
			session, newest = b.Session, 0
			r.sessions = append(r.sessions, session)
		}
		if session == nil {
			r.problems = append(r.problems, "a batch before any session")
		}
		if b.End != 0 {
			if b.End < newest || b.End < session.Confirmed {
				r.problems = append(r.problems, fmt.Sprintf("position %s after %s", b.End, newest))
			}
			newest = b.End
			r.ends = append(r.ends, b.End)
			if !r.holding {
				session.Confirm(b.End)
			}
		}
		r.events = append(r.events, b.Events...)
		r.echoes = append(r.echoes, b.Echoes...)
		r.largest = max(r.largest, len(b.Events))
		b.Events = nil
		r.batches = append(r.batches, b)
		r.mu.Unlock()
	}
}

func (r *run) pause() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paused = make(chan struct{})
}

func (r *run) resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.paused != nil {
		close(r.paused)
		r.paused = nil
	}
}

func (r *run) hold(hold bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holding = hold
}

func (r *run) snapshot() (events []outbox.Event, echoes []string, ends []pglogrepl.LSN) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events), slices.Clone(r.echoes), slices.Clone(r.ends)
}

func (r *run) payloads() (p []string) {
	events, _, _ := r.snapshot()
	for _, e := range events {
		p = append(p, string(e.Payload))
	}
	return p
}

func (r *run) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

func (r *run) session(i int) *webhook.Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i >= len(r.sessions) {
		return nil
	}
	return r.sessions[i]
}

// patience is no promise, which internal/faults holds: the server and the processors are shared with other tests.
const patience = time.Minute

func (r *run) eventually(what string, cond func() bool) {
	r.t.Helper()
	pgtest.Eventually(r.t, patience, what, cond)
}

// streaming waits for a number of sessions.
func (r *run) streaming(sessions int) *webhook.Session {
	r.t.Helper()
	// The making of a slot waits for other tests' transactions.
	r.eventually(fmt.Sprintf("session %d", sessions), func() bool { return r.session(sessions-1) != nil })
	return r.session(sessions - 1)
}

func (r *run) wantPayloads(want ...string) {
	r.t.Helper()
	r.eventually(fmt.Sprintf("%d events", len(want)), func() bool { return r.count() >= len(want) })
	if got := r.payloads(); !slices.Equal(got, want) {
		r.t.Fatalf("got events %s\nwant %s", got, want)
	}
}

// number is the payload that insert makes.
func number(n int) string { return fmt.Sprintf(`{"n": %d}`, n) }

func newUUIDs(n int) []uuid.UUID {
	ids := make([]uuid.UUID, n)
	for i := range ids {
		ids[i] = uuid.New()
	}
	return ids
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
