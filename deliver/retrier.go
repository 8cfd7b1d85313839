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
	// dueEvery is how often the table is asked what has become due.
	dueEvery = 250 * time.Millisecond

	// hintEvery is how often hints count: anybody can give them, and each begins a
	// walk over all endpoints with unfinished rows.
	hintEvery = 100 * time.Millisecond

	// dueOverlap looks a little further back than the last time: a row that was
	// made due by a transaction is visible only after its commit.
	dueOverlap = time.Second

	// walkEvery and walkPage pace the walk over all endpoints with unfinished rows,
	// which finds what no lane, no hint and no clock told of. A page costs
	// about 20 ms of PostgreSQL's time, on a table with 46 partitions.
	walkEvery = 2 * time.Second
	walkPage  = 100

	// walkPages is how many pages of a walk that goes on at once are read before
	// the lanes have their turn.
	walkPages = 5

	// pagedLanes is how many lanes one query fetches for.
	pagedLanes = 32
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
	scheduler *schedule.Scheduler
	store     retrierStore
	pulse     *pulse
	log       *slog.Logger
	hint      schedule.Signal // someone else has changed deliveries or endpoints
	trouble

	compare func()     // has the reconciler compare
	asked   time.Time  // when it was last looked whether all is visible
	early   bool       // it has been compared already, before all was visible
	claimed time.Time  // when the slot was, while that is not known; zero: it is
	mu      sync.Mutex // guards claimed and early, which the fan-out sets

	later  map[uuid.UUID]bool // endpoints with rows of transactions that are not visible yet
	since  time.Time          // by PostgreSQL's clock: what was due by then has been seen
	looked time.Time
	hinted time.Time
	twice  bool      // a hint came: it comes by the stream, which is faster than visibility, so another walk is due
	cursor uuid.UUID // of the walk
	walked time.Time
	rounds int // of the walk, to be made at once: one under way, and one for what came meanwhile
}

func (r *retrier) run(ctx context.Context) error {
	r.rounds = 1
	tick := time.NewTicker(dueEvery)
	defer tick.Stop()
	failing := false
	for {
		begun := time.Now()
		err := r.runOnce(ctx)
		if err == nil {
			r.clear()
		} else {
			r.note(begun, err)
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
		hint := r.hint
		if time.Since(r.hinted) < hintEvery {
			hint = nil // the tick comes back to it
		}
		switch r.pulse.wait(ctx, tick.C, hint, r.scheduler.ToFetch) {
		case over:
			return nil
		case first:
			r.hinted, r.twice = time.Now(), true
			r.walkSoon()
		case second:
			if err != nil && !r.pulse.sleep(ctx, dueEvery) {
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
	if err := r.settle(ctx); err != nil {
		return err
	}
	if time.Since(r.looked) >= dueEvery/2 {
		if err := r.look(ctx); err != nil {
			return err
		}
	}
	if r.twice && time.Since(r.hinted) >= dueEvery {
		r.twice = false
		r.walkSoon()
	}
	for range walkPages {
		if r.rounds == 0 && time.Since(r.walked) < walkEvery {
			break
		}
		if err := r.walk(ctx); err != nil {
			return err
		}
	}
	if r.rounds > 0 {
		r.scheduler.ToFetch.Raise()
	}
	if err := r.sweep(ctx); err != nil {
		return err
	}
	return r.fetch(ctx)
}

// comparing notes that a session has claimed the slot, and whether the outbox has to
// be compared with its deliveries, or what comes may have to.
func (r *retrier) comparing(fence store.Fence) {
	visible := r.scheduler.Visible(fence)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claimed, r.early = time.Time{}, false
	if fence.Reconcile || !visible {
		r.claimed = time.Now()
	}
}

// settleWithin is how long a comparison waits for transactions from before the slot
// was claimed. After that they are somebody's long ones: what can be compared is, and
// once more when they have ended.
const settleWithin = 3 * time.Second

// settleAgain is how often it is looked whether those have ended.
const settleAgain = time.Second

// settle has the outbox compared once everything is visible that does not come by
// the stream.
func (r *retrier) settle(ctx context.Context) error {
	fence := r.scheduler.Fence()
	r.mu.Lock()
	claimed, early := r.claimed, r.early
	r.mu.Unlock()
	if claimed.IsZero() || early && time.Since(r.asked) < settleAgain {
		return nil
	}
	r.asked = time.Now()
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	settled, err := r.store.ClaimVisible(ctx, fence)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.claimed != claimed || r.scheduler.Fence().Epoch != fence.Epoch { // another session has
		return nil
	}
	switch {
	case settled:
		r.claimed = time.Time{}
		r.scheduler.Settled(fence)
		r.compare()
	case !r.early && time.Since(claimed) > settleWithin:
		r.early = true
		r.compare()
	}
	return nil
}

func (r *retrier) look(ctx context.Context) error {
	r.again()
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	if r.since.IsZero() {
		now, err := r.store.Now(ctx)
		if err != nil {
			return err
		}
		r.since = now // the first walk finds what is older
	}
	endpoints, now, all, err := r.store.NewlyDue(ctx, r.since.Add(-dueOverlap))
	if err != nil {
		return err
	}
	r.since, r.looked = now, time.Now()
	if !all {
		r.walkSoon()
	}
	r.scheduler.Found(endpoints, r.looked)
	return nil
}

func (r *retrier) walk(ctx context.Context) error {
	r.pulse.beat()
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	found, err := r.store.Waiting(ctx, r.cursor, walkPage)
	if err != nil {
		return err
	}
	r.walked = time.Now()
	r.scheduler.FoundWaiting(found, r.walked)
	if n := len(found); n > 0 {
		r.cursor = found[n-1].EndpointID
	}
	if len(found) < walkPage {
		r.cursor, r.rounds = uuid.Nil, max(r.rounds-1, 0)
	}
	return nil
}

// walkSoon has the walk made at once, from the beginning. One that is under way
// has passed some endpoints already, so another follows it.
func (r *retrier) walkSoon() {
	r.rounds = 1
	if r.cursor != uuid.Nil {
		r.rounds = 2
	}
}

// fetch asks for pages, back to back, while lanes have room.
func (r *retrier) fetch(ctx context.Context) error {
	for end := time.Now().Add(dueEvery); ctx.Err() == nil; {
		r.pulse.beat()
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
	pages := r.scheduler.Pages(pagedLanes, time.Now())
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
			r.later[due.EndpointID] = true
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
func (r *retrier) sweep(ctx context.Context) error {
	sweeps, fence := r.scheduler.Sweeps(), r.scheduler.Fence()
	for i, x := range sweeps {
		if err := r.sweepOne(ctx, fence, x); err != nil {
			r.scheduler.GiveBackSweeps(sweeps[i:], time.Now())
			return err
		}
	}
	return nil
}

func (r *retrier) sweepOne(ctx context.Context, fence store.Fence, x *schedule.Sweep) error {
	r.pulse.beat()
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	n, more, err := r.store.CancelRows(ctx, fence, x.EndpointID(), r.scheduler.Refusal(x))
	if err != nil {
		return err
	}
	r.scheduler.Swept(x, n > 0, time.Now())
	if n == 0 && more {
		r.later[x.EndpointID()] = true
	}
	return nil
}

// again takes up what could not be done because a transaction that has
// committed was not visible yet.
func (r *retrier) again() {
	r.scheduler.Again(slices.SortedFunc(maps.Keys(r.later), schedule.CompareIDs), time.Now())
	clear(r.later)
}
