package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/deliver"
	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/store"
)

// A pipeline is a stream and the engine that it feeds.
type pipeline struct {
	stream  *cdc.Stream
	engine  *deliver.Engine
	refused func(error) error // classifies the stream's error, see database.refused
	within  time.Duration     // bounds how long it may take to end, once a part has ended
}

// pipelines run one after the other: a new one follows one whose slot another process has
// taken over. The new one shares no state with it, so nothing that the former one held can be
// sent, written or waited for.
type pipelines struct {
	log     *slog.Logger
	make    func(resumed bool) pipeline
	current atomic.Pointer[pipeline]

	mu     sync.Mutex
	former schedule.Counts // of the pipelines before
}

// begin makes the first pipeline. The methods below need it.
func (p *pipelines) begin(make func(resumed bool) pipeline) {
	p.make = make
	p.current.Store(new(make(false)))
}

func (p *pipelines) engine() *deliver.Engine { return p.current.Load().engine }
func (p *pipelines) stream() *cdc.Stream     { return p.current.Load().stream }

func (p *pipelines) streamAlive() error { return p.stream().Alive() }
func (p *pipelines) alive() error       { return errors.Join(p.engine().Alive(), p.streamAlive()) }

// restartEvery is the least time between two starts of a pipeline.
const restartEvery = time.Second

// run runs pipelines until the context ends, and then drains the last one.
func (p *pipelines) run(ctx, live context.Context) error {
	for {
		began := time.Now()
		err := p.current.Load().run(ctx, live, p.log)
		if !errors.Is(err, store.ErrFenced) || ctx.Err() != nil {
			return err
		}
		p.log.WarnContext(ctx, "another walhook has taken over the slot; starting again as a standby", "reason", err)
		if !pause(ctx, restartEvery-time.Since(began)) {
			return nil
		}
		p.follow()
	}
}

// follow makes the next pipeline. What the former one has counted stays counted.
func (p *pipelines) follow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.former = p.former.Plus(p.engine().Stats().Counts)
	p.current.Store(new(p.make(true)))
}

// stats returns a snapshot of the present engine, with the totals of the whole process.
func (p *pipelines) stats() schedule.Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.engine().Stats()
	s.Counts = p.former.Plus(s.Counts)
	return s
}

// run returns when a part has failed, or when the context has ended and everything is recorded.
// If a part hangs then, the process exits: it could never start another pipeline.
func (p *pipeline) run(ctx, live context.Context, log *slog.Logger) error {
	ended := make(chan struct{})
	defer close(ended)
	ending, end := context.WithCancelCause(context.WithoutCancel(ctx))
	exitAfter(ending, p.within, ended, log)
	engine := func(ctx, _ context.Context) error {
		defer context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })()
		return p.engine.Run(ctx, endingSource{p.stream, end})
	}
	return alongside(ctx, live, engine, func(live context.Context) error {
		err := p.refused(p.stream.Run(live))
		end(err)
		return err
	})
}

// An endingSource tells when the engine stops its stream. It does so first, however it ends,
// and only then waits for its loops, of which one may hang.
type endingSource struct {
	*cdc.Stream
	end context.CancelCauseFunc
}

var errEngineEnded = errors.New("the engine has ended: another process has taken over the slot, or a loop failed")

// Stop is deliver.Source's.
func (s endingSource) Stop() {
	s.end(errEngineEnded)
	s.Stream.Stop()
}
