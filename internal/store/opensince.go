package store

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// sampleEvery and sampleIDs are how exactly it is known when a transaction began
	// to write: to a minute, or to some dozens of transactions where there are fewer.
	// Each sample uses up an id itself, so there are more of these than a cluster has
	// walhooks: they would keep each other sampling where nobody writes.
	sampleEvery = time.Minute
	sampleIDs   = 64

	// maxSamples bounds the samples since the oldest open transaction began: of 17
	// hours, each of them; of more, every second.
	maxSamples = 1024
)

// An openSince knows since when what is still uncommitted may have been inserted: a
// lower bound for the ids of everything that commits after a position. It is what
// the reconciler has to go back to when the stream is lost at that position, and
// needs no privilege to see other sessions.
//
// A sample is a transaction id of our own and a time before it was given out: all
// greater ids are of transactions that first wrote after that time. So whatever is
// open wrote first after the newest sample whose id is below the oldest open
// transaction's. (The snapshot's xmax would not do for an id: it says what was the
// last to end, and what is open may be beyond it.)
type openSince struct {
	mu      sync.Mutex
	session *Session // whose positions these are
	samples []sample // ascending
	bounds  []bound  // of positions that are not noted as durable yet, ascending
}

type sample struct {
	xid uint64
	at  time.Time
}

// A bound says that no transaction that commits after a position has inserted
// anything before a time.
type bound struct {
	lsn   pglogrepl.LSN
	since time.Time
}

// maxBounds bounds the checks, one every few seconds, whose position has not
// become durable: of the later ones each takes the place of the one before.
const maxBounds = 1024

// The position is read after the snapshot was taken: what commits behind it was
// not over by then.
const selectOpenSince = `
SELECT now(), pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint, pg_current_wal_insert_lsn()::text,
       EXISTS (SELECT FROM webhook_state WHERE slot = $1 AND open_since > now())
FROM pg_current_snapshot() AS s`

// A time that is still to come would count once it has passed: where a transaction is
// open all the while, or nothing is recorded, nothing else takes its place.
const forgetOpenSince = `UPDATE webhook_state SET open_since = NULL WHERE slot = $1 AND open_since > now()`

const selectSample = `SELECT pg_current_xact_id()::text::bigint, now()`

// observeTimeout bounds a look, which is two queries that touch one row of webhook_state
// at most. It precedes a check that must not fail for want of time.
const observeTimeout = time.Second

// look returns the bound as of now; a zero time: none is known.
func (o *openSince) observe(ctx context.Context, pool *pgxpool.Pool, slot string) (b bound) {
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	var now time.Time
	var xmin, xmax uint64
	var lsn string
	var ahead bool
	if err := pool.QueryRow(ctx, selectOpenSince, slot).Scan(&now, &xmin, &xmax, &lsn, &ahead); err != nil {
		return bound{}
	}
	o.setBack(now)
	if ahead {
		if _, err := pool.Exec(ctx, forgetOpenSince, slot); err != nil {
			return bound{} // the next look tries again
		}
	}
	if o.needsSample(now, xmax) {
		var s sample
		if err := pool.QueryRow(ctx, selectSample).Scan(&s.xid, &s.at); err == nil {
			o.add(s)
		}
	}
	at, err := pglogrepl.ParseLSN(lsn)
	if err != nil {
		return bound{}
	}
	return bound{lsn: at, since: o.since(xmin)}
}

// setBack forgets what was seen by a clock that was ahead: what has begun since it
// was set back has earlier times.
func (o *openSince) setBack(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.samples = slices.DeleteFunc(o.samples, func(s sample) bool { return s.at.After(now) })
	o.bounds = slices.DeleteFunc(o.bounds, func(b bound) bool { return b.since.After(now) })
}

// due says whether to take a sample. Where ids have become smaller, as after a
// restore, the samples that there are will not be passed for long.
func (o *openSince) needsSample(now time.Time, xmax uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.samples) == 0 {
		return true
	}
	last := o.samples[len(o.samples)-1]
	return xmax <= last.xid || now.Sub(last.at) >= sampleEvery && xmax > last.xid+sampleIDs
}

// add keeps a sample. To leave one out only makes a bound earlier.
func (o *openSince) add(s sample) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := len(o.samples); n > 0 && s.xid <= o.samples[n-1].xid {
		o.samples = nil // restored
	}
	if len(o.samples) == maxSamples {
		for i := range maxSamples / 2 {
			o.samples[i] = o.samples[2*i]
		}
		o.samples = o.samples[:maxSamples/2]
	}
	o.samples = append(o.samples, s)
}

// since is when the transactions from xmin on have first written, at the earliest.
func (o *openSince) since(xmin uint64) (at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for n < len(o.samples) && o.samples[n].xid < xmin {
		n++
	}
	if n == 0 {
		return time.Time{}
	}
	o.samples = o.samples[n-1:] // nothing that is open is older
	return o.samples[0].at
}

// begin forgets positions of the session before, which may mean something else now,
// and ids of another cluster: greater ones may have been given out here long ago.
func (o *openSince) begin(session *Session) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if before := o.session; before != nil && (before.SystemID != session.SystemID || before.Timeline != session.Timeline) {
		o.samples = nil
	}
	o.session, o.bounds = session, nil
}

// accept keeps a bound that was seen before a check that was good: what committed
// before its position did come by the stream.
func (o *openSince) accept(session *Session, b bound) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.session != session || b.since.IsZero() {
		return
	}
	if len(o.bounds) == maxBounds {
		o.bounds = o.bounds[:maxBounds-1]
	}
	o.bounds = append(o.bounds, b)
}

// upTo is the bound that goes with a durable position of a session: none where the
// next has begun, whose positions may mean something else.
func (o *openSince) upTo(session *Session, durable pglogrepl.LSN) (at pgtype.Timestamptz) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.session != session {
		return pgtype.Timestamptz{}
	}
	n := 0
	for n < len(o.bounds) && o.bounds[n].lsn <= durable {
		n++
	}
	if n == 0 {
		return pgtype.Timestamptz{}
	}
	o.bounds = o.bounds[n-1:] // it stays until there is a later one: this write may fail
	return pgtype.Timestamptz{Time: o.bounds[0].since, Valid: true}
}
