// Package deliver sends the deliveries that are owed, and records their outcomes.
//
//	fanout         stream → a delivery for each endpoint that is owed the event
//	schedule       a package: when each delivery is sent, and which LSN may be confirmed
//	clock          whatever depends on time alone: parking, rate limits, probes
//	workers        attempts under way; package send makes each of them
//	recorder       outcomes → rows, in batches; the writer finds rows that the database refuses
//	consequences   effects of outcomes beyond their rows, if the database refuses them
//	finder         which endpoints have due rows
//	retrier        due rows → lanes
//	claims         when a comparison may start after a session has claimed the slot
//	directory      current endpoints → lanes
//	reconciler     owed deliveries that the stream will never bring; the inserter writes their rows
//	heartbeat      shows that each loop makes progress
//	endpointlog    what operators hear of endpoints
//	failure        an operation that keeps failing, for /readyz
//
// A delivery passes them once, downwards. Only the LSN up to which everything is
// recorded travels back.
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
	"github.com/walhook/walhook/internal/webhook"
)

// A Store has the statements of all loops; each loop declares its own. Every method
// is one statement or one transaction. *store.Store implements it.
type Store interface {
	fanOutStore
	recorderStore
	consequenceStore
	retrierStore
	claimStore
	finderStore
	directoryStore
	reconcilerStore
	inserterStore
}

// Config configures an Engine. Store, Sender and Log are required.
type Config struct {
	schedule.Limits
	Backoff        schedule.Backoff
	RecoveryWindow time.Duration // how far back a comparison reaches at most
	Store          Store
	Sender         *send.Sender
	Log            *slog.Logger
	// Tell, if not nil, is told how far a comparison is, while it takes long.
	Tell func(context.Context, webhook.Progress)
	// Observe, if not nil, is called after each attempt, concurrently.
	Observe func(eventType string, a webhook.Attempt)
}

// A Source is the stream that an Engine reads.
type Source interface {
	// Batches is closed when the stream has ended.
	Batches() <-chan webhook.Batch
	// Stop stops reading events; echoes still come.
	Stop()
}

// An Engine runs the loops that deliver the stream's events.
type Engine struct {
	scheduler  *schedule.Scheduler
	send       func(context.Context, send.Request) (webhook.Attempt, bool) // Sender.Send
	observe    func(string, webhook.Attempt)
	log        *slog.Logger
	timeout    time.Duration
	workers    workers
	attempts   sync.WaitGroup
	running    atomic.Bool
	cutOff     atomic.Int64  // attempts that the end of the process has cut
	stopped    chan struct{} // closed: idle workers end
	heartbeats []*heartbeat
	fanOut     *fanOut
	recorder   *recorder
	retrier    *retrier
	finder     *finder
	directory  *directory
	clock      *clock
	reconciler *reconciler
}

// New returns an Engine. It delivers once Run has received a session.
func New(c Config) *Engine {
	return newEngine(c, schedule.New(schedule.Options{Limits: c.Limits, Backoff: c.Backoff}))
}

