package deliver

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

const (
	// lanesPerFetch bounds the lanes that one query fetches for.
	lanesPerFetch = 32

	// cancelsPerRound bounds the endpoints of which a chunk of rows is cancelled before due
	// rows are fetched again: a third of a second of PostgreSQL's time.
	cancelsPerRound = 32
)

// A retrierStore has the retrier's statements.
type retrierStore interface {
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
	claims     *claims
	heartbeat  *heartbeat
	log        *slog.Logger
	failure    failure
	notVisible map[uuid.UUID]bool // endpoints with rows of transactions that are not visible yet
}

func (r *retrier) run(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		begun := time.Now()
		err := r.runOnce(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, store.ErrFenced):
			return err
		}
		r.failure.observe(r.log, begun, err, "cannot fetch due deliveries; retrying", "fetching due deliveries resumed")
		switch r.heartbeat.wait(ctx, tick.C, r.scheduler.ToFetch, nil) {
		case stopped:
			return nil
		case timerFired:
			r.retryNotVisible()
		case firstSignal, secondSignal:
			if err != nil && !r.heartbeat.sleep(ctx, pollEvery) {
				return nil
			}
		}
	}
}

// runOnce cancels, and fetches for lanes.
func (r *retrier) runOnce(ctx context.Context) error {
	if !r.scheduler.MayFetch(time.Now()) {
		return nil
	}
	if err := r.claims.compareWhenVisible(ctx); err != nil {
		return err
	}
	if err := r.cancel(ctx); err != nil {
		return err
	}
	return r.fetch(ctx)
}

// fetch reads pages back to back while lanes have room, for at most pollEvery.
func (r *retrier) fetch(ctx context.Context) error {
	for end := time.Now().Add(pollEvery); ctx.Err() == nil; {
		more, err := r.fetchPages(ctx)
		if err != nil || !more {
			return err
		}
		if time.Now().After(end) { // cancel first
			r.scheduler.ToFetch.Raise()
			return nil
		}
	}
	return nil
}

func (r *retrier) fetchPages(ctx context.Context) (more bool, err error) {
	ctx, cancel := r.heartbeat.statement(ctx)
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

// cancel cancels the deliveries of disabled and deleted endpoints: one chunk of each, and
// of few, so that due rows do not wait for long.
func (r *retrier) cancel(ctx context.Context) error {
	cancellations, fence := r.scheduler.TakeCancellations(cancelsPerRound), r.scheduler.Fence()
	if len(cancellations) == cancelsPerRound {
		r.scheduler.ToFetch.Raise() // there may be more
	}
	for i, x := range cancellations {
		if err := r.cancelChunk(ctx, fence, x); err != nil {
			for _, left := range cancellations[i:] {
				r.scheduler.Cancelled(left, 0, true, time.Now())
			}
			return err
		}
	}
	return nil
}

func (r *retrier) cancelChunk(ctx context.Context, fence webhook.Fence, x *schedule.Cancellation) error {
	ctx, cancel := r.heartbeat.statement(ctx)
	defer cancel()
	n, more, err := r.store.CancelRows(ctx, fence, x.EndpointID, x.Reason)
	if err != nil {
		return err
	}
	r.scheduler.Cancelled(x, n, n > 0, time.Now())
	if n == 0 && more {
		r.notVisible[x.EndpointID] = true
	}
	return nil
}

// retryNotVisible has lanes try again whose rows belonged to committed transactions that
// were not visible yet.
func (r *retrier) retryNotVisible() {
	r.scheduler.RetryNotVisible(slices.SortedFunc(maps.Keys(r.notVisible), schedule.CompareIDs), time.Now())
	clear(r.notVisible)
}
