package cdc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

func TestASlotDroppedUnderLoadIsMadeAgain(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	r := start(t, d.config())
	r.streaming(1)
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				d.insert(n)
			}
		}
	})
	r.eventually("some events", func() bool { return r.count() > 50 })
	dropped := time.Now()
	r.eventually("the slot is gone", func() bool {
		_, err := d.pool.Exec(context.Background(), `SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots WHERE slot_name = $1`, d.slot)
		if err == nil {
			_, err = d.pool.Exec(context.Background(), `SELECT pg_drop_replication_slot($1)`, d.slot)
		}
		return err == nil
	})
	r.eventually("a new slot", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.sessions[len(r.sessions)-1].SlotCreated && len(r.sessions) > 1
	})
	t.Logf("again after %s", time.Since(dropped))
	before := r.count()
	r.eventually("events by the new slot", func() bool { return r.count() > before+50 })
	close(stop)
	load.Wait()
}

func TestBlockedSlotCreationNamesTheBlocker(t *testing.T) {
	t.Parallel()
	d, _ := newServer(t, nil)
	tx, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if err := tx.QueryRow(t.Context(), `INSERT INTO other (t) VALUES ('open') RETURNING pg_backend_pid()`).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	r := start(t, d.config())
	r.eventually("the blocker's pid in the log", func() bool {
		return r.log.Lines(fmt.Sprintf("SELECT pg_terminate_backend(%d)", pid)) == 1
	})
	if got := r.Status(); got.Role != Connecting || !strings.Contains(got.Err, fmt.Sprint(pid)) {
		t.Errorf("status %+v", got)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.streaming(1)
	if got := r.Status(); got.Err != "" {
		t.Errorf("status %+v: nobody is waited for", got)
	}
	d.insert(1)
	r.wantPayloads(number(1))
}

func TestBlockedSlotCreationCanBeCancelled(t *testing.T) {
	t.Parallel()
	d, _ := newServer(t, nil)
	tx, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `INSERT INTO other (t) VALUES ('open')`); err != nil {
		t.Fatal(err)
	}
	r := start(t, d.config())
	r.eventually("a waiting creation", func() bool {
		return d.value(`SELECT count(*) FROM pg_replication_slots`) == "1"
	})
	if err := r.end(); err != nil {
		t.Error(err)
	}
	r.eventually("no slot left behind", func() bool {
		return d.value(`SELECT count(*) FROM pg_replication_slots`) == "0"
	})
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	if created, err := Prepare(t.Context(), d.config()); err != nil || !created {
		t.Fatalf("got %v, %v", created, err)
	}
	r := start(t, d.config())
	if s := r.streaming(1); s.SlotCreated {
		t.Error("the slot was made twice")
	}
	if created, err := Prepare(t.Context(), d.config()); err != nil || created {
		t.Errorf("beside a running stream: %v, %v", created, err)
	}
}

// Of an init and a run that begin together, both find no slot, and one creates it.
func TestPrepareBesideAStart(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	config := d.config()
	config.Creating = func(context.Context) error {
		start(t, d.config()).streaming(1)
		return nil
	}
	if created, err := Prepare(t.Context(), config); err != nil || created {
		t.Errorf("got %v, %v", created, err)
	}
}

func TestNotPrepared(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		settings map[string]string
		sql      string
		change   func(*Config)
		want     string
	}{
		"wal_level":            {settings: map[string]string{"wal_level": "replica"}, want: "ALTER SYSTEM SET wal_level = 'logical'"},
		"no slot left":         {settings: map[string]string{"max_replication_slots": "0"}, want: "max_replication_slots"},
		"publication missing":  {sql: `DROP PUBLICATION walhook`, want: "CREATE PUBLICATION"},
		"slot missing":         {change: func(c *Config) { c.CreateSlot = false }, want: "pg_create_logical_replication_slot"},
		"slot of another kind": {sql: `SELECT pg_create_logical_replication_slot('walhook', 'test_decoding')`, want: "pg_drop_replication_slot"},
		"physical slot":        {sql: `SELECT pg_create_physical_replication_slot('walhook')`, want: "pg_drop_replication_slot"},
		"role may not replicate": {sql: `CREATE ROLE plain LOGIN`, want: `ALTER ROLE plain REPLICATION`,
			change: func(c *Config) { c.Server = changed(c.Server, func(s *pgconn.Config) { s.User = "plain" }) }},
		"database missing": {want: "the database does not exist", change: func(c *Config) { c.Server = changed(c.Server, func(s *pgconn.Config) { s.Database = "nowhere" }) }},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, _ := newServer(t, c.settings)
			if c.sql != "" {
				d.exec(c.sql)
			}
			config := d.config()
			if c.change != nil {
				c.change(&config)
			}
			r := start(t, config)
			select {
			case <-r.done:
			case <-time.After(patience):
				t.Fatal("Run goes on")
			}
			if err := r.error(); !errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
			t.Log(r.error())
		})
	}
}

func TestASlotWhoseWALIsGoneIsMadeAnew(t *testing.T) {
	t.Parallel()
	d, _ := newServer(t, map[string]string{"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"})
	d.exec(`SELECT pg_create_logical_replication_slot('walhook', 'pgoutput')`)
	d.insert(1)
	r := func() bool {
		d.exec(`INSERT INTO other (t) SELECT repeat('x', 1000) FROM generate_series(1, 20000)`)
		d.exec(`SELECT pg_switch_wal()`)
		d.exec(`CHECKPOINT`)
		return d.value(`SELECT wal_status FROM pg_replication_slots`) == "lost"
	}
	pgtest.Eventually(t, patience, "a lost slot", r)
	s := start(t, d.config())
	if session := s.streaming(1); !session.SlotCreated {
		t.Error("the session does not say that the slot is new")
	}
	if s.log.Lines("level=ERROR") != 1 {
		t.Error("not one alarm")
	}
	d.insert(2)
	s.wantPayloads(number(2))
}

