//go:build linux

// Command bench measures walhook's release binary end to end, beside what it is
// compared with, in the same run and in turns:
//
//	go run ./internal/bench                      everything, some fifteen minutes
//	go run ./internal/bench -only drain -n 5000 -rounds 1
//
// It starts a throwaway PostgreSQL that really writes to the disk, and a receiver
// in a process of its own, so that CPU can be told apart. Figures mean something
// only on a machine that does nothing else. WALHOOK_… variables of its environment
// are handed on to walhook. It judges nothing: the aims stand beside the figures.
//
//	drain      a backlog: how fast, with how much CPU, memory, WAL
//	latency    a steady trickle: from COMMIT to the receiver
//	neighbour  the same, while one of fifty endpoints hangs
//
//	file         responsibility
//	main.go      flags, and what is run in which order
//	drain.go     walhook, the bare client and the pollers, in turns
//	steady.go    an open loop of events; latency.go and neighbour.go use it
//	walhook.go   builds the binary, runs it
//	server.go    PostgreSQL: databases, positions, counters
//	receiver.go  client.go poller.go   the other processes; child.go starts them
//	events.go    the same events for all
//	proc.go      clock, CPU and memory of processes
//	report.go    the table
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	n, rounds, perTx int
	rate             int
	length           time.Duration
	only             string
	walhook, profile string
	version          string
	pollers          bool
}

// inFlight is how many requests are under way at once, for everybody:
// WALHOOK_ENDPOINT_IN_FLIGHT's default.
const inFlight = 32

func main() {
	if len(os.Args) == 4 && os.Args[1] == childFlag {
		os.Exit(child(os.Args[2], os.Args[3]))
	}
	var o options
	flag.IntVar(&o.n, "n", 50_000, "drain: events")
	flag.IntVar(&o.rounds, "rounds", 5, "drain and neighbour: rounds")
	flag.IntVar(&o.perTx, "tx", 10, "drain: events in one transaction")
	flag.IntVar(&o.rate, "rate", 200, "latency: events per second (neighbour: 2.5 times that)")
	flag.DurationVar(&o.length, "length", 30*time.Second, "latency: how long (neighbour: two thirds of that, per round and arm)")
	flag.StringVar(&o.only, "only", "drain,latency,neighbour", "what to measure")
	flag.StringVar(&o.walhook, "walhook", "", "the binary to measure; empty: build it")
	flag.StringVar(&o.profile, "profile", "", "drain: folder for CPU profiles of walhook and the bare client (slows both by some per cent)")
	flag.BoolVar(&o.pollers, "pollers", true, "drain: the pollers too, which take the most time")
	flag.StringVar(&o.version, "postgres", "", "major version of PostgreSQL; empty: the first that is found")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := measure(ctx, o)
	if ctx.Err() != nil {
		err = context.Cause(ctx) // what it did to everybody is not worth telling
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A bench is what all measurements share.
type bench struct {
	options
	server   *server
	receiver *receiver
	binary   string
	report   *report
}

var scenarios = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"drain", (*bench).drain},
	{"latency", (*bench).latency},
	{"neighbour", (*bench).neighbour},
}

func measure(ctx context.Context, o options) error {
	chosen := strings.Split(o.only, ",")
	for _, name := range chosen {
		if name != "drain" && name != "latency" && name != "neighbour" {
			return fmt.Errorf("-only: there is no %q", name)
		}
	}
	if o.n < 1 || o.rounds < 1 || o.perTx < 1 || o.rate < 1 || o.length < time.Second {
		return fmt.Errorf("-n, -rounds, -tx and -rate are at least 1, -length is at least 1s")
	}
	if o.profile != "" && o.walhook != "" {
		return fmt.Errorf("-profile builds its own binary: leave -walhook out")
	}
	b := &bench{options: o, report: newReport(os.Stdout)}
	var err error
	if b.binary = o.walhook; b.binary == "" {
		folder, err := os.MkdirTemp("", "walhook-bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(folder)
		if b.binary, err = build(ctx, folder, o.profile != ""); err != nil {
			return err
		}
	}
	if b.server, err = startServer(ctx, o.version); err != nil {
		return err
	}
	defer b.server.close()
	if b.receiver, err = startReceiver(ctx); err != nil {
		return err
	}
	defer b.receiver.stop()
	b.report.about(b.server.about)
	for _, s := range scenarios {
		if !slices.Contains(chosen, s.name) {
			continue
		}
		if err := s.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}
