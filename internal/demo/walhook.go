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

// With this schedule and timeout a delivery to a receiver that never answers fails
// after about 16 seconds: four attempts of 2 s, and waits of 1 + 2 + 3 s with at most a
// fifth of jitter.
const (
	schedule = "1s,2s,3s"
	waits    = 3
	timeout  = 2 * time.Second

	// stopWithin bounds the stop. walhook bounds its own drain by the timeout and 5 s.
	stopWithin = timeout + 8*time.Second

	// logKept is how many lines of walhook's log are shown after a failure.
	logKept = 30
)

// A walhook is the running walhook.
type walhook struct {
	stop  context.CancelFunc
	ended chan error
	log   tail
}

var errEnded = errors.New("walhook ended by itself")

// environ returns the complete environment: no WALHOOK_ variable of the caller has an
// effect on the demo.
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

// startWalhook runs walhook in the background. If it ends by itself, failed gets the
// reason.
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

// end stops walhook as SIGTERM does.
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

// A tail keeps the last lines of a log. Each Write is one line.
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
