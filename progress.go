package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

// A teller tells people how far tasks are that take long: webhook_status each TellEvery, and the
// log less often the longer a task takes.
type teller struct {
	note func(context.Context, webhook.Progress) error // the store's NoteProgress
	log  *slog.Logger

	mu   sync.Mutex
	said map[string]time.Time // by task: the last line
}

func newTeller(st *store.Store, log *slog.Logger) *teller {
	return &teller{note: st.NoteProgress, log: log, said: map[string]time.Time{}}
}

// noteTimeout bounds the note, for which the task waits.
const noteTimeout = 5 * time.Second

// saidShare bounds a task's lines: none before it has taken a tenth longer than at the last one.
const saidShare = 10

func (t *teller) tell(ctx context.Context, p webhook.Progress) {
	first, say := t.turn(p, time.Now())
	if p.Ended && first {
		return // it was quick, and nobody heard of it
	}
	noting, cancel := context.WithTimeout(ctx, noteTimeout)
	defer cancel()
	if err := t.note(noting, p); err != nil && ctx.Err() == nil {
		t.log.DebugContext(ctx, "webhook_status does not show how far a task is", "error", err)
	}
	if say {
		t.log.InfoContext(ctx, p.Task+" goes on", attributes(p)...)
	}
}

// turn reports whether this is the task's first time, and whether the log gets a line.
func (t *teller) turn(p webhook.Progress, now time.Time) (first, say bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	last, known := t.said[p.Task]
	if p.Ended {
		delete(t.said, p.Task)
		return !known, false
	}
	say = now.Sub(last) >= max(webhook.TellEvery, now.Sub(p.Began)/saidShare)
	if say {
		t.said[p.Task] = now
	}
	return !known, say
}

// attributes are the figures that are known.
func attributes(p webhook.Progress) (known []any) {
	for _, figure := range []struct {
		attr  slog.Attr
		known bool
	}{
		{slog.Int("percent", p.Percent), p.Percent > 0}, {slog.String("left", p.Left.String()), p.Left > 0},
		{slog.Time("position", p.Position), !p.Position.IsZero()}, {slog.Int("inserted", p.Inserted), p.Inserted > 0},
		{slog.Int("done", p.Done), p.Done > 0}, {slog.Int64("waiting", p.Waiting), p.Waiting > 0}, {slog.Int("per_second", p.PerSecond), p.PerSecond > 0},
	} {
		if figure.known {
			known = append(known, figure.attr)
		}
	}
	return known
}

const (
	// A backlog is told from this many due deliveries on: fewer are gone in seconds.
	backlogMin = 1000
	// backlogMax bounds how long a backlog may take that is told of: what a broken receiver's
	// probes would need years for is no backlog that drains.
	backlogMax = 7 * 24 * time.Hour
	// backlogShare bounds what counting costs: at most half a per cent of one of PostgreSQL's
	// CPUs. A million due rows take a third of a second.
	backlogShare = 200
	// backlogTimeout bounds one count.
	backlogTimeout = 15 * time.Second
)

// A backlog watches how what is due in webhook_deliveries drains, such as a replay of many.
type backlog struct {
	due     func(context.Context) (int64, error) // the store's
	fetched func() uint64                        // rows that this process has taken so far
	tell    func(context.Context, webhook.Progress)

	began  time.Time // zero: there is none
	at     time.Time // the last look
	before uint64    // fetched at it
}

// watchBacklog looks while this process is the active one.
func watchBacklog(ctx context.Context, st *store.Store, current *pipelines, tell func(context.Context, webhook.Progress), log *slog.Logger) error {
	b := backlog{due: st.DueNow, tell: tell, fetched: func() uint64 { return current.stats().Fetched }}
	for wait := webhook.TellEvery; pause(ctx, wait); {
		began := time.Now()
		current.engine().WhileLive(ctx, func(held context.Context) {
			if err := b.look(held); err != nil && held.Err() == nil {
				log.DebugContext(ctx, "cannot count what is due", "error", err)
			}
		})
		wait = max(webhook.TellEvery, backlogShare*time.Since(began))
	}
	return nil
}

// look counts, and tells if rows drain.
func (b *backlog) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, backlogTimeout)
	defer cancel()
	now, fetched := time.Now(), b.fetched()
	rate := 0.0
	if !b.at.IsZero() {
		rate = float64(fetched-b.before) / now.Sub(b.at).Seconds()
	}
	b.at, b.before = now, fetched
	if rate == 0 && b.began.IsZero() {
		return nil // nothing comes out of the table, so there is nothing to count
	}
	due, err := b.due(ctx)
	if err != nil {
		return err
	}
	left := webhook.Seconds(float64(due) / max(rate, 1e-9))
	if due < backlogMin || left > webhook.Seconds(backlogMax.Seconds()) {
		if !b.began.IsZero() {
			b.began = time.Time{}
			b.tell(ctx, webhook.Progress{Task: webhook.Replaying, Ended: true})
		}
		return nil
	}
	if b.began.IsZero() {
		b.began = now
	}
	b.tell(ctx, webhook.Progress{Task: webhook.Replaying, Began: b.began, Waiting: due, PerSecond: int(rate), Left: left})
	return nil
}
