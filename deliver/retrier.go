package deliver

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

const (
	// pollEvery is how often the table is polled for rows that have become due: a due row
	// is to be picked up within a second.
	pollEvery = 250 * time.Millisecond

	// hintEvery limits change hints: anybody can send them, and each starts a scan of
	// all endpoints with unfinished rows.
	hintEvery = 100 * time.Millisecond

	// pollOverlap is how far a poll reaches back beyond the last one: rows that a
	// transaction made due are visible only after its commit.
	pollOverlap = time.Second

	// scanEvery and scanPage pace the scan of all endpoints with unfinished rows. It
	// finds rows that no lane, hint or poll has reported. A page takes PostgreSQL about
	// 20 ms, on a table with 46 partitions.
	scanEvery = 2 * time.Second
	scanPage  = 100

	// scanPages bounds the pages of an immediate scan in one round, so that fetching for
	// lanes continues.
	scanPages = 5

	// lanesPerFetch bounds the lanes that one query fetches for.
	lanesPerFetch = 32
)

// A retrierStore has the retrier's statements.
type retrierStore interface {
	ClaimVisible(ctx context.Context, fence webhook.Fence) (bool, error)
	Now(ctx context.Context) (time.Time, error)
	NewlyDue(ctx context.Context, since time.Time) (endpoints []uuid.UUID, now time.Time, all bool, err error)
	Waiting(ctx context.Context, after uuid.UUID, limit int) ([]webhook.Waiting, error)
	Due(ctx context.Context, pages []webhook.Page, take func(*webhook.Due)) error
	CancelRows(ctx context.Context, fence webhook.Fence, endpoint uuid.UUID, reason string) (cancelled int, more bool, err error)
	CancelReassigned(ctx context.Context, fence webhook.Fence, ids []uuid.UUID) error
	CancelOrphans(ctx context.Context, fence webhook.Fence, ids []uuid.UUID) error
}

// A retrier brings due rows back to their lanes: retries, parked deliveries and
// replays. It fetches for each lane separately, and only as many rows as the lane has
// room for, so that one endpoint's hundred thousand rows do not delay another's ten.
type retrier struct {
	scheduler  *schedule.Scheduler
	store      retrierStore
	heartbeat  *heartbeat
	log        *slog.Logger
	changeHint schedule.Signal // somebody else has changed deliveries or endpoints
	failure    failure

	compare       func()        // starts a comparison of outbox and deliveries
	visibleAsked  time.Time     // the last check whether the claim is visible
	comparedEarly bool          // a comparison ran before all was visible; another follows
	claimed       time.Time     // when the slot was claimed; zero: no comparison waits
	claim         webhook.Fence // of the session that claimed last
	mu            sync.Mutex    // guards claimed and comparedEarly, which the fan-out sets

	notVisible map[uuid.UUID]bool // endpoints with rows of transactions that are not visible yet
	since      time.Time          // by PostgreSQL's clock: rows due by then have been reported
	polled     time.Time
	hinted     time.Time
	rescan     bool      // a second scan is due: the stream brings a hint before the change is visible
	cursor     uuid.UUID // of the scan: the last endpoint read
	scanned    time.Time
	scansDue   int // immediately: one under way, and another for changes since it began
}

func (r *retrier) run(ctx context.Context) error {
	r.scansDue = 1
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	failing := false
	for {
		begun := time.Now()
		err := r.runOnce(ctx)
		if err == nil {
			r.failure.clear()
		} else {
			r.failure.note(begun, err)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, store.ErrFenced):
			return err
		case err != nil && !failing:
			failing = true
			r.log.Warn("cannot poll for due deliveries; retrying", "error", err)
		case err == nil && failing:
			failing = false
			r.log.Info("polling for due deliveries resumed")
		}
		hint := r.changeHint
		if time.Since(r.hinted) < hintEvery {
			hint = nil // the next tick sees it
		}
		switch r.heartbeat.wait(ctx, tick.C, hint, r.scheduler.ToFetch) {
		case stopped:
			return nil
		case firstSignal:
			r.hinted, r.rescan = time.Now(), true
			r.scanNow()
		case secondSignal:
			if err != nil && !r.heartbeat.sleep(ctx, pollEvery) {
				return nil
			}
		}
	}
}

// runOnce polls for newly due rows, scans some pages, cancels, and fetches for lanes.
func (r *retrier) runOnce(ctx context.Context) error {
	if !r.scheduler.MayFetch(time.Now()) {
		return nil
	}
	if err := r.compareWhenVisible(ctx); err != nil {
		return err
	}
	if time.Since(r.polled) >= pollEvery/2 {
		if err := r.poll(ctx); err != nil {
			return err
		}
	}
	if r.rescan && time.Since(r.hinted) >= pollEvery {
		r.rescan = false
		r.scanNow()
	}
	for range scanPages {
		if r.scansDue == 0 && time.Since(r.scanned) < scanEvery {
			break
		}
		if err := r.scan(ctx); err != nil {
			return err
		}
	}
	if r.scansDue > 0 {
		r.scheduler.ToFetch.Raise()
	}
	if err := r.cancel(ctx); err != nil {
		return err
	}
	return r.fetch(ctx)
}

// sessionClaimed notes that a session has claimed the slot. A comparison waits if one is
// due, or if transactions from before the claim may not be visible yet.
func (r *retrier) sessionClaimed(fence webhook.Fence) {
	visible := r.scheduler.ClaimVisible(fence)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claim, r.claimed, r.comparedEarly = fence, time.Time{}, false
	if fence.Reconcile || !visible {
		r.claimed = time.Now()
	}
}

