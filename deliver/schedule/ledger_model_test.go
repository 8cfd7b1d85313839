package schedule

import (
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"pgregory.net/rapid"
)

// interleavings is how many sequences the ledger has to survive: a rare order of
// events is among so many, and they take seconds.
const interleavings = 100_000

// modelActions are the names of what can happen to a ledger. A failing sequence
// is minimized towards the first.
var modelActions = []string{"keepalive", "begin", "commit", "recorded", "parked", "echoed", "reconnect", "adopt", "merge"}

// TestLedgerModel compares the ledger with the definition of what may be
// confirmed, over sequences of everything that can happen to it. They have ten
// actions at least, and twenty on average.
func TestLedgerModel(t *testing.T) {
	t.Parallel()
	sequences := rapid.SliceOfN(rapid.SampledFrom(modelActions), 10, -1)
	for n := 0; n < interleavings; { // how many one Check makes is a flag's matter
		rapid.Check(t, func(t *rapid.T) {
			n++
			m := &model{}
			for _, action := range sequences.Draw(t, "actions") {
				m.do(t, action)
				m.check(t)
			}
			m.finish(t)
		})
	}
}

// A model drives a ledger as the fan-out and the recorder do, and knows every
// delivery of every transaction with the batch that recorded it.
type model struct {
	ledger ledger

	session      int
	start        position // where it began, and the newest commit time before
	transactions []*modelTransaction
	deliveries   []*modelDelivery // of all sessions, in order of receipt
	lsn          pglogrepl.LSN    // the newest of the session
	taken, echo  uint64
}

type modelTransaction struct {
	end        position
	open       bool
	deliveries []*modelDelivery
	gate       uint64 // the last batch that was taken when the prefix up to here was recorded
	recorded   bool   // so it was
}

type modelDelivery struct {
	session int
	tx      *transaction
	batch   uint64 // 0: it has no row
}

func (m *model) do(t *rapid.T, action string) {
	switch action {
	case "begin":
		m.begin(t)
	case "commit":
		m.commit(t)
	case "keepalive":
		m.keepalive(t)
	case "recorded":
		m.recorded(t)
	case "parked":
		m.parked(t)
	case "echoed":
		m.echoed(t)
	case "reconnect":
		m.reconnect(t)
	case "adopt":
		m.adopt(t)
	case "merge":
		m.ledger.merge()
	}
}

// check compares. What is confirmed is durable, and nothing that has to be
// confirmed is held back: a prefix, when all batches are durable that were taken
// by the time it was recorded. What is called recorded is just that, as the next
// process begins there.
func (m *model) check(t *rapid.T) {
	allowed, due, recorded := m.prefix(m.durable), m.prefix(m.passed), m.prefix(m.hasRows)
	l := &m.ledger
	if l.confirmed > allowed.lsn {
		t.Fatalf("confirmed %v, but only %v is durable", l.confirmed, allowed.lsn)
	}
	if l.confirmed < due.lsn {
		t.Fatalf("confirmed %v, and %v can be", l.confirmed, due.lsn)
	}
	if l.recorded != recorded {
		t.Fatalf("recorded up to %v, %v; want %v, %v", l.recorded.lsn, l.recorded.at, recorded.lsn, recorded.at)
	}
}

// prefix is where the longest prefix of transactions ends that all have a property.
func (m *model) prefix(have func(*modelTransaction) bool) position {
	at := m.start
	for _, tx := range m.transactions {
		if tx.open || !have(tx) {
			break
		}
		at = position{lsn: max(at.lsn, tx.end.lsn), at: later(at.at, tx.end.at)}
	}
	return at
}

func (m *model) hasRows(tx *modelTransaction) bool {
	for _, d := range tx.deliveries {
		if d.batch == 0 {
			return false
		}
	}
	return true
}

func (m *model) durable(tx *modelTransaction) bool {
	for _, d := range tx.deliveries {
		if d.batch == 0 || d.batch > m.echo {
			return false
		}
	}
	return true
}

func (m *model) passed(tx *modelTransaction) bool { return tx.recorded && tx.gate <= m.echo }

// note keeps when a prefix was recorded.
func (m *model) note() {
	for _, tx := range m.transactions {
		if tx.open || !m.hasRows(tx) {
			return
		}
		if !tx.recorded {
			tx.recorded, tx.gate = true, m.taken
		}
	}
}

// current returns the open transaction, beginning one where none is open.
func (m *model) current() *modelTransaction {
	if n := len(m.transactions); n > 0 && m.transactions[n-1].open {
		return m.transactions[n-1]
	}
	tx := &modelTransaction{open: true}
	m.transactions = append(m.transactions, tx)
	return tx
}

