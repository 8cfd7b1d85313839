//go:build linux

// Command bench measures walhook's release binary end to end, in turns with what it is
// compared with:
//
//	go run ./internal/bench                      the quicker ones, some fifteen minutes
//	go run ./internal/bench -only drain -n 5000 -rounds 1
//	go run ./internal/bench -only all            everything, some fifty minutes
//	go run ./internal/bench -smoke               everything once with small numbers, under two minutes
//	go run ./internal/bench -only workloads,latency -plots docs/plots
//	go run ./internal/bench -receiver 127.0.0.1:9000    only receives, what any other program sends
//
// It starts a throwaway PostgreSQL that really writes to the disk. The receiver is a
// process of its own, so that its CPU time is counted apart. Run it on a machine that
// does nothing else, or the figures mean nothing. It hands WALHOOK_… variables of its
// environment on to walhook. It prints aims beside the figures and judges nothing.
//
//	drain      a backlog: how fast, with how much CPU, memory, WAL
//	workloads  backlogs of other kinds, beside the bare client and a lean one: TLS, 64 KiB, many endpoints, ...
//	latency    a steady trickle: from COMMIT to the receiver
//	neighbour  the same, while one of fifty endpoints hangs
//	bad        the same, while one, ten or twenty-five are bad, in each of four ways
//	endpoints  a backlog, spread over ten to a hundred thousand endpoints, and what idle endpoints cost
//	waiting    a backlog, while up to a million deliveries of other endpoints wait for a retry
//	storm      the trickle, while a million retries are due
//	replay     the trickle, while a hundred thousand deliveries of one endpoint are replayed
//	million    a backlog of a million: memory, and how long PostgreSQL keeps the WAL
//	fanout     an event that is owed to fifty thousand endpoints
//	month      two months in minutes, of which one is kept: the database's size, and INSERTs while days are dropped
//	looks      what operators look at, beside ten million deliveries: the scrape, status, the page, each query of the docs
//
//	file         responsibility
//	main.go      flags and scenarios
//	turns.go     runs what is compared in turns
//	drain.go     a backlog: walhook, the bare client and the pollers; workloads.go, endpoints.go, waiting.go and million.go use it
//	steady.go    an open loop of events; latency.go, neighbour.go, bad.go, storm.go, replay.go and fanout.go use it
//	looks.go     a month of deliveries, and who looks at it
//	month.go     days gone by, and the upkeep at their ends
//	rows.go      inserts endpoints and deliveries
//	walhook.go   builds the binary, runs it
//	server.go    PostgreSQL: databases, positions, counters
//	receiver.go  client.go lean.go poller.go   the other processes; child.go starts them
//	events.go    the events, the same for all
//	proc.go      clock, CPU and memory of processes
//	report.go    the table; plots.go draws from it
//	received.go  what -receiver prints
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	n, rounds, perTx int
	endpoints        int
	waiting, storm   int
	replay, million  int
	fanout           int
	month, days      int
	looked           int
	rate             int
	length           time.Duration
	only             string
	walhook, profile string
	version          string
	plots, redraw    string
	receive          string
	pollers          bool
	smoke            bool
}

// usual are the scenarios that take a few minutes each.
const usual = "drain,latency,neighbour,waiting,replay"

// small are the options of -smoke.
func (o options) small() options {
	o.n, o.endpoints, o.waiting, o.storm, o.replay, o.million, o.fanout, o.month, o.days, o.looked = 500, 10, 500, 500, 500, 5000, 500, 50, 6, 1000
	o.rounds, o.rate, o.length = 1, 40, time.Second
	if o.only == usual {
		o.only = "all"
	}
	return o
}

// inFlight is how many requests are in flight at once, for all arms: the default of
// WALHOOK_ENDPOINT_IN_FLIGHT.
const inFlight = 32

