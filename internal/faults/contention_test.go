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

	"github.com/walhook/walhook/internal/oracle"
	"github.com/walhook/walhook/outbox"
)

func deadlocks(t *testing.T, s Setup)      { contended(t, s, pgx.ReadCommitted) }
func repeatableRead(t *testing.T, s Setup) { contended(t, s, pgx.RepeatableRead) }
func serializable(t *testing.T, s Setup)   { contended(t, s, pgx.Serializable) }

// contended has operators lock and change deliveries in every order. They and walhook's
// role have an isolation level. Events of an organization whose rows the operators leave
// alone must not be slowed down.
func contended(t *testing.T, s Setup, isolation pgx.TxIsoLevel) {
	s.Role = true
	s.Endpoints = append(threeEndpoints(), oracle.Endpoint{Org: fresh, Types: []string{"*"}})
	x := newTrial(t, s)
	x.exec(fmt.Sprintf(`ALTER ROLE %s SET default_transaction_isolation = '%s'`, roleName, isolation))
	x.exec(`ALTER SYSTEM SET deadlock_timeout = '50ms'`)
	x.exec(`SELECT pg_reload_conf()`)
	p := x.start()
	x.streams(p) // events before that would wait for the start
	w := x.watchFresh()
	o := newOperators(t, x, isolation)
	x.driver.orgs = []string{"org_1"}
	<-x.drive(Load{Rate: *rate, Duration: lasting(20 * time.Second)})
	o.end()
	recorded := w.end(time.Time{}, 0)
	x.expect(o.deadlocks > 0, "no deadlock in %d transactions", o.transactions)
	x.expect(isolation == pgx.ReadCommitted || o.serialization > 0, "no serialization failure in %d transactions", o.transactions)
	for _, err := range o.problems[:min(1, len(o.problems))] {
		x.expect(false, "%d of an operator's statements failed: %v", len(o.problems), err)
	}
	x.finish(time.Minute, fmt.Sprintf("operators' transactions=%d deadlocks=%d not serializable=%d; %s; log: %d warnings", o.transactions, o.deadlocks,
		o.serialization, recorded, p.logged("level=WARN")))
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

// transact runs one transaction, and counts how it ended.
func (o *Operators) transact(ctx context.Context, work func(context.Context, pgx.Tx) error) {
	const pause = 20 * time.Millisecond // between two transactions, so that walhook gets a turn
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

// lockSome locks recent deliveries one after the other, in random order.
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

// changeMany changes half of the recent deliveries, and waits before it commits.
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

// A Watch measures how long after the commit, and after the request, the outcomes of fresh
// events are recorded. So it finds a stall of the stream, of sending, and of recording.
type Watch struct {
	trial    *Trial
	endpoint int
	stop     func()
	seen     map[uuid.UUID]bool    // events
	waiting  map[uuid.UUID]*record // deliveries
	done     []*record
	requests map[uuid.UUID]time.Time // the first of each delivery
	looked   int                     // how many of the journal's requests are in requests
	err      error
}

// A record is the times of a delivery: before its event's commit, at its first request,
// and when its row was seen to have an outcome.
type record struct{ committed, requested, recorded time.Time }

// watchFresh commits fresh events until it is ended, and watches their outcomes.
func (x *Trial) watchFresh() *Watch {
	const perSecond, lookEvery = 20, 50 * time.Millisecond
	w := &Watch{trial: x, seen: map[uuid.UUID]bool{}, waiting: map[uuid.UUID]*record{}, requests: map[uuid.UUID]time.Time{}}
	w.endpoint = slices.IndexFunc(x.endpoints, func(e oracle.Endpoint) bool { return e.Org == fresh })
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

// end expects that every outcome was recorded within a second of the commit. Events just
// after a huge transaction may wait longer for their request, because PostgreSQL sends
// nothing while it decodes that; but not for their record. end returns the median and the
// slowest.
func (w *Watch) end(huge time.Time, decodes time.Duration) string {
	const stallAtMost, before = time.Second, time.Second
	w.stop()
	x := w.trial
	x.Helper()
	x.expect(w.err == nil, "%v", w.err)
	now := time.Now()
	for _, r := range w.waiting {
		r.recorded = now
		w.done = append(w.done, r)
	}
	var took, behind, recording latencies
	for _, r := range w.done {
		if after := r.committed.Sub(huge); -before < after && after < decodes {
			behind = append(behind, r.recorded.Sub(r.committed))
		} else {
			took = append(took, r.recorded.Sub(r.committed))
		}
		if !r.requested.IsZero() {
			recording = append(recording, r.recorded.Sub(r.requested))
		}
	}
	for _, l := range []latencies{took, behind, recording} {
		slices.Sort(l)
	}
	x.expect(len(took) > 0 && len(recording) > 0, "no fresh event was recorded")
	x.expect(took.at(1) <= stallAtMost, "a fresh event was recorded only %s after its commit", took.at(1))
	x.expect(recording.at(1) <= stallAtMost, "a fresh event was recorded only %s after its request", recording.at(1))
	x.expect(behind.at(1) <= decodes+stallAtMost, "behind a huge transaction, a fresh event was recorded only %s after its commit", behind.at(1))
	text := fmt.Sprintf("fresh=%d recorded %s after the commit, within %s, and within %s of the request", len(w.done), took.at(0.5).Round(time.Millisecond),
		took.at(1).Round(time.Millisecond), recording.at(1).Round(time.Millisecond))
	if !huge.IsZero() {
		text += fmt.Sprintf("; behind the transaction within %s", behind.at(1).Round(time.Millisecond))
	}
	return text
}

// look notes the events and requests since the last time, and moves the recorded ones to
// done.
func (w *Watch) look(ctx context.Context) {
	for _, e := range w.trial.journal.TakeOf(fresh, w.seen) {
		w.waiting[outbox.DeliveryID(e.ID, w.trial.endpoints[w.endpoint].ID)] = &record{committed: e.Began}
	}
	requests := w.trial.journal.Since(w.looked)
	w.looked += len(requests)
	for _, r := range requests {
		if r.Endpoint == w.endpoint && r.Retry == 0 {
			w.requests[r.Delivery] = r.At
		}
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
		r := w.waiting[id]
		r.requested, r.recorded = w.requests[id], time.Now()
		w.done = append(w.done, r)
		delete(w.waiting, id)
	}
}

// A history is deliveries of earlier days. Their events are owed to nobody, so that the
// stream brings nothing.
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

// decodesOne bounds the time in which PostgreSQL decodes one row of a transaction, even if
// nobody subscribes to it: five times what was measured.
const decodesOne = 5 * time.Microsecond

// massReplay replays a million deliveries by one UPDATE. The endpoints answer at once.
func massReplay(t *testing.T, s Setup) {
	s.Endpoints = []oracle.Endpoint{{Org: fresh, Types: []string{"*"}}}
	x, y := newCrowd(t, s, false)
	const perStatement = 20_000
	for first := 0; first < *many; first += perStatement {
		x.exec(insertHistory, crowd, padding, first, min(first+perStatement, *many))
	}
	x.exec(`VACUUM ANALYZE webhook_outbox, webhook_deliveries`)
	x.exec(`SELECT pg_drop_replication_slot($1)`, slotName) // or it would stream the history
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
	committed := time.Now()
	updated := committed.Sub(began)
	var pace []string
	for _, percent := range []int{10, 25, 50, 75, 100} {
		x.eventually(passWithin(), "the replayed deliveries have arrived", func() bool { return len(y.counts)-y.lost() >= *many/100*percent })
		pace = append(pace, fmt.Sprintf("%d%%:%.1fs", percent, (time.Since(began)-updated).Seconds()))
	}
	recorded := w.end(committed, time.Duration(*many)*decodesOne)
	x.drain(time.Minute)
	y.judge(x)
	x.finish(time.Minute, fmt.Sprintf("many=%d update=%.1fs came=%v duplicates=%d; %s", *many, updated.Seconds(), pace, y.beyond.Load(), recorded))
}
