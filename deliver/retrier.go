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
)

const (
	// pollEvery is how often the table is asked what has become due.
	pollEvery = 250 * time.Millisecond

	// hintEvery is how often hints count: anybody can give them, and each begins a
	// walk over all endpoints with unfinished rows.
	hintEvery = 100 * time.Millisecond

	// pollOverlap looks a little further back than the last time: a row that was
	// made due by a transaction is visible only after its commit.
	pollOverlap = time.Second

	// scanEvery and scanPage pace the walk over all endpoints with unfinished rows,
	// which finds what no lane, no hint and no clock told of. A page costs
	// about 20 ms of PostgreSQL's time, on a table with 46 partitions.
	scanEvery = 2 * time.Second
	scanPage  = 100

	// scanPages is how many pages of a walk that goes on at once are read before
	// the lanes have their turn.
	scanPages = 5

	// lanesPerFetch is how many lanes one query fetches for.
	lanesPerFetch = 32
)

// A retrierStore is what the retrier asks of the database.
type retrierStore interface {
	ClaimVisible(ctx context.Context, fence store.Fence) (bool, error)
	Now(ctx context.Context) (time.Time, error)
	NewlyDue(ctx context.Context, since time.Time) (endpoints []uuid.UUID, now time.Time, all bool, err error)
	Waiting(ctx context.Context, after uuid.UUID, limit int) ([]store.Waiting, error)
	Due(ctx context.Context, pages []store.Page, take func(*store.Due)) error
	CancelRows(ctx context.Context, fence store.Fence, endpoint uuid.UUID, reason string) (cancelled int, more bool, err error)
	CancelStrangers(ctx context.Context, fence store.Fence, ids []uuid.UUID) error
	CancelOrphans(ctx context.Context, fence store.Fence, ids []uuid.UUID) error
}

