package deliver

import (
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"pgregory.net/rapid"
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

func TestLedgerMergesGatesBehindAHugeTransaction(t *testing.T) {
	t.Parallel()
	l := &ledger{}
	for i := range 3 * maxGates {
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
	l.echo(l.taken)
	if l.confirmed != 3*maxGates {
		t.Errorf("confirmed %v after the last echo, want everything", l.confirmed)
	}
}

// TestLedgerModel compares the ledger with the definition of what may be
// confirmed, over sequences of everything that can happen to it.
func TestLedgerModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		l := &ledger{}
		m := &model{}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				if want := m.confirmable(); l.confirmed > want {
					t.Fatalf("confirmed %v, but only %v is durable", l.confirmed, want)
				}
			},
			"event": func(t *rapid.T) {
				tx := l.current()
				n := rapid.IntRange(0, 3).Draw(t, "owed")
				tx.pending += n
				m.event(tx, n)
			},
			"end": func(t *rapid.T) {
				m.lsn += pglogrepl.LSN(rapid.IntRange(1, 100).Draw(t, "wal"))
				l.end(m.lsn, time.Time{})
				m.end()
			},
			"record": func(t *rapid.T) {
				batch := l.take()
				for _, d := range m.unrecorded(t) {
					d.batch = batch
					d.tx.pending--
				}
				l.advance()
			},
			"echo": func(t *rapid.T) {
				m.echoed = max(m.echoed, uint64(rapid.IntRange(0, int(l.taken)).Draw(t, "batch")))
				l.echo(m.echoed)
			},
			"reset": func(t *rapid.T) {
				l.reset(l.confirmed)
				m.reset(l.confirmed)
			},
		})
		// In the end everything is recorded and echoed, and so all is confirmed.
		l.end(m.lsn+1, time.Time{})
		m.lsn++
		m.end()
		batch := l.take()
		for _, d := range m.deliveries {
			if d.batch == 0 {
				d.batch = batch
				d.tx.pending--
			}
		}
		l.advance()
		l.echo(batch)
		if l.confirmed != m.lsn {
			t.Fatalf("confirmed %v of %v when everything is durable", l.confirmed, m.lsn)
		}
	})
}

// model is the definition: every delivery with its batch and its transaction's end.
type model struct {
	lsn        pglogrepl.LSN
	floor      pglogrepl.LSN // where the session began
	deliveries []*modelDelivery
	ends       []pglogrepl.LSN
	open       []*modelDelivery
	echoed     uint64
}

type modelDelivery struct {
	tx    *transaction
	end   pglogrepl.LSN // 0: open
	batch uint64
}

func (m *model) event(tx *transaction, n int) {
	for range n {
		d := &modelDelivery{tx: tx}
		m.deliveries = append(m.deliveries, d)
		m.open = append(m.open, d)
	}
}

func (m *model) end() {
	for _, d := range m.open {
		d.end = m.lsn
	}
	m.open = nil
	m.ends = append(m.ends, m.lsn)
}

func (m *model) reset(confirmed pglogrepl.LSN) {
	m.floor, m.deliveries, m.open, m.ends, m.lsn = confirmed, nil, nil, nil, max(m.lsn, confirmed)
}

func (m *model) unrecorded(t *rapid.T) []*modelDelivery {
	var some []*modelDelivery
	for _, d := range m.deliveries {
		if d.batch == 0 && rapid.Bool().Draw(t, "recorded") {
			some = append(some, d)
		}
	}
	return some
}

// confirmable is the largest end before which nothing is without a durable row.
func (m *model) confirmable() pglogrepl.LSN {
	best := m.floor
	for _, end := range m.ends {
		for _, d := range m.deliveries {
			if d.end != 0 && d.end <= end && (d.batch == 0 || d.batch > m.echoed) {
				return best
			}
		}
		best = end
	}
	return best
}
