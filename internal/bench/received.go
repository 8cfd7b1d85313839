//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"
)

// A second is what has arrived since the last line. Its zero value is empty.
type second struct {
	requests int
	bytes    int64
	ages     []time.Duration // of those that say when they were written
}

// A received counts what any program sends. It reads every body, and verifies nothing.
type received struct {
	mu          sync.Mutex
	now         second
	total       int
	first, last time.Time
}

// sentAt finds, anywhere in a body, when its event was written: "sent_at": 1764345600.123456, in seconds since 1970.
// Some programs put the event into a string, so the quotes may be escaped.
var sentAt = regexp.MustCompile(`sent_at\\*"\s*:\s*\\*"?([0-9]+(?:\.[0-9]+)?)`)

// ServeHTTP takes a request, and answers 200 at once.
func (r *received) ServeHTTP(_ http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil { // the sender has given up
		return
	}
	at := time.Now()
	age, known := ageOf(body, at)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.total == 0 {
		r.first = at
	}
	r.total++
	r.last = at
	r.now.requests++
	r.now.bytes += int64(len(body))
	if known {
		r.now.ages = append(r.now.ages, age)
	}
}

func ageOf(body []byte, at time.Time) (age time.Duration, known bool) {
	found := sentAt.FindSubmatch(body)
	if found == nil {
		return 0, false
	}
	seconds, err := strconv.ParseFloat(string(found[1]), 64)
	return at.Sub(time.UnixMicro(int64(seconds * 1e6))), err == nil
}

// take returns what has arrived since the last call.
func (r *received) take() (second, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	taken := r.now
	r.now = second{}
	return taken, r.total
}

// watchReceived receives until ctx ends, and prints a line for each second in which something came.
func watchReceived(ctx context.Context, address string, out io.Writer) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	var r received
	server := &http.Server{Handler: &r}
	died := make(chan error, 1)
	go func() { died <- server.Serve(listener) }()
	fmt.Fprintf(out, "receiving at http://%s\n", listener.Addr())
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case at := <-tick.C:
			if s, total := r.take(); s.requests > 0 {
				fmt.Fprintln(out, s.line(at, total))
			}
		case err := <-died:
			return fmt.Errorf("receive: %w", err)
		case <-ctx.Done():
			fmt.Fprintln(out, r.summary())
			return server.Close()
		}
	}
}

func (s second) line(at time.Time, total int) string {
	text := fmt.Sprintf("%s  %6d requests  %7.2f MiB  %9d in all", at.Format(time.TimeOnly), s.requests, mebi(s.bytes), total)
	if len(s.ages) == 0 {
		return text
	}
	slices.Sort(s.ages)
	return text + fmt.Sprintf("  since sent_at: p50 %.2f ms, p99 %.2f ms", millis(quantile(s.ages, 0.5)), millis(quantile(s.ages, 0.99)))
}

func (r *received) summary() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	took := r.last.Sub(r.first)
	if took <= 0 {
		return fmt.Sprintf("%d requests", r.total)
	}
	return fmt.Sprintf("%d requests in %.2f s: %.0f a second", r.total, took.Seconds(), float64(r.total-1)/took.Seconds())
}
