package store_test

import (
	"math/rand/v2"
	"slices"
	"sync"
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

// While somebody has the table locked, no statement waits for longer than the
// lock timeout, nor does it keep the state row from others for longer.
func TestLockedTable(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool := newPool(t, db, func(c *pgxpool.Config) { c.MaxConns = 1 })
	st := store.New(pool, db.Slot, disableAfter)
	everyStatement(t, db, st) // prepares them all
	fence := acquire(t, st)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	rs := owed(t, db, endpoint, 2)
	rs[0], rs[1] = outcome(rs[0], webhook.Retrying, 1, 500), outcome(rs[1], webhook.Success, 1, 200)
	insert(t, st, fence, rs[0])

	tx := begin(t, db.Pool)
	exec(t, tx, `LOCK TABLE webhook_deliveries`)
	for what, run := range map[string]func() error{
		"insert": func() error {
			_, err := st.Insert(t.Context(), fence, webhook.Mark{Seq: 2, Durable: 99}, rs[1:])
			return err
		},
		"update": func() error {
			_, _, err := st.Update(t.Context(), fence, webhook.Mark{}, rs[:1])
			return err
		},
		"due": func() error {
			return st.Due(t.Context(), []webhook.Page{{EndpointID: rs[0].EndpointID, Limit: 1}}, func(*webhook.Due) {})
		},
		"existing": func() error { return st.Existing(t.Context(), []uuid.UUID{rs[0].ID}, map[uuid.UUID]bool{}) },
		"newly due": func() error {
			_, _, _, err := st.NewlyDue(t.Context(), time.Now())
			return err
		},
		"waiting": func() error {
			_, err := st.Waiting(t.Context(), uuid.Nil, 1)
			return err
		},
		"cancel rows": func() error {
			_, _, err := st.CancelRows(t.Context(), fence, rs[0].EndpointID, "x")
			return err
		},
		"cancel orphans": func() error { return st.CancelOrphans(t.Context(), fence, []uuid.UUID{rs[0].ID}) },
		"missing": func() error {
			_, err := st.Missing(t.Context(), store.Position{Event: outbox.TimeID(time.Now().Add(-time.Hour))}, outbox.TimeID(time.Now().Add(time.Hour)), 10)
			return err
		},
	} {
		began := time.Now()
		err := run()
		if !isBusy(err) {
			t.Errorf("%s: %v, want lock_not_available", what, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s waited %s", what, took)
		}
	}
	for what, run := range map[string]func() error{ // these go on
		"mark": func() error { return st.Mark(t.Context(), fence, webhook.Mark{Seq: 3}) },
		"endpoints": func() error {
			_, err := st.Endpoints(t.Context(), []uuid.UUID{rs[0].EndpointID})
			return err
		},
		"check the schema": func() error { return st.CheckSchema(t.Context()) },
	} {
		if err := run(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if state, err := st.State(t.Context()); err != nil || state.DurableLSN == 99 {
		t.Errorf("durable %s, %v: the position of a batch that was not written", state.DurableLSN, err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	insert(t, st, fence, rs[1])
}

// Everybody at once: the recorder's two kinds of batches, the sweep, the
// reconciler, sealing and the upkeep; operators who update the same rows in
// whatever order, and who call the functions; and the application's INSERTs.
func TestNoDeadlocks(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool := newPool(t, db, func(c *pgxpool.Config) { c.MaxConns = 12 })
	st := store.New(pool, db.Slot, disableAfter)
	sealer, err := store.NewSealer(make([]byte, 32), nil)
	if err != nil {
		t.Fatal(err)
	}
	st.Sealing(sealer)
	fence := acquire(t, st)
	a, b := newEndpoint(t, db.Pool, "org_1", "*", "webhook.*"), newEndpoint(t, db.Pool, "org_1", "*", "webhook.*")
	rs := slices.Concat(owed(t, db, a, 200), owed(t, db, b, 200))
	for i := range rs {
		rs[i] = outcome(rs[i], webhook.Retrying, 1, 500)
	}
	insert(t, st, fence, rs...)
	const rounds = 25
	shuffled := func(attempts int) []webhook.Record {
		batch := slices.Clone(rs)
		rand.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
		for i := range batch {
			batch[i] = outcome(batch[i], webhook.Failed, attempts, 500)
			batch[i].Exhausted = i%50 == 0
			batch[i].Gone = rand.N(5) == 0
		}
		return batch
	}
	randomHealth := func() []webhook.EndpointHealth {
		health := make([]webhook.EndpointHealth, 2)
		for i, endpoint := range []uuid.UUID{rs[0].EndpointID, rs[200].EndpointID} {
			health[i] = webhook.EndpointHealth{EndpointID: endpoint, Recovered: rand.N(2) == 0, Failing: rand.N(2) == 0, Open: rand.N(2) == 0, CheckDisable: rand.N(2) == 0, At: time.Now()}
		}
		rand.Shuffle(2, func(i, j int) { health[i], health[j] = health[j], health[i] })
		return health
	}
	var wg sync.WaitGroup
	run := func(what string, once func(round int) error) {
		wg.Go(func() {
			for round := range rounds {
				if err := once(round); err != nil {
					t.Errorf("%s: %v", what, err)
					return
				}
			}
		})
	}
	run("update", func(round int) error {
		_, _, err := st.Update(t.Context(), fence, webhook.Mark{Seq: 1, Health: randomHealth()}, shuffled(round+2))
		return err
	})
	run("insert", func(round int) error {
		_, err := st.Insert(t.Context(), fence, webhook.Mark{Seq: 1, Health: randomHealth()}, shuffled(round+2))
		return err
	})
	run("cancel", func(round int) error {
		_, _, err := st.CancelRows(t.Context(), fence, rs[round%2*200].EndpointID, "x")
		return err
	})
	run("orphans", func(round int) error {
		return st.CancelOrphans(t.Context(), fence, []uuid.UUID{rs[round].ID, rs[399-round].ID})
	})
	for _, order := range []string{"id", "id DESC"} { // an operator's are allowed to wait for each other, and so to deadlock
		run("operator", func(int) error {
			_, err := pool.Exec(t.Context(), `WITH o AS (SELECT id FROM webhook_deliveries ORDER BY `+order+` FOR UPDATE SKIP LOCKED)
				UPDATE webhook_deliveries d SET status = 'pending', next_attempt_at = now() FROM o WHERE d.id = o.id`)
			return err
		})
	}
	unlessBusy := func(err error) error { // these give way, and are tried again
		if isBusy(err) {
			return nil
		}
		return err
	}
	run("sealing", func(int) error {
		_, err := st.SealAll(t.Context())
		return unlessBusy(err)
	})
	call := func(isolation pgx.TxIsoLevel, sql string) func(round int) error {
		return func(round int) error {
			return pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: isolation}, func(tx pgx.Tx) error {
				_, err := tx.Exec(t.Context(), sql, rs[round%2*200].EndpointID)
				return err
			})
		}
	}
	twice := func(what string, once func(round int) error) { // so with itself too
		run(what, once)
		run(what, once)
	}
	for _, sql := range []string{
		`UPDATE webhook_endpoints SET enabled = true WHERE id = $1`,
		`SELECT webhook_pause($1)`,
		`SELECT webhook_resume($1)`,
		`SELECT webhook_retry_now($1)`,
		`SELECT webhook_rotate_secret($1)`,
		`SELECT webhook_set_secret($1, 'a secret of its own', '1 hour')`,
		`SELECT webhook_send_test($1)`,
		`SELECT webhook_create_endpoint('org_2', 'https://example.com') WHERE $1::uuid IS NOT NULL`,
		`DELETE FROM webhook_endpoints WHERE organization_id = 'org_2' AND id <> $1 AND id IN (SELECT id FROM webhook_endpoints ORDER BY id FOR UPDATE SKIP LOCKED)`,
		`SELECT webhook_forget('org_2') WHERE $1::uuid IS NOT NULL`,
		`INSERT INTO webhook_event_types (name, category) SELECT 'made.by.two', 'made' WHERE $1::uuid IS NOT NULL ON CONFLICT DO NOTHING`,
	} {
		twice(sql, call(pgx.ReadCommitted, sql))
	}
	for _, sql := range []string{
		`SELECT webhook_add_partition('webhook_outbox', (now() AT TIME ZONE 'UTC')::date - 40) WHERE $1::uuid IS NOT NULL`,
		`SELECT webhook_add_partition('webhook_deliveries', (now() AT TIME ZONE 'UTC')::date - 40) WHERE $1::uuid IS NOT NULL`,
		`SELECT webhook_delete_old(now() - interval '30 days', 100) WHERE $1::uuid IS NOT NULL`,
		`SELECT webhook_drop_day((now() AT TIME ZONE 'UTC')::date - 40) WHERE $1::uuid IS NOT NULL`,
	} {
		once := call(pgx.ReadCommitted, sql)
		twice(sql, func(round int) error { return unlessBusy(once(round)) })
	}
	for _, isolation := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		twice("INSERT, "+string(isolation), call(isolation, `INSERT INTO webhook_outbox (organization_id, event_type, payload)
			SELECT o, 'payment.failed', '{}' FROM (VALUES ('org_1'), ('org_2')) AS v(o) WHERE $1::uuid IS NOT NULL`))
	}
	wg.Wait()

	if crowded := query[int](t, db.Pool, `SELECT count(*) FROM (SELECT FROM webhook_secrets WHERE expires_at IS NULL OR expires_at > now()
		GROUP BY endpoint_id HAVING count(*) > 2 OR count(*) FILTER (WHERE expires_at IS NULL) <> 1) AS c`); crowded != 0 {
		t.Errorf("%d endpoints have other secrets than a new one and the one before", crowded)
	}
	pgtest.Eventually(t, 30*time.Second, "org_2 is erased", func() bool {
		return query[int](t, db.Pool, `SELECT webhook_forget('org_2')`) == 0
	})
	if left := query[int](t, db.Pool, `SELECT (SELECT count(*) FROM webhook_outbox WHERE organization_id = 'org_2') + (SELECT count(*) FROM webhook_endpoints WHERE organization_id = 'org_2')`); left != 0 {
		t.Errorf("%d events and endpoints of an organization that is erased are left", left)
	}
}
