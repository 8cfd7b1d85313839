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
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

// A load is an open loop: each event is inserted at its time, in a transaction of its
// own, whether or not those before it have been delivered.
type load struct {
	endpoints int    // each with an organization of its own, in rotation
	bad       int    // how many of them, the last ones, have another URL
	badURL    string // that of the bad ones
	rate      int    // events per second
	warmUp    time.Duration
	length    time.Duration // after the warm-up

	// meanwhile, if not nil, is called a second after the warm-up, with a connection of
	// its own. The load does not end before it has returned.
	meanwhile func(context.Context, *pgx.Conn, *walhook) error
	arrivals  int // that meanwhile causes, beside those of the load's events
}

// audience is the load's endpoints.
func (l load) audience(ctx context.Context, b *bench, db *database) error {
	good := audience{n: l.endpoints - l.bad, organization: organization, url: b.receiver.url(pathStamp)}
	bad := audience{n: l.bad, first: good.n, organization: organization, url: l.badURL}
	return errors.Join(good.insert(ctx, db), bad.insert(ctx, db))
}

// A steady is the result of a load, without the warm-up and without bad endpoints.
type steady struct {
	byEndpoint  [][]time.Duration // from COMMIT's return to the receiver
	missing     int               // events that had not arrived in time: they count with the time waited
	late        time.Duration     // how late the driver inserted, 99th percentile: this is not walhook's doing
	cpu, server time.Duration     // after the warm-up
	wal         int64             // bytes written after the warm-up, the application's included
	lag         time.Duration     // the greatest age of an unconfirmed WAL position
	rss         int64             // peak
	repeated    int
	elsewhere   int64         // requests to the receiver's other paths, from the start to the last event
	elsewhereIn int64         // those of them after the warm-up
	others      int           // arrivals that meanwhile caused
	lastOther   time.Duration // the last of them
}

// latencies returns the sorted latencies of a range of endpoints.
func (s steady) latencies(from, to int) []time.Duration {
	return slices.Sorted(slices.Values(slices.Concat(s.byEndpoint[from:to]...)))
}

// at returns a quantile of the latencies of a range of endpoints, in ms.
func at(q float64, from, to int) func(steady) float64 {
	return func(s steady) float64 { return millis(quantile(s.latencies(from, to), q)) }
}

// walhookCPU and serverCPU are in per cent of one CPU.
func (l load) walhookCPU(s steady) float64 { return 100 * s.cpu.Seconds() / l.length.Seconds() }
func (l load) serverCPU(s steady) float64  { return 100 * s.server.Seconds() / l.length.Seconds() }

// walPerSecond is in MiB.
func (l load) walPerSecond(s steady) float64 { return mebi(s.wal) / l.length.Seconds() }

const (
	// inserters bounds the concurrent INSERTs. At 500 a second each may take 16 ms.
	inserters = 8

	// arriveWithin bounds the wait for the last arrivals after the load.
	arriveWithin = time.Minute
)

// runLoad measures a load on a fresh database.
func (b *bench) runLoad(ctx context.Context, l load) (s steady, err error) {
	err = b.fresh(ctx, func(db *database) error {
		if err := l.audience(ctx, b, db); err != nil {
			return err
		}
		s, err = b.measureLoad(ctx, db, l)
		return err
	})
	return s, err
}

// measureLoad runs walhook under a load, on a database that has its endpoints.
func (b *bench) measureLoad(ctx context.Context, db *database, l load) (steady, error) {
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
	s, err := b.drive(ctx, db, w, l)
	if err != nil {
		return s, err
	}
	if err := b.receiver.reset(ctx); err != nil { // releases hanging requests
		return s, err
	}
	return s, w.stop()
}

const selectStreaming = `SELECT active FROM pg_replication_slots WHERE slot_name = $1`

func awaitStreaming(ctx context.Context, db *database, w *walhook) error {
	if err := awaitSoon(ctx, db, w, selectStreaming); err != nil {
		return fmt.Errorf("wait for the stream: %w", err)
	}
	return nil
}

// A sent is an event that was committed.
type sent struct {
	id        string
	endpoint  int
	due       time.Duration // when it should have been inserted
	begun     time.Duration
	committed time.Duration
}

