package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/testkit"
	"github.com/walhook/walhook/internal/webhook"
)

// logged returns the lines of a log with a message.
func logged(t *testing.T, log, message string) (lines []map[string]any) {
	t.Helper()
	for line := range strings.Lines(log) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if fields["msg"] == message {
			lines = append(lines, fields)
		}
	}
	return lines
}

func has(t *testing.T, line map[string]any, want map[string]any) {
	t.Helper()
	for name, v := range want {
		if line[name] != v {
			t.Errorf("%s is %v, want %v, in %v", name, line[name], v, line)
		}
	}
}

// The log begins with what was understood, and ends with what it came to.
func TestTheLogsFirstAndLastLine(t *testing.T) {
	w := newWorld(t, "WALHOOK_ENVIRONMENT=test", "WALHOOK_PROXY_URL=", "WALHOOK_DENY_NETS=10.0.0.0/8")
	var log testkit.Output
	rcv := newReceiver(t, func(n int) int { return []int{500, 200}[min(n, 1)] })
	w.endpoint(rcv.URL)
	cfg, err := config.Load(w.env)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, cfg, slog.New(slog.NewJSONHandler(&log, nil))) }()
	w.eventually("the slot is in use", `SELECT active AND confirmed_flush_lsn IS NOT NULL FROM pg_replication_slots WHERE slot_name = $1`, w.db.Slot)
	w.insert("payment.succeeded")
	w.eventually("it is delivered", `SELECT count(*) = 1 FROM webhook_deliveries WHERE status = 'success'`)
	stop(errors.New("the test is over"))
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	first, last := logged(t, log.String(), "walhook has started"), logged(t, log.String(), "walhook has ended")
	if len(first) != 1 || len(last) != 1 || !strings.Contains(lastLine(log.String()), "walhook has ended") {
		t.Fatalf("a first and a last line are missing:\n%s", log.String())
	}
	has(t, first[0], map[string]any{"slot": w.db.Slot, "publication": store.Publication, "schema": "public", "environment": "test", "admin_addr": "", "park_after": "500ms",
		"retries": 3.0, "retries_last": "600ms", "postgresql": query[string](w, `SELECT current_setting('server_version')`)})
	has(t, first[0]["guard"].(map[string]any), map[string]any{"http": true, "proxy": "none"})
	has(t, last[0], map[string]any{"reason": "the test is over", "events": 1.0, "attempts": 2.0, "succeeded": 1.0, "failed": 1.0, "retried": 1.0, "outcomes_unrecorded": 0.0})
}

func lastLine(log string) (last string) {
	for line := range strings.Lines(log) {
		last = line
	}
	return last
}

// A minute with traffic has a line, and one without has none.
func TestSummaryOfAMinute(t *testing.T) {
	w := newWorld(t)
	var log bytes.Buffer
	var stats schedule.Stats
	s := summary{log: slog.New(slog.NewJSONHandler(&log, nil)), stats: func() schedule.Stats { return stats }, overview: store.New(w.db.Pool, w.db.Slot, 0).Overview}
	s.sayMinute(t.Context())
	stats.Events, stats.Delivered, stats.Retried = 5, 3, 1
	stats.Errors = map[webhook.ErrorClass]uint64{webhook.ErrTimeout: 1, webhook.ErrDNS: 1}
	s.sayMinute(t.Context())
	stats.Fetched++ // no traffic
	s.sayMinute(t.Context())
	stats.Events += 2
	s.sayMinute(t.Context())
	lines := logged(t, log.String(), "the last minute")
	if len(lines) != 2 || strings.Count(log.String(), "\n") != 2 {
		t.Fatalf("got %d lines, want 2:\n%s", len(lines), &log)
	}
	has(t, lines[0], map[string]any{"events": 5.0, "attempts": 5.0, "succeeded": 3.0, "failed": 2.0, "retried": 1.0, "waiting": 0.0, "overdue": "0s", "slot_lag_bytes": 0.0})
	has(t, lines[1], map[string]any{"events": 2.0, "attempts": 0.0, "failed": 0.0})
}
