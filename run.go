package main

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/deliver"
	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/admin"
	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
)

// run wires the parts, and runs them until the context ends or one of them fails. If another
// process takes the slot over, a new pipeline follows.
func run(ctx context.Context, cfg *config.Config, log *slog.Logger) (err error) {
	ended := make(chan struct{})
	defer close(ended)
	sayDropped(ctx, cfg, log)
	sayProxy(ctx, cfg, log)
	db, err := openDatabase(ctx, cfg)
	if err != nil {
		return err
	}
	defer db.close()
	readiness, current := newReadiness(), &pipelines{log: log}
	sender := newSender(cfg, db.protected, log, func() bool { return current.engine().Live() })
	defer sender.Close()
	metrics := admin.NewMetrics(sender.Resent)
	progress := newTeller(db.store, log)
	current.begin(func(resumed bool) pipeline { return newPipeline(db, sender, metrics, progress, log, resumed) })
	sum := newSummary(db.store, current, log)
	defer func() { sum.sayEnd(ctx, err) }()
	serve, err := serveAdmin(ctx, cfg, adminOptions(cfg, readiness, db.store, current, metrics, log), db.protected)
	if err != nil {
		return err
	}
	work := func(ctx, live context.Context) error {
		exitAfter(ctx, cfg.Timeout+stopMargin, ended, log)
		if err := prepare(ctx, db, readiness, log); err != nil || ctx.Err() != nil {
			return err
		}
		sayStarted(ctx, db, log)
		return current.run(ctx, live)
	}
	return alongside(ctx, context.WithoutCancel(ctx), work, serve, sum.run,
		func(live context.Context) error { return watch(live, current.streamAlive) },
		func(live context.Context) error { return keepPartitions(live, db.store, cfg, current, log) },
		func(live context.Context) error { return seal(live, db.store, current, progress, log) },
		func(live context.Context) error { return watchBacklog(live, db.store, current, progress.tell, log) })
}

// alongside runs work, and everything that work needs until it has returned.
//
// ctx is for new work: it ends when walhook has to stop, or when anything fails. work then
// finishes what is under way. live is for what that needs (the stream, the database, the admin
// server): it ends when work has returned, or when anything fails.
func alongside(ctx, live context.Context, work func(ctx, live context.Context) error, needs ...func(live context.Context) error) error {
	parts, live := errgroup.WithContext(live)
	live, end := context.WithCancel(live)
	defer end()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(live, func() { stop(context.Cause(live)) })()
	for _, need := range needs {
		parts.Go(func() error { return need(live) })
	}
	parts.Go(func() error {
		defer end()
		return work(ctx, live)
	})
	return parts.Wait()
}

// sayProxy says which part of the guard is the proxy's, if there is one.
func sayProxy(ctx context.Context, cfg *config.Config, log *slog.Logger) {
	if p := cfg.Proxy(); p != nil {
		log.InfoContext(ctx, "a proxy dials endpoints and resolves their names, so it has to keep names from leading into networks of your own; "+
			"walhook checks schemes, ports, and hosts that are addresses", "proxy", p.Scheme+"://"+p.Host)
	}
}

func newSender(cfg *config.Config, protected *send.Protected, log *slog.Logger, live func() bool) *send.Sender {
	return send.NewSender(send.SenderConfig{
		Timeout: cfg.Timeout, UserAgent: cfg.UserAgent, ProxyURL: cfg.Proxy(), MaxInFlight: cfg.MaxInFlight, Live: live,
		RootCAs: cfg.RootCAs(), Log: log,
		Guard: send.GuardConfig{
			AllowHTTP: cfg.AllowHTTP, Ports: cfg.AllowPorts, Nets: cfg.AllowNets, Deny: cfg.DenyNets, Protected: protected,
		},
	})
}

// newPipeline makes a stream and its engine. resumed: it follows another one of this process.
func newPipeline(db *database, sender *send.Sender, metrics *admin.Metrics, progress *teller, log *slog.Logger, resumed bool) pipeline {
	cfg := db.cfg
	engine := deliver.New(deliver.Config{
		Limits: schedule.Limits{
			ParkAfter: cfg.ParkAfter, MaxInFlight: cfg.MaxInFlight, EndpointInFlight: cfg.EndpointInFlight,
			Window: cfg.Window, MaxMemory: int64(cfg.MaxMemory), Timeout: cfg.Timeout, DisableAfter: cfg.DisableAfter,
		},
		Backoff: schedule.Backoff(cfg.RetrySchedule), RecoveryWindow: cfg.RecoveryWindow,
		Store: db.store, Sender: sender, Log: log, Observe: metrics.Observe, Tell: progress.tell,
	})
	return pipeline{engine: engine, refused: db.refusedReplication, within: cfg.Timeout + stopMargin, stream: cdc.New(cdc.Config{
		Server: db.replication, Slot: cfg.Slot, Publication: store.Publication, CreateSlot: cfg.AutoInit, Resumed: resumed,
		Creating: db.store.AwaitSlot, Start: db.store.StartSession, Check: db.store.CheckSession, Alive: engine.Alive, Logger: log,
	})}
}

// stopMargin is how long a graceful stop may take beyond WALHOOK_TIMEOUT: 5 s are promised,
// less time to exit.
const stopMargin = 5*time.Second - 200*time.Millisecond

// exitAfter exits the process if, after the context has ended, ended is not closed within d,
// whatever hangs.
func exitAfter(ctx context.Context, d time.Duration, ended <-chan struct{}, log *slog.Logger) {
	context.AfterFunc(ctx, func() {
		select {
		case <-ended:
		case <-time.After(d):
			defer exitUnlessSaid(100*time.Millisecond, exitFailure).Stop() // stopMargin leaves more
			log.Error("did not stop in time; the next process sends again what was not recorded", "reason", context.Cause(ctx))
			os.Exit(exitFailure)
		}
	})
}

// tuneMemory lets the heap grow to five times its live size before a collection, not twice: the
// heap is small, so that costs some MiB and saves most of the collector's work. The memory
// limit keeps a window full of payloads from being multiplied as well. GOGC and GOMEMLIMIT
// override both.
func tuneMemory(cfg *config.Config) {
	const beside = 128 << 20 // stacks, buffers and garbage beside the payloads
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(cfg.MaxMemory) + beside)
	}
}
