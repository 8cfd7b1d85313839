// Package deliver sends what is owed and records what became of it.
//
//	fanout       stream → a delivery for each endpoint that is owed the event
//	schedule     a package: which delivery is sent when, and what may be confirmed
//	clock        what time alone brings about
//	workers      attempts under way; package send makes each, and says what it came to
//	recorder     outcomes → rows, in batches
//	tell         what outcomes mean beyond their rows, where that cannot be written with them
//	retrier      due rows → lanes
//	directory    endpoints as they are now
//	reconciler   what the stream will never bring
//
// A delivery passes them once, downwards. The only thing that travels back is
// the LSN up to which everything is recorded.
package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/store"
)

// A Store is what the loops ask of the database; each says beside itself what that
// is. Every method is one statement or one transaction: *store.Store is it.
type Store interface {
	fanOutStore
	recorderStore
	retrierStore
	directoryStore
	reconcilerStore
}

// Config is what an Engine needs. Store, Sender and Log are required.
type Config struct {
	schedule.Limits
	Backoff        schedule.Backoff
	RecoveryWindow time.Duration // how far back a first start looks for events that are still owed
	Store          Store
	Sender         *send.Sender
	Log            *slog.Logger
	// Observe, where not nil, is called after each attempt, concurrently.
	Observe func(eventType string, a store.Attempt)
}

// A Source is the stream as the Engine sees it.
type Source interface {
	// Batches is closed when the stream has ended.
	Batches() <-chan store.Batch
	// Stop ends the reading of events; echoes still come.
	Stop()
}

// An Engine is the pipeline behind the stream.
type Engine struct {
	scheduler  *schedule.Scheduler
	send       func(context.Context, send.Request) (store.Attempt, bool) // the Sender's
	observe    func(string, store.Attempt)
	log        *slog.Logger
	timeout    time.Duration
	workers    workers
	attempts   sync.WaitGroup
	running    atomic.Bool
	stopped    chan struct{} // closed when idle workers should end
	heartbeats []*heartbeat
	fanOut     *fanOut
	recorder   *recorder
	retrier    *retrier
	directory  *directory
	clock      *clock
	reconciler *reconciler
}

// New returns an Engine that waits for its first session.
func New(c Config) *Engine {
	return newEngine(c, schedule.New(schedule.Options{Limits: c.Limits, Backoff: c.Backoff}))
}

func newEngine(c Config, s *schedule.Scheduler) *Engine {
	e := &Engine{scheduler: s, send: c.Sender.Send, observe: c.Observe, log: c.Log, timeout: c.Timeout, stopped: make(chan struct{})}
	e.recorder = &recorder{scheduler: s, store: c.Store, heartbeat: e.newHeartbeat("recorder"), log: c.Log, writer: newWriterLock()}
	e.retrier = &retrier{scheduler: s, store: c.Store, heartbeat: e.newHeartbeat("retrier"), log: c.Log, changeHint: s.ToLook, notVisible: map[uuid.UUID]bool{}}
	e.directory = &directory{scheduler: s, store: c.Store, sender: c.Sender, heartbeat: e.newHeartbeat("directory"), log: c.Log}
	e.clock = &clock{scheduler: s, heartbeat: e.newHeartbeat("clock")}
	e.reconciler = &reconciler{scheduler: s, store: c.Store, recorder: e.recorder, window: c.RecoveryWindow,
		announce: e.retrier.changeHint.Raise, log: c.Log, wake: schedule.NewSignal(), heartbeat: newHeartbeat("reconciler")}
	e.recorder.compare = e.reconciler.wake.Raise
	e.retrier.compare = e.reconciler.wake.Raise
	e.fanOut = &fanOut{scheduler: s, store: c.Store, recorder: e.recorder, holder: uuid.New(), acquired: e.acquired,
		heartbeat: e.newHeartbeat("fan-out"), log: c.Log}
	e.workers.work = make(chan *schedule.Delivery, c.MaxInFlight)
	s.OnStart(e.workers.start)
	return e
}

func (e *Engine) newHeartbeat(name string) *heartbeat {
	h := newHeartbeat(name)
	e.heartbeats = append(e.heartbeats, h)
	return h
}

// acquired starts what a session needs besides the stream.
func (e *Engine) acquired(fence store.Fence) {
	e.retrier.sessionClaimed(fence)
	e.retrier.changeHint.Raise()
}

// Live says whether this process certainly has the slot. What sends, claims, cleans
// or seals asks before it does.
func (e *Engine) Live() bool { return e.scheduler.Live(time.Now()) }

// liveEvery is how soon what runs in WhileLive ends after the slot was lost.
const liveEvery = 250 * time.Millisecond

