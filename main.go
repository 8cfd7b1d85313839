// Command walhook delivers webhooks from a transactional outbox in PostgreSQL.
//
// It stands beside the database, follows webhook_outbox by logical replication,
// sends a signed POST to each endpoint that an event is owed to, retries with
// exponential backoff, and writes what happened into webhook_deliveries.
//
//	file            responsibility
//	main.go         the commands, their flags and exit codes
//	run.go          walhook run: wires the parts, and ends them in order
//	pipeline.go     the stream and the engine behind it, one pair after the other
//	upkeep.go       what runs beside them: partitions, secrets, a watch on the stream
//	summary.go      what the log says without being asked
//	admin.go        what the admin server asks of the parts
//	database.go     how walhook connects, and what it makes of a refusal
//	prepare.go      what has to be true before anything is delivered
//	init.go doctor.go secret.go uninstall.go healthcheck.go demo.go status.go listen.go trigger.go   the other commands
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
	"strings"
	"syscall"
	"time"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
)

//go:embed schema.sql
var schema string

//go:embed roles.sql
var roles string

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
  walhook init         apply the schema, create the publication and the slot
                       --roles: create roles with exact grants too (roles.sql)
                       --adopt: take over a database of another WALHOOK_ENVIRONMENT
  walhook doctor       check whether run can start, and print how to fix what cannot work
  walhook demo         show how it works, on a throwaway PostgreSQL
                       --verbose: with walhook's log
  walhook status       show how walhook stands, from what the database knows
                       --json: as one object
                       --watch: again every two seconds
  walhook listen       receive webhooks on this machine, and print them with what their signatures are worth
                       --addr 127.0.0.1:3000: where
                       --secret SECRET: verify with it; again for more; @FILE: with each line of a file
                       --forward URL: pass them on to an application, and answer as it does
                       --fail N: let the first N attempts of each delivery fail
                       --status CODE: how these are answered (500); without --fail: how all are
                       --delay DURATION: wait before each answer
  walhook trigger      ORG TYPE [JSON]: send a test webhook, and follow its deliveries to their end; the data is the type's example unless given
                       --endpoint ID: to this endpoint alone, subscribed or not
                       --wait DURATION: follow for so long at most (30s)
  walhook secret       show ENDPOINT: print its signing secrets
                       check: count the secrets and headers that are sealed, and with which key
                       reseal: seal all of them with WALHOOK_SECRET_KEY
  walhook healthcheck  check whether a running walhook is healthy
  walhook uninstall    drop the slot and the publication
                       --tables: drop all tables and their contents too, after asking
                       --yes: without asking
  walhook version      print the version
` + environmentHelp

const environmentHelp = `
Environment variables configure it; see docs/configuration.md.
`

func main() {
	os.Exit(command(untilSignal(context.Background()), os.Args[1:], os.Stdout, os.Stderr))
}

// untilSignal returns a context that ends with the first SIGINT or SIGTERM. A second Ctrl-C ends
// the process at once. A second SIGTERM changes nothing: supervisors repeat it, a stop is bounded
// without it, and what it cut would be sent again.
func untilSignal(ctx context.Context) context.Context {
	ctx, _ = signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, func() { signal.Reset(syscall.SIGINT) })
	return ctx
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
			signal.Ignore(syscall.SIGPIPE) // whoever reads the log may restart
			tuneMemory(cfg)
			return run(ctx, cfg, log)
		})
	case "demo":
		err = runDemo(ctx, args, stdout, stderr)
	case "init":
		err = runInit(ctx, args, stdout, stderr)
	case "doctor":
		err = runDoctor(ctx, args, stdout, stderr)
	case "status":
		err = runStatus(ctx, args, stdout, stderr)
	case "listen":
		err = runListen(ctx, args, stdout)
	case "trigger":
		err = runTrigger(ctx, args, stdout, stderr)
	case "secret":
		err = runSecret(ctx, args, stdout, stderr)
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
		err = fmt.Errorf("%w: unknown command %q\n\n%s", errConfig, name, usage)
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

// help returns the usage of one command.
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
	if name != "listen" && name != "version" { // which read none
		lines = append(lines, environmentHelp)
	}
	return strings.Join(lines, "")
}

// sayLast writes why the process ends. For `run` it is a line of the log's format, because the
// same programs read it. Other commands write text, unless a format was chosen.
func sayLast(stderr io.Writer, command string, err error) {
	defer exitUnlessSaid(time.Second, exitCode(err)).Stop()
	format, chosen := config.LogFormat(os.Environ())
	if format != "json" || !chosen && command != "run" {
		fmt.Fprintln(stderr, "walhook:", err)
		return
	}
	slog.New(slog.NewJSONHandler(stderr, nil)).Error("walhook stopped", "command", command, "exit_code", exitCode(err), "error", err.Error())
}

// exitUnlessSaid exits the process after a moment, unless the timer is stopped: where nobody
// reads a pipe that is full, the last line never ends.
func exitUnlessSaid(within time.Duration, code int) *time.Timer {
	return time.AfterFunc(within, func() { os.Exit(code) })
}

// errConfig marks errors in the environment or the command line.
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
	flags.SetOutput(io.Discard) // command writes the error, once
	return flags
}

// parseFlags returns flag.ErrHelp if help was asked for.
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
	// net/http logs unexpected data of receivers through package log, and may quote
	// what walhook sent.
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
