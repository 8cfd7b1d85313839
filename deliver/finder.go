package deliver

import (
	"context"
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

	// scanPages bounds the pages of an immediate scan in one round, so that fetching for
	// lanes continues.
	scanPages = 5
)

// A finderStore has the finder's statements.
type finderStore interface {
	Now(ctx context.Context) (time.Time, error)
	NewlyDue(ctx context.Context, since time.Time) (endpoints []uuid.UUID, now time.Time, all bool, err error)
	Waiting(ctx context.Context, after uuid.UUID, limit int) ([]webhook.Waiting, error)
}

// A finder finds the endpoints that have rows for the retrier, whose loop drives it. It
// polls for rows that have become due, and scans all endpoints with unfinished rows.
type finder struct {
	scheduler *schedule.Scheduler
	store     finderStore
	heartbeat *heartbeat

	since    time.Time // by PostgreSQL's clock: rows due by then have been reported
	polled   time.Time
	hinted   time.Time
	rescan   bool      // a second scan is due: the stream brings a hint before the change is visible
	cursor   uuid.UUID // of the scan: the last endpoint read
	scanned  time.Time
	scansDue int // immediately: one under way, and another for changes since it began
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
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
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

// scan reads some pages of a scan that is due.
func (f *finder) scan(ctx context.Context) error {
	if f.rescan && time.Since(f.hinted) >= pollEvery {
		f.rescan = false
		f.scanNow()
	}
	for range scanPages {
		if f.scansDue == 0 && time.Since(f.scanned) < scanEvery {
			break
		}
		if err := f.readPage(ctx); err != nil {
			return err
		}
	}
	if f.scansDue > 0 {
		f.scheduler.ToFetch.Raise()
	}
	return nil
}

func (f *finder) readPage(ctx context.Context) error {
	f.heartbeat.beat()
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
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
