package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/outbox"
)

func deadlocks(t *testing.T, s Setup)      { contended(t, s, pgx.ReadCommitted) }
func repeatableRead(t *testing.T, s Setup) { contended(t, s, pgx.RepeatableRead) }
func serializable(t *testing.T, s Setup)   { contended(t, s, pgx.Serializable) }

// contended has operators lock and change deliveries in every order, and keeps
// walhook's role and them at an isolation level. Events of an organization whose
// rows they leave alone must not feel it.
func contended(t *testing.T, s Setup, isolation pgx.TxIsoLevel) {
	s.Role = true
	s.Endpoints = append(threeEndpoints(), Endpoint{Org: fresh, Types: []string{"*"}})
	x := newTrial(t, s)
	x.exec(fmt.Sprintf(`ALTER ROLE %s SET default_transaction_isolation = '%s'`, roleName, isolation))
	x.exec(`ALTER SYSTEM SET deadlock_timeout = '50ms'`)
	x.exec(`SELECT pg_reload_conf()`)
	p := x.start()
	x.streams(p) // what is committed before waits for the start
	w := x.watchFresh()
	o := newOperators(t, x, isolation)
	x.driver.orgs = []string{"org_1"}
	<-x.drive(Load{Rate: *rate, Duration: lasting(20 * time.Second)})
	o.end()
	slowest := w.end()
	x.expect(o.deadlocks > 0, "there was no deadlock in %d transactions", o.transactions)
	x.expect(isolation == pgx.ReadCommitted || o.serialization > 0, "nothing could not be serialized in %d transactions", o.transactions)
	for _, err := range o.problems[:min(1, len(o.problems))] {
		x.expect(false, "%d of an operator's statements failed: %v", len(o.problems), err)
	}
	x.finish(time.Minute, fmt.Sprintf("operators' transactions=%d deadlocks=%d not serializable=%d; fresh=%d recorded after %s; log: %d warnings", o.transactions, o.deadlocks,
		o.serialization, len(w.took), slowest, p.logged("level=WARN")))
}

// Operators are people and scripts that work on the deliveries of one organization.
type Operators struct {
	trial     *Trial
	pool      *pgxpool.Pool
	isolation pgx.TxIsoLevel
	end       func()

	mu                                     sync.Mutex
	transactions, deadlocks, serialization int
	problems                               []error
}

func newOperators(t *testing.T, x *Trial, isolation pgx.TxIsoLevel) *Operators {
	t.Helper()
	const each = 3
	pool, err := pgxpool.New(t.Context(), x.url()+"&pool_max_conns=8&application_name=operator")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	o := &Operators{trial: x, pool: pool, isolation: isolation}
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for _, work := range []func(context.Context, pgx.Tx) error{lockSome, changeMany} {
		for range each {
			all.Go(func() {
				for ctx.Err() == nil {
					o.transact(ctx, work)
				}
			})
		}
	}
	o.end = func() {
		stop()
		all.Wait()
	}
	t.Cleanup(o.end)
	return o
}

// transact runs one transaction, and counts what it came to.
func (o *Operators) transact(ctx context.Context, work func(context.Context, pgx.Tx) error) {
	const pause = 20 * time.Millisecond // between two, for walhook's turn
	err := pgx.BeginTxFunc(ctx, o.pool, pgx.TxOptions{IsoLevel: o.isolation}, func(tx pgx.Tx) error { return work(ctx, tx) })
	time.Sleep(rand.N(pause))
	pg, _ := errors.AsType[*pgconn.PgError](err)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.transactions++
	switch {
	case err == nil || ctx.Err() != nil:
	case pg != nil && pg.Code == "40P01":
		o.deadlocks++
	case pg != nil && pg.Code == "40001":
		o.serialization++
	default:
		o.problems = append(o.problems, err)
	}
}

// lockSome locks deliveries of the last seconds one after the other, in random order.
func lockSome(ctx context.Context, tx pgx.Tx) error {
	const some = 30
	rows, err := tx.Query(ctx, `
SELECT id FROM (SELECT id FROM webhook_deliveries WHERE organization_id = 'org_1' ORDER BY id DESC LIMIT 1000) AS d ORDER BY random() LIMIT $1`, some)
	if err != nil {
		return err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := tx.Exec(ctx, `SELECT FROM webhook_deliveries WHERE id = $1 FOR UPDATE`, id); err != nil {
			return err
		}
		time.Sleep(rand.N(5 * time.Millisecond))
	}
	return nil
}

// changeMany changes half of the deliveries of the last seconds, and thinks about it.
func changeMany(ctx context.Context, tx pgx.Tx) error {
	const thinks = 300 * time.Millisecond
	_, err := tx.Exec(ctx, `
UPDATE webhook_deliveries SET event_type = event_type
WHERE organization_id = 'org_1' AND id >= webhook_uuid_at(now() - interval '5 seconds') AND random() < 0.5`)
	time.Sleep(rand.N(thinks))
	return err
}

// fresh is the organization of events whose rows nobody but walhook touches.
const fresh = "org_fresh"

// A Watch measures how long after their commit the outcomes of fresh events are
// recorded: so it sees a stall of the stream, of sending and of recording.
type Watch struct {
	trial    *Trial
	endpoint uuid.UUID
	stop     func()
	took     latencies
	seen     map[uuid.UUID]bool      // events
	waiting  map[uuid.UUID]time.Time // deliveries, and before when the commit was sent
	err      error
}

