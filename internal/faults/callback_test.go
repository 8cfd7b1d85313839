package faults

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/walhook/walhook/internal/oracle"
)

// callingBack has receivers use the database before they answer: they read the event and
// the delivery of the request, lock rows, and replay the delivery.
func callingBack(t *testing.T, s Setup) {
	x := newTrial(t, s)
	x.set("max_slot_wal_keep_size", "10GB") // or the preflight warns
	c := newCallbacks(t, x)
	x.replays = c.replayed
	x.receiver.does(c.call)
	p := x.start()
	x.ready()
	const calm = 3 // times less load: with more, the receivers mostly wait for each other's locks
	<-x.drive(Load{Rate: *rate / calm, Duration: lasting(20 * time.Second)})
	x.drain(time.Minute)
	for _, level := range []string{"level=WARN", "level=ERROR"} {
		lines := p.logged(level)
		x.expect(lines == 0, "%d lines of the log are %s", lines, level)
	}
	x.finish(time.Minute, c.judge(x))
}

// Callbacks is what receivers do before they answer.
type Callbacks struct {
	pool *pgxpool.Pool

	mu       sync.Mutex
	held     sync.WaitGroup // locks that outlive the answer
	calls    int
	unseen   int           // events that were not visible at first
	hidden   time.Duration // the longest time until one was visible
	slowest  time.Duration // of the calls
	problems []string
	replays  map[uuid.UUID]int
}

func newCallbacks(t *testing.T, x *Trial) *Callbacks {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), x.url()+"&pool_max_conns=24&application_name=receiver&lock_timeout=3s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return &Callbacks{pool: pool, replays: map[uuid.UUID]int{}}
}

// judge notes what went wrong, and returns the figures.
func (c *Callbacks) judge(x *Trial) string {
	c.held.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	x.expect(c.calls > 0, "nobody called back")
	if len(c.problems) > 0 {
		x.expect(false, "%d of %d calls failed: %s", len(c.problems), c.calls, c.problems[0])
	}
	return fmt.Sprintf("calls=%d slowest=%s not visible at once=%d, for at most %s", c.calls, c.slowest.Round(time.Millisecond), c.unseen, c.hidden.Round(10*time.Microsecond))
}

// call is called for a request before it is answered.
func (c *Callbacks) call(r *oracle.Request) {
	const callWithin = 4 * time.Second // or the attempt times out
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	began := time.Now()
	looks, err := c.see(ctx, r)
	hidden := time.Since(began)
	if err == nil {
		err = c.use(ctx, r)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	c.slowest = max(c.slowest, time.Since(began))
	if looks > 1 {
		c.unseen++
		c.hidden = max(c.hidden, hidden)
	}
	if err != nil {
		c.problems = append(c.problems, err.Error())
	}
}

// see waits until the event is visible. PostgreSQL streams a commit when it is in the WAL,
// and shows it to other sessions a moment later: a receiver as near as this one may query
// in between.
func (c *Callbacks) see(ctx context.Context, r *oracle.Request) (looks int, err error) {
	const again, visibleWithin = 200 * time.Microsecond, time.Second
	for began := time.Now(); ; time.Sleep(again) {
		looks++
		var seen bool
		err := c.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM webhook_outbox WHERE id = $1)`, r.Event).Scan(&seen)
		switch {
		case err != nil:
			return looks, fmt.Errorf("look for event %s: %w", r.Event, err)
		case seen:
			return looks, nil
		case time.Since(began) > visibleWithin:
			return looks, fmt.Errorf("event %s is not visible after %s", r.Event, visibleWithin)
		}
	}
}

// The receivers lock the latest rows of an organization, all in the same order.
const lockOrganization = `
SELECT id FROM webhook_deliveries WHERE organization_id = (SELECT organization_id FROM webhook_outbox WHERE id = $1) AND id >= webhook_uuid_at(now() - interval '2 seconds')
ORDER BY id FOR UPDATE`

// use does one of the things that a receiver might do.
func (c *Callbacks) use(ctx context.Context, r *oracle.Request) error {
	const kinds, statsEvery = 6, 64
	switch r.N % kinds {
	case 0:
		return c.replay(ctx, r)
	case 1:
		return c.explain(ctx, r)
	case 2:
		return c.exec(ctx, lockOrganization, r.Event)
	case 3:
		return c.exec(ctx, `SELECT FROM webhook_endpoints e JOIN webhook_outbox o USING (organization_id) WHERE o.id = $1 FOR UPDATE OF e`, r.Event)
	case 4:
		return c.answerFirst(ctx, r)
	}
	if r.N%statsEvery < kinds { // not more often: it reads all of an organization's day
		return c.exec(ctx, `SELECT webhook_stats(organization_id) FROM webhook_outbox WHERE id = $1`, r.Event)
	}
	return c.exec(ctx, `SELECT * FROM webhook_attempts WHERE delivery_id = $1`, r.Delivery)
}

func (c *Callbacks) exec(ctx context.Context, sql string, id any) error {
	if _, err := c.pool.Exec(ctx, sql, id); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

// replay replays the delivery that is under way. It does so once, because the replayed
// delivery comes here again.
func (c *Callbacks) replay(ctx context.Context, r *oracle.Request) error {
	c.mu.Lock()
	before := c.replays[r.Delivery]
	c.mu.Unlock()
	if before > 0 {
		return nil
	}
	var there bool
	if err := c.pool.QueryRow(ctx, `SELECT webhook_replay($1)`, r.Delivery).Scan(&there); err != nil {
		return fmt.Errorf("replay delivery %s: %w", r.Delivery, err)
	}
	if there {
		c.mu.Lock()
		c.replays[r.Delivery]++
		c.mu.Unlock()
	}
	return nil
}

// replayed returns how often each delivery was replayed that had a row.
func (c *Callbacks) replayed() map[uuid.UUID]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.replays)
}

// explain expects that webhook_explain calls the request's delivery owed.
func (c *Callbacks) explain(ctx context.Context, r *oracle.Request) error {
	var reason string
	err := c.pool.QueryRow(ctx, `SELECT reason FROM webhook_explain($1) WHERE delivery_id = $2`, r.Event, r.Delivery).Scan(&reason)
	if err != nil || !strings.HasPrefix(reason, "owed: ") {
		return fmt.Errorf("webhook_explain says %q of delivery %s: %w", reason, r.Delivery, err)
	}
	return nil
}

// answerFirst locks the delivery's row, if there is one, until after the answer.
func (c *Callbacks) answerFirst(ctx context.Context, r *oracle.Request) error {
	const beyond = 300 * time.Millisecond
	tx, err := c.pool.Begin(ctx)
	if err != nil {
		return err
	}
	rows, err := tx.Query(ctx, `SELECT id FROM webhook_deliveries WHERE id = $1 FOR UPDATE`, r.Delivery)
	if err == nil {
		_, err = pgx.CollectRows(rows, pgx.RowTo[[16]byte])
	}
	if err != nil {
		_ = tx.Rollback(ctx)
		return fmt.Errorf("lock delivery %s: %w", r.Delivery, err)
	}
	const holdAtMost = 4 // the share of connections that may hold locks is a quarter: the answers need the others
	if int(c.pool.Stat().AcquiredConns()) > int(c.pool.Config().MaxConns)/holdAtMost {
		return tx.Commit(ctx)
	}
	c.held.Go(func() {
		time.Sleep(beyond)
		_ = tx.Commit(context.WithoutCancel(ctx))
	})
	return nil
}
