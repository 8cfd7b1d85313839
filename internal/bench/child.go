//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// childFlag makes this program one of the other processes of the measurement:
// bench -child NAME JSON.
const childFlag = "-child"

// A job is a child's argument. No child needs all of it.
type job struct {
	URL         string
	DatabaseURL string
	Secret      string
	Certificate string // a file: the receiver's, if the URL is https
	N, Size     int    // requests, and bytes of a payload
	Parallel    bool   // the poller sends the POSTs of a batch in parallel
	Profile     string // a file
}

// An outcome is the report of a client or poller, from its first request to its last.
type outcome struct {
	N    int // requests
	Took time.Duration
	CPU  time.Duration
	Err  string
}

// child is main of a child. It prints a line when it is ready, waits for a line, does
// its work, reports the outcome, and exits. If its parent dies, it exits at once.
func child(name, argument string) int {
	var j job
	if err := json.Unmarshal([]byte(argument), &j); err != nil {
		fmt.Fprintln(os.Stderr, "bench child:", err)
		return 2
	}
	in := bufio.NewReader(os.Stdin)
	ready := func(line string) error {
		fmt.Println(line)
		_, err := in.ReadString('\n')
		go func() {
			_, _ = io.Copy(io.Discard, in) // until the parent dies
			os.Exit(1)
		}()
		return err
	}
	var err error
	switch name {
	case "receiver":
		err = receive(j, ready)
	case "client":
		err = post(j, ready)
	case "lean client":
		err = postLean(j, ready)
	case "poller":
		err = poll(j, ready)
	default:
		err = fmt.Errorf("no such child: %q", name)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench child %s: %v\n", name, err)
		return 1
	}
	return 0
}

// tell reports an outcome to the parent.
func tell(o outcome) error { return json.NewEncoder(os.Stdout).Encode(o) }

// A childProcess is a child as its parent sees it.
type childProcess struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	ready string // the line that it printed
}

// startChild starts a child and waits until it is ready.
func startChild(ctx context.Context, name string, j job) (*childProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	argument, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	p := &childProcess{cmd: exec.CommandContext(ctx, self, childFlag, name, string(argument))}
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	if p.ready, err = p.out.ReadString('\n'); err != nil {
		p.stop()
		return nil, fmt.Errorf("the %s did not start: %w", name, err)
	}
	return p, nil
}

// begin starts the work of a child that is ready.
func (p *childProcess) begin() error {
	_, err := fmt.Fprintln(p.in, "go")
	return err
}

// run runs a client or a poller to its end.
func (p *childProcess) run() (outcome, error) {
	var o outcome
	if err := p.begin(); err != nil {
		return o, err
	}
	if err := json.NewDecoder(p.out).Decode(&o); err != nil {
		return o, fmt.Errorf("no outcome: %w", err)
	}
	if o.Err != "" {
		return o, fmt.Errorf("a request failed: %s", o.Err)
	}
	return o, nil
}

// stop ends the child.
func (p *childProcess) stop() {
	_ = p.in.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // it was killed
}
