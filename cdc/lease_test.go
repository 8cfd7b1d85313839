package cdc

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/webhook"
)

func TestASessionIsLiveOnlyWhileTheSlotIsItsOwn(t *testing.T) {
	t.Parallel()
	t.Run("it is live, and is over when the walsender ends", func(t *testing.T) {
		t.Parallel()
		d := newDatabase(t)
		r := start(t, d.config())
		s := r.streaming(1)
		r.eventually("the session is live", func() bool { return s.Live(time.Now()) })
		if got := strconv.FormatUint(uint64(s.PID), 10); got != d.walsender() {
			t.Errorf("pid %s, want %s", got, d.walsender())
		}
		d.exec(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, d.slot)
		r.eventually("the first is over", func() bool { return !s.Live(time.Now()) })
		s = r.streaming(2)
		r.eventually("the second is live", func() bool { return s.Live(time.Now()) })
	})
	t.Run("also while the consumer is not taking", func(t *testing.T) {
		t.Parallel()
		d := newDatabase(t)
		r := start(t, d.config(), shortTimeout)
		s := r.streaming(1)
		r.pause()
		d.exec(`INSERT INTO webhook_outbox (payload) SELECT jsonb_build_object('x', repeat('x', 1000)) FROM generate_series(1, 30000)`)
		r.eventually("a full channel", func() bool { return len(r.batchesChannel()) == batchesAhead })
		full := time.Now()
		r.eventually("three timeouts later it is live", func() bool {
			return time.Since(full) > 3*time.Second && s.Live(time.Now())
		})
		if r.session(1) != nil {
			t.Error("there is another session")
		}
	})
	t.Run("it lapses before another can have the slot, where nothing is heard any more", func(t *testing.T) {
		t.Parallel()
		d := newDatabase(t)
		hole := pgtest.NewProxy(t, d.url, nil)
		config := d.config()
		config.Server = at(hole.URL)
		r := start(t, config, func(s *Stream) { s.walSenderTimeout = 3 * time.Second })
		s := r.streaming(1)
		r.eventually("the session is live", func() bool { return s.Live(time.Now()) })
		hole.Swallow()
		r.eventually("it is live no more", func() bool { return !s.Live(time.Now()) })
		if d.walsender() == "" {
			t.Error("the slot was free before")
		}
		r.eventually("the status says so", func() bool { return strings.Contains(r.Status().Err, "sending suspended") })
		r.eventually("the session ends", func() bool { return !strings.Contains(r.Status().Err, "sending suspended") })
		if n := r.log.Lines("slot ownership verified"); n != 0 {
			t.Errorf("the end of a session was %d times said to be certainty", n)
		}
	})
}

func TestTheHolderIsKnownBehindAProxy(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	proxy := pgtest.NewProxy(t, d.url, func(pid uint32) uint32 { return pid + 100_000 })
	config := d.config()
	config.Server = at(proxy.URL)
	r := start(t, config)
	s := r.streaming(1)
	if got := fmt.Sprint(s.PID); got != d.walsender() {
		t.Errorf("pid %s, want the walsender's, %s", got, d.walsender())
	}
	r.eventually("the session is live", func() bool { return s.Live(time.Now()) })
}

// Where several hosts are given, a standby answers while the primary takes no more connections.
func TestWhatAnotherServerSaysOfTheSlotIsNoAnswer(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	_, other := newServer(t, nil)
	config := d.config()
	var streams atomic.Bool
	config.Start = func(ctx context.Context, s *webhook.Session, flushed pglogrepl.LSN) error {
		streams.Store(true)
		return d.start(ctx, s, flushed)
	}
	var asked atomic.Int32
	config.Server = func() (*pgconn.Config, error) {
		if !streams.Load() {
			return pgconn.ParseConfig(d.url)
		}
		asked.Add(1)
		return pgconn.ParseConfig(other.URL())
	}
	r := start(t, config, shortTimeout)
	s := r.streaming(1)
	r.eventually("three questions to another server", func() bool { return asked.Load() > 3 || s.IsVoid() })
	if s.IsVoid() || r.session(1) != nil {
		t.Errorf("void %t, and another session %t", s.IsVoid(), r.session(1) != nil)
	}
	if s.Live(time.Now()) {
		t.Error("live by another server's word")
	}
}

func TestAVoidSessionEndsAndSaysWhatIsBetween(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	config := d.config()
	void := true
	config.Start = func(ctx context.Context, s *webhook.Session, flushed pglogrepl.LSN) error {
		if err := d.start(ctx, s, flushed); err != nil {
			return err
		}
		if void {
			s.Void() // as the consumer does that may not claim it
		}
		return nil
	}
	r := start(t, config)
	r.eventually("the status names the variable", func() bool { return strings.Contains(r.Status().Err, "WALHOOK_REPLICATION_URL") })
	r.streaming(4)
	if n := r.log.Lines("set WALHOOK_REPLICATION_URL"); n != 1 {
		t.Errorf("it was said %d times", n)
	}
	r.end()
}

func TestWhatTheSlotWasTold(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	r := start(t, d.config())
	if s := r.streaming(1); s.Reported != 0 {
		t.Errorf("told %s before anything was", s.Reported)
	}
	d.insert(1)
	r.wantPayloads(number(1))
	r.eventually("the confirmation", func() bool { return d.confirmed() >= r.newest() })
	d.exec(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, d.slot)
	if s := r.streaming(2); s.Reported < s.Confirmed {
		t.Errorf("told %s, and the slot is at %s", s.Reported, s.Confirmed)
	}
	r.eventually("somebody moves the slot", func() bool {
		_, err := d.pool.Exec(t.Context(), `SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots WHERE slot_name = $1`, d.slot)
		if err == nil {
			d.insert(2) // while nobody streams
			_, err = d.pool.Exec(t.Context(), `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, d.slot)
		}
		return err == nil
	})
	r.eventually("a session that tells", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		s := r.sessions[len(r.sessions)-1]
		return s.Reported != 0 && s.Reported < s.Confirmed
	})
}

func TestAnotherTableOfThatNameIsNotOurs(t *testing.T) {
	for name, publication := range map[string]string{
		"in the publication":              `ALTER PUBLICATION walhook ADD TABLE stranger.webhook_outbox`,
		"in a publication of all tables":  `DROP PUBLICATION walhook; CREATE PUBLICATION walhook FOR ALL TABLES`,
		"with other columns, and renamed": `ALTER PUBLICATION walhook ADD TABLE stranger.webhook_outbox; ALTER TABLE stranger.webhook_outbox DROP COLUMN payload`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDatabase(t)
			d.exec(`CREATE SCHEMA stranger; CREATE TABLE stranger.webhook_outbox (LIKE webhook_outbox INCLUDING ALL)`)
			d.exec(publication)
			r := start(t, d.config())
			r.streaming(1)
			d.exec(`INSERT INTO stranger.webhook_outbox (organization_id) VALUES ('org_1')`)
			d.insert(1)
			d.exec(`INSERT INTO stranger.webhook_outbox (organization_id) VALUES ('org_1')`)
			d.insert(2)
			r.wantPayloads(number(1), number(2))
		})
	}
}
