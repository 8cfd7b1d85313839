package outbox_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/outbox"
)

func ExampleEnqueue() {
	refund := func(ctx context.Context, pool *pgxpool.Pool, payment string) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `UPDATE payments SET refunded_at = now() WHERE id = $1`, payment); err != nil {
				return err
			}
			_, err := outbox.Enqueue(ctx, tx, outbox.Event{
				OrganizationID: "org_1",
				Type:           "payment.refunded",
				Payload:        []byte(`{"paymentId": "` + payment + `"}`),
			})
			return err
		})
	}
	_ = refund
}

func TestEnqueue(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	first, second := newEndpoint(t, db.Pool, "org_1"), newEndpoint(t, db.Pool, "org_1")

	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			config, err := pgx.ParseConfig(db.URL)
			if err != nil {
				t.Fatal(err)
			}
			config.DefaultQueryExecMode = mode
			conn, err := pgx.ConnectConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.Background())
			tx, err := conn.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			few, err := outbox.Enqueue(t.Context(), tx, outbox.Event{OrganizationID: "org_1", Type: "payment.failed", Payload: []byte(`{"a": "ü'\\"}`)})
			if err != nil {
				t.Fatal(err)
			}
			all := outbox.Event{
				ID: uuid.Must(uuid.NewV7()), OrganizationID: "org_1", Type: "webhook.test", Payload: []byte(`[]`),
				CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC), EndpointIDs: []uuid.UUID{uuid.MustParse(second)},
			}
			if id, err := outbox.Enqueue(t.Context(), tx, all); err != nil || id != all.ID {
				t.Fatalf("got %s, %v, want %s", id, err, all.ID)
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}

			if got := query[string](t, db.Pool, `SELECT payload ->> 'a' FROM webhook_outbox WHERE id = $1 AND created_at > now() - interval '1 minute'`, few); got != `ü'\` {
				t.Errorf("payload: got %s", got)
			}
			got := query[[]string](t, db.Pool, `SELECT endpoint_ids::text[] FROM webhook_outbox WHERE id = $1`, few)
			want := []string{first, second}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("owed to %q, want %q", got, want)
			}
			if got := query[[]string](t, db.Pool, `SELECT endpoint_ids::text[] FROM webhook_outbox WHERE id = $1 AND created_at = $2`, all.ID, all.CreatedAt); !slices.Equal(got, []string{second}) {
				t.Errorf("addressed to %q, want %s", got, second)
			}
		})
	}

	t.Run("leaves nothing when rolled back", func(t *testing.T) {
		tx := begin(t, db.Pool)
		id, err := outbox.Enqueue(t.Context(), tx, outbox.Event{OrganizationID: "org_1", Type: "payment.failed", Payload: []byte(`{}`)})
		if err := errors.Join(err, tx.Rollback(t.Context())); err != nil {
			t.Fatal(err)
		}
		if query[bool](t, db.Pool, `SELECT EXISTS (SELECT FROM webhook_outbox WHERE id = $1)`, id) {
			t.Error("the event is there")
		}
	})

	t.Run("returns the database's refusal", func(t *testing.T) {
		for want, e := range map[string]outbox.Event{
			"payload is null":             {OrganizationID: "org_1", Type: "payment.failed"},
			"organization_id is null":     {Type: "payment.failed", Payload: []byte(`{}`)},
			"event_type 'x' is not":       {OrganizationID: "org_1", Type: "x", Payload: []byte(`{}`)},
			"is not a UUIDv7":             {ID: uuid.New(), OrganizationID: "org_1", Type: "payment.failed", Payload: []byte(`{}`)},
			"invalid input syntax":        {OrganizationID: "org_1", Type: "payment.failed", Payload: []byte(`{`)},
			"is not an endpoint of organ": {OrganizationID: "org_2", Type: "payment.failed", Payload: []byte(`{}`), EndpointIDs: []uuid.UUID{uuid.MustParse(first)}},
		} {
			tx := begin(t, db.Pool)
			_, err := outbox.Enqueue(t.Context(), tx, e)
			checkRefusal(t, err, want)
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}