// watchFresh commits fresh events until its end, and looks for their outcomes.
func (x *Trial) watchFresh() *Watch {
	const perSecond, lookEvery = 20, 50 * time.Millisecond
	w := &Watch{trial: x, seen: map[uuid.UUID]bool{}, waiting: map[uuid.UUID]time.Time{}}
	w.endpoint = x.endpoints[slices.IndexFunc(x.endpoints, func(e Endpoint) bool { return e.Org == fresh })].ID
	driver := &Driver{journal: x.journal, pool: x.pool, orgs: []string{fresh}}
	ctx, stop := context.WithCancel(x.Context())
	var both sync.WaitGroup
	both.Go(func() { driver.drive(ctx, Load{Rate: perSecond}) })
	both.Go(func() {
		ticker := time.NewTicker(lookEvery)
		defer ticker.Stop()
		for ; ctx.Err() == nil; <-ticker.C {
			w.look(ctx)
		}
	})
	w.stop = func() {
		stop()
		both.Wait()
	}
	x.Cleanup(w.stop)
	return w
}

// end expects that no outcome took longer than a second, the answer included, and
// tells how long the median and the slowest took.
func (w *Watch) end() string {
	const stallAtMost = time.Second
	w.stop()
	for _, since := range w.waiting {
		w.took = append(w.took, time.Since(since))
	}
	slices.Sort(w.took)
	slowest := w.took.at(1)
	w.trial.expect(w.err == nil, "%v", w.err)
	w.trial.expect(len(w.took) > len(w.waiting), "no fresh event was recorded")
	w.trial.expect(slowest <= stallAtMost, "a fresh event was recorded only %s after its commit", slowest)
	return fmt.Sprintf("%s, within %s", w.took.at(0.5).Round(time.Millisecond), slowest.Round(time.Millisecond))
}

// look notes what was committed since the last look, and takes off that whose
// outcome has its row.
func (w *Watch) look(ctx context.Context) {
	for _, e := range w.trial.journal.takeOf(fresh, w.seen) {
		w.waiting[outbox.DeliveryID(e.ID, w.endpoint)] = e.Began
	}
	ids := make([]uuid.UUID, 0, len(w.waiting))
	for id := range w.waiting {
		ids = append(ids, id)
	}
	rows, err := w.trial.pool.Query(ctx, `
SELECT d.id FROM unnest($1::uuid[]) AS r(id) CROSS JOIN LATERAL (SELECT id, attempts FROM webhook_deliveries WHERE id = r.id LIMIT 1) AS d WHERE d.attempts > 0`, ids)
	var recorded []uuid.UUID
	if err == nil {
		recorded, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	}
	if err != nil && ctx.Err() == nil {
		w.err = fmt.Errorf("look for outcomes: %w", err)
	}
	for _, id := range recorded {
		w.took = append(w.took, time.Since(w.waiting[id]))
		delete(w.waiting, id)
	}
}

// A history is deliveries of earlier days. Their events are owed to nobody, as far
// as the stream can tell: only the rows say otherwise.
const insertHistory = `
WITH events AS (
    INSERT INTO webhook_outbox (organization_id, event_type, payload, endpoint_ids)
    SELECT '` + tallied + `' || n % $1::int, 'payment.succeeded', jsonb_build_object('n', n, 'pad', $2::text), '{}'
    FROM generate_series($3::int, $4::int - 1) AS n
    RETURNING id, organization_id, event_type
)
INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, duration_ms, status_code, completed_at)
SELECT webhook_delivery_id(v.id, e.id), v.id, e.id, v.organization_id, v.event_type, 'success', 1, 10, 200, now()
FROM events AS v JOIN webhook_endpoints AS e USING (organization_id)`

const replayAll = `
UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now() WHERE starts_with(organization_id, '` + tallied + `')`

// massReplay replays a million deliveries by one UPDATE. The endpoints answer at once.
func massReplay(t *testing.T, s Setup) {
	s.Endpoints = []Endpoint{{Org: fresh, Types: []string{"*"}}}
	x, y := newCrowd(t, s, false)
	const perStatement = 20_000
	for first := 0; first < *many; first += perStatement {
		x.exec(insertHistory, crowd, padding, first, min(first+perStatement, *many))
	}
	x.exec(`VACUUM ANALYZE webhook_outbox, webhook_deliveries`)
	x.exec(`SELECT pg_drop_replication_slot($1)`, slotName) // or the history is streamed
	p := x.start()
	x.ready()
	x.eventually(time.Minute, "walhook has reconciled", func() bool {
		var done bool
		err := x.pool.QueryRow(t.Context(), `SELECT reconcile_from IS NULL FROM webhook_state`).Scan(&done)
		return err == nil && done
	})
	x.streams(p)
	w := x.watchFresh()
	began := time.Now()
	x.exec(replayAll)
	updated := time.Since(began)
	var pace []string
	for _, percent := range []int{10, 25, 50, 75, 100} {
		x.eventually(passWithin(), "the replayed have come", func() bool { return len(y.counts)-y.lost() >= *many/100*percent })
		pace = append(pace, fmt.Sprintf("%d%%:%.1fs", percent, (time.Since(began)-updated).Seconds()))
	}
	slowest := w.end()
	x.drain(time.Minute)
	y.judge(x)
	x.finish(time.Minute, fmt.Sprintf("many=%d update=%.1fs came=%v duplicates=%d; fresh=%d recorded after %s", *many, updated.Seconds(), pace, y.beyond.Load(),
		len(w.took), slowest))
}
