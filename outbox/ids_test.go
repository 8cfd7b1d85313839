package outbox_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/outbox"
)

func TestDeliveryID(t *testing.T) {
	t.Parallel()

	t.Run("is the same for ever", func(t *testing.T) {
		t.Parallel()
		event := uuid.MustParse("01930000-0000-7000-8000-000000000001")
		endpoint := uuid.MustParse("7c9e6679-7425-40de-944b-e07fc1f90ae7")
		if got, want := outbox.DeliveryID(event, endpoint).String(), "01930000-0000-7b2e-8213-9a58b28201ac"; got != want {
			t.Errorf("got %s, want %s: receivers would take every delivery for a new one", got, want)
		}
	})

	t.Run("is the same in Go and in SQL", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		const pairs = 10_000
		random := rand.NewChaCha8([32]byte{1})
		events, endpoints, want := make([]string, pairs), make([]string, pairs), make([]string, pairs)
		for i := range pairs {
			var event, endpoint uuid.UUID
			_, _ = random.Read(event[:])
			_, _ = random.Read(endpoint[:])
			events[i], endpoints[i], want[i] = event.String(), endpoint.String(), outbox.DeliveryID(event, endpoint).String()
		}
		got := query[[]string](t, db.Pool, `
			SELECT array_agg(webhook_delivery_id(e, p)::text ORDER BY n)
			FROM unnest($1::text[]::uuid[], $2::text[]::uuid[]) WITH ORDINALITY AS r(e, p, n)`, events, endpoints)
		for i := range pairs {
			if got[i] != want[i] {
				t.Fatalf("event %s, endpoint %s: SQL says %s, Go %s", events[i], endpoints[i], got[i], want[i])
			}
		}
	})
}

func TestOwnEventID(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 23, 12, 0, 0, 1_234_567, time.UTC)
	endpoint := uuid.MustParse("7c9e6679-7425-40de-944b-e07fc1f90ae7")
	id := outbox.OwnEventID(at, endpoint, 1)
	if again := outbox.OwnEventID(at.Truncate(time.Microsecond), endpoint, 1); again != id {
		t.Errorf("as PostgreSQL keeps the time: %s, want %s: the event would be inserted twice", again, id)
	}
	for what, other := range map[string]uuid.UUID{
		"a microsecond later": outbox.OwnEventID(at.Add(time.Microsecond), endpoint, 1),
		"another number":      outbox.OwnEventID(at, endpoint, 2),
		"another endpoint":    outbox.OwnEventID(at, uuid.MustParse("7c9e6679-7425-40de-944b-e07fc1f90ae8"), 1),
	} {
		if other == id {
			t.Errorf("%s: the same id, and the event would be dropped", what)
		}
	}
	if got, want := time.Unix(id.Time().UnixTime()).UTC(), at.Truncate(time.Millisecond); !got.Equal(want) {
		t.Errorf("the id's time is %v, want %v", got, want)
	}
}

func TestUUIDv7(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)

	ids := query[[]string](t, db.Pool, `SELECT array_agg(webhook_uuidv7()::text) FROM generate_series(1, 10000)`)
	now := query[time.Time](t, db.Pool, `SELECT clock_timestamp()`)
	seen := map[string]bool{}
	for _, text := range ids {
		id := uuid.MustParse(text)
		if id.Version() != 7 || id.Variant() != uuid.RFC4122 {
			t.Fatalf("%s is version %d, variant %s", id, id.Version(), id.Variant())
		}
		if age := now.Sub(outbox.IDTime(id)); age < 0 || age > time.Minute {
			t.Fatalf("%s is %s old", id, age)
		}
		seen[text] = true
	}
	if len(seen) != len(ids) {
		t.Errorf("%d different ids of %d", len(seen), len(ids))
	}

	for _, at := range []time.Time{now, time.UnixMilli(0), time.Date(2026, 11, 23, 12, 0, 0, 999_600_000, time.UTC), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if got, want := query[string](t, db.Pool, `SELECT webhook_uuid_at($1)::text`, at), outbox.TimeID(at).String(); got != want {
			t.Errorf("webhook_uuid_at(%s) = %s, TimeID %s", at, got, want)
		}
		if got, want := query[time.Time](t, db.Pool, `SELECT webhook_uuid_time(webhook_uuid_at($1))`, at), at.Truncate(time.Millisecond); !got.Equal(want) {
			t.Errorf("webhook_uuid_time gives %s, want %s", got, want)
		}
	}

	// Bounds of ranges that no id can have: a range from the zero time on has all ids.
	for at, want := range map[string]string{
		"-infinity": uuid.Nil.String(), "0001-01-01": outbox.TimeID(time.Time{}).String(), "1969-12-31": outbox.TimeID(time.Unix(-1, 0)).String(),
		"infinity": "ffffffff-ffff-0000-0000-000000000000", "290000-01-01": outbox.TimeID(time.Date(290000, 1, 1, 0, 0, 0, 0, time.UTC)).String(),
	} {
		got := query[string](t, db.Pool, `SELECT webhook_uuid_at($1::text::timestamptz)::text`, at)
		if wantFirst := at < "1970"; got != want || wantFirst != (got == uuid.Nil.String()) {
			t.Errorf("webhook_uuid_at(%s) = %s, want %s", at, got, want)
		}
	}
}
