package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/store"
)

// This file is what the log says without being asked: what was understood at the start, how the
// last minute was, and how it all ended. No delivery has a line.

// sayStarted logs what the environment and the database have said.
func sayStarted(ctx context.Context, db *database, log *slog.Logger) {
	cfg := db.cfg
	asking, cancel := context.WithTimeout(ctx, summaryTimeout)
	defer cancel()
	server, err := db.store.ServerVersion(asking)
	if err != nil {
		server = "unknown"
	}
	proxy := "none"
	if p := cfg.Proxy(); p != nil {
		proxy = p.Scheme + "://" + p.Host
	}
	var retries time.Duration
	for _, wait := range cfg.RetrySchedule {
		retries += wait
	}
	log.InfoContext(ctx, "walhook has started", "version", version, "postgresql", server,
		"slot", cfg.Slot, "publication", store.Publication, "schema", db.pinned(), "environment", cfg.Environment, "admin_addr", cfg.AdminAddr,
		"park_after", cfg.ParkAfter.String(), "timeout", cfg.Timeout.String(), "retries", len(cfg.RetrySchedule), "retries_last", retries.String(),
		"disable_after", cfg.DisableAfter.String(), "max_endpoints", cfg.MaxEndpoints, "sealed", len(cfg.SecretKey) > 0,
		"guard", slog.GroupValue(slog.Bool("http", cfg.AllowHTTP), slog.Any("ports", cfg.AllowPorts), slog.Any("nets", cfg.AllowNets),
			slog.Any("deny", cfg.DenyNets), slog.String("proxy", proxy)))
}

const (
	// summaryEvery is how often the log sums up, while there is traffic.
	summaryEvery = time.Minute

	// summaryTimeout bounds what the database is asked for one line.
	summaryTimeout = 5 * time.Second
)

// A summary sums up what walhook has done.
type summary struct {
	log      *slog.Logger
	stats    func() schedule.Stats
	overview func(context.Context) (store.Overview, error) // the store's
	began    time.Time
	before   schedule.Counts // at the last line
}

func newSummary(st *store.Store, current *pipelines, log *slog.Logger) *summary {
	return &summary{log: log, stats: current.stats, overview: st.Overview, began: time.Now()}
}

func (s *summary) run(ctx context.Context) error {
	for pause(ctx, summaryEvery) {
		s.sayMinute(ctx)
	}
	return nil
}

// sayMinute logs what has happened since the last time, if anything has.
func (s *summary) sayMinute(ctx context.Context) {
	now := s.stats().Counts
	before := s.before
	s.before = now
	was, is := figuresOf(&before), figuresOf(&now)
	if is == was {
		return
	}
	attrs := is.since(was).attributes()
	if toAttempt := now.ToAttempt.Since(before.ToAttempt); toAttempt.Quantile(1) > 0 {
		attrs = append(attrs, "to_attempt_median", toAttempt.Quantile(0.5).String(), "to_attempt_p99", toAttempt.Quantile(0.99).String())
	}
	asking, cancel := context.WithTimeout(ctx, summaryTimeout)
	defer cancel()
	o, _ := s.overview(asking) // whoever delivers logs that the database is away
	if o.Waiting != nil {
		attrs = append(attrs, "waiting", o.Waiting.Pending+o.Waiting.Retrying)
	}
	if o.Overdue != nil {
		attrs = append(attrs, "overdue", o.Overdue.Round(time.Second).String())
	}
	if o.Slot != nil {
		attrs = append(attrs, "slot_lag_bytes", o.Slot.LagBytes)
	}
	s.log.InfoContext(ctx, "the last minute", attrs...)
}

// sayEnd logs the last line: why, and what it all came to.
func (s *summary) sayEnd(ctx context.Context, err error) {
	why := context.Cause(ctx)
	if err != nil {
		why = err
	}
	stats := s.stats()
	attrs := append([]any{"reason", why, "uptime", time.Since(s.began).Round(time.Second).String()}, figuresOf(&stats.Counts).attributes()...)
	s.log.InfoContext(ctx, "walhook has ended", append(attrs, "outcomes_unrecorded", stats.Unrecorded)...)
}

// figures are what a summary counts.
type figures struct{ events, succeeded, failed, retried uint64 }

func figuresOf(c *schedule.Counts) figures {
	f := figures{events: c.Events, succeeded: c.Delivered, retried: c.Retried}
	for _, n := range c.Errors {
		f.failed += n
	}
	return f
}

func (f figures) since(was figures) figures {
	return figures{f.events - was.events, f.succeeded - was.succeeded, f.failed - was.failed, f.retried - was.retried}
}

func (f figures) attributes() []any {
	return []any{"events", f.events, "attempts", f.succeeded + f.failed, "succeeded", f.succeeded, "failed", f.failed, "retried", f.retried}
}
