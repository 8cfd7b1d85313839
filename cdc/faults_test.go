package cdc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/webhook"
)

// newServer is a database on a server that the test may stop.
func newServer(t *testing.T, settings map[string]string) (*database, *postgres.Server) {
	t.Helper()
	server := pgtest.Server(t, postgres.Options{Settings: settings})
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	d := &database{TB: t, url: server.URL(), slot: "walhook", pool: pool}
	d.exec(minimalSchema)
	return d, server
}

// shortTimeout makes the server's patience short, so that a test need not wait long.
func shortTimeout(s *Stream) { s.walSenderTimeout = time.Second }

func TestTheServerIsAnsweredWhileTheConsumerIsNotTaking(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	r := start(t, d.config(), shortTimeout)
	r.streaming(1)
	r.pause()
	d.exec(`INSERT INTO webhook_outbox (payload) SELECT jsonb_build_object('x', repeat('x', 1000)) FROM generate_series(1, 30000)`)
	pid := d.walsender()
	blocked := time.Now()
	r.eventually("five timeouts", func() bool { return time.Since(blocked) > 5*time.Second })
	if got := d.walsender(); got != pid {
		t.Errorf("walsender %s became %q", pid, got)
	}
	if n := len(r.batchesChannel()); n != batchesAhead {
		t.Errorf("%d batches wait", n)
	}
	r.resume()
	r.eventually("all events", func() bool { return r.count() == 30000 })
	if got := d.walsender(); got != pid {
		t.Errorf("walsender %s became %q", pid, got)
	}
}

func TestEchoes(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	r := start(t, d.config())
	r.streaming(1)
	d.exec(`SELECT pg_logical_emit_message(false, 'walhook', 'not transactional')`)
	d.exec(`SELECT pg_logical_emit_message(true, 'other', 'not ours')`)
	d.exec(`DO $$ BEGIN
		BEGIN PERFORM pg_logical_emit_message(true, 'walhook', 'rolled back'); RAISE 'back'; EXCEPTION WHEN raise_exception THEN END;
	END $$`)
	d.exec(`SELECT pg_logical_emit_message(true, 'walhook', 'one'), pg_logical_emit_message(true, 'walhook', 'two')`)
	r.eventually("two echoes", func() bool { _, e, _ := r.snapshot(); return len(e) >= 2 })
	if _, e, _ := r.snapshot(); fmt.Sprint(e) != "[one two]" {
		t.Errorf("echoes %q", e)
	}
}

func TestAnIdleOutboxInABusyDatabaseAdvances(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	r := start(t, d.config())
	r.streaming(1)
	began := time.Now()
	for range 300 {
		d.exec(`INSERT INTO other (t) VALUES (repeat('x', 1000))`)
	}
	lsn, err := pglogrepl.ParseLSN(d.value(`SELECT pg_current_wal_lsn()`))
	if err != nil {
		t.Fatal(err)
	}
	r.eventually("the slot passes what others wrote", func() bool { return d.confirmed() >= lsn })
	if _, _, ends := r.snapshot(); len(ends) > int(time.Since(began)/tailEvery)+1 {
		t.Errorf("%d positions in %s", len(ends), time.Since(began))
	}
}

func TestAnIdleServerIsNotSilent(t *testing.T) {
	t.Parallel()
	d, _ := newServer(t, nil)
	r := start(t, d.config(), shortTimeout)
	r.streaming(1)
	began := time.Now()
	r.eventually("some timeouts", func() bool { return time.Since(began) > 4*time.Second })
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sessions) != 1 {
		t.Errorf("%d sessions", len(r.sessions))
	}
}

func TestReconnect(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	r := start(t, d.config())
	r.streaming(1)
	d.insert(1)
	r.wantPayloads(number(1))
	r.eventually("the confirmation", func() bool { return d.confirmed() >= r.newest() })
	d.exec(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, d.slot)
	d.insert(2)
	r.wantPayloads(number(1), number(2))
	if s := r.streaming(2); s.SlotCreated {
		t.Error("the slot was made again")
	}
}

func TestWhatWasNotConfirmedIsRepeated(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	r := start(t, d.config())
	first := r.streaming(1)
	r.hold(true)
	d.insert(1)
	r.wantPayloads(number(1))
	d.exec(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, d.slot)
	r.streaming(2)
	first.Confirm(1 << 60) // of a session that is over
	r.wantPayloads(number(1), number(1))
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if got, want := d.confirmed(), first.Confirmed; got != want {
		t.Errorf("confirmed %s, want %s", got, want)
	}
}

