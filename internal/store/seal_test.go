package store_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
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

	if n, err := store.New(db.Pool, db.Slot, 0).SealAll(t.Context()); n != 0 || err != nil {
		t.Fatalf("without a key: sealed %d, error %v", n, err)
	}
	if n, err := st(1).SealAll(t.Context()); n != 2 || err != nil {
		t.Fatalf("sealed %d, error %v; want 2", n, err)
	}
	if n, err := st(1).SealAll(t.Context()); n != 0 || err != nil {
		t.Errorf("sealed %d again, error %v", n, err)
	}
	var stored string
	if err := db.Pool.QueryRow(t.Context(), `SELECT secret FROM webhook_secrets WHERE endpoint_id = $1`, endpoint).Scan(&stored); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(stored, "sealed:v2:72cd6e84:") || strings.Contains(stored, plain) {
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
	if e := look(st(2), endpoint); !strings.Contains(e.Sealed, "the key 72cd6e84 has sealed it, and WALHOOK_SECRET_KEY is the key 75877bb4") || len(e.Secrets) != 0 || e.Problem != "" {
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
	if _, err := sealedStore(t, db.Pool, db.Slot, 1, 0).SealAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	newEndpoint(t, db.Pool, "org_1") // one that is not sealed yet
	for _, c := range []struct {
		key, old byte
		says     string
	}{{1, 0, ""}, {1, 2, ""}, {2, 1, ""}, {0, 0, "WALHOOK_SECRET_KEY is not set"}, {2, 0, "the key 72cd6e84 has sealed it"}, {2, 3, "the key 72cd6e84 has sealed it"}} {
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
			if n, err := s.SealAll(t.Context()); err != nil || n == 0 {
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
	if walk := walked(2, 0); walk.Stale != 0 || walk.Unopened != 250 {
		t.Errorf("without the former key: %d sealed anew, %d cannot be opened", walk.Stale, walk.Unopened)
	}
	if walk := walked(2, 1); walk.Stale != 249 || walk.Unopened != 1 {
		t.Errorf("%d sealed anew, %d cannot be opened; want 249 and 1", walk.Stale, walk.Unopened)
	}
	if walk := walked(2, 1); walk.Stale != 0 {
		t.Errorf("%d sealed anew once more", walk.Stale)
	}
	ids := make([]uuid.UUID, 0, len(plain))
	for id := range plain {
		ids = append(ids, uuid.MustParse(id))
	}
	found, err := sealedStore(t, db.Pool, db.Slot, 2, 0).Endpoints(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_secrets WHERE starts_with(secret, 'sealed:v2:72cd6e84:')`); n != 0 {
		t.Errorf("%d secrets have the id of the former key", n)
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

// sealedByVersion1 seals a secret as it was sealed before the key had an id.
func sealedByVersion1(t *testing.T, key byte, endpoint uuid.UUID, text string) string {
	t.Helper()
	block, err := aes.NewCipher(bytes.Repeat([]byte{key}, 32))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, aead.NonceSize())
	_, _ = rand.Read(nonce)
	return "sealed:v1:" + base64.StdEncoding.EncodeToString(aead.Seal(nonce, nonce, []byte(text), endpoint[:]))
}

func TestSecretsOfVersion1AreSealedAnew(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	for _, key := range []byte{1, 2} { // the first is the former one
		id := uuid.MustParse(newEndpoint(t, db.Pool, "org_1"))
		plain := query[string](t, db.Pool, `SELECT secret FROM webhook_secrets WHERE endpoint_id = $1`, id)
		exec(t, db.Pool, `UPDATE webhook_secrets SET secret = $2 WHERE endpoint_id = $1`, id, sealedByVersion1(t, key, id, plain))
		st := sealedStore(t, db.Pool, db.Slot, 2, 1)
		opens := func() {
			t.Helper()
			if found, err := st.Endpoints(t.Context(), []uuid.UUID{id}); err != nil || found[0].Sealed != "" || string(found[0].Secrets[0]) != plain {
				t.Errorf("key %d: it opens as %+v, error %v", key, found, err)
			}
		}
		opens()
		var walk store.Resealing
		for !walk.Done {
			if err := st.Reseal(t.Context(), &walk); err != nil {
				t.Fatal(err)
			}
		}
		if stored := query[string](t, db.Pool, `SELECT secret FROM webhook_secrets WHERE endpoint_id = $1`, id); walk.Stale != 1 || !strings.HasPrefix(stored, "sealed:v2:75877bb4:") {
			t.Errorf("key %d: %d sealed anew, it is %s", key, walk.Stale, stored)
		}
		opens()
	}
}

func TestHeadersAreSealedAtRest(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	id, other := uuid.MustParse(newEndpoint(t, db.Pool, "org_1")), uuid.MustParse(newEndpoint(t, db.Pool, "org_1"))
	const name, value = "Authorization", `Bearer a"b\c`
	exec(t, db.Pool, `UPDATE webhook_endpoints SET headers = jsonb_build_object($2::text, $3::text, 'X-Empty', '') WHERE id = $1`, id, name, value)
	stored := func(id uuid.UUID) map[string]string {
		return query[map[string]string](t, db.Pool, `SELECT headers FROM webhook_endpoints WHERE id = $1`, id)
	}
	look := func(st *store.Store, id uuid.UUID) webhook.Endpoint {
		t.Helper()
		found, err := st.Endpoints(t.Context(), []uuid.UUID{id})
		if err != nil || len(found) != 1 {
			t.Fatalf("%d endpoints, error %v", len(found), err)
		}
		return found[0]
	}
	one, both := sealedStore(t, db.Pool, db.Slot, 1, 0), sealedStore(t, db.Pool, db.Slot, 2, 1)
	if n, err := one.SealAll(t.Context()); n != 4 || err != nil {
		t.Fatalf("sealed %d, error %v; want two secrets and two headers", n, err)
	}
	if n, err := one.SealAll(t.Context()); n != 0 || err != nil {
		t.Errorf("sealed %d again, error %v", n, err)
	}
	sealed := stored(id)
	for name, text := range sealed {
		if !strings.HasPrefix(text, "sealed:v2:72cd6e84:") || strings.Contains(text, value) {
			t.Errorf("%s is stored as %q", name, text)
		}
	}
	want := map[string]string{name: value, "X-Empty": ""}
	if e := look(one, id); e.Sealed != "" || !maps.Equal(e.Headers, want) {
		t.Errorf("opened as %q, problem %q", e.Headers, e.Sealed)
	}
	if e := look(sealedStore(t, db.Pool, db.Slot, 2, 0), id); !strings.Contains(e.Sealed, "72cd6e84") || strings.Contains(e.Sealed, value) {
		t.Errorf("with another key: %q", e.Sealed)
	}
	var walk store.Resealing
	for !walk.Done {
		if err := both.Reseal(t.Context(), &walk); err != nil {
			t.Fatal(err)
		}
	}
	if walk.Seen != 4 || walk.Stale != 4 || walk.Unopened != 0 {
		t.Errorf("of %d texts %d were sealed anew, and %d cannot be opened", walk.Seen, walk.Stale, walk.Unopened)
	}
	if e := look(sealedStore(t, db.Pool, db.Slot, 2, 0), id); !maps.Equal(e.Headers, want) {
		t.Errorf("with the new key alone: %q, problem %q", e.Headers, e.Sealed)
	}
	t.Run("it opens nowhere else", func(t *testing.T) {
		sealed := stored(id)
		for place, sql := range map[string]string{
			"another endpoint": `UPDATE webhook_endpoints SET headers = jsonb_build_object('Authorization', $2::text) WHERE id = $1`,
			"another header":   `UPDATE webhook_endpoints SET headers = jsonb_build_object('X-Echo', $2::text) WHERE id = $1`,
			"the secret":       `UPDATE webhook_secrets SET secret = $2 WHERE endpoint_id = $1`,
		} {
			at := id
			if place == "another endpoint" {
				at = other
			}
			exec(t, db.Pool, sql, at, sealed[name])
			if e := look(both, at); e.Sealed == "" {
				t.Errorf("in the place of %s it is %q", place, e.Headers)
			}
		}
	})
}

// What is sealed is longer, and is bounded as the text in it is.
func TestSealedHeadersFit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	id := newEndpoint(t, db.Pool, "org_1")
	for _, n := range []int{1, 2, 3, 32} { // headers, of 4 KiB in all
		exec(t, db.Pool, `UPDATE webhook_endpoints SET headers = (SELECT jsonb_object_agg('X-' || lpad(i::text, 2, '0'), repeat('x', 4096 / $2::int - 4)) FROM generate_series(1, $2::int) i) WHERE id = $1`, id, n)
		if sealed, err := sealedStore(t, db.Pool, db.Slot, 1, 0).SealAll(t.Context()); err != nil || sealed < n {
			t.Errorf("%d headers: sealed %d, error %v", n, sealed, err)
		}
	}
	refused(t, db.Pool, "longer than 4 KiB in all", `UPDATE webhook_endpoints SET headers = jsonb_build_object('X-00', 'sealed:v2:00000000:' || translate(encode(decode(repeat('00', 4093 + 28), 'hex'), 'base64'), E'=\n', ''), 'X-01', '') WHERE id = $1`, id)
	for _, bad := range []string{"sealed:", "sealed:v1:AAAA", "sealed:v2:0000000:AAAA", "sealed:v2:00000000:AA AA"} {
		refused(t, db.Pool, "begins with sealed:", `UPDATE webhook_endpoints SET headers = jsonb_build_object('X-A', $2::text) WHERE id = $1`, id, bad)
	}
}

// A row of before may break the rules of today, or have headers that nothing can be sent with. It must not keep others, nor
// itself, from being sealed.
func TestHeadersOfOldRowsAreSealed(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	old := func(headers string) string {
		id := newEndpoint(t, db.Pool, "org_1")
		exec(t, db.Pool, `ALTER TABLE webhook_endpoints DISABLE TRIGGER webhook_endpoints_before_write`)
		exec(t, db.Pool, `UPDATE webhook_endpoints SET headers = $2 WHERE id = $1`, id, headers)
		exec(t, db.Pool, `ALTER TABLE webhook_endpoints ENABLE TRIGGER webhook_endpoints_before_write`)
		return id
	}
	long := old(`{"Expect": "a", "X-Long": "` + strings.Repeat("x", 9000) + `"}`)
	for _, headers := range []string{`[]`, `["a"]`, `{"X-Number": 5, "X-Text": "a"}`, `"text"`, `{"X-None": null}`} {
		old(headers)
	}
	good := newEndpoint(t, db.Pool, "org_1")
	exec(t, db.Pool, `UPDATE webhook_endpoints SET headers = '{"X-Good": "a"}' WHERE id = $1`, good)
	if n, err := sealedStore(t, db.Pool, db.Slot, 1, 0).SealAll(t.Context()); err != nil || n != 7+3 {
		t.Errorf("sealed %d, error %v; want 7 secrets and 3 headers", n, err)
	}
	var walk store.Resealing
	for st := sealedStore(t, db.Pool, db.Slot, 2, 1); !walk.Done; {
		if err := st.Reseal(t.Context(), &walk); err != nil {
			t.Fatal(err)
		}
	}
	if walk.Stale != 10 || walk.Unopened != 0 {
		t.Errorf("sealed anew %d, %d cannot be opened; want 10 and 0", walk.Stale, walk.Unopened)
	}
	for id, n := range map[string]int{long: 2, good: 1} {
		if got := query[int](t, db.Pool, `SELECT count(*) FROM webhook_endpoints, jsonb_each_text(headers) h WHERE id = $1 AND starts_with(h.value, 'sealed:v2:75877bb4:')`, id); got != n {
			t.Errorf("%s: %d headers are sealed with the new key, want %d", id, got, n)
		}
	}
	for _, grown := range []string{"x", "sealed:v2:00000000:AAAA"} {
		refused(t, db.Pool, "is not usable: ", `UPDATE webhook_endpoints SET url = 'ftp://x' WHERE id = $1 AND $2 <> ''`, good, grown) // the trigger is on
		refused(t, db.Pool, "headers are not usable", `UPDATE webhook_endpoints SET headers = headers || jsonb_build_object('Expect', $2::text) WHERE id = $1`, long, grown)
	}
}

// A text in a form that this version does not know is no secret: signing with it would fail at every receiver.
func TestAnUnknownSealWaits(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	id := uuid.MustParse(newEndpoint(t, db.Pool, "org_1"))
	exec(t, db.Pool, `ALTER TABLE webhook_secrets DROP CONSTRAINT webhook_secrets_secret_16_to_256_printable_characters, DISABLE TRIGGER USER`)
	exec(t, db.Pool, `UPDATE webhook_secrets SET secret = 'sealed:v3:AAAA' WHERE endpoint_id = $1`, id)
	for _, key := range []byte{0, 1} {
		found, err := sealedStore(t, db.Pool, db.Slot, key, 0).Endpoints(t.Context(), []uuid.UUID{id})
		if err != nil || len(found) != 1 || len(found[0].Secrets) > 0 || !strings.Contains(found[0].Sealed, "a newer walhook has sealed it") {
			t.Errorf("key %d: %+v, error %v", key, found, err)
		}
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
	if n, err := sealedStore(t, pool, db.Slot, 1, 0).SealAll(t.Context()); err != nil || n != 1 {
		t.Fatalf("sealed %d, error %v", n, err)
	}
	walk := store.Resealing{}
	if err := sealedStore(t, pool, db.Slot, 2, 1).Reseal(t.Context(), &walk); err != nil || walk.Stale != 1 {
		t.Fatalf("sealed anew %d, error %v", walk.Stale, err)
	}
	if seen := tr.seen.String(); strings.Contains(seen, plain) || !strings.Contains(seen, "sealed:v2:") {
		t.Errorf("a plain secret is a parameter, or nothing was seen: %s", seen)
	}
}

// Looking for what is to be sealed comes every few seconds: it must not read all endpoints.
func TestPlansOfSealing(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db.Pool, `INSERT INTO webhook_endpoints (organization_id, url, headers) SELECT 'org_' || i % 10, 'https://example.com/' || i, jsonb_build_object('X-A', 'sealed:v2:00000000:AAAA')
		FROM generate_series(1, 5000) i`)
	exec(t, db.Pool, `UPDATE webhook_secrets SET secret = 'sealed:v2:00000000:AAAA'`)
	exec(t, db.Pool, `UPDATE webhook_endpoints SET headers = '{"X-A": "a", "X-B": "b"}' WHERE url = 'https://example.com/7'`)
	exec(t, db.Pool, `VACUUM ANALYZE webhook_endpoints, webhook_secrets`)
	sealer, err := store.NewSealer(bytes.Repeat([]byte{1}, 32), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		st, plans := explaining(t, db, mode)
		st.Sealing(sealer)
		if n, err := st.SealAll(t.Context()); err != nil || mode == "force_custom_plan" && n != 2 {
			t.Errorf("%s: sealed %d, error %v", mode, n, err)
		}
		looks := 0
		for _, e := range plans.take(t, "sealed:") {
			if !strings.Contains(e.Query, "SELECT") {
				continue // an UPDATE
			}
			looks++
			if problem := e.problem(50); problem != "" {
				t.Errorf("%s: %s: %s", mode, e.Query, problem)
			}
		}
		if looks != 2 {
			t.Errorf("%s: %d plans were seen, want 2", mode, looks)
		}
	}
}