// visibleWithin bounds how long a comparison waits for transactions from before the
// claim. If long ones are still open, it compares what is visible, and once more when
// they have ended.
const visibleWithin = 3 * time.Second

// visibleEvery is how often the retrier checks whether those have ended.
const visibleEvery = time.Second

// compareWhenVisible starts the comparison once all transactions are visible that the
// stream will not bring.
func (r *retrier) compareWhenVisible(ctx context.Context) error {
	r.mu.Lock()
	fence, claimed, early := r.claim, r.claimed, r.comparedEarly
	r.mu.Unlock()
	if claimed.IsZero() || early && time.Since(r.visibleAsked) < visibleEvery {
		return nil
	}
	r.visibleAsked = time.Now()
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	visible, err := r.store.ClaimVisible(ctx, fence)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.claimed != claimed { // another session has claimed
		return nil
	}
	switch {
	case visible:
		r.claimed = time.Time{}
		r.scheduler.SetClaimVisible(fence)
		r.compare()
	case !r.comparedEarly && time.Since(claimed) > visibleWithin:
		r.comparedEarly = true
		r.compare()
	}
	return nil
}

func (r *retrier) poll(ctx context.Context) error {
	r.retryNotVisible()
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	if r.since.IsZero() {
		now, err := r.store.Now(ctx)
		if err != nil {
			return err
		}
		r.since = now // the first scan finds older rows
	}
	endpoints, now, all, err := r.store.NewlyDue(ctx, r.since.Add(-pollOverlap))
	if err != nil {
		return err
	}
	r.since, r.polled = now, time.Now()
	if !all {
		r.scanNow()
	}
	r.scheduler.FoundDue(endpoints, r.polled)
	return nil
}

func (r *retrier) scan(ctx context.Context) error {
	r.heartbeat.beat()
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	found, err := r.store.Waiting(ctx, r.cursor, scanPage)
	if err != nil {
		return err
	}
	r.scanned = time.Now()
	r.scheduler.FoundWaiting(found, r.scanned)
	if n := len(found); n > 0 {
		r.cursor = found[n-1].EndpointID
	}
	if len(found) < scanPage {
		r.cursor, r.scansDue = uuid.Nil, max(r.scansDue-1, 0)
	}
	return nil
}

// scanNow starts a scan at once. A scan that is under way has passed some endpoints
// already, so another one follows it.
func (r *retrier) scanNow() {
	r.scansDue = 1
	if r.cursor != uuid.Nil {
		r.scansDue = 2
	}
}

// fetch reads pages back to back while lanes have room, for at most pollEvery.
func (r *retrier) fetch(ctx context.Context) error {
	for end := time.Now().Add(pollEvery); ctx.Err() == nil; {
		r.heartbeat.beat()
		more, err := r.fetchPages(ctx)
		if err != nil || !more {
			return err
		}
		if time.Now().After(end) { // poll and cancel first
			r.scheduler.ToFetch.Raise()
			return nil
		}
	}
	return nil
}

func (r *retrier) fetchPages(ctx context.Context) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	pages := r.scheduler.TakePages(lanesPerFetch, time.Now())
	if len(pages) == 0 {
		return false, nil
	}
	queries := make([]webhook.Page, len(pages))
	asked := make(map[uuid.UUID]*schedule.Page, len(pages))
	for i, p := range pages {
		queries[i] = p.Query()
		asked[queries[i].EndpointID] = p
	}

	var orphans, reassigned []uuid.UUID
	err = r.store.Due(ctx, queries, func(due *webhook.Due) {
		switch {
		case due.Orphaned:
			orphans = append(orphans, due.ID)
		case due.Reassigned:
			reassigned = append(reassigned, due.ID)
		case due.Unseen:
			r.notVisible[due.EndpointID] = true
		}
		r.scheduler.AdmitDue(asked[due.EndpointID], due, time.Now())
	})
	r.scheduler.Fetched(pages, err != nil, time.Now())
	if err == nil && len(orphans) > 0 {
		err = r.store.CancelOrphans(ctx, r.scheduler.Fence(), orphans)
	}
	if err == nil && len(reassigned) > 0 {
		err = r.store.CancelReassigned(ctx, r.scheduler.Fence(), reassigned)
	}
	return err == nil, err
}

// cancel cancels the deliveries of disabled and deleted endpoints: one chunk of each, so
// that due rows do not wait for long.
func (r *retrier) cancel(ctx context.Context) error {
	cancellations, fence := r.scheduler.TakeCancellations(), r.scheduler.Fence()
	for i, x := range cancellations {
		if err := r.cancelChunk(ctx, fence, x); err != nil {
			r.scheduler.ReturnCancellations(cancellations[i:], time.Now())
			return err
		}
	}
	return nil
}

func (r *retrier) cancelChunk(ctx context.Context, fence webhook.Fence, x *schedule.Cancellation) error {
	r.heartbeat.beat()
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	n, more, err := r.store.CancelRows(ctx, fence, x.EndpointID(), r.scheduler.Refusal(x))
	if err != nil {
		return err
	}
	r.scheduler.Cancelled(x, n > 0, time.Now())
	if n == 0 && more {
		r.notVisible[x.EndpointID()] = true
	}
	return nil
}

// retryNotVisible has lanes try again whose rows belonged to committed transactions that
// were not visible yet.
func (r *retrier) retryNotVisible() {
	r.scheduler.RetryNotVisible(slices.SortedFunc(maps.Keys(r.notVisible), schedule.CompareIDs), time.Now())
	clear(r.notVisible)
}
