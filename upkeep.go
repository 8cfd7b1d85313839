package main

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

// upkeepEvery is the interval of partition upkeep: days are created two weeks ahead, so
// minutes do not matter. After a lock was not available, the next round comes soon: while
// today has no partition, its rows pile up in the DEFAULT partition, and beyond some they stay
// there. Each try can delay INSERTs, so the interval doubles from upkeepSoon to upkeepLater.
const (
	upkeepEvery = 10 * time.Minute
	upkeepSoon  = 2 * time.Second
	upkeepLater = time.Minute
)

// upkeepTimeout bounds one round, which mostly waits for locks and between moves.
const upkeepTimeout = 2 * time.Minute

// fewDaysAhead is below how many days ahead a warning is logged. Normally there are two weeks;
// with a week left somebody can fix it in office hours.
const fewDaysAhead = 7

// keepPartitions creates days ahead and drops days past retention, while this process is the
// active one. It logs a failure, and retries in the next round.
func keepPartitions(ctx context.Context, st *store.Store, cfg *config.Config, current *pipelines, log *slog.Logger) error {
	k := partitionKeeper{store: st, partitions: store.NewPartitions(st, cfg.Retention), log: log, said: map[string]string{}}
	soon := upkeepSoon
	for {
		wait := upkeepEvery
		held := current.engine().WhileLive(ctx, func(held context.Context) {
			if k.round(held) {
				wait, soon = soon, min(2*soon, upkeepLater)
			} else {
				soon = upkeepSoon
			}
		})
		if !held {
			wait = time.Second // no session yet; the first round should come soon after one
		}
		if !pause(ctx, wait) {
			return nil
		}
	}
}

// A partitionKeeper logs each problem once, not in every round.
type partitionKeeper struct {
	store      *store.Store
	partitions *store.Partitions
	log        *slog.Logger
	said       map[string]string // by subject: what was logged last
}

// round does one round of upkeep, and reports whether a lock was not available, so that it
// should be tried again soon.
func (k *partitionKeeper) round(ctx context.Context) (retrySoon bool) {
	attempt, cancel := context.WithTimeout(ctx, upkeepTimeout)
	defer cancel()
	done, err := k.partitions.Upkeep(attempt)
	if ctx.Err() != nil {
		return false
	}
	if k.changed("upkeep", errorText(err)) {
		k.log.WarnContext(ctx, "partition upkeep failed; retrying", "error", err, "in", upkeepEvery.String())
	}
	if len(done.Made)+len(done.Dropped)+len(done.Stuck) > 0 || done.Moved+done.Deleted > 0 {
		k.log.InfoContext(ctx, "partition upkeep", "made", len(done.Made), "dropped", done.Dropped, "stuck", done.Stuck,
			"moved", done.Moved, "deleted", done.Deleted)
	}
	for _, d := range done.Kept {
		if k.changed(d.Day, d.Why) {
			k.log.WarnContext(ctx, "cannot drop a day past WALHOOK_RETENTION; other days are dropped", "day", d.Day, "reason", d.Why)
		}
	}
	for _, day := range done.Dropped {
		delete(k.said, day)
	}
	k.ahead(attempt, err)
	return done.LockNotAvailable
}

// ahead warns if partitions exist for few days. Otherwise nobody would notice before events go
// into the DEFAULT partition, which cannot be dropped by day.
func (k *partitionKeeper) ahead(ctx context.Context, cause error) {
	days, err := k.store.PartitionsAhead(ctx)
	if err != nil {
		return // the upkeep has logged the same failure
	}
	few := ""
	if days < fewDaysAhead {
		few = strconv.Itoa(days)
	}
	if k.changed("ahead", few) {
		k.log.WarnContext(ctx, "partitions exist for few days ahead; later rows go into the DEFAULT partitions, which are slower and cannot be dropped by day "+
			"(metric walhook_partitions_ahead)", "days", days, "cause", errorText(cause))
	}
}

// changed reports whether the text is not empty and differs from the last one about its subject.
func (k *partitionKeeper) changed(about, text string) bool {
	before := k.said[about]
	k.said[about] = text
	return text != "" && text != before
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// sealEvery bounds how long a secret or a header that was inserted as text stays unsealed. Each
// round looks into two indexes, which are empty as a rule. A failure is logged in each round, so
// the next one comes after sealRetry.
const (
	sealEvery = 2 * time.Second
	sealRetry = 10 * time.Second
)

// seal seals new signing secrets and headers while this process is the active one. First it
// seals anew what another key or an earlier version has sealed.
func seal(ctx context.Context, st *store.Store, current *pipelines, progress *teller, log *slog.Logger) error {
	if !st.Seals() {
		<-ctx.Done()
		return nil
	}
	var walk store.Resealing
	for wait := sealEvery; pause(ctx, wait); {
		wait = sealEvery
		current.engine().WhileLive(ctx, func(held context.Context) {
			stale := resealAll(held, st, &walk, progress.tell, log)
			n, err := st.SealAll(held)
			if n > 0 {
				log.InfoContext(ctx, "sealed signing secrets and headers", "count", n)
				wait = time.Millisecond // there may be more
			}
			if err = errors.Join(stale, err); err != nil && held.Err() == nil {
				log.WarnContext(ctx, "cannot seal signing secrets and headers; retrying", "error", err)
				wait = sealRetry
			}
		})
	}
	return nil
}

// resealAll makes one pass over all signing secrets and headers, in chunks, or ends the one that
// an error has interrupted.
func resealAll(ctx context.Context, st *store.Store, walk *store.Resealing, tell func(context.Context, webhook.Progress), log *slog.Logger) error {
	if walk.Done {
		return nil
	}
	var meter webhook.Meter
	total, err := st.Sealable(ctx)
	if err != nil {
		return err
	}
	for !walk.Done {
		if err := st.Reseal(ctx, walk); err != nil {
			return err
		}
		if now := time.Now(); meter.Due(now) {
			p := meter.Progress(webhook.Resealing, now, float64(walk.Rows)/float64(max(total, 1)))
			p.Done = walk.Stale
			tell(ctx, p)
		}
	}
	tell(ctx, webhook.Progress{Task: webhook.Resealing, Ended: true})
	if walk.Stale+walk.Unopened > 0 {
		log.InfoContext(ctx, "resealed signing secrets and headers with WALHOOK_SECRET_KEY; if cannot_be_opened is 0, WALHOOK_SECRET_KEY_OLD can be removed",
			"count", walk.Stale, "cannot_be_opened", walk.Unopened)
	}
	return nil
}

// watchEvery is how often the stream is checked.
const watchEvery = 500 * time.Millisecond

// watch ends the process if the stream is stuck. The stream watches all other loops, but cannot
// watch itself: PostgreSQL would take its slot away, and this process would run on without it.
// It takes two failed checks, because after a freeze the first may come before the stream has
// run.
func watch(ctx context.Context, alive func() error) error {
	for wedged := false; pause(ctx, watchEvery); {
		err := alive()
		if err != nil && wedged {
			return err
		}
		wedged = err != nil
	}
	return nil
}

// pause waits, and reports false if the context ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