func TestPublicationDroppedAndMadeAgain(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	var events atomic.Int64
	config := d.config()
	config.Check = func(ctx context.Context, _ *webhook.Session) error {
		var exists bool
		if err := d.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = 'walhook')`).Scan(&exists); err != nil {
			return err
		}
		if !exists {
			return errors.New("publication missing")
		}
		return nil
	}
	r := start(t, config)
	r.streaming(1)
	d.exec(`DROP PUBLICATION walhook`)
	d.insert(1) // in the WAL where there is no publication
	r.eventually("a status that says so", func() bool { return strings.Contains(r.Status().Err, "publication") })
	stuck := d.confirmed()
	d.exec(`CREATE PUBLICATION walhook FOR TABLE webhook_outbox WITH (publish = 'insert')`)
	r.eventually("streaming again", func() bool {
		events.Add(1)
		d.insert(100)
		p := r.payloads()
		return len(p) > 0 && p[len(p)-1] == number(100)
	})
	if d.confirmed() < stuck {
		t.Error("backwards")
	}
	if n := r.log.Lines("stream interrupted"); n > 8 {
		t.Errorf("%d warnings", n)
	}
}

func TestNothingIsConfirmedWhileTheCheckFails(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	var failing atomic.Bool
	failing.Store(true)
	config := d.config()
	config.Check = func(context.Context, *webhook.Session) error {
		if failing.Load() {
			return errors.New("the table is not in the publication")
		}
		return nil
	}
	r := start(t, config)
	s := r.streaming(1)
	d.insert(1)
	r.wantPayloads(number(1))
	r.eventually("the reason in the status", func() bool { return strings.Contains(r.Status().Err, "not in the publication") })
	watched := time.Now()
	r.eventually("some answers", func() bool { return time.Since(watched) > 4*time.Second })
	if got := d.confirmed(); got != s.Confirmed {
		t.Errorf("confirmed %s, the session began at %s", got, s.Confirmed)
	}
	if n := r.log.Lines("confirming suspended"); n != 1 {
		t.Errorf("said %d times", n)
	}
	failing.Store(false)
	r.eventually("the confirmation", func() bool { return d.confirmed() >= r.newest() })
	if got := r.Status().Err; got != "" {
		t.Errorf("status still says %q", got)
	}
}

func TestAnotherPublicationEndsTheSession(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	config := d.config()
	config.Check = func(_ context.Context, s *webhook.Session) error {
		if s.Confirmed == 0 || s.PID == 0 {
			return errors.New("asked without the session")
		}
		return store.ErrRepublished
	}
	r := start(t, config)
	s := r.streaming(1)
	d.insert(1)
	r.streaming(2)
	if got := d.confirmed(); got != s.Confirmed {
		t.Errorf("confirmed %s, the session began at %s", got, s.Confirmed)
	}
	if n := r.log.Lines("the publication has changed"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

func TestColumnsComeAndGo(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	r := start(t, d.config())
	r.streaming(1)
	d.insert(1)
	d.exec(`ALTER TABLE webhook_outbox ADD COLUMN extra text DEFAULT 'x'`)
	d.insert(2)
	d.exec(`ALTER TABLE webhook_outbox DROP COLUMN shard`)
	d.insert(3)
	d.exec(`ALTER TABLE webhook_outbox RENAME COLUMN extra TO more`)
	d.exec(`DELETE FROM webhook_outbox`)
	d.exec(`TRUNCATE webhook_outbox`)
	d.insert(4)
	r.wantPayloads(number(1), number(2), number(3), number(4))

	r.eventually("the confirmation", func() bool { return d.confirmed() >= r.newest() })
	d.exec(`BEGIN; ALTER TABLE webhook_outbox RENAME COLUMN payload TO body;
		INSERT INTO webhook_outbox (body) VALUES ('{"n": 5}'); COMMIT`)
	r.eventually("the column in the status", func() bool { return strings.Contains(r.Status().Err, "webhook_outbox.payload is missing") })
	stuck := d.confirmed()
	r.streaming(4) // it keeps trying
	if got := d.confirmed(); got != stuck {
		t.Errorf("confirmed moved from %s to %s", stuck, got)
	}
	if n := r.log.Lines("payload is missing"); n != 1 {
		t.Errorf("said %d times:\n%s", n, r.log)
	}
	select {
	case <-r.done:
		t.Errorf("Run ended: %v", r.error())
	default:
	}
}

// Both ask on connections of their own, of which one may be dead.
func TestNoOtherConnectionIsWaitedForWithoutEnd(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	config, calls := d.config(), 0
	within := func(ctx context.Context, what string) {
		calls++
		if end, bounded := ctx.Deadline(); !bounded || time.Until(end) > commandTimeout {
			t.Errorf("%s may take until %v", what, end)
		}
	}
	config.Creating = func(ctx context.Context) error { within(ctx, "Creating"); return nil }
	config.Start = func(ctx context.Context, s *webhook.Session, flushed pglogrepl.LSN) error {
		within(ctx, "Start")
		return d.start(ctx, s, flushed)
	}
	r := start(t, config)
	r.streaming(1)
	if r.end(); calls != 2 {
		t.Errorf("%d calls", calls)
	}
}
