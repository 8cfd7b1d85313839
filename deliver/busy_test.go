package deliver

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// A busyDatabase takes as long for each batch and each look-up as the next ones need to come
// together.
type busyDatabase struct {
	refusingConsequences
	paused time.Time // from then on, one of the endpoints is
}

const busyFor = 5 * time.Millisecond

// Insert is Store's.
func (*busyDatabase) Insert(context.Context, webhook.Fence, webhook.Mark, []webhook.Record) (bool, error) {
	time.Sleep(busyFor)
	return true, nil
}

// Endpoints is Store's.
func (db *busyDatabase) Endpoints(_ context.Context, ids []uuid.UUID) (found []webhook.Endpoint, err error) {
	time.Sleep(busyFor)
	for _, id := range ids {
		found = append(found, webhook.Endpoint{ID: id, OrganizationID: "org_1", URL: "https://example.com", Enabled: true,
			Secrets: []webhook.Secret{"a secret of sixteen"}, Paused: id == busyEndpoint(0) && time.Now().After(db.paused)})
	}
	return found, nil
}

// Now is Store's.
func (*busyDatabase) Now(context.Context) (time.Time, error) { return time.Now(), nil }

// NewlyDue is Store's.
func (*busyDatabase) NewlyDue(context.Context, time.Time) ([]uuid.UUID, time.Time, bool, error) {
	return nil, time.Now(), true, nil
}

// Waiting is Store's.
func (*busyDatabase) Waiting(context.Context, uuid.UUID, int) ([]webhook.Waiting, error) {
	return nil, nil
}

// Due is Store's.
func (*busyDatabase) Due(context.Context, []webhook.Page, func(*webhook.Due)) error { return nil }

func busyEndpoint(n int) uuid.UUID { return uuid.UUID{14: byte(n >> 8), 15: byte(n)} }

