package main

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
)

// upkeepEvery is how often partitions are looked after: a day is made two weeks
// ahead, so that minutes do not matter. upkeepSoon is when a lock was not to be had.
const (
	upkeepEvery = 10 * time.Minute
	upkeepSoon  = time.Minute
)

// upkeepTimeout bounds one round, most of which is waiting for its turn.
const upkeepTimeout = 2 * time.Minute

// fewDaysAhead is from when on a lack of partitions is said. Two weeks are made; who
// hears of it with a week to go can mend it in office hours.
const fewDaysAhead = 7

// keepPartitions makes days ahead and drops days past retention, while this
// process is the active one. A failure is said, and tried again next time.
func keepPartitions(ctx context.Context, st *store.Store, cfg *config.Config, current *pipelines, log *slog.Logger) error {
	k := partitionKeeper{store: st, partitions: store.NewPartitions(st, cfg.Retention), log: log, said: map[string]string{}}
	for {
		wait := upkeepEvery
		held := current.engine().WhileLive(ctx, func(held context.Context) {
			if k.round(held) {
				wait = upkeepSoon
			}
		})
		if !held {
			wait = time.Second // until there is a session, so that the first round comes soon
		}
		if !pause(ctx, wait) {
			return nil
		}
	}
}

// A partitionKeeper says each trouble once, and not in every round.
type partitionKeeper struct {
	store      *store.Store
	partitions *store.Partitions
	log        *slog.Logger
	said       map[string]string // what it is about, and what was said of it
}

// round reports whether something gave way, and is to be tried again soon.
func (k *partitionKeeper) round(ctx context.Context) (gaveWay bool) {
	attempt, cancel := context.WithTimeout(ctx, upkeepTimeout)
	defer cancel()
	done, err := k.partitions.Upkeep(attempt)
	if ctx.Err() != nil {
		return false
	}
	if k.news("upkeep", errorText(err)) {
		k.log.WarnContext(ctx, "partition upkeep failed; retrying", "error", err, "in", upkeepEvery.String())
	}
	if len(done.Made)+len(done.Dropped)+len(done.Stuck) > 0 || done.Moved+done.Deleted > 0 {
		k.log.InfoContext(ctx, "partition upkeep", "made", len(done.Made), "dropped", done.Dropped, "stuck", done.Stuck,
			"moved", done.Moved, "deleted", done.Deleted)
	}
	for _, d := range done.Kept {
		if k.news(d.Day, d.Why) {
			k.log.WarnContext(ctx, "cannot drop a day past WALHOOK_RETENTION; other days are dropped", "day", d.Day, "reason", d.Why)
		}
	}
	for _, day := range done.Dropped {
		delete(k.said, day)
	}
	k.ahead(attempt, err)
	return done.GaveWay
}

// ahead warns where there are partitions for few days, which nobody would see otherwise
// before events go into the DEFAULT partition, where days cannot be dropped.
func (k *partitionKeeper) ahead(ctx context.Context, cause error) {
	days, err := k.store.PartitionsAhead(ctx)
	if err != nil {
		return // the upkeep has failed for the same
	}
	few := ""
	if days < fewDaysAhead {
		few = strconv.Itoa(days)
	}
	if k.news("ahead", few) {
		k.log.WarnContext(ctx, "partitions exist for few days ahead; later rows go into the DEFAULT partitions, which are slower and cannot be dropped by day "+
			"(metric walhook_partitions_ahead)", "days", days, "cause", errorText(cause))
	}
}

// news reports whether there is something to say that was not said the last time.
func (k *partitionKeeper) news(about, text string) bool {
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

// sealEvery is how long a secret that was inserted as text may stay so.
const sealEvery = 10 * time.Second

// sealSecrets seals new signing secrets, while this process is the active one.
func sealSecrets(ctx context.Context, st *store.Store, current *pipelines, log *slog.Logger) error {
	var walk store.Resealing
	for wait := sealEvery; pause(ctx, wait); {
		wait = sealEvery
		current.engine().WhileLive(ctx, func(held context.Context) {
			if !walk.Done {
				sealAnew(held, st, &walk, log)
			}
			n, err := st.SealSecrets(held)
			if err != nil && held.Err() == nil {
				log.WarnContext(ctx, "cannot seal signing secrets; retrying", "error", err)
			}
			if n > 0 {
				log.InfoContext(ctx, "sealed signing secrets", "count", n)
				wait = time.Millisecond // there may be more
			}
		})
	}
	return nil
}

// sealAnew seals with WALHOOK_SECRET_KEY what WALHOOK_SECRET_KEY_OLD had sealed: all
// of it once in the life of a process, a chunk at a time.
func sealAnew(ctx context.Context, st *store.Store, walk *store.Resealing, log *slog.Logger) {
	for !walk.Done {
		err := st.Reseal(ctx, walk)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			log.WarnContext(ctx, "cannot reseal signing secrets; retrying", "error", err)
			return
		}
	}
	if walk.Resealed+walk.Unopened > 0 {
		log.InfoContext(ctx, "resealed signing secrets with WALHOOK_SECRET_KEY; if cannot_be_opened is 0, WALHOOK_SECRET_KEY_OLD can be removed",
			"count", walk.Resealed, "cannot_be_opened", walk.Unopened)
	}
}

// watchEvery is how often the stream is looked at.
const watchEvery = 500 * time.Millisecond

// watch ends the process where the stream no longer turns. The stream watches all
// other loops, and cannot watch itself: PostgreSQL would take its slot away, and
// this process would go on holding nothing. It takes two looks: the first may come
// before the loops of a process that was frozen have turned.
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

// pause waits, and reports whether the context is still alive.
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
