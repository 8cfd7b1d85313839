package deliver

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/walhook/walhook/internal/store"
)

// What outcomes mean beyond their rows goes with them, in one transaction. Where the
// database refuses that (somebody's constraint or trigger, an event type that is
// gone), outcomes must not wait for it, nor must it be lost: the rows are written
// alone, and what they mean is told apart from them, until all of it is told.

// owe keeps what outcomes mean that are recorded without it. What nobody must send
// to any more is told at once.
func (r *recorder) deferConsequences(ctx context.Context, consequences []store.Consequence, refused error) error {
	if len(consequences) == 0 {
		return nil
	}
	if !r.deferring {
		r.deferring, r.deferredTried = true, time.Now()
		r.log.Warn("what outcomes mean cannot be written with them (endpoints to be disabled, organizations to be told): it is kept and tried again. "+
			"`walhook init` puts back what is missing of walhook's event types; else look at the constraints and triggers on webhook_outbox, "+
			"webhook_endpoints and webhook_endpoint_failures", "error", refused)
	}
	var urgent []store.Consequence
	for _, c := range consequences {
		if len(c.Endpoints()) > 0 {
			urgent = append(urgent, c)
		} else {
			r.keepDeferred(c)
		}
	}
	return r.writeConsequences(ctx, urgent)
}

// keep holds on to what could not be told. How endpoints stand goes back to their
// lanes: by the next try it may be different.
func (r *recorder) keepDeferred(c store.Consequence) {
	if len(c.Health) > 0 {
		r.scheduler.GiveBackNews(c.Health, time.Now())
		return
	}
	r.deferred = append(r.deferred, c)
	n := 0
	for i, d := range slices.Backward(r.deferred) {
		if n += d.Len(); n <= maxDeferred {
			continue
		}
		if r.deferred = r.deferred[i+1:]; !r.dropped {
			r.dropped = true
			r.log.Error("more news of deliveries and endpoints cannot be told than is kept; the oldest is lost", "kept", maxDeferred)
		}
		return
	}
}

// tell tries all that is owed.
func (r *recorder) writeDeferred(ctx context.Context) error {
	r.deferredTried = time.Now()
	acquired, health := r.scheduler.Fence().Epoch != 0, r.scheduler.TakeNews()
	all := append(r.deferred, store.Consequences(health, nil)...)
	if r.deferred = nil; !acquired {
		for _, c := range all {
			r.keepDeferred(c)
		}
		return nil
	}
	if err := r.writeConsequences(ctx, all); err != nil {
		return err
	}
	if len(r.deferred) == 0 && !r.scheduler.HasNews() {
		r.deferring, r.dropped = false, false
		r.log.Info("what outcomes mean is written again, and nothing is owed")
	}
	return nil
}

// flushWithin bounds the last try to tell what is owed, when the process ends: a
// part of drainMargin.
const flushWithin = time.Second

// lastWords tries once more what is owed when nothing else runs any more, and says how
// much is lost with this process.
func (r *recorder) flushDeferred(ctx context.Context) {
	if !r.deferring {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, flushWithin)
	defer cancel()
	before := 0
	for _, c := range r.deferred {
		before += c.Len()
	}
	if err := r.writeDeferred(ctx); err != nil { // what was under way is not kept
		r.log.Error("news of deliveries and endpoints is lost with this process: it could not be told", "count", before, "error", err)
		return
	}
	left := 0
	for _, c := range r.deferred {
		left += c.Len()
	}
	if left > 0 {
		r.log.Error("news of deliveries and endpoints is lost with this process: the database still refuses it", "count", left)
	}
}

// tellAll tells what it can: what is refused is parted, until what is the cause
// stands alone. What would take too many tries has its turn before that next time.
func (r *recorder) writeConsequences(ctx context.Context, all []store.Consequence) error {
	fence := r.scheduler.Fence()
	var refused []store.Consequence
	for tries := 0; len(all) > 0 && tries < maxConsequenceTries; tries++ {
		c := all[0]
		all = all[1:]
		r.heartbeat.beat()
		var rest []store.Consequence
		err := bounded(ctx, func(ctx context.Context) (err error) {
			rest, err = r.store.Tell(ctx, fence, c)
			return err
		})
		switch {
		case errors.Is(err, store.ErrFenced), ctx.Err() != nil:
			return err
		case err == nil:
			all = append(rest, all...)
		case isRefusal(err) && c.Len() > 1:
			halves := c.Halves()
			all = append(halves[:], all...)
		default:
			refused = append(refused, c)
		}
	}
	for _, c := range append(all, refused...) {
		r.keepDeferred(c)
	}
	return nil
}