func TestLoopsThatAreNeverIdleDoWhatTimeBrings(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		db := &busyDatabase{paused: time.Now().Add(time.Second)}
		limits := schedule.Limits{ParkAfter: time.Second, MaxInFlight: 256, EndpointInFlight: 8, Window: 4096, MaxMemory: 1 << 20, Timeout: time.Second}
		e := New(Config{Limits: limits, Store: db, Sender: targets, Log: slog.New(slog.NewTextHandler(&log, nil))})
		e.send = func(context.Context, send.Request) (webhook.Attempt, bool) {
			return webhook.Attempt{StatusCode: 200, EndedAt: time.Now()}, true
		}
		e.scheduler.BeginSession(&webhook.Session{}, webhook.Fence{Epoch: 1}, 0, time.Now())
		e.recorder.deferred.active = true
		e.recorder.deferred.kept = store.Consequences(nil, []webhook.Record{{ID: uuid.New(), EventType: "payment.failed", Exhausted: true, Attempt: &webhook.Attempt{}}})

		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		stream := make(emptyStream)
		go func() { ended <- e.Run(ctx, stream) }()
		for n := range 10_000 { // each endpoint gets one in 600 ms, and is looked up for it
			event := outbox.Event{ID: outbox.TimeID(time.Now()), OrganizationID: "org_1", Type: "payment.failed", Payload: []byte("{}"), EndpointIDs: []uuid.UUID{busyEndpoint(n % 600)}}
			stream <- webhook.Batch{Events: []outbox.Event{event}, CommitTime: time.Now()}
			time.Sleep(time.Millisecond)
		}
		if db.written == 0 {
			t.Error("the recorder has not tried again what the database had refused")
		}
		if !strings.Contains(log.String(), "an endpoint is paused") {
			t.Errorf("the directory has not logged what has changed: %s", log.String())
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// An overloadedDatabase answers each statement just in time.
type overloadedDatabase struct{ busyDatabase }

func justInTime() { time.Sleep(statementTimeout - time.Second) }

// NewlyDue is Store's.
func (*overloadedDatabase) NewlyDue(context.Context, time.Time) ([]uuid.UUID, time.Time, bool, error) {
	justInTime()
	return []uuid.UUID{busyEndpoint(0)}, time.Now(), true, nil
}

// Waiting is Store's.
func (*overloadedDatabase) Waiting(context.Context, uuid.UUID, int) ([]webhook.Waiting, error) {
	justInTime()
	return []webhook.Waiting{{EndpointID: busyEndpoint(0), Enabled: true}}, nil
}

// Due is Store's.
func (*overloadedDatabase) Due(context.Context, []webhook.Page, func(*webhook.Due)) error {
	justInTime()
	return nil
}

// ClaimVisible is Store's.
func (*overloadedDatabase) ClaimVisible(context.Context, webhook.Fence) (bool, error) {
	justInTime()
	return false, nil
}

func TestALoopWhoseDatabaseIsSlowIsNotStuck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := New(Config{Limits: small, Store: &overloadedDatabase{}, Sender: targets, Log: slog.New(slog.DiscardHandler)})
		fence := webhook.Fence{Epoch: 1, ClaimXID: "7"}
		e.scheduler.BeginSession(&webhook.Session{}, fence, 0, time.Now())
		e.retrier.claims.sessionClaimed(fence)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- e.Run(ctx, make(emptyStream)) }()
		synctest.Wait()
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
			if err := e.Alive(); err != nil {
				t.Error(err)
				break
			}
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// A sweepingDatabase has one endpoint with rows that are due, and very many that are disabled.
// Cancelling the rows of those goes on for ever.
type sweepingDatabase struct {
	busyDatabase
	asked time.Time     // when it was last asked for due rows
	most  time.Duration // between two times
}

const disabledEndpoints = 2000

// Endpoints is Store's.
func (*sweepingDatabase) Endpoints(_ context.Context, ids []uuid.UUID) (found []webhook.Endpoint, err error) {
	for _, id := range ids {
		found = append(found, webhook.Endpoint{ID: id, OrganizationID: "org_1", URL: "https://example.com", Enabled: id == busyEndpoint(0)})
	}
	return found, nil
}

// NewlyDue is Store's.
func (*sweepingDatabase) NewlyDue(context.Context, time.Time) ([]uuid.UUID, time.Time, bool, error) {
	return []uuid.UUID{busyEndpoint(0)}, time.Now(), true, nil
}

// Waiting is Store's.
func (*sweepingDatabase) Waiting(_ context.Context, after uuid.UUID, limit int) (found []webhook.Waiting, err error) {
	for n := range disabledEndpoints {
		if id := busyEndpoint(n); schedule.CompareIDs(id, after) > 0 && len(found) < limit {
			found = append(found, webhook.Waiting{EndpointID: id, Enabled: n == 0})
		}
	}
	return found, nil
}

// Due is Store's.
func (db *sweepingDatabase) Due(context.Context, []webhook.Page, func(*webhook.Due)) error {
	db.most = max(db.most, time.Since(db.asked))
	db.asked = time.Now()
	return nil
}

// CancelRows is Store's.
func (*sweepingDatabase) CancelRows(context.Context, webhook.Fence, uuid.UUID, string) (int, bool, error) {
	time.Sleep(busyFor)
	return 1, true, nil
}

func TestDueRowsDoNotWaitUntilVeryManyEndpointsAreSwept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := &sweepingDatabase{asked: time.Now()}
		e := New(Config{Limits: small, Store: db, Sender: targets, Log: slog.New(slog.DiscardHandler)})
		e.scheduler.BeginSession(&webhook.Session{}, webhook.Fence{Epoch: 1}, 0, time.Now())
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		if err := e.Run(ctx, make(emptyStream)); err != nil {
			t.Fatal(err)
		}
		if db.most > time.Second {
			t.Errorf("%v passed between two looks at due rows", db.most)
		}
	})
}
