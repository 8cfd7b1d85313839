package deliver

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

// clockSlack is by how much the clocks of two primaries, before and after a
// failover, may differ for the last write to tell what can have rows.
const clockSlack = time.Minute

// oldOnArrival is the age, at its commit, from which an event may be a repetition
// (a bulk rewrite of the outbox) and is looked up before it is sent.
const oldOnArrival = time.Minute

// A fanOutStore is what the fan-out asks of the database.
type fanOutStore interface {
	Acquire(ctx context.Context, holder uuid.UUID, session *store.Session, seq uint64) (store.Fence, error)
	Existing(ctx context.Context, ids []uuid.UUID, known map[uuid.UUID]bool) error
}

// A fanOut takes what the stream brings: a delivery for each endpoint that the
// event is owed to, as the application's own transaction decided.
type fanOut struct {
	scheduler   *schedule.Scheduler
	store       fanOutStore
	recorder    *recorder
	holder      uuid.UUID
	acquired    func(store.Fence) // a new session may write
	sessionOver bool              // the session had ended before it could be claimed: another will come
	failure     failure
	heartbeat   *heartbeat
	log         *slog.Logger
}

func (f *fanOut) run(ctx context.Context, batches <-chan store.Batch) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		f.heartbeat.beat()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case b, ok := <-batches:
			if !ok {
				return nil
			}
			err := f.processAll(ctx, f.gather(b, batches))
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
		}
	}
}

// maxGroup bounds how many batches that may have rows share one look-up.
const maxGroup = 256

// gather takes what else has arrived, where it will be looked up together.
func (f *fanOut) gather(first store.Batch, batches <-chan store.Batch) []store.Batch {
	group := []store.Batch{first}
	if !f.mayHaveRows(&first) {
		return group
	}
	for len(group) < maxGroup {
		select {
		case b, ok := <-batches:
			if !ok {
				return group
			}
			group = append(group, b)
		default:
			return group
		}
	}
	return group
}

func (f *fanOut) processAll(ctx context.Context, group []store.Batch) error {
	known, err := f.lookUpGroup(ctx, group)
	if err != nil {
		return err
	}
	for i := range group {
		if err := f.process(ctx, &group[i], known); err != nil {
			return err
		}
		if group[i].Session != nil { // it repeats what may have been recorded since the look-up
			return f.processAll(ctx, group[i+1:])
		}
	}
	return nil
}

func (f *fanOut) process(ctx context.Context, b *store.Batch, known map[uuid.UUID]bool) error {
	if b.Session != nil {
		return f.begin(ctx, b.Session)
	}
	if f.sessionOver {
		return nil
	}
	received := time.Now()
	for i := range b.Events {
		if !f.admit(ctx, &b.Events[i], known, received) {
			return ctx.Err() // the rest will come again
		}
	}
	f.scheduler.Passed(b)
	return nil
}

// admit takes in an event's deliveries, waiting for room where there is none,
// and reports whether it did before the context ended.
func (f *fanOut) admit(ctx context.Context, e *outbox.Event, known map[uuid.UUID]bool, received time.Time) bool {
	if len(e.EndpointIDs) == 0 {
		return true
	}
	a := f.scheduler.Admit(e, known, received)
	for !a.Go(time.Now()) {
		if !f.awaitRoom(ctx) {
			a.End()
			return false
		}
	}
	return true
}

// awaitRoom waits until there may be room, or for as long as the clock takes between
// two looks at what is to be parked.
func (f *fanOut) awaitRoom(ctx context.Context) bool {
	timer := time.NewTimer(schedule.ParkEvery)
	defer timer.Stop()
	return f.heartbeat.wait(ctx, timer.C, f.scheduler.RoomFreed, nil) != stopped
}

// mayHaveRows says whether deliveries of a batch may have rows already: because
// a former process, or a former session, may have recorded them, or because the
// outbox was rewritten and an old event is repeated.
func (f *fanOut) mayHaveRows(b *store.Batch) bool {
	for i := range b.Events {
		if b.CommitTime.Sub(outbox.IDTime(b.Events[i].ID)) > oldOnArrival {
			return true
		}
	}
	lastWrite, replaying := f.scheduler.Replaying()
	return replaying && len(b.Events) > 0 && !b.CommitTime.After(lastWrite.Add(clockSlack))
}

