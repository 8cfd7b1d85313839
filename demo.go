package main

import (
	"context"
	"fmt"
	"io"
	stdlog "log"
	"os"
	"os/signal"
	"syscall"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/demo"
	"github.com/walhook/walhook/internal/terminal"
)

// runDemo shows walhook on a throwaway PostgreSQL. At a terminal it keeps running until the
// user ends it.
func runDemo(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := newFlags("demo")
	verbose := flags.Bool("verbose", false, "show walhook's log")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	cfg := demo.Config{Start: startForDemo, Out: stdout, Paint: terminal.PaintFor(stdout), Stay: terminal.Attended(os.Stdin, stdout)}
	if *verbose {
		cfg.Log = stderr
	}
	signal.Ignore(syscall.SIGPIPE) // if the reader of the output goes away, clean up all the same
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP)
	defer stop()
	return demo.Run(ctx, cfg)
}

// startForDemo is `walhook run` in this process.
func startForDemo(ctx context.Context, environ []string, log io.Writer) error {
	cfg, err := config.Load(environ)
	if err != nil {
		return fmt.Errorf("%w: %w", errConfig, err)
	}
	stdlog.SetOutput(io.Discard) // as withConfig does
	return run(ctx, cfg, newLogger(cfg, log))
}
