package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/oracle"
	"github.com/walhook/walhook/outbox"
)

// A Load describes what the driver does.
type Load struct {
	Rate     float64       // events per second, including those that are rolled back
	Duration time.Duration // 0: until the context ends
	Mixed    bool          // with COPY and two-phase commits
}

const (
	// writers bounds the concurrent transactions. At 500 events/s about one runs at a time.
	writers = 8

	// mostRows bounds the events of a transaction.
	mostRows = 5

	rollbackShare  = 0.1 // of the transactions
	savepointShare = 0.1 // have a savepoint that is rolled back
	copyShare      = 0.1 // use COPY in a mixed load
	preparedShare  = 0.2 // are committed in two phases in a mixed load

	// preparedFor bounds how long a transaction stays prepared.
	preparedFor = 500 * time.Millisecond

	// payloadBytes is the size of a payload.
	payloadBytes = 1024
)

// eventTypes are owed to three, two, two and one of threeEndpoints: two on average.
var eventTypes = []string{"payment.succeeded", "payment.failed", "subscription.created", "org.created"}

// padding fills a payload up to payloadBytes. It has characters that other encodings
// write in other bytes or do not have.
var padding = foreign + strings.Repeat("x", payloadBytes-len(foreign)-len(`{"n": 1000000, "pad": ""}`))

const foreign = "Zo\u00eb \u2603 \u65e5\u672c "

// A Driver is the application: it writes events in its own transactions, and notes in
// the journal how these ended.
type Driver struct {
	journal *oracle.Journal
	pool    *pgxpool.Pool
	orgs    []string
	numbers atomic.Int64
	age     time.Duration // how old the events' ids are at the insert
}

// drive runs a load until its end.
func (d *Driver) drive(ctx context.Context, load Load) {
	if load.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, load.Duration)
		defer cancel()
	}
	turns := make(chan struct{})
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range turns {
				d.transact(context.WithoutCancel(ctx), load)
			}
		})
	}
	const meanRows = float64(1+mostRows) / 2
	ticker := time.NewTicker(time.Duration(meanRows / load.Rate * float64(time.Second)))
	defer ticker.Stop()
	defer wg.Wait()
	defer close(turns)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		select {
		case <-ctx.Done():
			return
		case turns <- struct{}{}:
		}
	}
}

// transactWithin bounds a transaction. If the database is away, it fails sooner.
const transactWithin = 30 * time.Second

// transact runs one transaction of a random kind. Its error does not matter, because
// faults cause them: the journal has the events' fate.
func (d *Driver) transact(ctx context.Context, load Load) {
	ctx, cancel := context.WithTimeout(ctx, transactWithin)
	defer cancel()
	events := d.newEvents(1 + rand.N(mostRows))
	roll := rand.Float64()
	switch {
	case load.Mixed && roll < copyShare:
		_ = d.copy(ctx, events, rand.Float64() < rollbackShare)
	case load.Mixed && roll < copyShare+preparedShare:
		_ = d.twoPhases(ctx, events, rand.Float64() < 0.5)
	default:
		_ = d.insert(ctx, events)
	}
}

// newEvents makes events, and opens them in the journal.
func (d *Driver) newEvents(n int) []*oracle.Event {
	events := make([]*oracle.Event, n)
	for i := range events {
		events[i] = &oracle.Event{
			ID: newID(d.age), Org: d.orgs[rand.N(len(d.orgs))], Type: eventTypes[rand.N(len(eventTypes))], N: d.numbers.Add(1),
		}
	}
	d.journal.Open(events)
	return events
}

// newID makes an id that is as old as age.
func newID(age time.Duration) uuid.UUID {
	id := uuid.Must(uuid.NewV7())
	if age > 0 {
		at := outbox.TimeID(time.Now().Add(-age))
		copy(id[:6], at[:6])
	}
	return id
}

func payload(e *oracle.Event) string { return fmt.Sprintf(`{"n": %d, "pad": "%s"}`, e.N, padding) }

