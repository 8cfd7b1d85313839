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
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// clockSlack bounds the difference between the clocks of two primaries, before and
// after a failover: events committed later than that after the last write have no rows.
const clockSlack = time.Minute

// oldOnArrival is the age at commit from which an event is looked up before it is
// sent: it may be a repetition, by a bulk rewrite of the outbox.
const oldOnArrival = time.Minute

// A fanOutStore has the fan-out's statements.
type fanOutStore interface {
	Acquire(ctx context.Context, holder uuid.UUID, session *webhook.Session, seq uint64) (webhook.Fence, error)
	Existing(ctx context.Context, ids []uuid.UUID, known map[uuid.UUID]bool) error
}

// A fanOut makes the deliveries of each event from the stream: one for each endpoint
// in its endpoint_ids, which the application's own transaction chose.
type fanOut struct {
	scheduler   *schedule.Scheduler
	store       fanOutStore
	recorder    *recorder
	holder      uuid.UUID
	acquired    func(webhook.Fence) // called when a session has claimed the slot
	sessionOver bool                // the session ended before it claimed the slot; the stream brings another
	failure     failure
	heartbeat   *heartbeat
	log         *slog.Logger
}

func (f *fanOut) run(ctx context.Context, batches <-chan webhook.Batch) error {
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

// maxGroup bounds the batches that share one look-up.
const maxGroup = 256

// gather returns a batch with those that have arrived behind it, so that they share a
// look-up. A batch that needs none stays alone.
func (f *fanOut) gather(first webhook.Batch, batches <-chan webhook.Batch) []webhook.Batch {
	group := []webhook.Batch{first}
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

// processAll processes batches in order. Batches behind a session are looked up again,
// after its claim.
func (f *fanOut) processAll(ctx context.Context, group []webhook.Batch) error {
	known, err := f.lookUpGroup(ctx, group)
	if err != nil {
		return err
	}
	for i := range group {
		if err := f.process(ctx, &group[i], known); err != nil {
			return err
		}
		if group[i].Session != nil { // it may repeat deliveries recorded since the look-up
			return f.processAll(ctx, group[i+1:])
		}
	}
	return nil
}

func (f *fanOut) process(ctx context.Context, b *webhook.Batch, known map[uuid.UUID]bool) error {
	if b.Session != nil {
		return f.begin(ctx, b.Session)
	}
	if f.sessionOver {
		return nil
	}
	received := time.Now()
	for i := range b.Events {
		if !f.admit(ctx, &b.Events[i], b.CommitTime, known, received) {
			return ctx.Err() // the stream brings the rest again
		}
	}
	f.scheduler.Admitted(b)
	return nil
}

// admit adds an event's deliveries to the window, and waits for room if it is full. It
// reports whether all were added before the context ended.
func (f *fanOut) admit(ctx context.Context, e *outbox.Event, committed time.Time, known map[uuid.UUID]bool, received time.Time) bool {
	if len(e.EndpointIDs) == 0 {
		return true
	}
	a := f.scheduler.NewAdmission(e, committed, known, received)
	for !a.Admit(time.Now()) {
		if !f.awaitRoom(ctx) {
			a.GiveUp()
			return false
		}
	}
	return true
}

// awaitRoom waits until there may be room, for at most ParkEvery: parking makes room,
// too.
func (f *fanOut) awaitRoom(ctx context.Context) bool {
	timer := time.NewTimer(schedule.ParkEvery)
	defer timer.Stop()
	return f.heartbeat.wait(ctx, timer.C, f.scheduler.RoomFreed, nil) != stopped
}

// mayHaveRows reports whether deliveries of a batch may have rows already: a former
// process or session may have recorded them, or a rewrite of the outbox repeats an old
// event.
func (f *fanOut) mayHaveRows(b *webhook.Batch) bool {
	for i := range b.Events {
		if b.CommitTime.Sub(outbox.IDTime(b.Events[i].ID)) > oldOnArrival {
			return true
		}
	}
	lastWrite, replaying := f.scheduler.Replaying()
	return replaying && len(b.Events) > 0 && !b.CommitTime.After(lastWrite.Add(clockSlack))
}

// lookUpGroup returns which of the group's deliveries are in memory or have a row.
// Memory is checked first: a delivery that leaves it afterwards has a committed row.
func (f *fanOut) lookUpGroup(ctx context.Context, group []webhook.Batch) (map[uuid.UUID]bool, error) {
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
	f.scheduler.InMemory(ids, known)
	for chunk := range slices.Chunk(ids, maxLookUp) {
		if err := f.lookUp(ctx, chunk, known); err != nil {
			return nil, err
		}
	}
	return known, nil
}

// maxLookUp bounds the ids in one look-up, which takes PostgreSQL about 2 ms.
const maxLookUp = 1000

// lookUp retries until the database answers: without the answer, deliveries could be
// sent twice.
func (f *fanOut) lookUp(ctx context.Context, ids []uuid.UUID, known map[uuid.UUID]bool) error {
	for warned, begun := false, time.Now(); ; {
		attempt, cancel := f.heartbeat.statement(ctx)
		err := f.store.Existing(attempt, ids, known)
		cancel()
		if err == nil || ctx.Err() != nil {
			f.failure.clear()
			return ctx.Err()
		}
		f.failure.note(begun, err)
		if !warned {
			warned = true
			f.log.Warn("cannot look up deliveries that may have rows; retrying", "error", err)
		}
		f.heartbeat.sleep(ctx, 4*retryPause)
	}
}

// begin claims the slot for a new session. The claim ends with a marker, the first
// batch of the session: until its echo, the stream may repeat deliveries with rows.
func (f *fanOut) begin(ctx context.Context, s *webhook.Session) error {
	// No batch may be under way: the marker's echo would count as its echo, too.
	if !f.recorder.lock.acquire(ctx, f.heartbeat) {
		return nil
	}
	defer f.recorder.lock.release()
	marker, before := f.scheduler.NextSeq(), f.scheduler.Fence()
	fence, err := f.acquire(ctx, s, marker)
	if f.sessionOver = errors.Is(err, store.ErrSessionOver); f.sessionOver {
		s.Void() // if it has not ended, the stream ends it
		f.log.Info("the stream ended before the slot was claimed")
		return nil
	}
	if err != nil || ctx.Err() != nil {
		return err
	}
	if before.Epoch != 0 && before.Epoch != fence.Epoch {
		return store.ErrFenced // another process held the slot meanwhile, and has continued with our deliveries
	}
	f.scheduler.BeginSession(s, fence, marker, time.Now())
	if fence.Moved {
		f.log.Warn("the replication slot is beyond everything that is known to be recorded: it was recreated or advanced, "+
			"or walhook was killed while idle; comparing the outbox with its deliveries in between",
			"start", s.Start.String(), "reported", s.Reported.String(), "confirmed", s.Confirmed.String())
	}
	f.log.Info("claimed the slot", "epoch", fence.Epoch, "start", s.Start.String(), "confirmed", s.Confirmed.String(), "slot_created", s.SlotCreated)
	f.acquired(fence)
	return nil
}

// acquire retries until the slot is claimed, the session is over, or a guard holds
// the claim back. The stream answers the server meanwhile.
func (f *fanOut) acquire(ctx context.Context, s *webhook.Session, marker uint64) (webhook.Fence, error) {
	defer f.failure.clear()
	for warned, begun := false, time.Now(); ; {
		attempt, cancel := f.heartbeat.statement(ctx)
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
			f.log.Warn("cannot claim the slot; retrying", "error", err)
		}
		f.heartbeat.sleep(ctx, 4*retryPause)
	}
}