func newEngine(c Config, s *schedule.Scheduler) *Engine {
	e := &Engine{scheduler: s, send: c.Sender.Send, observe: c.Observe, log: c.Log, timeout: c.Timeout, stopped: make(chan struct{})}
	recording, fetching, reconciling := e.newHeartbeat("recorder"), e.newHeartbeat("retrier"), newHeartbeat("reconciler")
	e.recorder = &recorder{store: c.Store, lock: newWriterLock(), writer: writer{scheduler: s, heartbeat: recording, log: c.Log,
		deferred: deferred{scheduler: s, store: c.Store, heartbeat: recording, log: c.Log}}}
	e.retrier = &retrier{scheduler: s, store: c.Store, heartbeat: fetching, log: c.Log, notVisible: map[uuid.UUID]bool{},
		claims: &claims{scheduler: s, store: c.Store, heartbeat: fetching}}
	e.finder = &finder{scheduler: s, store: c.Store, heartbeat: e.newHeartbeat("finder"), log: c.Log, changeHint: s.ToScan}
	e.directory = &directory{scheduler: s, store: c.Store, sender: c.Sender, heartbeat: e.newHeartbeat("directory"), log: c.Log,
		faults: faultLog{c.Log, map[webhook.OwnFault]time.Time{}}, endpoints: endpointLog{log: c.Log}}
	e.clock = &clock{scheduler: s, heartbeat: e.newHeartbeat("clock")}
	e.reconciler = &reconciler{scheduler: s, store: c.Store, window: c.RecoveryWindow, tell: c.Tell,
		announce: e.finder.changeHint.Raise, log: c.Log, wake: schedule.NewSignal(), heartbeat: reconciling,
		inserter: &inserter{scheduler: s, store: c.Store, recorder: e.recorder, heartbeat: reconciling, log: c.Log}}
	e.recorder.compare = e.reconciler.wake.Raise
	e.retrier.claims.compare = e.reconciler.wake.Raise
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

// acquired has the retrier and the finder start for a new session.
func (e *Engine) acquired(fence webhook.Fence) {
	e.retrier.claims.sessionClaimed(fence)
	e.finder.changeHint.Raise()
}

// Live reports whether this process certainly holds the slot. Whoever sends, cancels,
// maintains partitions or seals secrets asks first.
func (e *Engine) Live() bool { return e.scheduler.Live(time.Now()) }

// liveEvery bounds how long a function in WhileLive runs on after the slot was lost.
const liveEvery = 250 * time.Millisecond

// WhileLive calls f if this process holds the slot, with a context that ends when the
// slot is lost. It reports whether the process held the slot until f returned.
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

// Alive returns an error if a loop makes no progress. Before and after Run it returns
// nil.
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

// Ready returns why nothing can be sent or recorded, or nil: endpoints cannot be
// looked up; or for notReadyAfter a fault of ours has kept everything waiting, or
// recording, claiming the slot, or polling for due deliveries or fetching them has failed.
func (e *Engine) Ready() error {
	return errors.Join(
		e.directory.failing(),
		stuck(e.scheduler),
		e.fanOut.failure.lasting("the slot cannot be claimed, or deliveries cannot be looked up"),
		e.recorder.failure.lasting("outcomes cannot be recorded"),
		e.retrier.failure.lasting("due deliveries cannot be fetched"),
		e.finder.failure.lasting("due deliveries cannot be polled for"),
	)
}

// drainMargin bounds what a graceful stop takes beyond the attempts under way:
// recording their outcomes and receiving the echoes. An exit is promised within
// Timeout + 5 s.
const drainMargin = 3 * time.Second

// ErrUnrecorded means that requests were sent whose outcomes are not in the table.
// The next process sends them again.
var ErrUnrecorded = errors.New("stopped before all outcomes were recorded")

// errCut is the cause of the context of attempts that a stop waits for no longer.
var errCut = errors.New("the process stops")

// Run delivers the source's events until the context ends. Then it drains: it starts
// no more attempts, lets those under way end, and records and confirms their
// outcomes, within Timeout plus drainMargin. An endpoint's own timeout may be longer: after
// Timeout its attempts are cut, and do not count. It returns store.ErrFenced if another
// process has taken over, and ErrUnrecorded if outcomes could not be recorded in time.
func (e *Engine) Run(ctx context.Context, source Source) error {
	loops, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	attempting, cut := context.WithCancelCause(loops)
	defer cut(nil)
	e.workers.run = func(d *schedule.Delivery) { e.attempts.Go(func() { e.work(attempting, d) }) }
	for _, h := range e.heartbeats {
		h.beat()
	}
	e.running.Store(true)
	defer e.running.Store(false)
	died := make(chan error, 8)
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{
		e.recorder.run, e.retrier.run, e.finder.run, e.directory.run, e.clock.run, e.reconciler.run,
		func(ctx context.Context) error { return e.fanOut.run(ctx, source.Batches()) },
	} {
		wg.Go(func() { died <- run(loops) })
	}
	var err error
	select {
	case <-ctx.Done():
		err = e.drain(loops, source, died, cut)
	case err = <-died:
		source.Stop()
	}
	kill()
	close(e.stopped)
	wg.Wait()
	e.attempts.Wait()
	if n := e.cutOff.Load(); n > 0 {
		e.log.InfoContext(ctx, "attempts that WALHOOK_TIMEOUT did not suffice for were cut; they are not counted, and the next process sends their deliveries again", "count", n)
	}
	if ctx.Err() != nil && !errors.Is(err, store.ErrFenced) {
		e.recorder.deferred.flush(context.WithoutCancel(ctx))
	}
	return err
}

// drain waits until all attempts that were started are recorded and confirmed. It cuts
// those that would take longer than Timeout from now on.
func (e *Engine) drain(ctx context.Context, source Source, died <-chan error, cut context.CancelCauseFunc) error {
	e.scheduler.Stop()
	source.Stop()
	deadline := time.NewTimer(e.timeout + drainMargin)
	defer deadline.Stop()
	defer time.AfterFunc(e.timeout, func() { cut(errCut) }).Stop()
	tick := time.NewTicker(schedule.ParkEvery)
	defer tick.Stop()
	echoes := true // can still come
	for {
		select {
		case err := <-died:
			if err != nil {
				return err
			}
			echoes = false // the stream has ended; outcomes can still be recorded
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

// unrecorded returns an error if a drain has left outcomes of requests that were sent.
// Deliveries that were not sent need none: the stream brings them again.
func (e *Engine) unrecorded() error {
	sent, locked := e.scheduler.Unrecorded()
	if len(sent) == 0 {
		return nil
	}
	return fmt.Errorf("%w: the outcomes of %d requests are not in webhook_deliveries, so the next process sends them again (%d of their rows are locked by others: "+
		"SELECT pid, query FROM pg_stat_activity WHERE xact_start < now() - interval '5 s')",
		ErrUnrecorded, len(sent), locked)
}

// noteEnd writes the last position into the state row, so that the next process begins
// there. There is nothing to deliver between the last outcome and that position, but
// only this process knows. Without the note, the next one compares the outbox.
func (e *Engine) noteEnd(ctx context.Context) {
	fence, durable, all := e.scheduler.EndSession(time.Now())
	if !all {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, noteEndWithin)
	defer cancel()
	if err := e.recorder.store.Mark(ctx, fence, durable); err != nil {
		e.log.Info("could not write the last position; the next process compares the latest events with their deliveries", "reason", err)
	}
}

// noteEndWithin bounds the last statement of a process. It is a part of drainMargin.
const noteEndWithin = time.Second

// Stats returns a snapshot for metrics.
func (e *Engine) Stats() schedule.Stats { return e.scheduler.Stats(time.Now()) }
