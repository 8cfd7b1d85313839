package store_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/store/storetest"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// TestPromises holds the store to what the simulation's stand-in promises.
func TestPromises(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.World {
		db := pgtest.New(t)
		return &world{Store: store.New(db.Pool, db.Slot, 0), t: t, db: db}
	})
}

// A world is a store over PostgreSQL.
type world struct {
	*store.Store
	t  *testing.T
	db *pgtest.DB
}

func (w *world) NewEndpoint(organization string) uuid.UUID {
	return uuid.MustParse(newEndpoint(w.t, w.db.Pool, organization, "*", "webhook.*"))
}

func (w *world) Enable(endpoint uuid.UUID, enabled bool) {
	exec(w.t, w.db.Pool, `UPDATE webhook_endpoints SET enabled = $2 WHERE id = $1`, endpoint, enabled)
}

func (w *world) Delete(endpoint uuid.UUID) {
	exec(w.t, w.db.Pool, `DELETE FROM webhook_endpoints WHERE id = $1`, endpoint)
}

func (w *world) Erase(organization string) {
	w.t.Helper()
	if left := query[int](w.t, w.db.Pool, `SELECT webhook_forget($1)`, organization); left == 0 {
		w.t.Error("nothing is left, though deliveries had no row yet")
	}
}

func (w *world) GiveAgain(endpoint uuid.UUID, organization string) {
	tx := begin(w.t, w.db.Pool)
	exec(w.t, tx, `SET LOCAL session_replication_role = replica`) // a restore that goes past triggers
	exec(w.t, tx, `DELETE FROM webhook_endpoints WHERE id = $1`, endpoint)
	exec(w.t, tx, `INSERT INTO webhook_endpoints (id, organization_id, url) VALUES ($1, $2, 'https://example.org/')`, endpoint, organization)
	w.commit(tx)
}

func (w *world) ForAll(endpoint uuid.UUID, forAll bool) {
	exec(w.t, w.db.Pool, `UPDATE webhook_endpoints SET all_organizations = $2 WHERE id = $1`, endpoint, forAll)
}

func (w *world) commit(tx pgx.Tx) {
	w.t.Helper()
	if err := tx.Commit(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) Begin(e outbox.Event) (commit func()) {
	tx := begin(w.t, w.db.Pool)
	if _, err := outbox.Enqueue(w.t.Context(), tx, e); err != nil {
		w.t.Fatal(err)
	}
	return func() { w.commit(tx) }
}

func (w *world) Forget(event uuid.UUID) {
	exec(w.t, w.db.Pool, `DELETE FROM webhook_outbox WHERE id = $1`, event)
}

func (w *world) Say(delivery uuid.UUID, status webhook.Status, due time.Time) {
	var at *time.Time
	if !due.IsZero() {
		at = &due
	}
	exec(w.t, w.db.Pool, `UPDATE webhook_deliveries SET status = $2, next_attempt_at = $3 WHERE id = $1`, delivery, string(status), at)
}

func (w *world) Lock(delivery uuid.UUID) (release func()) {
	tx := begin(w.t, w.db.Pool)
	exec(w.t, tx, `SELECT FROM webhook_deliveries WHERE id = $1 FOR UPDATE`, delivery)
	return func() { w.commit(tx) }
}

func (w *world) Row(delivery uuid.UUID) (line storetest.Line, found bool) {
	w.t.Helper()
	rows, err := w.db.Pool.Query(w.t.Context(), `SELECT status, attempts, series_start, coalesce(next_attempt_at, 'epoch') FROM webhook_deliveries WHERE id = $1`, delivery)
	if err != nil {
		w.t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowToStructByPos[storetest.Line])
	if err != nil {
		w.t.Fatal(err)
	}
	if len(lines) == 0 {
		return line, false
	}
	return lines[0], true
}

func (w *world) Position() (pglogrepl.LSN, time.Time) {
	w.t.Helper()
	state, err := w.State(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return state.DurableLSN, state.DurableAt
}

// Listen makes a slot, as whose stream pgoutput has the messages of the transactions
// that commit.
func (w *world) Listen() func() []string {
	w.t.Helper()
	exec(w.t, w.db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, w.db.Slot)
	return func() (echoes []string) {
		w.t.Helper()
		for _, data := range column[[]byte](w.t, w.db.Pool, `SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'walhook', 'messages', 'true')`, w.db.Slot) {
			message, err := pglogrepl.Parse(data)
			if err != nil {
				w.t.Fatal(err)
			}
			if m, ok := message.(*pglogrepl.LogicalDecodingMessage); ok && m.Prefix == webhook.MessagePrefix && string(m.Content) != webhook.ChangeHint {
				echoes = append(echoes, string(m.Content))
			}
		}
		return echoes
	}
}

func (w *world) OwnEvents(eventType string) int {
	w.t.Helper()
	return query[int](w.t, w.db.Pool, `SELECT count(*) FROM webhook_outbox WHERE event_type = $1`, eventType)
}