func (m *model) isOpen() bool {
	n := len(m.transactions)
	return n > 0 && m.transactions[n-1].open
}

// begin brings an event: the first of a transaction, or one more.
func (m *model) begin(t *rapid.T) {
	tx := m.current()
	for range rapid.IntRange(0, 3).Draw(t, "owed") {
		d := &modelDelivery{session: m.session, tx: m.ledger.current()}
		d.tx.pending++
		tx.deliveries = append(tx.deliveries, d)
		m.deliveries = append(m.deliveries, d)
	}
}

// commit ends the open transaction, or is one that holds nothing of ours.
func (m *model) commit(t *rapid.T) {
	m.lsn += pglogrepl.LSN(rapid.IntRange(1, 100).Draw(t, "wal"))
	clock := rapid.IntRange(1, 100).Draw(t, "clock") // commit times are not in commit order
	m.end(position{lsn: m.lsn, at: time.Unix(int64(clock), 0)})
}

// keepalive is a position between two transactions: inside of one the stream hands
// none on. The first of a session may be behind where it begins: PostgreSQL reads
// from further back.
func (m *model) keepalive(t *rapid.T) {
	if m.isOpen() {
		return
	}
	lsn := m.lsn + pglogrepl.LSN(rapid.IntRange(0, 100).Draw(t, "wal"))
	if len(m.transactions) == 0 {
		lsn -= min(lsn, 50)
	}
	m.lsn = max(m.lsn, lsn)
	m.end(position{lsn: lsn})
}

func (m *model) end(at position) {
	tx := m.current()
	tx.open, tx.end = false, at
	m.ledger.end(at.lsn, at.at)
	m.note()
}

// recorded writes a batch of any deliveries that have no row, those of a session
// before too.
func (m *model) recorded(t *rapid.T) {
	which := rapid.Uint64().Draw(t, "outcomes")
	m.write(func(i int) bool { return which>>(i%64)&1 == 1 })
}

// parked writes a batch of those that wait for longest.
func (m *model) parked(t *rapid.T) {
	n := rapid.IntRange(1, 4).Draw(t, "overdue")
	m.write(func(i int) bool { return i < n })
}

// write records those of the deliveries without a row that are chosen by number.
func (m *model) write(chosen func(int) bool) {
	m.take()
	i := 0
	for _, d := range m.deliveries {
		if d.batch != 0 {
			continue
		}
		if chosen(i) {
			d.batch = m.taken
			d.tx.pending--
			d.tx = nil
		}
		i++
	}
	m.ledger.advance()
	m.note()
}

func (m *model) take() {
	m.taken++
	if got := m.ledger.take(); got != m.taken {
		panic("batches are numbered one by one")
	}
}

// echoed proves a batch durable: late, once more, or one of the session before.
func (m *model) echoed(t *rapid.T) {
	batch := m.taken - min(m.taken, uint64(rapid.IntRange(0, 5).Draw(t, "behind")))
	m.echo = max(m.echo, batch)
	m.ledger.echo(batch)
}

// reconnect begins a session, with its marker, where the slot is: perhaps behind
// what was confirmed, when PostgreSQL crashed. All after that comes again.
func (m *model) reconnect(t *rapid.T) {
	lost := pglogrepl.LSN(rapid.IntRange(0, 50).Draw(t, "lost"))
	m.start = m.prefix(m.hasRows)
	m.start.lsn = m.ledger.confirmed - min(m.ledger.confirmed, lost)
	m.take()
	m.ledger.reset(m.start.lsn)
	m.session++
	m.transactions, m.lsn = nil, m.start.lsn
}

// adopt repeats events whose deliveries are in memory, with or without a row.
func (m *model) adopt(t *rapid.T) {
	which := rapid.Uint64().Draw(t, "repeated")
	for i, d := range m.deliveries {
		if d.session == m.session || which>>(i%64)&1 == 0 {
			continue
		}
		tx := m.current()
		tx.deliveries = append(tx.deliveries, d)
		d.session = m.session
		if d.tx != nil && d.tx.generation != m.ledger.generation {
			d.tx = m.ledger.current()
			d.tx.pending++
		}
	}
}

// finish records and echoes everything: in the end all is confirmed.
func (m *model) finish(t *rapid.T) {
	m.lsn++
	m.end(position{lsn: m.lsn})
	m.write(func(int) bool { return true })
	m.echo = m.taken
	m.ledger.echo(m.taken)
	m.check(t)
	if m.ledger.confirmed != m.lsn {
		t.Fatalf("confirmed %v of %v when everything is durable", m.ledger.confirmed, m.lsn)
	}
}