func main() {
	if len(os.Args) == 4 && os.Args[1] == childFlag {
		os.Exit(child(os.Args[2], os.Args[3]))
	}
	var o options
	flag.IntVar(&o.n, "n", 50_000, "drain, workloads, endpoints and waiting: events")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds at most: latency has one, and the scenarios after neighbour have two or three")
	flag.IntVar(&o.perTx, "tx", 10, "drain, workloads, endpoints, waiting and million: events per transaction")
	flag.IntVar(&o.endpoints, "endpoints", 100_000, "endpoints: the largest number of endpoints, and of events if -n is less")
	flag.IntVar(&o.waiting, "waiting", 1_000_000, "waiting: the largest number of deliveries that wait")
	flag.IntVar(&o.storm, "storm", 1_000_000, "storm: retries that are due")
	flag.IntVar(&o.replay, "replay", 100_000, "replay: deliveries")
	flag.IntVar(&o.million, "million", 1_000_000, "million: events")
	flag.IntVar(&o.fanout, "fanout", 50_000, "fanout: endpoints")
	flag.IntVar(&o.month, "month", 10_000, "month: events a day")
	flag.IntVar(&o.days, "days", 60, "month: days, of which half are kept")
	flag.IntVar(&o.looked, "looks", 10_000_000, "looks: deliveries (some 5 GB of disk)")
	flag.IntVar(&o.rate, "rate", 200, "latency and month: events per second (neighbour, bad, storm and replay: 2.5 times that; fanout: a quarter)")
	flag.DurationVar(&o.length, "length", 30*time.Second, "latency: duration (other loads: two thirds of that, per round and arm)")
	flag.BoolVar(&o.smoke, "smoke", false, "run everything once with small numbers, in under two minutes: shows that it runs, not how fast")
	flag.StringVar(&o.only, "only", usual, "scenarios to run, of "+names()+"; or all")
	flag.StringVar(&o.walhook, "walhook", "", "the binary to measure; empty: build it")
	flag.StringVar(&o.profile, "profile", "", "drain and endpoints: folder for CPU profiles of walhook and the bare client (slows both by some per cent)")
	flag.BoolVar(&o.pollers, "pollers", true, "drain: run the pollers too, which take the most time")
	flag.StringVar(&o.version, "postgres", "", "major version of PostgreSQL; empty: the first one found")
	flag.StringVar(&o.plots, "plots", "", "folder for the figures as JSON, and plots of them as SVG: of workloads and latency, if these are run")
	flag.StringVar(&o.redraw, "redraw", "", "draw the plots in a folder again from its figures, and measure nothing")
	flag.StringVar(&o.receive, "receiver", "", "measure nothing: receive at an address, such as 127.0.0.1:9000, what any program sends there, and print how much of it each second")
	flag.Parse()
	if o.smoke {
		o = o.small()
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := o.do(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // the errors that follow from it say nothing more
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (o options) do(ctx context.Context) error {
	switch {
	case o.redraw != "":
		return redraw(o.redraw)
	case o.receive != "":
		return watchReceived(ctx, o.receive, os.Stdout)
	}
	return measure(ctx, o)
}

// A bench is shared by all scenarios.
type bench struct {
	options
	server   *server
	receiver *receiver
	binary   string
	report   *report
}

// A scenario can be named with -only.
type scenario struct {
	name   string
	run    func(*bench, context.Context) error
	rounds int // at most, if a round takes minutes; 0: -rounds
}

var scenarios = []scenario{
	{"drain", (*bench).drain, 0},
	{"workloads", (*bench).workloads, 0},
	{"latency", (*bench).latency, 1},
	{"neighbour", (*bench).neighbour, 0},
	{"bad", (*bench).bad, 2},
	{"endpoints", (*bench).manyEndpoints, 3},
	{"waiting", (*bench).manyWaiting, 3},
	{"storm", (*bench).retryStorm, 2},
	{"replay", (*bench).massReplay, 2},
	{"million", (*bench).bigBacklog, 2},
	{"fanout", (*bench).wideFanOut, 2},
	{"month", (*bench).oneMonth, 1},
	{"looks", (*bench).looks, 1},
}

// names lists the scenarios.
func names() string {
	var all []string
	for _, s := range scenarios {
		all = append(all, s.name)
	}
	return strings.Join(all, ",")
}

// choose returns the scenarios that -only names, in the order of the table.
func choose(only string) ([]scenario, error) {
	if only == "all" {
		only = names()
	}
	wanted := map[string]bool{}
	for name := range strings.SplitSeq(only, ",") {
		wanted[name] = true
	}
	var chosen []scenario
	for _, s := range scenarios {
		if wanted[s.name] {
			chosen = append(chosen, s)
			delete(wanted, s.name)
		}
	}
	for name := range wanted {
		return nil, fmt.Errorf("-only: unknown scenario %q; there are %s", name, names())
	}
	return chosen, nil
}

func measure(ctx context.Context, o options) error {
	chosen, err := choose(o.only)
	if err != nil {
		return err
	}
	if min(o.n, o.rounds, o.perTx, o.endpoints, o.waiting, o.storm, o.replay, o.million, o.fanout, o.month, o.looked) < 1 || o.days < 4 || o.rate < 4 || o.length < time.Second {
		return fmt.Errorf("numbers must be at least 1, -rate and -days at least 4, -length at least 1s")
	}
	if o.profile != "" && o.walhook != "" {
		return fmt.Errorf("-profile builds its own binary: leave -walhook out")
	}
	b := &bench{options: o, report: newReport(os.Stdout)}
	folder, err := os.MkdirTemp("", "walhook-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	if b.binary = o.walhook; b.binary == "" {
		if b.binary, err = build(ctx, folder, o.profile != ""); err != nil {
			return err
		}
	}
	if b.server, err = startServer(ctx, o.version); err != nil {
		return err
	}
	defer b.server.close()
	if b.receiver, err = startReceiver(ctx, folder); err != nil {
		return err
	}
	defer b.receiver.stop()
	b.report.about(b.server.about)
	for _, s := range chosen {
		b.rounds = min(o.rounds, cmp.Or(s.rounds, o.rounds))
		if err := s.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if o.plots == "" {
		return nil
	}
	return writePlots(o.plots, b.report.figures)
}
