package schedule

import (
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/store"
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
func (s *Scheduler) claimed(session *store.Session, fence store.Fence, marker uint64) {
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
