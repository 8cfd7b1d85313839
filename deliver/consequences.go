package deliver

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/walhook/walhook/internal/store"
)

// An outcome's consequences (an endpoint is disabled, its health changes, an
// organization gets an event) are written in its own transaction. If the database
// refuses them (a deployment's constraint or trigger, a deleted event type), they are
// deferred: outcomes are recorded without them, and they are retried separately, from
// bounded memory, until all are written.

// deferConsequences keeps consequences whose outcomes are recorded. Those that disable
// an endpoint are written at once: nobody may send to it any more.
func (r *recorder) deferConsequences(ctx context.Context, consequences []store.Consequence, refused error) error {
	if len(consequences) == 0 {
		return nil
	}
	if !r.deferring {
		r.deferring, r.deferredTried = true, time.Now()
		r.log.Warn("the database refuses the consequences of outcomes (disabling endpoints, endpoint health, events about them); outcomes are recorded without them, "+
			"and they are retried: `walhook init` restores missing event types; else check the constraints and triggers on webhook_outbox, "+
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

// keepDeferred keeps a consequence for the next try, and drops the oldest beyond
// maxDeferred. Endpoint health goes back to the lanes: it may change until then.
func (r *recorder) keepDeferred(c store.Consequence) {
	if len(c.Health) > 0 {
		r.scheduler.ReturnHealth(c.Health, time.Now())
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
			r.log.Error("too many deferred consequences of outcomes; the oldest are lost: see the warning about refused consequences", "kept", maxDeferred)
		}
		return
	}
}

// writeDeferred tries to write all deferred consequences.
func (r *recorder) writeDeferred(ctx context.Context) error {
	r.deferredTried = time.Now()
	acquired, health := r.scheduler.Fence().Epoch != 0, r.scheduler.TakeHealth()
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
	if len(r.deferred) == 0 && !r.scheduler.HasHealth() {
		r.deferring, r.dropped = false, false
		r.log.Info("writing consequences of outcomes resumed; none are deferred")
	}
	return nil
}

// flushWithin bounds the last try when the process ends. It is a part of drainMargin.
const flushWithin = time.Second

// flushDeferred tries to write the deferred consequences when all loops have ended, and
// logs how many are lost.
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
	if err := r.writeDeferred(ctx); err != nil { // those under way are not kept
		r.log.Error("deferred consequences of outcomes are lost: they could not be written before the end", "count", before, "error", err)
		return
	}
	left := 0
	for _, c := range r.deferred {
		left += c.Len()
	}
	if left > 0 {
		r.log.Error("deferred consequences of outcomes are lost: the database still refuses them at the end", "count", left)
	}
}

// writeConsequences writes what the database accepts. It bisects what is refused, and
// keeps that and the rest after maxConsequenceTries, the rest first for the next round.
func (r *recorder) writeConsequences(ctx context.Context, all []store.Consequence) error {
	fence := r.scheduler.Fence()
	var refused []store.Consequence
	for tries := 0; len(all) > 0 && tries < maxConsequenceTries; tries++ {
		c := all[0]
		all = all[1:]
		r.heartbeat.beat()
		var rest []store.Consequence
		err := bounded(ctx, func(ctx context.Context) (err error) {
			rest, err = r.store.WriteConsequence(ctx, fence, c)
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