// drive inserts the events and matches commits with arrivals.
func (b *bench) drive(ctx context.Context, db *database, w *walhook, l load) (steady, error) {
	conns, hangUp, err := b.server.connections(ctx, db.url, inserters+1)
	if err != nil {
		return steady{}, err
	}
	defer hangUp()
	began := now() + 100*time.Millisecond
	counts := began + l.warmUp
	var s steady
	var from, to sample
	var fromErr, meanwhileErr error
	beside, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { s.lag = watchLag(beside, db, counts) })
	wg.Go(func() {
		if pause(beside, counts-now()) == nil {
			from, fromErr = b.sample(beside, w)
		}
	})
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		if l.meanwhile != nil && pause(beside, counts+time.Second-now()) == nil {
			meanwhileErr = l.meanwhile(beside, conns[inserters], w)
		}
	})
	events, err := insertAll(ctx, conns[:inserters], l, began)
	if err != nil {
		return s, err
	}
	if to, err = b.sample(ctx, w); err != nil {
		return s, err
	}
	a, err := b.receiver.wait(ctx, l.answered(events)+l.arrivals, arriveWithin)
	if err := errors.Join(err, w.gone()); err != nil {
		return s, err
	}
	<-done
	s.rss = peakRSS(w.PID)
	stop()
	wg.Wait()
	s.cpu, s.server, s.wal = to.cpu-from.cpu, to.server-from.server, int64(to.wal-from.wal)
	s.elsewhere, s.elsewhereIn = to.elsewhere, to.elsewhere-from.elsewhere
	s.compare(l, events, a, counts)
	return s, errors.Join(fromErr, meanwhileErr)
}

// answered is how many of the events go to good endpoints.
func (l load) answered(events []sent) (n int) {
	for _, e := range events {
		if e.endpoint < l.endpoints-l.bad {
			n++
		}
	}
	return n
}

// compare matches commits with arrivals.
func (s *steady) compare(l load, events []sent, a arrivals, counts time.Duration) {
	s.byEndpoint = make([][]time.Duration, l.endpoints-l.bad)
	s.repeated = a.Repeated
	gaveUp := now()
	late := make([]time.Duration, len(events))
	for i, e := range events {
		late[i] = e.begun - e.due
		at, arrived := a.Stamps[e.id]
		delete(a.Stamps, e.id)
		if e.endpoint >= len(s.byEndpoint) {
			continue
		}
		if !arrived {
			s.missing++
			at = gaveUp
		}
		if e.due >= counts {
			s.byEndpoint[e.endpoint] = append(s.byEndpoint[e.endpoint], at-e.committed)
		}
	}
	s.others = len(a.Stamps)
	for _, at := range a.Stamps {
		s.lastOther = max(s.lastOther, at)
	}
	slices.Sort(late)
	s.late = quantile(late, 0.99)
}

// A sample is the counters at a moment: CPU time, WAL, requests to other paths.
type sample struct {
	cpu, server time.Duration
	elsewhere   int64
	wal         pglogrepl.LSN
}

func (b *bench) sample(ctx context.Context, w *walhook) (s sample, err error) {
	s.cpu, s.server = cpuOf(w.PID), b.server.cpu()
	if s.elsewhere, err = b.receiver.elsewhere(ctx); err != nil {
		return s, err
	}
	s.wal, err = b.server.lsn(ctx)
	return s, err
}

// insertAll inserts on schedule and returns the committed events.
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
	body := string(payload(k, payloadBytes))
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

// watchLag returns the greatest age of a flushed WAL position before it was confirmed.
// It polls every 50 ms, on the database's own connection.
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

// soundness prints the figures that must be right before the others mean anything.
func (r *report) soundness(rounds []steady) {
	r.row("requests beyond one per event", each(rounds, func(s steady) float64 { return float64(s.repeated) }), "%.0f", "0")
	r.row("events that did not arrive", each(rounds, func(s steady) float64 { return float64(s.missing) }), "%.0f", "0")
	r.row("how late the driver was (p99), ms", each(rounds, func(s steady) float64 { return millis(s.late) }), "%.2f", "")
}
