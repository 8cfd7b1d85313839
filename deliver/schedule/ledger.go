package schedule

import (
	"time"

	"github.com/jackc/pglogrepl"
)

// A ledger decides what may be confirmed. It is a pure data structure: no clock, no
// lock, no I/O; the Scheduler's mutex guards it.
//
// Transactions stand in commit order, each with the number of its deliveries that have
// no row yet. The longest prefix of transactions without such deliveries is recorded.
// It may be confirmed once it is also durable: when the echo of the last batch that had
// a part in it has come back through the stream. Only the end of a commit, or a
// position without events, is ever confirmed.
type ledger struct {
	transactions []*transaction // in commit order; the last may be open
	mergeAt      int            // as many are too many
	recorded     position       // the end of the longest recorded prefix
	gates        []gate         // recorded positions that wait for an echo, ascending in both fields
	taken        uint64         // number of the last batch that was handed to the database
	echoed       uint64         // number of the last batch that is durable
	confirmed    pglogrepl.LSN
	generation   int // of the session: transactions of the ones before are void
}

type position struct {
	lsn pglogrepl.LSN
	at  time.Time // commit time of the last transaction up to there
}

type gate struct {
	batch uint64
	lsn   pglogrepl.LSN
}

// maxGates bounds the gates while echoes wait behind someone's huge transaction. Beyond
// it, neighbours are merged, which only confirms later.
const maxGates = 4096

// mergeFrom is how many transactions are always kept, at some 100 bytes each. Beyond it,
// recorded ones that stand behind one that is not are merged. So there are no more than
// twice as many as deliveries without a row, however long one of those takes.
const mergeFrom = 4096

// A transaction is one that the stream has begun to bring.
type transaction struct {
	end     position // zero while more of it may come
	pending int      // deliveries without a row

	generation int
}

// reset begins a session: the stream will bring again what was not confirmed.
func (l *ledger) reset(start pglogrepl.LSN) {
	l.generation++
	l.transactions, l.gates = nil, nil
	l.recorded = position{lsn: start, at: l.recorded.at}
	l.confirmed = start
}

// current returns the open transaction, or begins one.
func (l *ledger) current() *transaction {
	if n := len(l.transactions); n > 0 && l.transactions[n-1].end.lsn == 0 {
		return l.transactions[n-1]
	}
	if len(l.transactions) >= max(l.mergeAt, mergeFrom) {
		l.merge()
	}
	t := &transaction{generation: l.generation}
	l.transactions = append(l.transactions, t)
	return t
}

// merge has a recorded transaction end with the one before it: until that is recorded too,
// neither may be confirmed.
func (l *ledger) merge() {
	kept := l.transactions[:0]
	for _, t := range l.transactions {
		if n := len(kept); n > 0 && t.pending == 0 && t.end.lsn != 0 {
			kept[n-1].end = position{lsn: t.end.lsn, at: later(kept[n-1].end.at, t.end.at)}
		} else {
			kept = append(kept, t)
		}
	}
	clear(l.transactions[len(kept):])
	l.transactions, l.mergeAt = kept, 2*len(kept)
}

// end closes the open transaction. If none is open, it is a position without events and
// extends the transaction before: nothing lies between the two.
func (l *ledger) end(lsn pglogrepl.LSN, at time.Time) {
	n := len(l.transactions)
	switch {
	case n == 0:
		l.transactions = append(l.transactions, &transaction{generation: l.generation})
		n++
	case l.transactions[n-1].end.lsn != 0:
		at = later(l.transactions[n-1].end.at, at)
	}
	l.transactions[n-1].end = position{lsn: lsn, at: at}
	l.advance()
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// take numbers the next batch. Its records count from here on; only the batch's own
// echo confirms what they complete.
func (l *ledger) take() uint64 {
	l.taken++
	return l.taken
}

// advance drops the recorded prefix and returns its end.
func (l *ledger) advance() position {
	i := 0
	for ; i < len(l.transactions); i++ {
		t := l.transactions[i]
		if t.end.lsn == 0 || t.pending > 0 {
			break
		}
		l.recorded = position{lsn: max(l.recorded.lsn, t.end.lsn), at: later(l.recorded.at, t.end.at)}
	}
	if i > 0 {
		clear(l.transactions[:i])
		l.transactions = l.transactions[i:]
		l.gate()
	}
	return l.recorded
}

// gate lets the recorded position be confirmed once every batch taken so far is
// durable.
func (l *ledger) gate() {
	if l.taken <= l.echoed {
		l.gates = nil
		l.confirmed = max(l.confirmed, l.recorded.lsn)
		return
	}
	if n := len(l.gates); n > 0 && (l.gates[n-1].batch == l.taken || n == maxGates) {
		l.gates = l.gates[:n-1]
	}
	l.gates = append(l.gates, gate{batch: l.taken, lsn: l.recorded.lsn})
}

// echo marks all batches up to a number as durable.
func (l *ledger) echo(batch uint64) {
	l.echoed = max(l.echoed, batch)
	for len(l.gates) > 0 && l.gates[0].batch <= l.echoed {
		l.confirmed = max(l.confirmed, l.gates[0].lsn)
		l.gates = l.gates[1:]
	}
}
