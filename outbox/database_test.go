package outbox_test

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// query returns the one value of the one row of a query.
func query[T any](t testing.TB, pool *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	rows, err := pool.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func newEndpoint(t testing.TB, pool *pgxpool.Pool, organization string) string {
	t.Helper()
	return query[string](t, pool, `INSERT INTO webhook_endpoints (organization_id, url) VALUES ($1, 'https://example.com/hook') RETURNING id::text`, organization)
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

var (
	ofTrigger = regexp.MustCompile(`^webhook_outbox\b`)
	remedy    = regexp.MustCompile(`[:;] ([^:;]*, )?(leave|give|send|use|delete|keep|set|INSERT)\b`)
)

// checkRefusal fails unless the database refused with a text, which says what to do where it is one of our triggers'.
func checkRefusal(t testing.TB, err error, want string) {
	t.Helper()
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		t.Errorf("got %v, want a refusal: %s", err, want)
		return
	}
	if !strings.Contains(pg.Message, want) {
		t.Errorf("got %q, want %q in it", pg.Message, want)
	}
	if ofTrigger.MatchString(pg.Message) && (!remedy.MatchString(pg.Message) || pg.Hint != "") {
		t.Errorf("%q does not say itself what to do: mappers show neither hint (%q) nor detail", pg.Message, pg.Hint)
	}
}
