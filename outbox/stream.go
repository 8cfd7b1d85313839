package outbox

import (
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
)

// A Batch is a piece of one committed transaction as the stream hands it on, or
// a position. Batches come in commit order.
type Batch struct {
	// Session, where not nil, opens a replication session: everything that was
	// unfinished in the session before will be repeated. It comes alone.
	Session *Session
	// Events are part of one transaction; several batches may make one up.
	Events []Event
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
// move the slot.
type Session struct {
	SystemID      string        // of the cluster, from IDENTIFY_SYSTEM
	Timeline      int32         //
	Start         pglogrepl.LSN // where the stream was asked to begin; 0: at the slot's own position
	Confirmed     pglogrepl.LSN // the slot's confirmed_flush_lsn when it was acquired
	Published     string        // what the publication was when the session began: another value is another publication
	SlotCreated   bool          // the slot was made just now: what was committed before does not come by the stream
	ServerVersion int           // as server_version_num: 150018
	PID           uint32        // of the walsender; 0: not known

	confirmed atomic.Uint64
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
