package deliver

import (
	"context"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/webhook"
)

const (
	// pollEvery is how often the table is polled for rows that have become due: a due row
	// is to be picked up within a second.
	pollEvery = 250 * time.Millisecond

	// hintEvery limits change hints: anybody can send them, and each starts a scan of
	// all endpoints with unfinished rows.
	hintEvery = 100 * time.Millisecond

	// pollOverlap is how far a poll reaches back beyond the last one: rows that a
	// transaction made due are visible only after its commit.
	pollOverlap = time.Second

	// scanEvery and scanPage pace the scan of all endpoints with unfinished rows. It
	// finds rows that no lane, hint or poll has reported. A page takes PostgreSQL about
	// 20 ms, on a table with 46 partitions.
	scanEvery = 2 * time.Second
	scanPage  = 100
)

// A finderStore has the finder's statements.
type finderStore interface {
	Now(ctx context.Context) (time.Time, error)
	NewlyDue(ctx context.Context, since time.Time) (endpoints []uuid.UUID, now time.Time, all bool, err error)
	Waiting(ctx context.Context, after uuid.UUID, limit int) ([]webhook.Waiting, error)
}

// A finder finds the endpoints that have rows for the retrier. It polls for rows that have
// become due, and scans all endpoints with unfinished rows. A large UPDATE that has not
// committed yet makes both slow, because PostgreSQL passes over each of its new rows. So
// the finder has a loop of its own, and no lane's page waits for it.
type finder struct {
	scheduler  *schedule.Scheduler
	store      finderStore
	heartbeat  *heartbeat
	log        *slog.Logger
	changeHint schedule.Signal // somebody else has changed deliveries or endpoints
	failure    failure

	since    time.Time // by PostgreSQL's clock: rows due by then have been reported
	polled   time.Time
	hinted   time.Time
	rescan   bool      // a second scan is due: the stream brings a hint before the change is visible
	cursor   uuid.UUID // of the scan: the last endpoint read
	scanned  time.Time
	scansDue int // immediately: one under way, and another for changes since it began
}

func (f *finder) run(ctx context.Context) error {
	f.scanNow()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		begun := time.Now()
		err := f.runOnce(ctx)
		if ctx.Err() != nil {
			return nil
		}
		f.failure.observe(f.log, begun, err, "cannot poll for due deliveries; retrying", "polling for due deliveries resumed")
		hint := f.changeHint
		if !f.mayHint() {
			hint = nil // the next tick sees it
		}
		switch f.heartbeat.wait(ctx, tick.C, hint, nil) {
		case stopped:
			return nil
		case firstSignal:
			f.hint()
		case timerFired, secondSignal:
		}
	}
}

// runOnce polls, and scans until the next poll is due, or no scan is.
func (f *finder) runOnce(ctx context.Context) error {
	for f.scheduler.MayFetch(time.Now()) && ctx.Err() == nil {
		if f.pollDue() {
			if err := f.poll(ctx); err != nil {
				return err
			}
		}
		if !f.scanDue() {
			return nil
		}
		if err := f.readPage(ctx); err != nil {
			return err
		}
	}
	return nil
}

// mayHint reports whether the next change hint may count.
func (f *finder) mayHint() bool { return time.Since(f.hinted) >= hintEvery }

// hint takes a change hint.
func (f *finder) hint() {
	f.hinted, f.rescan = time.Now(), true
	f.scanNow()
}

func (f *finder) pollDue() bool { return time.Since(f.polled) >= pollEvery/2 }

// poll asks for rows that have become due since the last poll.
func (f *finder) poll(ctx context.Context) error {
	ctx, cancel := f.heartbeat.statement(ctx)
	defer cancel()
	if f.since.IsZero() {
		now, err := f.store.Now(ctx)
		if err != nil {
			return err
		}
		f.since = now // the first scan finds older rows
	}
	endpoints, now, all, err := f.store.NewlyDue(ctx, f.since.Add(-pollOverlap))
	if err != nil {
		return err
	}
	f.since, f.polled = now, time.Now()
	if !all {
		f.scanNow()
	}
	f.scheduler.FoundDue(endpoints, f.polled)
	return nil
}

// scanDue reports whether the scan's next page is due.
func (f *finder) scanDue() bool {
	if f.rescan && time.Since(f.hinted) >= pollEvery {
		f.rescan = false
		f.scanNow()
	}
	return f.scansDue > 0 || time.Since(f.scanned) >= scanEvery
}

func (f *finder) readPage(ctx context.Context) error {
	ctx, cancel := f.heartbeat.statement(ctx)
	defer cancel()
	found, err := f.store.Waiting(ctx, f.cursor, scanPage)
	if err != nil {
		return err
	}
	f.scanned = time.Now()
	f.scheduler.FoundWaiting(found, f.scanned)
	if n := len(found); n > 0 {
		f.cursor = found[n-1].EndpointID
	}
	if len(found) < scanPage {
		f.cursor, f.scansDue = uuid.Nil, max(f.scansDue-1, 0)
	}
	return nil
}

// scanNow starts a scan at once. A scan that is under way has passed some endpoints
// already, so another one follows it.
func (f *finder) scanNow() {
	f.scansDue = 1
	if f.cursor != uuid.Nil {
		f.scansDue = 2
	}
}
