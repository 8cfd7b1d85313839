package outbox_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/outbox"
)

func TestClaimEnvironment(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	store := outbox.NewStore(db.Pool, db.Slot, 0)
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
		err := store.ClaimEnvironment(t.Context(), c.environment, c.adopt)
		if errors.Is(err, outbox.ErrHeldBack) != c.held || !c.held && err != nil {
			t.Errorf("step %d, %q: %v, want held back %t", i, c.environment, err, c.held)
		}
		if c.held && (!strings.Contains(err.Error(), c.remembered) || !strings.Contains(err.Error(), "--adopt")) {
			t.Errorf("step %d: %v says too little", i, err)
		}
		if got := query[string](t, db.Pool, `SELECT coalesce(max(environment), '') FROM webhook_state`); got != c.remembered {
			t.Errorf("step %d: it remembers %q, want %q", i, got, c.remembered)
		}
	}
	if st, err := store.State(t.Context()); err != nil || st.Environment != "x" || st.Epoch != 0 {
		t.Errorf("state %+v, %v", st, err)
	}

	t.Run("is the database's, not the slot's", func(t *testing.T) {
		other := outbox.NewStore(db.Pool, db.Slot+"_2", 0)
		if err := other.ClaimEnvironment(t.Context(), "y", false); !errors.Is(err, outbox.ErrHeldBack) {
			t.Errorf("another slot: %v", err)
		}
	})

	t.Run("does not wait for ever", func(t *testing.T) {
		tx := begin(t, db.Pool)
		exec(t, tx, `UPDATE webhook_state SET updated_at = now()`)
		began := time.Now()
		if err := store.ClaimEnvironment(t.Context(), "z", true); err == nil || errors.Is(err, outbox.ErrHeldBack) {
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
				claims <- outbox.NewStore(db.Pool, c.slot, 0).ClaimEnvironment(t.Context(), c.environment, false)
			}()
		}
		held := 0
		for range 2 {
			switch err := <-claims; {
			case errors.Is(err, outbox.ErrHeldBack):
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
