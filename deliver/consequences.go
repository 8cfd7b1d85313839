package deliver

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

const (
	// maxDeferred bounds the deferred consequences in memory: some 100 bytes each.
	maxDeferred = 16 << 10

	// consequencesFor bounds one round of writing deferred consequences, beyond the statement
	// under way: recording waits meanwhile. So many statements find what is refused among
	// thousands.
	consequencesFor = 500 * time.Millisecond
)

// A consequenceStore has the statement that writes a consequence separately.
type consequenceStore interface {
	WriteConsequence(ctx context.Context, fence webhook.Fence, c store.Consequence) (rest []store.Consequence, err error)
}

// deferred are consequences that the database has refused. An outcome's consequences (an
// endpoint is disabled, its health changes, an organization gets an event) are written in
// its own transaction. If the database refuses them (a deployment's constraint or trigger,
// a deleted event type), they are deferred: outcomes are recorded without them, and they
// are retried separately, from bounded memory, until all are written. The recorder's loop
// drives this.
type deferred struct {
	scheduler *schedule.Scheduler
	store     consequenceStore
	heartbeat *heartbeat
	log       *slog.Logger

	active  bool // outcomes are recorded without their consequences
	kept    []store.Consequence
	tried   time.Time // the last try
	dropped bool      // some were lost, and logged
}

// due reports whether the next try is due.
func (d *deferred) due() bool { return d.active && time.Since(d.tried) >= refusedRetry }

// add keeps consequences whose outcomes are recorded. Those that disable an endpoint are
// written at once: nobody may send to it any more.
func (d *deferred) add(ctx context.Context, consequences []store.Consequence, refused error) error {
	if len(consequences) == 0 {
		return nil
	}
	if !d.active {
		d.active, d.tried = true, time.Now()
		d.log.Warn("the database refuses the consequences of outcomes (disabling endpoints, endpoint health, events about them); outcomes are recorded without them, "+
			"and they are retried: `walhook init` restores missing event types; else check the constraints and triggers on webhook_outbox, "+
			"webhook_endpoints and webhook_endpoint_failures", "error", refused)
	}
	var urgent []store.Consequence
	for _, c := range consequences {
		if len(c.Endpoints()) > 0 {
			urgent = append(urgent, c)
		} else {
			d.keep(c)
		}
	}
	_, err := d.write(ctx, urgent)
	return err
}

// keep keeps a consequence for the next try, and drops the oldest beyond maxDeferred.
// Endpoint health goes back to the lanes: it may change until then.
func (d *deferred) keep(c store.Consequence) {
	if len(c.Health) > 0 {
		d.scheduler.ReturnHealth(c.Health, time.Now())
		return
	}
	d.kept = append(d.kept, c)
	n := 0
	for i, x := range slices.Backward(d.kept) {
		if n += x.Len(); n <= maxDeferred {
			continue
		}
		if d.kept = d.kept[i+1:]; !d.dropped {
			d.dropped = true
			d.log.Error("too many deferred consequences of outcomes; the oldest are lost: see the warning about refused consequences", "kept", maxDeferred)
		}
		return
	}
}

// retry tries to write all deferred consequences.
func (d *deferred) retry(ctx context.Context) error {
	d.tried = time.Now()
	acquired, health := d.scheduler.Fence().Epoch != 0, d.scheduler.TakeHealth()
	all := append(d.kept, store.Consequences(health, nil)...)
	if d.kept = nil; !acquired {
		for _, c := range all {
			d.keep(c)
		}
		return nil
	}
	kept, err := d.write(ctx, all)
	if err != nil {
		return err
	}
	if kept == 0 {
		d.active, d.dropped = false, false
		d.log.Info("writing consequences of outcomes resumed; none are deferred")
	}
	return nil
}

// flushWithin bounds the last try when the process ends. It is a part of drainMargin.
const flushWithin = time.Second

// flush tries to write the deferred consequences when all loops have ended, and logs how
// many are lost.
func (d *deferred) flush(ctx context.Context) {
	if !d.active {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, flushWithin)
	defer cancel()
	_ = d.retry(ctx) // keeps what it could not write
	left := 0
	for _, c := range d.kept {
		left += c.Len()
	}
	if left > 0 {
		d.log.Error("deferred consequences of outcomes are lost: they could not be written before the end", "count", left)
	}
}

// write writes what the database accepts, for consequencesFor. It bisects what is refused, and
// keeps that and the rest, the rest first for the next round. It returns how many it keeps, and
// ErrFenced if another process holds the slot.
func (d *deferred) write(ctx context.Context, all []store.Consequence) (kept int, err error) {
	fence := d.scheduler.Fence()
	var refused []store.Consequence
	for begun := time.Now(); len(all) > 0 && err == nil && ctx.Err() == nil && time.Since(begun) < consequencesFor; {
		c := all[0]
		all = all[1:]
		attempt, cancel := d.heartbeat.statement(ctx)
		rest, failed := d.store.WriteConsequence(attempt, fence, c)
		cancel()
		switch {
		case failed == nil:
			all = append(rest, all...)
		case isRefusal(failed) && c.Len() > 1:
			halves := c.Halves()
			all = append(halves[:], all...)
		default:
			refused = append(refused, c)
			if errors.Is(failed, store.ErrFenced) {
				err = failed
			}
		}
	}
	left := append(all, refused...)
	for _, c := range left {
		d.keep(c)
	}
	return len(left), err
}
