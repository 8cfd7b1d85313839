package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
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
	st := func(key byte) *store.Store {
		s := store.New(db.Pool, db.Slot, 0)
		sealer, err := store.NewSealer(bytes.Repeat([]byte{key}, 32), nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Sealing(sealer)
		return s
	}
	look := func(s *store.Store, id uuid.UUID) webhook.Endpoint {
		t.Helper()
		found, err := s.Endpoints(t.Context(), []uuid.UUID{id})
		if err != nil || len(found) != 1 {
			t.Fatalf("%d endpoints, error %v", len(found), err)
		}
		return found[0]
	}

	if n, err := store.New(db.Pool, db.Slot, 0).SealSecrets(t.Context()); n != 0 || err != nil {
		t.Fatalf("without a key: sealed %d, error %v", n, err)
	}
	if n, err := st(1).SealSecrets(t.Context()); n != 2 || err != nil {
		t.Fatalf("sealed %d, error %v; want 2", n, err)
	}
	if n, err := st(1).SealSecrets(t.Context()); n != 0 || err != nil {
		t.Errorf("sealed %d again, error %v", n, err)
	}
	var stored string
	if err := db.Pool.QueryRow(t.Context(), `SELECT secret FROM webhook_secrets WHERE endpoint_id = $1`, endpoint).Scan(&stored); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(stored, "sealed:v1:") || strings.Contains(stored, plain) {
		t.Errorf("stored as %q", stored)
	}
	if e := look(st(1), endpoint); e.Problem+e.Sealed != "" || len(e.Secrets) != 1 || string(e.Secrets[0]) != plain {
		t.Errorf("opened as %d secrets, problem %q", len(e.Secrets), e.Problem)
	}
	if _, err := db.Pool.Exec(t.Context(), `SELECT webhook_set_secret($1, $2, '1 hour')`, endpoint, plain); err != nil {
		t.Fatal(err)
	}
	if e := look(st(1), endpoint); len(e.Secrets) != 1 || string(e.Secrets[0]) != plain {
		t.Errorf("set once more, with its sealed self live: %d secrets", len(e.Secrets))
	}
	if _, err := db.Pool.Exec(t.Context(), `DELETE FROM webhook_secrets WHERE endpoint_id = $1 AND secret = $2`, endpoint, plain); err != nil {
		t.Fatal(err)
	}
	if e := look(st(2), endpoint); !strings.Contains(e.Sealed, "another key than WALHOOK_SECRET_KEY") || len(e.Secrets) != 0 || e.Problem != "" {
		t.Errorf("with another key: %q, problem %q", e.Sealed, e.Problem)
	}
	if e := look(store.New(db.Pool, db.Slot, time.Hour), endpoint); !strings.Contains(e.Sealed, "WALHOOK_SECRET_KEY is not set") || e.Problem != "" {
		t.Errorf("without a key: %q, problem %q", e.Sealed, e.Problem)
	}
	if _, err := db.Pool.Exec(t.Context(), `UPDATE webhook_secrets SET secret = $1 WHERE endpoint_id = $2`, stored, other); err != nil {
		t.Fatal(err)
	}
	if e := look(st(1), other); e.Sealed == "" || len(e.Secrets) != 0 {
		t.Error("a sealed secret can be moved to another endpoint")
	}
}

// sealedStore is a store with keys of 32 times a byte; 0: none.
func sealedStore(t testing.TB, pool *pgxpool.Pool, slot string, key, old byte) *store.Store {
	t.Helper()
	s := store.New(pool, slot, 0)
	if key == 0 {
		return s
	}
	var former []byte
	if old != 0 {
		former = bytes.Repeat([]byte{old}, 32)
	}
	sealer, err := store.NewSealer(bytes.Repeat([]byte{key}, 32), former)
	if err != nil {
		t.Fatal(err)
	}
	s.Sealing(sealer)
	return s
}