// known looks up which of the group's deliveries are in memory or have a row.
// The look at memory comes first: what has left it since was committed.
func (f *fanOut) lookUpGroup(ctx context.Context, group []store.Batch) (map[uuid.UUID]bool, error) {
	var ids []uuid.UUID
	for i := range group {
		if !f.mayHaveRows(&group[i]) {
			continue
		}
		for j := range group[i].Events {
			e := &group[i].Events[j]
			for _, endpoint := range e.EndpointIDs {
				ids = append(ids, outbox.DeliveryID(e.ID, endpoint))
			}
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	known := map[uuid.UUID]bool{}
	f.scheduler.Holds(ids, known)
	for chunk := range slices.Chunk(ids, maxLookUp) {
		if err := f.lookUp(ctx, chunk, known); err != nil {
			return nil, err
		}
	}
	return known, nil
}

// maxLookUp bounds one look-up: about 2 ms of PostgreSQL's time.
const maxLookUp = 1000

// lookUp tries until the database answers: sending without knowing would repeat.
func (f *fanOut) lookUp(ctx context.Context, ids []uuid.UUID, known map[uuid.UUID]bool) error {
	for warned, begun := false, time.Now(); ; {
		f.heartbeat.beat()
		attempt, cancel := context.WithTimeout(ctx, statementTimeout)
		err := f.store.Existing(attempt, ids, known)
		cancel()
		if err == nil || ctx.Err() != nil {
			f.failure.clear()
			return ctx.Err()
		}
		f.failure.note(begun, err)
		if !warned {
			warned = true
			f.log.Warn("cannot look up deliveries that may have rows; trying until it works", "error", err)
		}
		f.heartbeat.sleep(ctx, 4*retryPause)
	}
}

// begin claims the right to write for a new session. Its marker is the first
// batch of the session: until it is echoed the stream may repeat what has rows.
func (f *fanOut) begin(ctx context.Context, s *store.Session) error {
	// No batch may be under way: the marker's echo would prove it durable too.
	if !f.recorder.writer.acquire(ctx, f.heartbeat) {
		return nil
	}
	defer f.recorder.writer.release()
	marker, before := f.scheduler.NextSession()
	fence, err := f.acquire(ctx, s, marker)
	if f.sessionOver = errors.Is(err, store.ErrSessionOver); f.sessionOver {
		s.Void() // where it has not ended, the stream ends it
		f.log.Info("the stream ended before the slot was claimed")
		return nil
	}
	if err != nil || ctx.Err() != nil {
		return err
	}
	if before.Epoch != 0 && before.Epoch != fence.Epoch {
		return store.ErrFenced // somebody else held the slot meanwhile, and has gone on with what we hold
	}
	f.scheduler.Begin(s, fence, marker, time.Now())
	if fence.Moved {
		f.log.Warn("the replication slot is beyond everything that is known to be recorded: somebody has made it again or advanced it, "+
			"or walhook was killed while idle; what lies between is looked up in the outbox",
			"start", s.Start.String(), "told", s.Reported.String(), "confirmed", s.Confirmed.String())
	}
	f.log.Info("claimed the slot", "epoch", fence.Epoch, "start", s.Start.String(), "confirmed", s.Confirmed.String(), "slot_created", s.SlotCreated)
	f.acquired(fence)
	return nil
}

// acquire tries until the database lets it: the stream answers meanwhile.
func (f *fanOut) acquire(ctx context.Context, s *store.Session, marker uint64) (store.Fence, error) {
	defer f.failure.clear()
	for warned, begun := false, time.Now(); ; {
		f.heartbeat.beat()
		attempt, cancel := context.WithTimeout(ctx, statementTimeout)
		asked := time.Now()
		fence, err := f.store.Acquire(attempt, f.holder, s, marker)
		cancel()
		if err == nil {
			s.Seen(asked)
		}
		if err == nil || ctx.Err() != nil {
			return fence, nil
		}
		if errors.Is(err, store.ErrSessionOver) || errors.Is(err, store.ErrHeldBack) {
			return fence, err
		}
		f.failure.note(begun, err)
		if !warned {
			warned = true
			f.log.Warn("cannot claim the slot; trying until it works", "error", err)
		}
		f.heartbeat.sleep(ctx, 4*retryPause)
	}
}
