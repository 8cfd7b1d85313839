package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// The schedule and the timeout make a dead receiver's whole life last about 16
// seconds: four attempts of 2 s, and 1 + 2 + 3 s with at most a fifth of jitter.
const (
	schedule = "1s,2s,3s"
	waits    = 3
	timeout  = 2 * time.Second

	// stopWithin bounds the drain, which itself is bounded by the timeout and 5 s.
	stopWithin = timeout + 8*time.Second

	// logKept is how many lines of walhook's log are shown when something went wrong.
	logKept = 30
)

// A walhook is the one that the story is about, while it runs.
type walhook struct {
	stop  context.CancelFunc
	ended chan error
	log   tail
}

var errEnded = errors.New("walhook ended by itself")

// environ is complete: no WALHOOK_ variable of the caller's steers the demo.
func environ(databaseURL, slot, adminAddr string) []string {
	return []string{
		"WALHOOK_DATABASE_URL=" + databaseURL,
		"WALHOOK_SLOT=" + slot,
		"WALHOOK_SCHEMA=" + schema,
		"WALHOOK_ADMIN_ADDR=" + adminAddr,
		"WALHOOK_RETRY_SCHEDULE=" + schedule,
		"WALHOOK_TIMEOUT=" + timeout.String(),
		"WALHOOK_ALLOW_HTTP=true",
		"WALHOOK_ALLOW_NETS=127.0.0.0/8",
		"WALHOOK_LOG_FORMAT=text",
	}
}

// startWalhook runs walhook in the background. When it ends by itself, failed is
// told why.
func startWalhook(ctx context.Context, cfg Config, environ []string, failed func(error)) *walhook {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	w := &walhook{stop: stop, ended: make(chan error, 1)}
	var log io.Writer = &w.log
	if cfg.Log != nil {
		log = cfg.Log
	}
	go func() {
		err := cfg.Start(ctx, environ, log)
		if ctx.Err() == nil {
			failed(errors.Join(errEnded, err))
			err = nil
		}
		w.ended <- err
	}()
	return w
}

// end stops walhook as SIGTERM would.
func (w *walhook) end() error {
	w.stop()
	select {
	case err := <-w.ended:
		if err != nil {
			return fmt.Errorf("stop walhook: %w", err)
		}
		return nil
	case <-time.After(stopWithin):
		return fmt.Errorf("walhook still runs %s after it was told to stop", stopWithin)
	}
}

// A tail keeps the last lines of a log, each of which is written by itself.
type tail struct {
	mu    sync.Mutex
	lines []string
}

// Write never fails.
func (t *tail) Write(line []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, string(line))
	t.lines = slices.Clone(t.lines[max(0, len(t.lines)-logKept):])
	return len(line), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, "")
}