// WhileLive calls f where this process has the slot, with a context that ends when
// it has lost it, and reports whether it had it all the while.
func (e *Engine) WhileLive(ctx context.Context, f func(context.Context)) bool {
	if !e.Live() {
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(liveEvery)
		defer tick.Stop()
		for e.Live() {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
		cancel()
	})
	f(ctx)
	kept := ctx.Err() == nil
	cancel()
	watch.Wait()
	return kept
}

// Alive returns an error where a loop no longer turns. Before Run, and after it,
// none has to.
func (e *Engine) Alive() error {
	if !e.running.Load() {
		return nil
	}
	now := time.Now()
	var errs []error
	for _, h := range e.heartbeats {
		errs = append(errs, h.check(now))
	}
	return errors.Join(errs...)
}

// Trouble returns why nothing is sent or recorded just now, if so: endpoints cannot
// be looked up, the clock is off, no secret can be opened; or for some seconds the
// database has refused to record, to let the slot be claimed, or to say what is due.
func (e *Engine) Trouble() error {
	return errors.Join(
		e.directory.failing(),
		e.fanOut.failure.lasting("the slot cannot be claimed, or deliveries cannot be looked up"),
		e.recorder.failure.lasting("outcomes cannot be recorded"),
		e.retrier.failure.lasting("due deliveries cannot be looked for"),
	)
}

// drainMargin is what a graceful stop may take beyond the attempts under way:
// recording their outcomes, and their echo.
const drainMargin = 3 * time.Second

// ErrUnrecorded means that requests were sent whose outcomes are not in the table:
// the next process sends them again.
var ErrUnrecorded = errors.New("stopped before everything was recorded")

// Run delivers what the source brings until the context ends, and then drains:
// it starts nothing more, lets the attempts under way end, records their
// outcomes and confirms them, within Timeout and drainMargin. It returns
// store.ErrFenced where another process has taken over, and ErrUnrecorded where
// outcomes could not be recorded in that time.
func (e *Engine) Run(ctx context.Context, source Source) error {
	loops, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	e.workers.run = func(d *schedule.Delivery) { e.attempts.Go(func() { e.work(loops, d) }) }
	for _, h := range e.heartbeats {
		h.beat()
	}
	e.running.Store(true)
	defer e.running.Store(false)
	died := make(chan error, 8)
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{
		e.recorder.run, e.retrier.run, e.directory.run, e.clock.run, e.reconciler.run,
		func(ctx context.Context) error { return e.fanOut.run(ctx, source.Batches()) },
	} {
		wg.Go(func() { died <- run(loops) })
	}
	var err error
	select {
	case <-ctx.Done():
		err = e.drain(loops, source, died)
	case err = <-died:
		source.Stop()
	}
	kill()
	close(e.stopped)
	wg.Wait()
	e.attempts.Wait()
	if ctx.Err() != nil && !errors.Is(err, store.ErrFenced) {
		e.recorder.flushDeferred(context.WithoutCancel(ctx))
	}
	return err
}

// drain waits until what was started is recorded and confirmed.
func (e *Engine) drain(ctx context.Context, source Source, died <-chan error) error {
	e.scheduler.Stop()
	source.Stop()
	deadline := time.NewTimer(e.timeout + drainMargin)
	defer deadline.Stop()
	tick := time.NewTicker(schedule.ParkEvery)
	defer tick.Stop()
	echoes := true // still to be had
	for {
		select {
		case err := <-died:
			if err != nil {
				return err
			}
			echoes = false // the stream has ended; what can be recorded is recorded all the same
		case <-deadline.C:
			return e.unrecorded()
		case <-tick.C:
			e.scheduler.ToRecord.Raise()
			if e.scheduler.Drained(echoes) {
				e.noteEnd(ctx)
				return nil
			}
		}
	}
}

// unrecorded says what a drain has left, if that will be sent again. What has not
// been sent comes once more by the stream.
func (e *Engine) unrecorded() error {
	sent, locked := e.scheduler.Unrecorded()
	if len(sent) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d requests were sent whose outcomes are not in webhook_deliveries (%d of their rows are locked by others: "+
		"SELECT pid, query FROM pg_stat_activity WHERE xact_start < now() - interval '5 s'), and the next process sends them again",
		ErrUnrecorded, len(sent), locked)
}

// noteEnd has the next process begin where this one ends. What was confirmed since
// the last outcome held nothing, but nobody else could know that: the next would
// look for what lies between. Where that cannot be noted it does look.
func (e *Engine) noteEnd(ctx context.Context) {
	fence, durable, all := e.scheduler.End(time.Now())
	if !all {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, noteEndWithin)
	defer cancel()
	if err := e.recorder.store.Mark(ctx, fence, durable); err != nil {
		e.log.Info("could not note where the stream was left; the next process compares what came last", "reason", err)
	}
}

// noteEndWithin bounds the last statement of a process: a part of drainMargin.
const noteEndWithin = time.Second

// Stats returns a snapshot for metrics.
func (e *Engine) Stats() schedule.Stats { return e.scheduler.Stats(time.Now()) }
