package schedule

import (
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
)

func TestLedger(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	// deliver adds n deliveries to the open transaction and returns it.
	deliver := func(l *ledger, n int) *transaction {
		tx := l.current()
		tx.pending += n
		return tx
	}
	// record hands one delivery of each transaction to the next batch.
	record := func(l *ledger, txs ...*transaction) uint64 {
		batch := l.take()
		for _, tx := range txs {
			tx.pending--
		}
		l.advance()
		return batch
	}
	tests := map[string]func(l *ledger) (want pglogrepl.LSN){
		"an open transaction is never confirmed": func(l *ledger) pglogrepl.LSN {
			l.end(10, at)
			tx := deliver(l, 1)
			l.echo(record(l, tx))
			return 10
		},
		"received is not recorded": func(l *ledger) pglogrepl.LSN {
			deliver(l, 1)
			l.end(10, at)
			return 0
		},
		"recorded is not durable": func(l *ledger) pglogrepl.LSN {
			tx := deliver(l, 1)
			l.end(10, at)
			record(l, tx)
			return 0
		},
		"the echo makes it durable": func(l *ledger) pglogrepl.LSN {
			tx := deliver(l, 1)
			l.end(10, at)
			l.echo(record(l, tx))
			return 10
		},
		"an echo may be faster than the transaction's end": func(l *ledger) pglogrepl.LSN {
			tx := deliver(l, 1)
			l.echo(record(l, tx))
			l.end(10, at)
			return 10
		},
		"the first unrecorded transaction holds what follows": func(l *ledger) pglogrepl.LSN {
			deliver(l, 1)
			l.end(10, at)
			second := deliver(l, 1)
			l.end(20, at)
			l.echo(record(l, second))
			l.end(30, time.Time{})
			return 0
		},
		"and lets it go all at once": func(l *ledger) pglogrepl.LSN {
			first := deliver(l, 1)
			l.end(10, at)
			second := deliver(l, 1)
			l.end(20, at)
			l.echo(record(l, second))
			l.end(30, time.Time{})
			l.echo(record(l, first))
			return 30
		},
		"one delivery of two is not enough": func(l *ledger) pglogrepl.LSN {
			tx := deliver(l, 2)
			l.end(10, at)
			l.echo(record(l, tx))
			return 0
		},
		"an idle outbox moves with the keepalives": func(l *ledger) pglogrepl.LSN {
			l.end(10, time.Time{})
			l.end(20, time.Time{})
			return 20
		},
		"a position waits for the batch that came before it": func(l *ledger) pglogrepl.LSN {
			tx := deliver(l, 1)
			l.end(10, at)
			record(l, tx)
			l.end(20, time.Time{})
			return 0
		},
		"a later echo counts for earlier batches": func(l *ledger) pglogrepl.LSN {
			first := deliver(l, 1)
			l.end(10, at)
			record(l, first)
			second := deliver(l, 1)
			l.end(20, at)
			l.echo(record(l, second))
			return 20
		},
		"a new session begins where the slot is": func(l *ledger) pglogrepl.LSN {
			tx := deliver(l, 1)
			l.end(10, at)
			l.reset(5)
			tx.pending-- // of the session before: void
			l.advance()
			return 5
		},
	}
	for name, run := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &ledger{}
			if want := run(l); l.confirmed != want {
				t.Errorf("confirmed %v, want %v", l.confirmed, want)
			}
		})
	}
}

func TestLedgerKeepsTheCommitTimeOfTheLastTransaction(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	l := &ledger{}
	l.end(10, at)
	l.end(20, time.Time{})
	if got := l.advance(); got != (position{lsn: 20, at: at}) {
		t.Errorf("recorded %+v, want the keepalive's LSN with the commit's time", got)
	}
}

// A delivery may wait for its outcome for WALHOOK_PARK_AFTER, and others pass by meanwhile.
func TestLedgerMergesTransactionsBehindOneThatWaits(t *testing.T) {
	t.Parallel()
	const passing = 50 * mergeFrom
	l := &ledger{}
	commit := func(lsn pglogrepl.LSN) *transaction {
		tx := l.current()
		tx.pending++
		l.end(lsn, time.Time{})
		return tx
	}
	record := func(tx *transaction) {
		batch := l.take()
		tx.pending--
		l.advance()
		l.echo(batch)
	}
	slow := commit(1)
	for i := range passing {
		record(commit(pglogrepl.LSN(2 + i)))
	}
	if n := len(l.transactions); n > mergeFrom {
		t.Errorf("%d transactions are kept, of which one has a delivery without a row", n)
	}
	if l.confirmed != 0 {
		t.Errorf("confirmed %v", l.confirmed)
	}
	if record(slow); l.confirmed != 1+passing {
		t.Errorf("confirmed %v, want everything", l.confirmed)
	}
}

func TestLedgerMergesGatesBehindAHugeTransaction(t *testing.T) {
	t.Parallel()
	const batches = 3 * maxGates
	l := &ledger{}
	for i := range batches {
		tx := l.current()
		tx.pending++
		l.end(pglogrepl.LSN(i+1), time.Time{})
		l.take()
		tx.pending--
		l.advance()
	}
	if len(l.gates) > maxGates {
		t.Errorf("%d gates, want at most %d", len(l.gates), maxGates)
	}
	for batch := range uint64(batches) {
		least := min(batch, maxGates-1) // of those that came first none is merged: they go on being confirmed
		if l.echo(batch); l.confirmed > pglogrepl.LSN(batch) || l.confirmed < pglogrepl.LSN(least) {
			t.Fatalf("confirmed %v after the echo of batch %d, want %d at least", l.confirmed, batch, least)
		}
	}
	if l.echo(batches); l.confirmed != batches {
		t.Errorf("confirmed %v after the last echo, want everything", l.confirmed)
	}
}
