package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

func TestClaimEnvironment(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	for i, c := range []struct {
		environment string
		adopt, held bool
		remembered  string
	}{
		{"", false, false, ""},
		{"production", false, false, "production"},
		{"production", false, false, "production"},
		{"staging", false, true, "production"},
		{"", false, true, "production"},
		{"Production", false, true, "production"},
		{"staging", true, false, "staging"},
		{"production", false, true, "staging"},
		{"", true, false, ""},
		{"", false, false, ""},
		{"x", false, false, "x"},
	} {
		err := st.ClaimEnvironment(t.Context(), c.environment, c.adopt)
		if errors.Is(err, store.ErrHeldBack) != c.held || !c.held && err != nil {
			t.Errorf("step %d, %q: %v, want held back %t", i, c.environment, err, c.held)
		}
		if c.held && (!strings.Contains(err.Error(), c.remembered) || !strings.Contains(err.Error(), "--adopt")) {
			t.Errorf("step %d: %v says too little", i, err)
		}
		if got := query[string](t, db.Pool, `SELECT coalesce(max(environment), '') FROM webhook_state`); got != c.remembered {
			t.Errorf("step %d: it remembers %q, want %q", i, got, c.remembered)
		}
	}
	if state, err := st.State(t.Context()); err != nil || state.Environment != "x" || state.Epoch != 0 {
		t.Errorf("state %+v, %v", state, err)
	}

	t.Run("is the database's, not the slot's", func(t *testing.T) {
		other := store.New(db.Pool, db.Slot+"_2", 0)
		if err := other.ClaimEnvironment(t.Context(), "y", false); !errors.Is(err, store.ErrHeldBack) {
			t.Errorf("another slot: %v", err)
		}
	})

	t.Run("does not wait for ever", func(t *testing.T) {
		tx := begin(t, db.Pool)
		exec(t, tx, `UPDATE webhook_state SET updated_at = now()`)
		began := time.Now()
		if err := st.ClaimEnvironment(t.Context(), "z", true); err == nil || errors.Is(err, store.ErrHeldBack) {
			t.Errorf("beside somebody who has the row: %v", err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// Two deployments that start together on a database that remembers nothing, as
// both have looked: one is held back.
func TestClaimEnvironmentTogether(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	for range 20 {
		exec(t, db.Pool, `DELETE FROM webhook_state`)
		claims := make(chan error, 2)
		for _, c := range []struct{ slot, environment string }{{db.Slot, "production"}, {db.Slot, "staging"}} {
			go func() {
				claims <- store.New(db.Pool, c.slot, 0).ClaimEnvironment(t.Context(), c.environment, false)
			}()
		}
		held := 0
		for range 2 {
			switch err := <-claims; {
			case errors.Is(err, store.ErrHeldBack):
				held++
			case err != nil:
				t.Fatal(err)
			}
		}
		if held != 1 {
			t.Fatalf("%d were held back, want 1", held)
		}
	}
}

// Two walhooks with slots of their own on the same tables would send everything
// twice. Of two that claim at the same moment one is held back.
func TestASecondSlotIsHeldBack(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	stores, pids := map[string]*store.Store{}, map[string]uint32{}
	for _, slot := range []string{db.Slot, db.Slot + "_2"} {
		stores[slot] = store.New(db.Pool, slot, 0)
		pids[slot] = streamFrom(t, db, slot)
	}
	for range 10 {
		exec(t, db.Pool, `DELETE FROM webhook_state`)
		claims := make(chan error, len(stores))
		for slot, st := range stores {
			go func() {
				_, err := st.Acquire(t.Context(), uuid.New(), &webhook.Session{PID: pids[slot]}, 1)
				claims <- err
			}()
		}
		held := 0
		for range stores {
			switch err := <-claims; {
			case errors.Is(err, store.ErrHeldBack) && strings.Contains(err.Error(), "WALHOOK_SLOT"):
				held++
			case err != nil:
				t.Fatal(err)
			}
		}
		if held != 1 {
			t.Fatalf("%d were held back, want 1", held)
		}
	}
}

// streamFrom makes a slot and streams from it until the test ends.
func streamFrom(t *testing.T, db *pgtest.DB, slot string) (pid uint32) {
	t.Helper()
	exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	config, err := pgx.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	config.RuntimeParams["replication"] = "database"
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	conn.PgConn().Exec(t.Context(), `START_REPLICATION SLOT `+slot+` LOGICAL 0/0 (proto_version '1', publication_names 'walhook')`)
	t.Cleanup(func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel() // a stream does not end by being asked to
		_ = conn.Close(ended)
	})
	pgtest.Eventually(t, 10*time.Second, "the slot is in use", func() bool {
		return query[bool](t, db.Pool, `SELECT active FROM pg_replication_slots WHERE slot_name = $1`, slot)
	})
	return conn.PgConn().PID()
}