func TestStartAtAPositionBeyondTheSlots(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	var at atomic.Uint64
	config := d.config()
	config.Start = func(ctx context.Context, s *webhook.Session, flushed pglogrepl.LSN) error {
		if s.SystemID == "" || s.Timeline != 1 || flushed == 0 {
			return errors.New("asked without identity")
		}
		s.Start = pglogrepl.LSN(at.Load())
		return d.start(ctx, s, flushed)
	}
	r := start(t, config)
	r.streaming(1)
	r.hold(true)
	d.insert(1)
	r.wantPayloads(number(1))
	r.eventually("its end", func() bool { return r.newest() != 0 })
	at.Store(uint64(r.newest()))
	d.exec(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, d.slot)
	s := r.streaming(2)
	d.insert(2)
	r.wantPayloads(number(1), number(2))
	if s.Start != pglogrepl.LSN(at.Load()) || s.Confirmed >= s.Start {
		t.Errorf("session %+v", s)
	}
}

func TestServerRestarts(t *testing.T) {
	t.Parallel()
	d, server := newServer(t, map[string]string{"max_prepared_transactions": "5"})
	r := start(t, d.config())
	r.streaming(1)
	n := 0
	for _, stop := range []func() error{
		func() error { return server.Stop("immediate") },
		func() error { return server.Stop("fast") },
		server.Kill,
	} {
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		r.eventually("an error in the status", func() bool { return r.Status().Err != "" })
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		accepts := time.Now()
		pgtest.Eventually(t, patience, "SQL", func() bool { return d.pool.Ping(t.Context()) == nil })
		n++
		d.insert(n)
		r.eventually("the event after the restart", func() bool {
			p := r.payloads()
			return len(p) > 0 && p[len(p)-1] == number(n)
		})
		t.Logf("back after %s", time.Since(accepts))
	}
	d.exec(`BEGIN; INSERT INTO webhook_outbox (payload) VALUES ('"prepared"'); PREPARE TRANSACTION 'one'`)
	d.exec(`BEGIN; INSERT INTO webhook_outbox (payload) VALUES ('"lost"'); PREPARE TRANSACTION 'two'`)
	d.insert(100)
	d.exec(`COMMIT PREPARED 'one'`)
	d.exec(`ROLLBACK PREPARED 'two'`)
	d.insert(101)
	r.eventually("the prepared one", func() bool {
		return strings.HasSuffix(fmt.Sprint(r.payloads()), fmt.Sprintf(`%s "prepared" %s]`, number(100), number(101)))
	})
}

func TestFastShutdownDoesNotWaitForUs(t *testing.T) {
	for _, taking := range []bool{true, false} {
		t.Run(fmt.Sprintf("consumer takes: %v", taking), func(t *testing.T) {
			t.Parallel()
			d, server := newServer(t, nil)
			r := start(t, d.config())
			r.streaming(1)
			r.hold(true)
			if !taking {
				r.pause()
			}
			d.exec(`INSERT INTO webhook_outbox (payload) SELECT jsonb_build_object('x', repeat('x', 1000)) FROM generate_series(1, 30000)`)
			if taking {
				r.eventually("all events", func() bool { return r.count() == 30000 })
			} else {
				r.eventually("a full channel", func() bool { return len(r.batchesChannel()) == batchesAhead })
			}
			began := time.Now()
			if err := server.Stop("fast"); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 8*time.Second {
				t.Errorf("the shutdown took %s", took)
			}
			t.Logf("shut down in %s", time.Since(began))
		})
	}
}

func TestStandbyTakesOver(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	active := start(t, d.config())
	active.streaming(1)
	standby := start(t, d.config())
	standby.eventually("the standby", func() bool { return standby.Status().Role == Standby })
	if got := standby.Status(); got.Err != "" {
		t.Errorf("a standby is not an error: %q", got.Err)
	}
	standby.eventually("the holder's name", func() bool { return standby.log.Lines("another process is streaming from the slot") == 1 })
	d.insert(1)
	active.wantPayloads(number(1))
	active.eventually("the confirmation", func() bool { return d.confirmed() >= active.newest() })
	began := time.Now()
	if err := active.end(); err != nil {
		t.Error(err)
	}
	if s := standby.streaming(1); s.SlotCreated {
		t.Error("the slot was made again")
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the takeover took %s", took)
	}
	d.insert(2)
	standby.wantPayloads(number(2))
}

func TestStopDropsEventsButNotEchoes(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	r := start(t, d.config())
	r.streaming(1)
	d.insert(1)
	r.wantPayloads(number(1))
	r.eventually("its end", func() bool { return r.newest() != 0 })
	r.Stop()
	d.exec(`SELECT pg_logical_emit_message(true, 'walhook', 'before')`)
	r.eventually("an echo", func() bool { _, e, _ := r.snapshot(); return len(e) == 1 })
	complete := r.newest()
	d.insert(2)
	d.exec(`SELECT pg_logical_emit_message(true, 'walhook', 'behind')`)
	r.eventually("an echo behind a dropped event", func() bool { _, e, _ := r.snapshot(); return len(e) == 2 })
	if got := r.payloads(); len(got) != 1 {
		t.Errorf("events after Stop: %s", got)
	}
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if got := r.newest(); got > d.lsnBefore(2) {
		t.Errorf("position %s behind a dropped event", got)
	}
	if got := d.confirmed(); got < complete || got > r.newest() {
		t.Errorf("confirmed %s, want %s to %s", got, complete, r.newest())
	}
	again := start(t, d.config())
	again.wantPayloads(number(2))
}

