package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/deliver"
	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/testkit"
)

// free waits until nobody streams from the slot.
func (w *world) free() {
	w.t.Helper()
	w.eventually("the slot is free", `SELECT NOT active FROM pg_replication_slots WHERE slot_name = $1`, w.db.Slot)
}

// remake drops the slot and makes it again, as our own messages say.
func (w *world) remake() {
	w.t.Helper()
	w.exec(`SELECT pg_drop_replication_slot($1)`, w.db.Slot)
	w.exec(`SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, w.db.Slot)
}

func (w *world) advance() {
	w.t.Helper()
	w.exec(`SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, w.db.Slot)
}

const movedSlot = "the replication slot is beyond everything"

func TestASlotMovedBySomebodyElseLosesNothing(t *testing.T) {
	for name, move := range map[string]func(*world){"made again": (*world).remake, "advanced": (*world).advance} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			rcv := newReceiver(t, always(200))
			w.endpoint(rcv.URL)
			log := &testkit.Output{}
			w.log = log
			w.run()
			insert := func(n int) {
				w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.succeeded', '{}' FROM generate_series(1, $1)`, n)
			}
			insert(10)
			w.eventually("what comes by the stream", `SELECT count(*) = 10 FROM webhook_deliveries WHERE status = 'success'`)
			if err := w.stop(); err != nil {
				t.Fatal(err)
			}
			w.free()
			insert(20)
			move(w)
			insert(30)
			w.run()
			w.eventually("all", `SELECT count(*) = 60 FROM webhook_deliveries WHERE status = 'success'`)
			w.eventually("it need not be looked for any more", `SELECT reconcile_from IS NULL FROM webhook_state`)
			if n := log.Lines(movedSlot); n != 1 {
				t.Errorf("it was said %d times", n)
			}
			if n := len(rcv.requests()); n != 60 {
				t.Errorf("%d requests for 60 deliveries", n)
			}
			if err := w.stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestWhatIsConfirmedWhileIdleIsNotLookedForAfterARestart(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	log := &testkit.Output{}
	w.log = log
	w.run()
	w.insert("payment.succeeded")
	w.eventually("it is delivered", `SELECT count(*) = 1 FROM webhook_deliveries WHERE status = 'success'`)
	w.eventually("the slot passes what others wrote", `SELECT s.confirmed_flush_lsn > t.durable_lsn AND t.reconcile_from IS NULL
		FROM pg_replication_slots s JOIN webhook_state t ON t.slot = s.slot_name WHERE slot_name = $1`, w.db.Slot)
	w.exec(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, w.db.Slot)
	pgtest.Eventually(t, patience, "another session", func() bool { return log.Lines("claimed the slot") == 2 })
	w.exec(`CREATE TABLE others (); DROP TABLE others`)
	w.eventually("and passes it again", `SELECT s.confirmed_flush_lsn > t.durable_lsn FROM pg_replication_slots s JOIN webhook_state t ON t.slot = s.slot_name
		WHERE slot_name = $1`, w.db.Slot)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.free()
	w.run()
	pgtest.Eventually(t, patience, "a third session", func() bool { return log.Lines("claimed the slot") == 3 })
	if n := log.Lines(movedSlot); n != 0 {
		t.Errorf("it was taken for moved %d times", n)
	}
}

func TestAStopThatLeavesOutcomesUnrecordedSaysSo(t *testing.T) {
	w := newWorld(t, "WALHOOK_RETRY_SCHEDULE=1s,1s,1s,1s,1s,1s,1s,1s")
	rcv := newReceiver(t, func(n int) int {
		if n < 5 {
			return http.StatusInternalServerError
		}
		return http.StatusOK
	})
	w.endpoint(rcv.URL)
	w.fails = true
	w.run()
	w.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT 'org_1', 'payment.failed', '{}' FROM generate_series(1, 5)`)
	w.eventually("all failed once", `SELECT count(*) = 5 FROM webhook_deliveries WHERE status = 'retrying'`)
	tx, err := w.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := tx.Exec(t.Context(), `SELECT FROM webhook_deliveries FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, patience, "the retries are made", func() bool { return len(rcv.requests()) == 10 })
	err = w.stop()
	if !errors.Is(err, deliver.ErrUnrecorded) || exitCode(err) != exitFailure || !strings.Contains(fmt.Sprint(err), "5 requests") {
		t.Errorf("it ended with %v (exit code %d)", err, exitCode(err))
	}
}

func TestBehindAProxyThatTellsAnotherPidEverythingIsDelivered(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	proxy := pgtest.NewProxy(t, w.db.URL, func(pid uint32) uint32 { return pid + 100_000 })
	w.run("WALHOOK_REPLICATION_URL=" + proxy.URL)
	event := w.insert("payment.succeeded")
	w.eventually("the row", `SELECT status = 'success' FROM webhook_deliveries WHERE event_id = $1`, event)
}

func TestASessionThatTheDatabaseDoesNotKnowIsReported(t *testing.T) {
	w := newWorld(t)
	elsewhere := pgtest.Server(t, postgres.Options{})
	server, err := pgxpool.New(t.Context(), elsewhere.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	do(t, server, `CREATE DATABASE "`+w.db.Slot+`"`) // the same name, so that only the server differs
	url := strings.Replace(elsewhere.URL(), "/postgres?", "/"+w.db.Slot+"?", 1)
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	do(t, pool, `CREATE PUBLICATION walhook`)
	log := &testkit.Output{}
	w.log = log
	w.start("WALHOOK_REPLICATION_URL=" + url)
	pgtest.Eventually(t, patience, "the log says what is between", func() bool { return log.Lines("set WALHOOK_REPLICATION_URL to") > 0 })
	pgtest.Eventually(t, patience, "some sessions", func() bool { return log.Lines("the stream ended before the slot was claimed") > 3 })
	if n := log.Lines("set WALHOOK_REPLICATION_URL to"); n != 1 {
		t.Errorf("it was said %d times", n)
	}
}