// A retrier brings due rows back to their lanes: retries whose time has come,
// parked deliveries, and what an operator replays. It asks for each lane by
// itself, and only as much as the lane has room for, so that one endpoint's
// hundred thousand rows do not stand before another's ten.
type retrier struct {
	scheduler  *schedule.Scheduler
	store      retrierStore
	heartbeat  *heartbeat
	log        *slog.Logger
	changeHint schedule.Signal // someone else has changed deliveries or endpoints
	failure    failure

	compare       func()     // has the reconciler compare
	visibleAsked  time.Time  // when it was last looked whether all is visible
	comparedEarly bool       // it has been compared already, before all was visible
	claimed       time.Time  // when the slot was, while that is not known; zero: it is
	mu            sync.Mutex // guards claimed and early, which the fan-out sets

	notVisible map[uuid.UUID]bool // endpoints with rows of transactions that are not visible yet
	since      time.Time          // by PostgreSQL's clock: what was due by then has been seen
	polled     time.Time
	hinted     time.Time
	rescan     bool      // a hint came: it comes by the stream, which is faster than visibility, so another walk is due
	cursor     uuid.UUID // of the walk
	scanned    time.Time
	scansDue   int // of the walk, to be made at once: one under way, and one for what came meanwhile
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
			r.log.Warn("cannot look for due deliveries; trying until it works", "error", err)
		case err == nil && failing:
			failing = false
			r.log.Info("looking for due deliveries again")
		}
		hint := r.changeHint
		if time.Since(r.hinted) < hintEvery {
			hint = nil // the tick comes back to it
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

// runOnce looks for what is newly due, walks a piece, and fills the lanes.
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

// comparing notes that a session has claimed the slot, and whether the outbox has to
// be compared with its deliveries, or what comes may have to.
func (r *retrier) sessionClaimed(fence store.Fence) {
	visible := r.scheduler.Visible(fence)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claimed, r.comparedEarly = time.Time{}, false
	if fence.Reconcile || !visible {
		r.claimed = time.Now()
	}
}

// visibleWithin is how long a comparison waits for transactions from before the slot
// was claimed. After that they are somebody's long ones: what can be compared is, and
// once more when they have ended.
const visibleWithin = 3 * time.Second

// visibleEvery is how often it is looked whether those have ended.
const visibleEvery = time.Second

// settle has the outbox compared once everything is visible that does not come by
// the stream.
func (r *retrier) compareWhenVisible(ctx context.Context) error {
	fence := r.scheduler.Fence()
	r.mu.Lock()
	claimed, early := r.claimed, r.comparedEarly
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
	if r.claimed != claimed || r.scheduler.Fence().Epoch != fence.Epoch { // another session has
		return nil
	}
	switch {
	case visible:
		r.claimed = time.Time{}
		r.scheduler.Settled(fence)
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
		r.since = now // the first walk finds what is older
	}
	endpoints, now, all, err := r.store.NewlyDue(ctx, r.since.Add(-pollOverlap))
	if err != nil {
		return err
	}
	r.since, r.polled = now, time.Now()
	if !all {
		r.scanNow()
	}
	r.scheduler.Found(endpoints, r.polled)
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

// scanNow has the walk made at once, from the beginning. One that is under way
// has passed some endpoints already, so another follows it.
func (r *retrier) scanNow() {
	r.scansDue = 1
	if r.cursor != uuid.Nil {
		r.scansDue = 2
	}
}

// fetch asks for pages, back to back, while lanes have room.
func (r *retrier) fetch(ctx context.Context) error {
	for end := time.Now().Add(pollEvery); ctx.Err() == nil; {
		r.heartbeat.beat()
		more, err := r.fetchPages(ctx)
		if err != nil || !more {
			return err
		}
		if time.Now().After(end) { // what is newly due, or to be cancelled, has its turn
			r.scheduler.ToFetch.Raise()
			return nil
		}
	}
	return nil
}

func (r *retrier) fetchPages(ctx context.Context) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	pages := r.scheduler.Pages(lanesPerFetch, time.Now())
	if len(pages) == 0 {
		return false, nil
	}
	queries := make([]store.Page, len(pages))
	asked := make(map[uuid.UUID]*schedule.Page, len(pages))
	for i, p := range pages {
		queries[i] = p.Query()
		asked[queries[i].EndpointID] = p
	}

	var orphans, strangers []uuid.UUID
	err = r.store.Due(ctx, queries, func(due *store.Due) {
		switch {
		case due.Orphaned:
			orphans = append(orphans, due.ID)
		case due.Stranger:
			strangers = append(strangers, due.ID)
		case due.Unseen:
			r.notVisible[due.EndpointID] = true
		}
		r.scheduler.Due(asked[due.EndpointID], due, time.Now())
	})
	r.scheduler.Paged(pages, err != nil, time.Now())
	if err == nil && len(orphans) > 0 {
		err = r.store.CancelOrphans(ctx, r.scheduler.Fence(), orphans)
	}
	if err == nil && len(strangers) > 0 {
		err = r.store.CancelStrangers(ctx, r.scheduler.Fence(), strangers)
	}
	return err == nil, err
}

// sweep cancels what is owed to endpoints that are disabled or deleted: a chunk
// of each in turn, so that none keeps due rows waiting.
func (r *retrier) cancel(ctx context.Context) error {
	sweeps, fence := r.scheduler.Sweeps(), r.scheduler.Fence()
	for i, x := range sweeps {
		if err := r.cancelChunk(ctx, fence, x); err != nil {
			r.scheduler.GiveBackSweeps(sweeps[i:], time.Now())
			return err
		}
	}
	return nil
}

func (r *retrier) cancelChunk(ctx context.Context, fence store.Fence, x *schedule.Sweep) error {
	r.heartbeat.beat()
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	n, more, err := r.store.CancelRows(ctx, fence, x.EndpointID(), r.scheduler.Refusal(x))
	if err != nil {
		return err
	}
	r.scheduler.Swept(x, n > 0, time.Now())
	if n == 0 && more {
		r.notVisible[x.EndpointID()] = true
	}
	return nil
}

// again takes up what could not be done because a transaction that has
// committed was not visible yet.
func (r *retrier) retryNotVisible() {
	r.scheduler.Again(slices.SortedFunc(maps.Keys(r.notVisible), schedule.CompareIDs), time.Now())
	clear(r.notVisible)
}
