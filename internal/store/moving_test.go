package store_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// The hands by which rows of a past day come out of the DEFAULT partitions.
var movers = map[string]func(t *testing.T, tx pgx.Tx, table string, at time.Time){
	"the upkeep": func(t *testing.T, tx pgx.Tx, table string, at time.Time) {
		exec(t, tx, `SELECT webhook_add_partition($1, $2)`, table, at.Truncate(day))
	},
	"a DBA": func(t *testing.T, tx pgx.Tx, table string, at time.Time) {
		low := at.Truncate(day)
		from, to := outbox.TimeID(low), outbox.TimeID(low.Add(day))
		exec(t, tx, fmt.Sprintf(`CREATE TABLE %s_by_hand (LIKE %[1]s INCLUDING ALL)`, table))
		exec(t, tx, fmt.Sprintf(`WITH rows AS (DELETE FROM %s_default WHERE id >= $1 AND id < $2 RETURNING *) INSERT INTO %[1]s_by_hand SELECT * FROM rows`, table), from, to)
		exec(t, tx, fmt.Sprintf(`ALTER TABLE %s ATTACH PARTITION %[1]s_by_hand FOR VALUES FROM ('%s') TO ('%s')`, table, from, to))
	},
}

// Whoever looks while rows are moved into another partition waits, and sees them.
func TestRowsOnTheMove(t *testing.T) {
	t.Parallel()
	const rows = 20
	at := time.Now().Add(-5 * day).UTC().Truncate(day).Add(12 * time.Hour)
	for mover, move := range movers {
		for what, c := range map[string]struct {
			table string
			run   func(*pgtest.DB, *store.Store, webhook.Fence, []webhook.Record) (any, error)
			want  any
		}{
			"existing": {"webhook_deliveries", func(_ *pgtest.DB, s *store.Store, _ webhook.Fence, rs []webhook.Record) (any, error) {
				known := map[uuid.UUID]bool{}
				err := s.Existing(t.Context(), idsOf(rs), known)
				return len(known), err
			}, rows},
			"missing": {"webhook_outbox", func(_ *pgtest.DB, s *store.Store, _ webhook.Fence, _ []webhook.Record) (any, error) {
				c, err := s.Missing(t.Context(), store.Position{Event: outbox.TimeID(at.Add(-time.Hour))}, uuid.Max, 1000)
				return c.Events, err
			}, rows},
			"cancel orphans": {"webhook_outbox", func(_ *pgtest.DB, s *store.Store, f webhook.Fence, rs []webhook.Record) (any, error) {
				return nil, s.CancelOrphans(t.Context(), f, idsOf(rs))
			}, nil},
			"update": {"webhook_deliveries", func(db *pgtest.DB, s *store.Store, f webhook.Fence, rs []webhook.Record) (any, error) {
				// Its rows are there: what it has not applied is locked, and not gone.
				for i := range rs {
					rs[i] = outcome(rs[i], webhook.Retrying, 1, 500)
				}
				locked, _, err := s.Update(t.Context(), f, webhook.Mark{}, rs)
				return len(locked) + query[int](t, db.Pool, `SELECT count(*) FROM webhook_deliveries WHERE status = 'retrying'`), err
			}, rows},
		} {
			t.Run(what+" beside "+mover, func(t *testing.T) {
				t.Parallel()
				db := pgtest.New(t)
				st, fence := acquired(t, db)
				rs := owedOf(t, db, newEndpoint(t, db.Pool, "org_1"), rows, "payment.failed", time.Since(at))
				for i := range rs {
					rs[i].Status, rs[i].Wait = webhook.Pending, -time.Minute
				}
				insert(t, st, fence, rs...)
				settled(t, db)
				tx := begin(t, db.Pool)
				move(t, tx, c.table, at)
				var got any
				done := make(chan error)
				fresh := store.New(newPool(t, db, func(*pgxpool.Config) {}), db.Slot, disableAfter) // whose statements are planned now
				go func() {
					var err error
					got, err = c.run(db, fresh, fence, slices.Clone(rs))
					done <- err
				}()
				pgtest.Eventually(t, 10*time.Second, "it waits for the move", func() bool {
					return query[bool](t, db.Pool, `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`)
				})
				if err := tx.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := <-done; err != nil || got != c.want {
					t.Errorf("%v, %v, want %v", got, err, c.want)
				}
				if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_deliveries WHERE status = 'cancelled'`); n != 0 {
					t.Errorf("%d deliveries were cancelled, whose events are there", n)
				}
			})
		}
	}
}

func idsOf(rs []webhook.Record) (ids []uuid.UUID) {
	for _, r := range rs {
		ids = append(ids, r.ID)
	}
	return ids
}

// An INSERT that comes while the upkeep moves rows of its day waits for the end of that.
func TestNoInsertFailsBesideTheUpkeep(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	at := time.Now().Add(-5 * day).UTC().Truncate(day).Add(12 * time.Hour)
	newEvent := func() error {
		_, err := db.Pool.Exec(t.Context(), `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, 'org_1', 'payment.failed', '{}')`,
			outbox.DeliveryID(outbox.TimeID(at), uuid.New()))
		return err
	}
	if err := newEvent(); err != nil {
		t.Fatal(err)
	}
	tx := begin(t, db.Pool)
	movers["the upkeep"](t, tx, "webhook_outbox", at)
	done := make(chan error)
	go func() { done <- newEvent() }()
	pgtest.Eventually(t, 10*time.Second, "the INSERT waits", func() bool {
		return query[bool](t, db.Pool, `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`)
	})
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_outbox WHERE tableoid <> 'webhook_outbox_default'::regclass`); n != 2 {
		t.Errorf("%d events are in the partition of their day, want 2", n)
	}
}
