package schedule

import (
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/webhook"
)

// What a new session changes: it may repeat what is in memory, and know less of rows.

// adopt reports whether a delivery is in memory. If it is, it stands for its repetition
// by a new session.
func (s *Scheduler) adopt(id uuid.UUID) bool {
	d := s.deliveries[id]
	if d == nil {
		return false
	}
	if d.tx != nil && d.tx.generation != s.ledger.generation {
		d.tx = s.ledger.current()
		d.tx.pending++
	}
	return true
}

// forgetRows forgets which deliveries have rows: the new session's database may have
// fallen back behind them. What the session repeats and is in memory is written again
// as if it had no row. Prefetched deliveries are dropped: nothing would park them, and
// confirming would wait for their turn. No batch is under way.
func (s *Scheduler) forgetRows(now time.Time) {
	for _, l := range s.prefetchedLanes() {
		s.dropPrefetched(l, now)
	}
	before := &transaction{generation: s.ledger.generation - 1}
	for _, d := range s.deliveries {
		d.tx, d.inTable = before, false
	}
	s.newRows, s.existing = append(s.newRows, s.existing...), nil
}

// prefetchedLanes returns the lanes with prefetched deliveries, in order of id: a map's
// order is random.
func (s *Scheduler) prefetchedLanes() (lanes []*lane) {
	for _, l := range s.lanes {
		if l.prefetched > 0 {
			lanes = append(lanes, l)
		}
	}
	slices.SortFunc(lanes, func(a, b *lane) int { return CompareIDs(a.id, b.id) })
	return lanes
}

// claimed takes the session that holds the slot now. Earlier comparisons do not cover
// what this session will not bring, nor rows of a database that was set back.
// ReconcileFrom alone does not tell two causes apart: if a comparison was noted as done
// and nothing was recorded since, the next cause has the same value.
func (s *Scheduler) claimed(session *webhook.Session, fence webhook.Fence, marker uint64) {
	goesOn := s.session != nil && session.Start != 0 && !session.SlotCreated && !fence.Moved
	if !goesOn || session.Published != s.session.Published || !fence.Server.Equal(s.fence.Server) {
		s.causes++
	}
	s.session, s.fence, s.marker, s.replaying, s.visible = session, fence, marker, true, fence.ClaimXID == ""
}

func (s *Scheduler) cause() Cause { return Cause{s.fence.ReconcileFrom.UnixMicro(), s.causes} }

func (s *Scheduler) live(now time.Time) bool { return s.session != nil && s.session.Live(now) }

// confirm tells the session how far the slot may move.
func (s *Scheduler) confirm() {
	if s.session != nil {
		s.session.Confirm(s.ledger.confirmed)
	}
}

// BeginSession begins a session that has claimed the slot. Until the marker's echo, the stream
// may repeat events whose deliveries have rows. No batch is under way.
func (s *Scheduler) BeginSession(session *webhook.Session, fence webhook.Fence, marker uint64, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ledger.reset(session.Confirmed)
	s.forgetRows(now)
	s.claimed(session, fence, marker)
}

// Replaying reports whether the session may still repeat such events, and when the last
// of their rows was written.
func (s *Scheduler) Replaying() (lastWrite time.Time, replaying bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fence.LastWrite, s.replaying
}

// A Cause is a reason to compare events with deliveries. No two are equal.
type Cause struct {
	since  int64 // the fence's ReconcileFrom, in microseconds
	number int
}

// Session returns the current session, its fence, and its Cause for a comparison.
func (s *Scheduler) Session() (*webhook.Session, webhook.Fence, Cause) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session, s.fence, s.cause()
}

// Confirmed returns how far the current session is confirmed.
func (s *Scheduler) Confirmed() (*webhook.Session, pglogrepl.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session, s.ledger.confirmed
}

// ClaimVisible reports whether everything is visible that a session with this fence will not
// bring.
func (s *Scheduler) ClaimVisible(fence webhook.Fence) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.visible && s.fence.Epoch == fence.Epoch && s.fence.ClaimXID == fence.ClaimXID
}

// SetClaimVisible notes that it is.
func (s *Scheduler) SetClaimVisible(fence webhook.Fence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fence.Epoch == fence.Epoch && s.fence.ClaimXID == fence.ClaimXID {
		s.visible = true
	}
}

// Compared notes that a comparison is complete, unless there is another cause.
func (s *Scheduler) Compared(of Cause) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause() == of {
		s.fence.Reconcile = false
	}
}

// CompareAgain notes another cause at the end of a comparison, unless there is one
// already, and reports whether it did.
func (s *Scheduler) CompareAgain(of Cause, since time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause() != of {
		return false
	}
	s.fence.ReconcileFrom = since
	s.causes++
	return true
}

// NoteMissing notes that a delivery has no row although its batch is written.
func (s *Scheduler) NoteMissing(from time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fence.Reconcile, s.fence.ReconcileFrom = true, from
	s.causes++
}

// NextSeq numbers a batch without records.
func (s *Scheduler) NextSeq() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ledger.take()
}

// PendingWait returns when a pending row from the reconciler becomes due: at once, like a
// parked one, unless an attempt is under way that began before the slot was lost.
func (s *Scheduler) PendingWait(id uuid.UUID) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.deliveries[id]; d != nil && d.stage == running {
		return d.lease
	}
	return -webhook.ParkedDue
}

// InsertedMissing counts rows that the reconciler inserted.
func (s *Scheduler) InsertedMissing(inserted int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Found += uint64(inserted)
}
