package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// owed enqueues n events for an endpoint and returns its deliveries, without a status.
func owed(t testing.TB, db *pgtest.DB, endpoint string, n int) []webhook.Record {
	t.Helper()
	return owedOf(t, db, endpoint, n, "payment.failed")
}

// owedOf is owed of a type. The events' ids are of now, or of these ages in turn.
func owedOf(t testing.TB, db *pgtest.DB, endpoint string, n int, eventType string, ages ...time.Duration) []webhook.Record {
	t.Helper()
	id := uuid.MustParse(endpoint)
	organization := query[string](t, db.Pool, `SELECT organization_id FROM webhook_endpoints WHERE id = $1`, id)
	records := make([]webhook.Record, n)
	tx := begin(t, db.Pool)
	for i := range records {
		var made uuid.UUID
		if len(ages) > 0 {
			made = outbox.DeliveryID(outbox.TimeID(time.Now().Add(-ages[i%len(ages)])), uuid.New())
		}
		event, err := outbox.Enqueue(t.Context(), tx, outbox.Event{
			ID: made, OrganizationID: organization, Type: eventType, Payload: fmt.Appendf(nil, `{"n": %d}`, i+1), EndpointIDs: []uuid.UUID{id}})
		if err != nil {
			t.Fatal(err)
		}
		records[i] = webhook.Record{ID: outbox.DeliveryID(event, id), EventID: event, EndpointID: id, OrganizationID: organization, EventType: eventType}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return records
}

func newAttempt(status int, response string) *webhook.Attempt {
	a := &webhook.Attempt{EndedAt: time.Now(), Duration: 35 * time.Millisecond, StatusCode: status, Response: response}
	switch {
	case status == 0:
		a.Class, a.Error = webhook.ErrConnect, "refused"
	case status >= 500:
		a.Class, a.Error = webhook.ErrHTTP5xx, fmt.Sprintf("answered %d", status)
	case status >= 400:
		a.Class, a.Error = webhook.ErrHTTP4xx, fmt.Sprintf("answered %d", status)
	}
	return a
}

// outcome is a record with an attempt's outcome.
func outcome(r webhook.Record, status webhook.Status, attempts, code int) webhook.Record {
	r.Status, r.Attempts, r.Attempt = status, attempts, newAttempt(code, "")
	if status == webhook.Retrying {
		r.Wait = time.Minute
	}
	return r
}

func insert(t testing.TB, st *store.Store, fence webhook.Fence, records ...webhook.Record) {
	t.Helper()
	if _, err := st.Insert(t.Context(), fence, webhook.Mark{}, records); err != nil {
		t.Fatal(err)
	}
}

// recordHealth records what is known of endpoints, as a batch of outcomes does.
func recordHealth(t testing.TB, st *store.Store, fence webhook.Fence, health ...webhook.EndpointHealth) {
	t.Helper()
	if err := st.Mark(t.Context(), fence, webhook.Mark{Health: health}); err != nil {
		t.Fatal(err)
	}
}

func update(t testing.TB, st *store.Store, fence webhook.Fence, records ...webhook.Record) (locked []uuid.UUID) {
	t.Helper()
	locked, _, err := st.Update(t.Context(), fence, webhook.Mark{}, records)
	if err != nil {
		t.Fatal(err)
	}
	return locked
}

func statusOf(t testing.TB, db *pgtest.DB, id uuid.UUID) string {
	t.Helper()
	return query[string](t, db.Pool, `SELECT status || ' ' || attempts FROM webhook_deliveries WHERE id = $1`, id)
}

const disableAfter = 5 * 24 * time.Hour

var testSession = &webhook.Session{SystemID: "system 1", Timeline: 1}

// acquired returns a store and the fence of a process that has just taken the slot.
func acquired(t testing.TB, db *pgtest.DB) (*store.Store, webhook.Fence) {
	t.Helper()
	st := store.New(db.Pool, db.Slot, disableAfter)
	return st, acquire(t, st)
}

func acquire(t testing.TB, st *store.Store) webhook.Fence {
	t.Helper()
	fence, err := st.Acquire(t.Context(), uuid.New(), testSession, 1)
	if err != nil {
		t.Fatal(err)
	}
	return fence
}

// newPool is another pool on the test's database.
func newPool(t testing.TB, db *pgtest.DB, change func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	change(config)
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// waiting waits until so many sessions of the test's database wait for a lock.
func waiting(t testing.TB, db *pgtest.DB, n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	pgtest.Eventually(t, 10*time.Second, strconv.Itoa(n)+" sessions wait for a lock", func() bool {
		return query[int](t, conn, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == n
	})
}

func newEndpoint(t testing.TB, q querier, organization string, eventTypes ...string) string {
	t.Helper()
	if eventTypes == nil {
		eventTypes = []string{"*"}
	}
	return query[string](t, q, `INSERT INTO webhook_endpoints (organization_id, url, event_types) VALUES ($1, 'https://example.com/hook', $2) RETURNING id::text`,
		organization, eventTypes)
}

func newEvent(t testing.TB, q querier, organization, eventType string) string {
	t.Helper()
	return query[string](t, q, `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ($1, $2, '{}') RETURNING id::text`, organization, eventType)
}

// newDelivery writes the row of a delivery that had one attempt, unless it is pending.
func newDelivery(t testing.TB, q querier, event, endpoint, status string) string {
	t.Helper()
	return query[string](t, q, `
		INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, next_attempt_at, duration_ms)
		SELECT webhook_delivery_id(o.id, $2::text::uuid), o.id, $2::text::uuid, o.organization_id, o.event_type, $3,
		       CASE WHEN $3 = 'pending' THEN 0 ELSE 1 END, CASE WHEN $3 IN ('pending', 'retrying') THEN now() END, 35
		FROM webhook_outbox o WHERE o.id = $1::text::uuid RETURNING id::text`, event, endpoint, status)
}

// settled waits until every transaction of the server that was under way when a
// delivery was written has ended.
func settled(t testing.TB, db *pgtest.DB) {
	t.Helper()
	pgtest.Eventually(t, 30*time.Second, "all that was under way has ended", func() bool {
		return query[bool](t, db.Pool, `SELECT coalesce(bool_and(age(xmin) > age(pg_snapshot_xmin(pg_current_snapshot())::xid)), true) FROM webhook_deliveries WHERE next_attempt_at IS NOT NULL`)
	})
}

// A querier is a pool, a connection or a transaction.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// query returns the one value of the one row of a query.
func query[T any](t testing.TB, q querier, sql string, args ...any) T {
	t.Helper()
	rows, err := q.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// column returns the one column of a query.
func column[T any](t testing.TB, q querier, sql string, args ...any) []T {
	t.Helper()
	rows, err := q.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	v, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func exec(t testing.TB, q querier, sql string, args ...any) int64 {
	t.Helper()
	tag, err := q.Exec(t.Context(), sql, args...)
	if err != nil {
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
			t.Fatalf("%s: %v: %s %s", sql, err, pg.Detail, pg.Hint)
		}
		t.Fatalf("%s: %v", sql, err)
	}
	return tag.RowsAffected()
}

// refused fails unless the statement is refused with a text, which says what to do where it is one of our triggers'.
func refused(t testing.TB, q querier, want, sql string, args ...any) {
	t.Helper()
	_, err := q.Exec(t.Context(), sql, args...)
	checkRefusal(t, err, want, sql)
}

var (
	ofTrigger = regexp.MustCompile(`^webhook_(outbox|endpoints|secrets|event_types)\b`)
	remedy    = regexp.MustCompile(`[:;] ([^:;]*, )?(leave|give|send|use|delete|keep|set|INSERT)\b`)
)

func checkRefusal(t testing.TB, err error, want, what string) {
	t.Helper()
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		t.Errorf("%s: got %v, want a refusal: %s", what, err, want)
		return
	}
	if !strings.Contains(pg.Message, want) {
		t.Errorf("%s: got %q, want %q in it", what, pg.Message, want)
	}
	if ofTrigger.MatchString(pg.Message) && (!remedy.MatchString(pg.Message) || pg.Hint != "") {
		t.Errorf("%s: %q does not say itself what to do: mappers show neither hint (%q) nor detail", what, pg.Message, pg.Hint)
	}
}

// isBusy reports whether a lock was not available: whoever gets that tries again.
func isBusy(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "55P03"
}

func begin(t testing.TB, pool *pgxpool.Pool) pgx.Tx {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

func readSchema(t testing.TB) string {
	t.Helper()
	schema, err := os.ReadFile("../../schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	return string(schema)
}

// apply sends schema.sql as one simple-protocol string.
func apply(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	_, err = conn.Conn().PgConn().Exec(ctx, schema).ReadAll()
	return err
}
