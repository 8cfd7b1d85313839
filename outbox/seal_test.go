package outbox_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/outbox"
)

func TestSecretsAreSealedAtRest(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var endpoint, other uuid.UUID
	var plain string
	row := db.Pool.QueryRow(t.Context(), `SELECT endpoint_id, secret FROM webhook_create_endpoint('org_1', 'https://example.com')`)
	if err := row.Scan(&endpoint, &plain); err != nil {
		t.Fatal(err)
	}
	row = db.Pool.QueryRow(t.Context(), `SELECT endpoint_id FROM webhook_create_endpoint('org_1', 'https://example.org')`)
	if err := row.Scan(&other); err != nil {
		t.Fatal(err)
	}
	store := func(key byte) *outbox.Store {
		s := outbox.NewStore(db.Pool, db.Slot, 0)
		sealer, err := outbox.NewSealer(bytes.Repeat([]byte{key}, 32))
		if err != nil {
			t.Fatal(err)
		}
		s.Sealing(sealer)
		return s
	}
	look := func(s *outbox.Store, id uuid.UUID) outbox.Endpoint {
		t.Helper()
		found, err := s.Endpoints(t.Context(), []uuid.UUID{id})
		if err != nil || len(found) != 1 {
			t.Fatalf("%d endpoints, error %v", len(found), err)
		}
		return found[0]
	}

	if n, err := outbox.NewStore(db.Pool, db.Slot, 0).SealSecrets(t.Context()); n != 0 || err != nil {
		t.Fatalf("without a key: sealed %d, error %v", n, err)
	}
	if n, err := store(1).SealSecrets(t.Context()); n != 2 || err != nil {
		t.Fatalf("sealed %d, error %v; want 2", n, err)
	}
	if n, err := store(1).SealSecrets(t.Context()); n != 0 || err != nil {
		t.Errorf("sealed %d again, error %v", n, err)
	}
	var stored string
	if err := db.Pool.QueryRow(t.Context(), `SELECT secret FROM webhook_secrets WHERE endpoint_id = $1`, endpoint).Scan(&stored); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(stored, "sealed:v1:") || strings.Contains(stored, plain) {
		t.Errorf("stored as %q", stored)
	}
	if e := look(store(1), endpoint); e.Problem != "" || len(e.Secrets) != 1 || string(e.Secrets[0]) != plain {
		t.Errorf("opened as %d secrets, problem %q", len(e.Secrets), e.Problem)
	}
	if _, err := db.Pool.Exec(t.Context(), `SELECT webhook_set_secret($1, $2, '1 hour')`, endpoint, plain); err != nil {
		t.Fatal(err)
	}
	if e := look(store(1), endpoint); len(e.Secrets) != 1 || string(e.Secrets[0]) != plain {
		t.Errorf("set once more, with its sealed self live: %d secrets", len(e.Secrets))
	}
	if _, err := db.Pool.Exec(t.Context(), `DELETE FROM webhook_secrets WHERE endpoint_id = $1 AND secret = $2`, endpoint, plain); err != nil {
		t.Fatal(err)
	}
	if e := look(store(2), endpoint); !strings.Contains(e.Problem, "another WALHOOK_SECRET_KEY") || len(e.Secrets) != 0 {
		t.Errorf("with another key: problem %q", e.Problem)
	}
	if e := look(outbox.NewStore(db.Pool, db.Slot, time.Hour), endpoint); !strings.Contains(e.Problem, "WALHOOK_SECRET_KEY is not set") {
		t.Errorf("without a key: problem %q", e.Problem)
	}
	if _, err := db.Pool.Exec(t.Context(), `UPDATE webhook_secrets SET secret = $1 WHERE endpoint_id = $2`, stored, other); err != nil {
		t.Fatal(err)
	}
	if e := look(store(1), other); e.Problem == "" || len(e.Secrets) != 0 {
		t.Error("a sealed secret can be moved to another endpoint")
	}
}
