package store

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/webhook"
)

const (
	// sampleEvery and sampleIDs are how exactly walhook knows when a transaction began to
	// write: to a minute, or to 64 transactions on a quiet server. Each sample uses an id
	// itself. sampleIDs is more than a cluster has walhooks, or they would cause each
	// other's samples when nobody else writes.
	sampleEvery = time.Minute
	sampleIDs   = 64

	// maxSamples bounds the samples since the oldest open transaction began: 17 hours of
	// them. Then every second sample is dropped.
	maxSamples = 1024
)

// An openSince knows the earliest time at which a transaction that is still open may have
// inserted an event. That is a lower bound for the ids of everything that commits after a
// position. If the stream is lost at that position, the reconciler has to go back to it.
// No privilege to see other sessions is needed.
//
// A sample is a transaction id of walhook's own, and a time before that id was assigned.
// Transactions with greater ids first wrote after that time. So every open transaction first
// wrote after the newest sample whose id is below the oldest open transaction's. (The
// snapshot's xmax cannot serve as the sample's id: open transactions may have greater ids.)
type openSince struct {
	mu      sync.Mutex
	session *webhook.Session // the session of the positions in bounds
	samples []sample         // ascending
	bounds  []bound          // for positions not yet stored as durable, ascending
}

type sample struct {
	xid uint64
	at  time.Time
}

// A bound says that no transaction that commits after lsn has inserted anything before since.
type bound struct {
	lsn   pglogrepl.LSN
	since time.Time
}

// maxBounds bounds the bounds, one every few seconds, while no position becomes durable.
// Beyond it each new one replaces the one before.
const maxBounds = 1024

// The snapshot is taken before the position is read. So whatever commits after the position
// was open, or had not begun, in the snapshot.
const selectOpenSince = `
SELECT now(), pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint, pg_current_wal_insert_lsn()::text,
       EXISTS (SELECT FROM webhook_state WHERE slot = $1 AND open_since > now())
FROM pg_current_snapshot() AS s`

// An open_since in the future has to be deleted, because it would count once that time has
// come: while a transaction stays open, or nothing is recorded, nothing replaces it.
const forgetOpenSince = `UPDATE webhook_state SET open_since = NULL WHERE slot = $1 AND open_since > now()`

const selectSample = `SELECT pg_current_xact_id()::text::bigint, now()`

// observeTimeout bounds observe, whose queries touch at most one row of webhook_state. A
// check follows that must still have enough time.
const observeTimeout = time.Second

// observe returns the bound as of now. A zero since means that none is known.
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
			return bound{} // the next call tries again
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

// setBack forgets times from a clock that was ahead: transactions that began after it was
// set back have earlier times.
func (o *openSince) setBack(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.samples = slices.DeleteFunc(o.samples, func(s sample) bool { return s.at.After(now) })
	o.bounds = slices.DeleteFunc(o.bounds, func(b bound) bool { return b.since.After(now) })
}

// needsSample reports whether to take a sample. If ids have become smaller, as after a
// restore, the present samples are useless until the ids have caught up.
func (o *openSince) needsSample(now time.Time, xmax uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.samples) == 0 {
		return true
	}
	last := o.samples[len(o.samples)-1]
	return xmax <= last.xid || now.Sub(last.at) >= sampleEvery && xmax > last.xid+sampleIDs
}

// add adds a sample. Dropping samples only makes a bound earlier.
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

// since returns the earliest time at which transactions from xmin on may have first written.
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
	o.samples = o.samples[n-1:] // no open transaction needs the older ones
	return o.samples[0].at
}

// begin forgets the positions of the session before, which may mean something else now. If
// the cluster is another one it forgets the samples: greater ids may be old there.
func (o *openSince) begin(session *webhook.Session) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if before := o.session; before != nil && (before.SystemID != session.SystemID || before.Timeline != session.Timeline) {
		o.samples = nil
	}
	o.session, o.bounds = session, nil
}

// accept keeps a bound observed before a check that passed: the stream has brought, or will
// bring, everything that committed before its position.
func (o *openSince) accept(session *webhook.Session, b bound) {
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

// upTo returns the bound for a durable position of a session. It returns none if the next
// session has begun, whose positions may mean something else.
func (o *openSince) upTo(session *webhook.Session, durable pglogrepl.LSN) (at pgtype.Timestamptz) {
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