// insert runs an ordinary transaction, with a savepoint now and then.
func (d *Driver) insert(ctx context.Context, events []*oracle.Event) error {
	tx, err := d.pool.Begin(ctx)
	if err != nil {
		d.rolledBack(events)
		return err
	}
	defer tx.Rollback(ctx)
	if err := insertRows(ctx, tx, events); err != nil {
		d.rolledBack(events)
		return err
	}
	if rand.Float64() < savepointShare {
		if err := d.savepoint(ctx, tx); err != nil {
			d.rolledBack(events)
			return err
		}
	}
	if rand.Float64() < rollbackShare {
		d.rolledBack(events)
		return tx.Rollback(ctx)
	}
	return d.commit(ctx, tx, events)
}

// savepoint inserts events after a savepoint and rolls back to it.
func (d *Driver) savepoint(ctx context.Context, tx pgx.Tx) error {
	events := d.newEvents(1 + rand.N(2))
	d.rolledBack(events)
	inner, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	if err := insertRows(ctx, inner, events); err != nil {
		return err
	}
	return inner.Rollback(ctx)
}

// commit commits a transaction. A commit that returns an error may have happened.
func (d *Driver) commit(ctx context.Context, tx pgx.Tx, events []*oracle.Event) error {
	began := time.Now()
	if err := tx.Commit(ctx); err != nil {
		d.journal.End(events, oracle.Unknown, began, 0)
		return err
	}
	d.journal.End(events, oracle.Committed, began, insertLSN(ctx, d.pool))
	return nil
}

func (d *Driver) rolledBack(events []*oracle.Event) {
	d.journal.End(events, oracle.RolledBack, time.Time{}, 0)
}

// copy uses COPY instead of INSERT, for any number of events.
func (d *Driver) copy(ctx context.Context, events []*oracle.Event, rollBack bool) error {
	tx, err := d.pool.Begin(ctx)
	if err != nil {
		d.rolledBack(events)
		return err
	}
	defer tx.Rollback(ctx)
	_, err = tx.CopyFrom(ctx, pgx.Identifier{"webhook_outbox"}, []string{"id", "organization_id", "event_type", "payload"},
		pgx.CopyFromSlice(len(events), func(i int) ([]any, error) {
			return []any{events[i].ID, events[i].Org, events[i].Type, payload(events[i])}, nil
		}))
	if err != nil || rollBack {
		d.rolledBack(events)
		return err
	}
	return d.commit(ctx, tx, events)
}

// twoPhases prepares a transaction, waits a moment, and ends it.
func (d *Driver) twoPhases(ctx context.Context, events []*oracle.Event, rollBack bool) error {
	d.rolledBack(events) // the fate unless the PREPARE succeeds
	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	gid := events[0].ID.String()
	if _, err := conn.Exec(ctx, "BEGIN"); err != nil {
		return err
	}
	if err := insertRows(ctx, conn, events); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "PREPARE TRANSACTION '"+gid+"'"); err != nil {
		return err
	}
	time.Sleep(rand.N(preparedFor))
	if rollBack {
		_, err := conn.Exec(ctx, "ROLLBACK PREPARED '"+gid+"'")
		return err
	}
	began := time.Now()
	if _, err := conn.Exec(ctx, "COMMIT PREPARED '"+gid+"'"); err != nil {
		d.journal.End(events, oracle.Unknown, began, 0)
		return err
	}
	d.journal.End(events, oracle.Committed, began, insertLSN(ctx, d.pool))
	return nil
}

type batcher interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

func insertRows(ctx context.Context, to batcher, events []*oracle.Event) error {
	var b pgx.Batch
	for _, e := range events {
		b.Queue(`INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, $2, $3, $4)`, e.ID, e.Org, e.Type, payload(e))
	}
	return to.SendBatch(ctx, &b).Close()
}

// insertLSN returns the end of the WAL; 0 if the database does not answer. Every earlier
// commit ends before it.
func insertLSN(ctx context.Context, pool *pgxpool.Pool) pglogrepl.LSN {
	var text string
	if err := pool.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&text); err != nil {
		return 0
	}
	lsn, err := pglogrepl.ParseLSN(text)
	if err != nil {
		return 0
	}
	return lsn
}
