package webhook

import (
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/outbox"
)

// A Batch is a part of one committed transaction, or a position. The stream passes
// batches on in commit order.
type Batch struct {
	// Session, if not nil, opens a replication session: everything unfinished in the
	// session before will be repeated. It comes alone.
	Session *Session
	// Events belong to one transaction, which several batches may make up.
	Events []outbox.Event
	// End, if not zero, is the end LSN of the transaction of these events and of those
	// in the batches before. Only such a position may ever be confirmed. Without events
	// it is a keepalive's, or the end of a transaction that has nothing of ours.
	End pglogrepl.LSN
	// CommitTime is the transaction's, by PostgreSQL's clock; zero for a keepalive.
	CommitTime time.Time
	// Echoes are walhook's own messages in this transaction. They prove that their
	// transaction is durable.
	Echoes []string
}

// A Session is one acquisition of the replication slot.
//
// Positions are confirmed to the session and not to the stream. So a late confirmation
// of the session before, perhaps of another timeline, in which the same LSN means
// something else, cannot move the slot.
//
// A live session is also the right to act: to send, to maintain partitions, to seal. An
// epoch is not, because it does not tell when the slot is lost.
type Session struct {
	SystemID      string        // of the cluster, from IDENTIFY_SYSTEM
	Timeline      int32         // likewise
	Start         pglogrepl.LSN // where the stream was asked to begin; 0: at the slot's own position
	Confirmed     pglogrepl.LSN // the slot's confirmed_flush_lsn when it was acquired
	Reported      pglogrepl.LSN // the last position that this process sent to the slot since the server started; 0: none
	Published     string        // the identity of the publication when the session began
	Outbox        uint32        // the OID of webhook_outbox, which tells it from other tables of that name
	SlotCreated   bool          // the slot has just been created: the stream will not bring earlier commits
	ServerVersion int           // as server_version_num: 150018
	ServerStarted string        // when the server was started
	PID           uint32        // of the walsender; 0: unknown

	// Lease is how long the session stays live after the slot was last seen to be its
	// own, and after the server was last heard. No other process can acquire the slot
	// within that time. 0: until the session ends.
	Lease time.Duration

	confirmed atomic.Uint64
	ended     atomic.Bool
	void      atomic.Bool
	seen      atomic.Pointer[time.Time]
	heard     atomic.Pointer[time.Time]
}

// Moved reports whether the slot, with confirmed as its position now, is beyond
// everything known to be recorded. Then somebody else has recreated or advanced it, or a
// process was killed that had confirmed positions without events. The stream will not
// bring what lies between.
func (s *Session) Moved(confirmed pglogrepl.LSN) bool {
	known := max(s.Start, s.Reported)
	return s.Start != 0 && !s.SlotCreated && max(s.Confirmed, confirmed) > known
}

// Seen notes that the slot belonged to this session at a time: when PostgreSQL was
// asked, not when it answered.
func (s *Session) Seen(at time.Time) { note(&s.seen, at) }

// Heard notes that the server was heard on the replication connection.
func (s *Session) Heard(at time.Time) { note(&s.heard, at) }

// note keeps the later of two times.
func note(where *atomic.Pointer[time.Time], at time.Time) {
	for {
		before := where.Load()
		if before != nil && !at.After(*before) || where.CompareAndSwap(before, &at) {
			return
		}
	}
}

// End ends the session. It may be called from any goroutine.
func (s *Session) End() { s.ended.Store(true) }

// Void ends the session because the database does not list it as the slot's holder.
func (s *Session) Void() {
	s.void.Store(true)
	s.End()
}

// IsVoid reports whether Void was called.
func (s *Session) IsVoid() bool { return s.void.Load() }

// Live reports whether the slot certainly belongs to this session at a time. It does not
// once the connection is lost, or nothing was seen or heard within the lease: the process
// was frozen, or the network drops everything.
func (s *Session) Live(now time.Time) bool {
	if s.ended.Load() {
		return false
	}
	return s.Lease == 0 || within(s.Lease, s.seen.Load(), now) && within(s.Lease, s.heard.Load(), now)
}

// within compares by the monotonic clock and by the wall clock, because either may stand
// still while the machine sleeps.
func within(d time.Duration, at *time.Time, now time.Time) bool {
	return at != nil && now.Sub(*at) < d && now.Round(0).Sub(at.Round(0)) < d
}

// Confirm notes that everything up to a position of this session is durably recorded. It
// may be called from any goroutine. A smaller position than before changes nothing.
func (s *Session) Confirm(lsn pglogrepl.LSN) {
	for {
		old := s.confirmed.Load()
		if uint64(lsn) <= old || s.confirmed.CompareAndSwap(old, uint64(lsn)) {
			return
		}
	}
}

// Flushed returns the position that may be sent to PostgreSQL as flushed: the last one
// confirmed, and at first the slot's own.
func (s *Session) Flushed() pglogrepl.LSN {
	return max(s.Confirmed, pglogrepl.LSN(s.confirmed.Load()))
}