func TestCheckSecrets(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	check := func(key, old byte) error { return sealedStore(t, db.Pool, db.Slot, key, old).CheckSecrets(t.Context()) }
	for range 3 {
		newEndpoint(t, db.Pool, "org_1")
	}
	if err := check(0, 0); err != nil {
		t.Errorf("nothing is sealed, no key: %v", err)
	}
	if _, err := sealedStore(t, db.Pool, db.Slot, 1, 0).SealSecrets(t.Context()); err != nil {
		t.Fatal(err)
	}
	newEndpoint(t, db.Pool, "org_1") // one that is not sealed yet
	for _, c := range []struct {
		key, old byte
		says     string
	}{{1, 0, ""}, {1, 2, ""}, {2, 1, ""}, {0, 0, "WALHOOK_SECRET_KEY is not set"}, {2, 0, "another key"}, {2, 3, "another key"}} {
		err := check(c.key, c.old)
		if wrong := errors.Is(err, store.ErrSecretKey); wrong != (c.says != "") || wrong && (!strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "webhook_rotate_secret")) {
			t.Errorf("keys %d and %d: %v, want %q", c.key, c.old, err, c.says)
		}
	}
	t.Run("one damaged row is its endpoint's alone", func(t *testing.T) {
		exec(t, db.Pool, `UPDATE webhook_secrets SET secret = 'sealed:v1:AAAA' WHERE id = (SELECT min(id) FROM webhook_secrets)`)
		if err := check(1, 0); err != nil {
			t.Error(err)
		}
	})
	t.Run("what has expired does not matter", func(t *testing.T) {
		exec(t, db.Pool, `SELECT webhook_rotate_secret(id, '0') FROM webhook_endpoints`)
		if err := check(2, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestReseal(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	plain := map[string]string{}
	for range 250 {
		id := newEndpoint(t, db.Pool, "org_1")
		plain[id] = query[string](t, db.Pool, `SELECT secret FROM webhook_secrets WHERE endpoint_id = $1`, id)
	}
	seal := func(key byte) {
		t.Helper()
		for s := sealedStore(t, db.Pool, db.Slot, key, 0); ; {
			if n, err := s.SealSecrets(t.Context()); err != nil || n == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
		}
	}
	seal(1)
	exec(t, db.Pool, `UPDATE webhook_secrets SET secret = 'sealed:v1:AAAA' WHERE id = (SELECT min(id) FROM webhook_secrets)`)
	walked := func(key, old byte) (walk store.Resealing) {
		t.Helper()
		for s := sealedStore(t, db.Pool, db.Slot, key, old); !walk.Done; {
			if err := s.Reseal(t.Context(), &walk); err != nil {
				t.Fatal(err)
			}
		}
		return walk
	}
	if walk := walked(2, 0); walk.Resealed != 0 {
		t.Errorf("without a former key: %d sealed anew", walk.Resealed)
	}
	if walk := walked(2, 1); walk.Resealed != 249 || walk.Unopened != 1 {
		t.Errorf("%d sealed anew, %d cannot be opened; want 249 and 1", walk.Resealed, walk.Unopened)
	}
	if walk := walked(2, 1); walk.Resealed != 0 {
		t.Errorf("%d sealed anew once more", walk.Resealed)
	}
	ids := make([]uuid.UUID, 0, len(plain))
	for id := range plain {
		ids = append(ids, uuid.MustParse(id))
	}
	found, err := sealedStore(t, db.Pool, db.Slot, 2, 0).Endpoints(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	closed := 0
	for _, e := range found {
		if e.Sealed != "" {
			closed++
		} else if string(e.Secrets[0]) != plain[e.ID.String()] {
			t.Errorf("%s has another secret", e.ID)
		}
	}
	if closed != 1 {
		t.Errorf("with the new key alone %d cannot be opened, want the damaged one", closed)
	}
}

// A tracer keeps the arguments of all statements: PostgreSQL's log may show them.
type tracer struct {
	mu   sync.Mutex
	seen strings.Builder
}

func (tr *tracer) note(args ...any) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	fmt.Fprintln(&tr.seen, args...)
}

// TraceQueryStart is pgx.QueryTracer's.
func (tr *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	tr.note(data.SQL, data.Args)
	return ctx
}

// TraceQueryEnd is pgx.QueryTracer's.
func (tr *tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TraceBatchStart is pgx.BatchTracer's.
func (tr *tracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	for _, q := range data.Batch.QueuedQueries {
		tr.note(q.SQL, q.Arguments)
	}
	return ctx
}

// TraceBatchQuery is pgx.BatchTracer's.
func (tr *tracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd is pgx.BatchTracer's.
func (tr *tracer) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

func TestNoStatementHoldsAPlainSecret(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	id := newEndpoint(t, db.Pool, "org_1")
	plain := query[string](t, db.Pool, `SELECT secret FROM webhook_secrets WHERE endpoint_id = $1`, id)
	tr := &tracer{}
	pool := newPool(t, db, func(c *pgxpool.Config) { c.ConnConfig.Tracer = tr })
	if n, err := sealedStore(t, pool, db.Slot, 1, 0).SealSecrets(t.Context()); err != nil || n != 1 {
		t.Fatalf("sealed %d, error %v", n, err)
	}
	walk := store.Resealing{}
	if err := sealedStore(t, pool, db.Slot, 2, 1).Reseal(t.Context(), &walk); err != nil || walk.Resealed != 1 {
		t.Fatalf("sealed anew %d, error %v", walk.Resealed, err)
	}
	if seen := tr.seen.String(); strings.Contains(seen, plain) || !strings.Contains(seen, "sealed:v1:") {
		t.Errorf("a plain secret is a parameter, or nothing was seen: %s", seen)
	}
}
