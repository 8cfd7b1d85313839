// Command walhook delivers webhooks from a transactional outbox in PostgreSQL.
//
// It stands beside the database, follows webhook_outbox by logical replication,
// sends a signed POST to each endpoint that an event is owed to, retries with
// exponential backoff, and writes what happened into webhook_deliveries.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
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

//go:embed schema.sql
var schema string

// version is set by the linker.
var version = "dev"

// The exit codes.
const (
	exitClean       = 0
	exitFailure     = 1 // at run time
	exitConfig      = 2 // bad configuration
	exitNotPrepared = 3 // the database is not prepared
	exitHeldBack    = 4 // a guard holds walhook back
)

const usage = `walhook delivers webhooks from a transactional outbox in PostgreSQL.

  walhook run          follow the outbox and deliver (the default)
  walhook init         apply the schema, make the publication and the slot
                       --adopt: take over a database of another WALHOOK_ENVIRONMENT
  walhook doctor       look whether run can start, and say what to type where not
  walhook demo         show it all, on a throwaway PostgreSQL
                       --verbose: with walhook's log
  walhook healthcheck  ask a running walhook whether it is healthy
  walhook uninstall    drop the slot and the publication
                       --tables: and all tables, with everything in them, when asked
                       --yes: without asking
  walhook version      print the version

It is configured by the environment; see docs/configuration.md.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(command(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// command runs one command and returns its exit code.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	name := "run"
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	var err error
	switch name {
	case "run":
		err = withConfig(newFlags("run"), args, stderr, func(cfg *config.Config, log *slog.Logger) error {
			tuneMemory(cfg)
			return run(ctx, cfg, log)
		})
	case "demo":
		err = runDemo(ctx, args, stdout, stderr)
	case "init":
		err = runInit(ctx, args, stdout, stderr)
	case "doctor":
		err = runDoctor(ctx, args, stdout, stderr)
	case "uninstall":
		err = runUninstall(ctx, args, stdout, stderr)
	case "healthcheck":
		err = runHealthcheck(ctx, args)
	case "version", "--version":
		if err = parseFlags(newFlags("version"), args); err == nil {
			fmt.Fprintln(stdout, "walhook", version)
		}
	case "help", "--help", "-h":
		fmt.Fprint(stdout, usage)
	default:
		err = fmt.Errorf("%w: there is no command %q\n\n%s", errConfig, name, usage)
	}
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, help(name))
		return exitClean
	}
	if err != nil {
		sayLast(stderr, name, err)
	}
	return exitCode(err)
}

// help is the part of the usage that is about one command.
func help(name string) string {
	var lines []string
	of := false
	for line := range strings.Lines(usage) {
		if word, isCommand := strings.CutPrefix(line, "  walhook "); isCommand {
			of = strings.HasPrefix(word, name+" ")
		} else if !strings.HasPrefix(line, "   ") {
			of = false
		}
		if of {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "") + "\nIt is configured by the environment; see docs/configuration.md.\n"
}

// sayLast tells why the process ends. What reads the log of `run` reads this too, so it
// is a line of the same format; people who typed another command get text, unless they
// chose a format.
func sayLast(stderr io.Writer, command string, err error) {
	format, chosen := config.LogFormat(os.Environ())
	if format != "json" || !chosen && command != "run" {
		fmt.Fprintln(stderr, "walhook:", err)
		return
	}
	slog.New(slog.NewJSONHandler(stderr, nil)).Error("walhook ends", "command", command, "exit_code", exitCode(err), "error", err.Error())
}

// tuneMemory lets the small heap grow to five times what is live before it is
// collected, not two: some MiB for most of the collector's work. The limit
// keeps a window full of payloads from being multiplied too. GOGC and GOMEMLIMIT
// win, where they are set.
func tuneMemory(cfg *config.Config) {
	const beside = 128 << 20 // stacks, buffers and garbage beside the payloads
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(cfg.MaxMemory) + beside)
	}
}

// stopMargin is what a graceful stop may take beyond the attempts under way.
const stopMargin = 5*time.Second - 200*time.Millisecond

// exitAfter ends the process, whatever hangs, when the context ended that long
// ago: it was told to stop, or a part has failed. The function that it returns
// calls this off.
func exitAfter(ctx context.Context, d time.Duration, log *slog.Logger) (callOff func()) {
	ended := make(chan struct{})
	context.AfterFunc(ctx, func() {
		select {
		case <-ended:
		case <-time.After(d):
			log.Error("did not stop in time; what was not recorded is sent again by the next process", "reason", context.Cause(ctx))
			os.Exit(exitFailure)
		}
	})
	return func() { close(ended) }
}

// errConfig marks what is wrong with the environment or the command line.
var errConfig = errors.New("bad configuration")

func exitCode(err error) int {
	switch {
	case err == nil:
		return exitClean
	case errors.Is(err, errConfig):
		return exitConfig
	case errors.Is(err, store.ErrHeldBack):
		return exitHeldBack
	case errors.Is(err, store.ErrNotPrepared):
		return exitNotPrepared
	default:
		return exitFailure
	}
}

func newFlags(name string) *flag.FlagSet {
	flags := flag.NewFlagSet("walhook "+name, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // what is wrong is told once, at the end
	return flags
}

// parseFlags returns flag.ErrHelp where help was asked for.
func parseFlags(flags *flag.FlagSet, args []string) error {
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w; see `%s --help`", errConfig, err, flags.Name())
	case flags.NArg() > 0:
		return fmt.Errorf("%w: %s takes no argument %q", errConfig, flags.Name(), flags.Arg(0))
	}
	return nil
}

// withConfig runs a command with the configuration and a logger.
func withConfig(flags *flag.FlagSet, args []string, stderr io.Writer, f func(*config.Config, *slog.Logger) error) error {
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	cfg, err := config.Load(os.Environ())
	if err != nil {
		return fmt.Errorf("%w: %w", errConfig, err)
	}
	// net/http reports through package log what a receiver sent out of turn, which
	// may quote what we sent it.
	stdlog.SetOutput(io.Discard)
	return f(cfg, newLogger(cfg, stderr))
}

func newLogger(cfg *config.Config, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	if cfg.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// run wires the parts, and runs them until the context ends or the first of them
// fails. Then the engine drains; what it needs for that ends after it.
func run(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	ctx, stop := context.WithCancelCause(ctx) // ends with the first part that fails, too
	defer stop(nil)
	defer exitAfter(ctx, cfg.Timeout+stopMargin, log)()
	sessions := newSessions(cfg)
	sayDropped(ctx, cfg, log)
	pool, err := sessions.pool(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	st, err := newStore(cfg, pool)
	if err != nil {
		return err
	}
	var pipelines *line
	sender := send.NewSender(send.SenderConfig{
		Timeout: cfg.Timeout, UserAgent: cfg.UserAgent, ProxyURL: cfg.Proxy(), MaxInFlight: cfg.MaxInFlight,
		Live:  func() bool { return pipelines.engine().Live() },
		Guard: send.GuardConfig{AllowHTTP: cfg.AllowHTTP, Ports: cfg.AllowPorts, Nets: cfg.AllowNets},
	})
	defer sender.Close()
	metrics := admin.NewMetrics()
	pipelines = newLine(log, func(resumed bool) pipeline {
		engine := deliver.New(deliver.Config{
			Limits: schedule.Limits{
				ParkAfter: cfg.ParkAfter, MaxInFlight: cfg.MaxInFlight, EndpointInFlight: cfg.EndpointInFlight,
				Window: cfg.Window, MaxMemory: int64(cfg.MaxMemory), Timeout: cfg.Timeout, DisableAfter: cfg.DisableAfter,
			},
			Backoff: schedule.Backoff(cfg.RetrySchedule), RecoveryWindow: cfg.RecoveryWindow,
			Store: st, Sender: sender, Log: log, Observe: metrics.Observe,
		})
		return pipeline{engine: engine, refused: sessions.refusedReplication, within: cfg.Timeout + stopMargin, stream: cdc.New(cdc.Config{
			Server: sessions.replication, Slot: cfg.Slot, Publication: store.Publication, CreateSlot: cfg.AutoInit, Resumed: resumed,
			Creating: st.AwaitSlot, Start: st.StartSession, Check: st.CheckSession, Alive: engine.Alive, Logger: log,
		})}
	})

	readiness := newReadiness()
	serve, err := serveAdmin(ctx, cfg, adminOptions(cfg, readiness, st, pipelines, metrics), log)
	if err != nil {
		return err
	}

	parts, live := errgroup.WithContext(context.WithoutCancel(ctx)) // outlives ctx, for the drain
	live, end := context.WithCancel(live)
	defer end()
	defer context.AfterFunc(live, func() { stop(context.Cause(live)) })()
	parts.Go(func() error { return serve(live) })
	parts.Go(func() error {
		defer end()
		if err := prepare(ctx, sessions, st, readiness, log); err != nil || ctx.Err() != nil {
			return err
		}
		parts.Go(func() error { return watch(live, pipelines.streamAlive) })
		parts.Go(func() error { return keepPartitions(live, st, cfg, pipelines, log) })
		parts.Go(func() error { return sealSecrets(live, st, pipelines, log) })
		return pipelines.run(ctx, live)
	})
	return parts.Wait()
}
