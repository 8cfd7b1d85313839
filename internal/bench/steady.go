//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// A load is an open loop: events are inserted when it is their time, one in a
// transaction, whether or not those before are done.
type load struct {
	endpoints int // each with an organization of its own, in rotation
	hanging   int // so many of them never answer
	rate      int // events per second
	warmUp    time.Duration
	length    time.Duration // after the warm-up
}

// A steady is what a load came to. Events of the warm-up and of endpoints that
// may hang do not count.
type steady struct {
	latencies   []time.Duration // from COMMIT's return to the receiver, sorted
	late        time.Duration   // the 99th percentile of how late the driver inserted: its own trouble
	cpu, server time.Duration   // after the warm-up
	lag         time.Duration   // the greatest age of a WAL position that was not confirmed
	repeated    int
}

// inserters bounds the INSERTs at once. At 500 a second each may take 16 ms.
const inserters = 8

// measureLoad runs walhook on a fresh database under a load. The last endpoint
// is left out of what is counted, whether it hangs or not, so that both arms
// count the same ones.
func (b *bench) measureLoad(ctx context.Context, l load, counted int) (steady, error) {
	db, err := b.server.newDatabase(ctx)
	if err != nil {
		return steady{}, err
	}
	defer db.drop()
	if err := b.prepare(ctx, db); err != nil {
		return steady{}, err
	}
	for i := range l.endpoints {
		path := pathStamp
		if i >= l.endpoints-l.hanging {
			path = pathHang
		}
		if _, err := newEndpoint(ctx, db, organizationOf(i), b.receiver.url(path)); err != nil {
			return steady{}, err
		}
	}
	if err := b.calm(ctx); err != nil {
		return steady{}, err
	}
	w, err := b.startWalhook(db, "")
	if err != nil {
		return steady{}, err
	}
	defer w.kill()
	if err := awaitStreaming(ctx, db, w); err != nil {
		return steady{}, err
	}
	s, err := b.drive(ctx, db, w, l, counted)
	if err != nil {
		return s, err
	}
	if err := b.receiver.reset(ctx); err != nil { // lets go what hangs
		return s, err
	}
	return s, w.stop()
}

func organizationOf(endpoint int) string { return fmt.Sprintf("%s_%d", organization, endpoint) }

func awaitStreaming(ctx context.Context, db *database, w *walhook) error {
	for deadline := now() + 30*time.Second; ; {
		var active bool
		err := db.QueryRow(ctx, "SELECT active FROM pg_replication_slots WHERE slot_name = $1", db.name).Scan(&active)
		if err != nil || active {
			return err
		}
		if now() > deadline {
			return errors.New("walhook does not stream")
		}
		if err := errors.Join(w.gone(), pause(ctx, 10*time.Millisecond)); err != nil {
			return err
		}
	}
}

// A sent is an event that was committed.
type sent struct {
	id        string
	endpoint  int
	due       time.Duration // when it should have been inserted
	begun     time.Duration
	committed time.Duration
}

// drive inserts the events, and puts commits and arrivals together.
func (b *bench) drive(ctx context.Context, db *database, w *walhook, l load, counted int) (steady, error) {
	conns := make([]*pgx.Conn, inserters)
	for i := range conns {
		var err error
		if conns[i], err = b.server.connect(ctx, db.url); err != nil {
			return steady{}, err
		}
		defer b.server.hangUp(conns[i])
	}
	began := now() + 100*time.Millisecond
	counts := began + l.warmUp
	var s steady
	var cpu, server time.Duration
	beside, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { s.lag = watchLag(beside, db, counts) })
	wg.Go(func() {
		if pause(beside, counts-now()) == nil {
			cpu, server = cpuOf(w.pid), b.server.cpu()
		}
	})
	events, err := insertAll(ctx, conns, l, began)
	if err != nil {
		return s, err
	}
	cpuAfter, serverAfter := cpuOf(w.pid), b.server.cpu()
	answering := 0
	for _, e := range events {
		if e.endpoint < l.endpoints-l.hanging {
			answering++
		}
	}
	a, err := b.receiver.wait(ctx, answering, 20*time.Second)
	if err != nil {
		return s, errors.Join(err, w.gone())
	}
	stop()
	wg.Wait()
	s.cpu, s.server, s.repeated = cpuAfter-cpu, serverAfter-server, a.Repeated
	var late []time.Duration
	for _, e := range events {
		late = append(late, e.begun-e.due)
		if e.endpoint < counted && e.due >= counts {
			s.latencies = append(s.latencies, a.Stamps[e.id]-e.committed)
		}
	}
	slices.Sort(late)
	slices.Sort(s.latencies)
	s.late = quantile(late, 0.99)
	return s, nil
}

// insertAll inserts on schedule and returns what was committed.
func insertAll(ctx context.Context, conns []*pgx.Conn, l load, began time.Duration) ([]sent, error) {
	n := int((l.warmUp + l.length).Seconds() * float64(l.rate))
	events := make([]sent, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, len(conns))
	for i, conn := range conns {
		wg.Go(func() {
			for {
				k := int(next.Add(1)) - 1
				if k >= n {
					return
				}
				e := &events[k]
				e.endpoint = k % l.endpoints
				e.due = began + time.Duration(k)*time.Second/time.Duration(l.rate)
				if errs[i] = insertOne(ctx, conn, e, k); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return events, errors.Join(errs...)
}

func insertOne(ctx context.Context, conn *pgx.Conn, e *sent, k int) error {
	body := string(payload(k))
	id := uuid.Must(uuid.NewV7())
	e.id = id.String()
	if err := pause(ctx, e.due-now()); err != nil {
		return err
	}
	e.begun = now()
	_, err := conn.Exec(ctx, "INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, $2, $3, $4)",
		id, organizationOf(e.endpoint), eventType, body)
	e.committed = now()
	return err
}

const selectLag = `
SELECT pg_current_wal_flush_lsn() - '0/0', confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = $1`

// watchLag returns how old a flushed WAL position became, at most, before it was
// confirmed, as seen by a look every 50 ms. It has the database's own connection.
func watchLag(ctx context.Context, db *database, from time.Duration) (worst time.Duration) {
	type position struct{ lsn, at time.Duration } // lsn only sorts
	var waiting []position
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return worst
		case <-tick.C:
		}
		var flushed, confirmed int64
		if err := db.QueryRow(context.WithoutCancel(ctx), selectLag, db.name).Scan(&flushed, &confirmed); err != nil {
			return -1
		}
		at := now()
		waiting = append(waiting, position{time.Duration(flushed), at})
		for len(waiting) > 0 && int64(waiting[0].lsn) <= confirmed {
			waiting = waiting[1:]
		}
		if len(waiting) > 0 && at >= from {
			worst = max(worst, at-waiting[0].at)
		}
	}
}
