package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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

	// logKept is how much of walhook's log is shown when something went wrong.
	logKept = 4 << 10
)

// A walhook is the one that the story is about, while it runs.
type walhook struct {
	stop  context.CancelFunc
	ended chan struct{}
	err   error // once it has ended as it was told to
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
func startWalhook(ctx context.Context, start Start, environ []string, log io.Writer, failed func(error)) *walhook {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	w := &walhook{stop: stop, ended: make(chan struct{})}
	var out io.Writer = &w.log
	if log != nil {
		out = log
	}
	go func() {
		defer close(w.ended)
		err := start(ctx, environ, out)
		if ctx.Err() != nil {
			w.err = err
			return
		}
		failed(errors.Join(errEnded, err))
	}()
	return w
}

// end stops walhook as SIGTERM would.
func (w *walhook) end() error {
	w.stop()
	select {
	case <-w.ended:
		return w.err
	case <-time.After(stopWithin):
		return fmt.Errorf("it still runs %s after it was told to stop", stopWithin)
	}
}

// freeAddress finds a port for the admin server.
func freeAddress(ctx context.Context) (string, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return listener.Addr().String(), listener.Close()
}

// A tail keeps the last lines of what is written to it.
type tail struct {
	mu   sync.Mutex
	kept []byte
}

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if excess := len(t.kept) - logKept; excess > 0 {
		t.kept = bytes.Clone(t.kept[excess:])
	}
	return len(p), nil
}

// lines leaves out the first line where it was cut.
func (t *tail) lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := string(t.kept)
	if _, rest, found := strings.Cut(text, "\n"); found && len(text) == logKept {
		text = rest
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}
