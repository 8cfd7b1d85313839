package main

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/deliver"
	"github.com/walhook/walhook/internal/store"
)

// A pipeline is a stream and the engine behind it, with all that they hold.
type pipeline struct {
	stream  *cdc.Stream
	engine  *deliver.Engine
	refused func(error) error // says what is wrong with the configuration, of the stream's error
	within  time.Duration     // how long it may take to end, once a part of it has
}

// A line is one pipeline after the other: each is the first, or follows one whose
// slot another process has taken. Everything is made anew then, so that nothing of
// what this process once held can be sent, written or waited for.
type line struct {
	make    func(resumed bool) pipeline
	log     *slog.Logger
	current atomic.Pointer[pipeline]
}

func newLine(log *slog.Logger, make func(resumed bool) pipeline) *line {
	l := &line{make: make, log: log}
	l.current.Store(new(make(false)))
	return l
}

func (l *line) engine() *deliver.Engine { return l.current.Load().engine }
func (l *line) stream() *cdc.Stream     { return l.current.Load().stream }

// streamAlive and alive are the present pipeline's.
func (l *line) streamAlive() error { return l.stream().Alive() }
func (l *line) alive() error       { return errors.Join(l.engine().Alive(), l.streamAlive()) }

// anewEvery bounds how often a pipeline follows another.
const anewEvery = time.Second

// run runs pipelines until the context ends, and then drains the last: what that
// needs lives as long as live.
func (l *line) run(ctx, live context.Context) error {
	for {
		began := time.Now()
		err := l.current.Load().run(ctx, live, l.log)
		if !errors.Is(err, store.ErrFenced) || ctx.Err() != nil {
			return err
		}
		l.log.WarnContext(ctx, "another walhook has taken the slot over: this one begins anew, and stands by", "reason", err)
		if !pause(ctx, anewEvery-time.Since(began)) {
			return nil
		}
		l.current.Store(new(l.make(true)))
	}
}

// run ends when a part has failed, or the context has ended and all is recorded. A
// part that hangs then would keep this process from ever beginning anew: it ends.
func (p *pipeline) run(ctx, live context.Context, log *slog.Logger) error {
	parts, live := errgroup.WithContext(live)
	live, end := context.WithCancel(live)
	defer end()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer exitAfter(ctx, p.within, log)()
	defer context.AfterFunc(live, func() { stop(context.Cause(live)) })() // where the stream has failed
	parts.Go(func() error { return p.refused(p.stream.Run(live)) })
	parts.Go(func() error {
		defer end()
		return p.engine.Run(ctx, p.stream)
	})
	return parts.Wait()
}