func TestCancellationSendsTheLastConfirmation(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	r := start(t, d.config())
	s := r.streaming(1)
	r.hold(true)
	d.exec(`INSERT INTO webhook_outbox (payload) SELECT '{}' FROM generate_series(1, 1000)`)
	r.eventually("its end", func() bool { return r.newest() > s.Confirmed && r.count() == 1000 })
	last := r.newest()
	s.Confirm(last)
	began := time.Now()
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("took %s", took)
	}
	if got := d.confirmed(); got != last {
		t.Errorf("confirmed %s, want %s", got, last)
	}
}

func TestCancellationWhileTheConsumerIsNotTaking(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	r := start(t, d.config())
	r.streaming(1)
	r.pause()
	d.exec(`INSERT INTO webhook_outbox (payload) SELECT jsonb_build_object('x', repeat('x', 1000)) FROM generate_series(1, 30000)`)
	r.eventually("a full channel", func() bool { return len(r.batchesChannel()) == batchesAhead })
	began := time.Now()
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestAWedgedProcessLosesTheSlot(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	var wedged atomic.Bool
	errWedged := errors.New("the recorder has made no progress for 10s")
	config := d.config()
	config.Alive = func() error {
		if wedged.Load() {
			return errWedged
		}
		return nil
	}
	r := start(t, config)
	r.streaming(1)
	wedged.Store(true)
	select {
	case <-r.done:
	case <-time.After(patience):
		t.Fatal("Run goes on")
	}
	if err := r.error(); !errors.Is(err, errWedged) {
		t.Errorf("got %v", err)
	}
	r.eventually("a free slot", func() bool { return d.walsender() == "" })
}

func TestAStreamThatNoLongerTurnsIsSeen(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	config := db.config()
	var wedged atomic.Bool
	goOn := make(chan struct{})
	config.Alive = func() error { // the connection's goroutine stands still in here
		if wedged.Load() {
			<-goOn
		}
		return nil
	}
	r := start(t, config, shortTimeout)
	if err := r.Alive(); err != nil {
		t.Errorf("before it streams: %v", err)
	}
	r.streaming(1)
	if err := r.Alive(); err != nil {
		t.Errorf("while it streams: %v", err)
	}
	wedged.Store(true)
	r.eventually("it says that it makes no progress", func() bool { return r.Alive() != nil })
	r.eventually("PostgreSQL takes the slot away", func() bool { return db.walsender() == "" })
	wedged.Store(false)
	close(goOn)
	r.streaming(2)
	if err := r.Alive(); err != nil {
		t.Errorf("after it went on: %v", err)
	}
}

func TestAnUnreachableServerIsTriedForEver(t *testing.T) {
	t.Parallel()
	r := start(t, Config{Server: at("postgres://u:secret@127.0.0.1:1/d?sslmode=disable"), Slot: "s", Publication: "p"})
	r.eventually("the reason", func() bool { return r.Status().Err != "" })
	since := time.Now()
	r.eventually("some attempts", func() bool { return time.Since(since) > 3*time.Second })
	if n := r.log.Lines("stream interrupted"); n != 1 {
		t.Errorf("said %d times", n)
	}
	if strings.Contains(r.log.String(), "secret") {
		t.Error("the password is in the log")
	}
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

func TestBadConfiguration(t *testing.T) {
	t.Parallel()
	for _, config := range []Config{
		{Server: at("postgres://127.0.0.1/x"), Slot: "Not-A-Slot", Publication: "p"},
		{Server: at("postgres://u:secret@127.0.0.1:notaport/x"), Slot: "s", Publication: "p"},
	} {
		err := New(config).Run(t.Context())
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v", err)
		}
	}
}

// newest is the newest position that was handed on.
func (r *run) newest() pglogrepl.LSN {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ends) == 0 {
		return 0
	}
	return r.ends[len(r.ends)-1]
}

// batchesChannel is what waits for the consumer.
func (r *run) batchesChannel() <-chan webhook.Batch { return r.Batches() }

// lsnBefore is a position before the transaction of the n-th insert ended.
func (d *database) lsnBefore(n int) pglogrepl.LSN {
	d.Helper()
	lsn, err := pglogrepl.ParseLSN(d.value(`SELECT pg_current_wal_lsn()`))
	if err != nil {
		d.Fatal(err)
	}
	return lsn
}
