package store

import (
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/outbox"
)

// A Batch is a piece of one committed transaction as the stream hands it on, or
// a position. Batches come in commit order.
type Batch struct {
	// Session, where not nil, opens a replication session: everything that was
	// unfinished in the session before will be repeated. It comes alone.
	Session *Session
	// Events are part of one transaction; several batches may make one up.
	Events []outbox.Event
	// End, where not zero, is where the transaction ends that these events (and
	// those of the batches before) belong to. It is the only kind of position
	// that may ever be confirmed. Without events it is an empty position: a
	// keepalive's, or the end of a transaction that holds nothing of ours.
	End pglogrepl.LSN
	// CommitTime is the transaction's by PostgreSQL's clock; zero for a keepalive.
	CommitTime time.Time
	// Echoes are walhook's own messages in this transaction: proof that what
	// their transaction recorded is durable.
	Echoes []string
}

// A Session is one acquisition of the replication slot. Positions are confirmed
// to it and not to the stream, so that a late confirmation of the session before
// (perhaps of another timeline, where the same LSN means something else) cannot
// move the slot. And it is the right to act: to send, to look after partitions, to
// seal. An epoch that was once got is not, because it does not tell when the slot
// is lost.
type Session struct {
	SystemID      string        // of the cluster, from IDENTIFY_SYSTEM
	Timeline      int32         //
	Start         pglogrepl.LSN // where the stream was asked to begin; 0: at the slot's own position
	Confirmed     pglogrepl.LSN // the slot's confirmed_flush_lsn when it was acquired
	Told          pglogrepl.LSN // what this process itself last told the slot, since the server was started; 0: nothing
	Published     string        // what the publication was when the session began: another value is another publication
	Outbox        uint32        // the OID of webhook_outbox: a table of that name with another is not ours
	SlotCreated   bool          // the slot was made just now: what was committed before does not come by the stream
	ServerVersion int           // as server_version_num: 150018
	ServerStarted string        // when the server was
	PID           uint32        // of the walsender; 0: not known

	// Lease is for how long it may be relied on that the slot is this session's, after
	// it was seen to be and after the server was heard. Another process can have it
	// only after longer. 0: until the session ends.
	Lease time.Duration

	confirmed atomic.Uint64
	ended     atomic.Bool
	void      atomic.Bool
	seen      atomic.Pointer[time.Time]
	heard     atomic.Pointer[time.Time]
}

// Moved says that the slot, whose position is confirmed now, is beyond everything
// that is known to be recorded: it was made again, or advanced, by somebody else, or
// a process was killed that had confirmed what held no events. What lies between
// does not come by the stream.
func (s *Session) Moved(confirmed pglogrepl.LSN) bool {
	known := max(s.Start, s.Told)
	return s.Start != 0 && !s.SlotCreated && max(s.Confirmed, confirmed) > known
}

// Seen says that the slot was this session's at a time: when the question was
// asked, never when the answer came.
func (s *Session) Seen(at time.Time) { note(&s.seen, at) }

// Heard says that the server was heard on the replication connection.
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

// End says that the session is over. It is called from any goroutine.
func (s *Session) End() { s.ended.Store(true) }

// Void says that the database does not know this session as the slot's holder,
// so that nothing can be done with it; IsVoid, whether that was said.
func (s *Session) Void() {
	s.void.Store(true)
	s.End()
}

// IsVoid says whether the session is void.
func (s *Session) IsVoid() bool { return s.void.Load() }

// Live says whether the slot is certainly this session's at a time. It is no more
// where the connection was lost, and where nothing was seen or heard for the
// lease: the process was frozen, or the line swallows everything.
func (s *Session) Live(now time.Time) bool {
	if s.ended.Load() {
		return false
	}
	return s.Lease == 0 || within(s.Lease, s.seen.Load(), now) && within(s.Lease, s.heard.Load(), now)
}

// within goes by the monotonic clock and by the other, of which each may stand
// still while a machine sleeps.
func within(d time.Duration, at *time.Time, now time.Time) bool {
	return at != nil && now.Sub(*at) < d && now.Round(0).Sub(at.Round(0)) < d
}

// Confirm says that everything up to a position that was handed on in this
// session is in the database, durably. It may be called from any goroutine; a
// smaller position than before changes nothing.
func (s *Session) Confirm(lsn pglogrepl.LSN) {
	for {
		old := s.confirmed.Load()
		if uint64(lsn) <= old || s.confirmed.CompareAndSwap(old, uint64(lsn)) {
			return
		}
	}
}

// Flushed is the position that PostgreSQL may be told: the last one confirmed,
// and at first the slot's own.
func (s *Session) Flushed() pglogrepl.LSN {
	return max(s.Confirmed, pglogrepl.LSN(s.confirmed.Load()))
}
