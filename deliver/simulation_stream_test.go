package deliver

import (
	"slices"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/store/storetest"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// A connection is a process's hold of the slot.
type connection struct {
	process *process
	session *webhook.Session
	server  time.Time // when it was started
	sent    pglogrepl.LSN
}

const (
	// simulatedLease is a session's lease. patience is how long the server does not hear
	// from a process before it gives the slot to another one.
	simulatedLease    = time.Second
	simulatedPatience = 1500 * time.Millisecond

	// noticed bounds how long a running process takes to notice that its connection is cut.
	noticed = 100 * time.Millisecond
)

// reported is the position that a process has reported to the slot, and the server's start time.
type reported struct {
	server time.Time
	lsn    pglogrepl.LSN
}

// keepLease asks whether the process still holds the slot.
func (p *process) keepLease() {
	s := p.s
	for {
		s.pass(200 * time.Millisecond)
		c, asked := p.connection(), time.Now()
		if c == nil {
			continue
		}
		s.delay()
		refused := s.chance(s.faultRates.refused)
		held := p.connection() == c
		s.delay()
		switch {
		case refused:
		case held:
			c.session.Seen(asked)
			c.session.Heard(asked)
		default:
			c.session.Void()
		}
	}
}

// stream is cdc.Stream as the Engine sees it: one session after the other. Each begins
// at the confirmed position, and repeats everything after it.
func (p *process) stream() {
	for {
		if c := p.connect(); c != nil {
			p.s.note("session %d from %d, confirmed %d, timeline %d", c.session.PID, c.sent, c.session.Confirmed, c.session.Timeline)
			p.follow(c)
			c.session.End()
			if c.session.Flushed() > c.session.Confirmed {
				p.reported = reported{server: c.server, lsn: c.session.Flushed()}
			}
		}
		p.s.pass(100 * time.Millisecond)
	}
}

// connect takes the slot, or makes it. Each step is a statement of its own.
func (p *process) connect() *connection {
	s, db := p.s, p.s.db
	incarnation := db.incarnation
	fallen := func() bool { s.delay(); return db.hasFallenSince(incarnation) }
	taken := func() bool { return db.slot == nil || db.slot.connection != nil }
	if fallen() || db.slot != nil && taken() {
		return nil
	}
	created := false
	if db.slot == nil {
		if err := db.AwaitSlot(s.t.Context()); err != nil {
			return nil
		}
		if fallen() || db.slot != nil {
			return nil
		}
		db.makeSlot()
		created = true
	}
	if fallen() {
		return nil
	}
	db.pids++
	session := &webhook.Session{SystemID: "1", Timeline: db.Timeline, SlotCreated: created, PID: db.pids}
	flushed := db.End()
	if fallen() {
		return nil
	}
	if st := db.State; st != nil && st.Timeline == session.Timeline && st.Durable <= flushed {
		session.Start = st.Durable
	}
	if fallen() || taken() {
		return nil
	}
	session.Confirmed, session.Lease = db.slot.confirmed, simulatedLease
	if p.reported.server.Equal(db.Server) {
		session.Reported = p.reported.lsn
	}
	session.Heard(time.Now())
	if fallen() || taken() {
		return nil
	}
	c := &connection{process: p, session: session, server: db.Server, sent: max(session.Start, db.slot.confirmed)}
	db.slot.connection = c
	return c
}

// makeSlot waits for open transactions. The slot streams all later ones.
func (db *database) makeSlot() {
	db.ShowAll()
	db.slot = &slot{confirmed: db.End(), saved: db.End(), made: db.End()}
	db.s.note("slot made at %d", db.End())
}

// follow forwards commits and confirms until the connection is lost.
func (p *process) follow(c *connection) {
	s, db := p.s, p.s.db
	lost := func() bool {
		if c.session.IsVoid() && p.connection() == c { // the process disconnects
			db.slot.connection = nil
		}
		return db.slot == nil || db.slot.connection != c
	}
	room := func() bool { return len(p.batches) < cap(p.batches) }
	if s.await(func() bool { return lost() || room() }); lost() {
		return
	}
	p.batches <- webhook.Batch{Session: c.session}
	for {
		s.await(func() bool {
			return lost() || c.session.Flushed() > db.slot.confirmed || room() && db.next(c.sent) != nil
		})
		next := db.next(c.sent)
		switch {
		case lost():
			return
		case c.session.Flushed() > db.slot.confirmed && (!room() || next == nil || s.chance(50)):
			s.note("confirmed %d", c.session.Flushed())
			db.confirm(c.session.Flushed())
		case room() && next != nil:
			p.handOn(c, next)
		}
	}
}

// next returns the first commit after a position that the walsender may send.
func (db *database) next(sent pglogrepl.LSN) *storetest.Commit {
	for _, c := range db.WAL {
		if c.End > sent && c.End <= db.replicated {
			return c
		}
	}
	return nil
}

// handOn sends a commit, or one piece of a large one.
func (p *process) handOn(c *connection, next *storetest.Commit) {
	s := p.s
	lost := func() bool { return s.db.slot == nil || s.db.slot.connection != c }
	if p.stopped { // no more events or positions
		if next.Echo != "" {
			p.batches <- webhook.Batch{Echoes: []string{next.Echo}}
		}
		c.sent = next.End
		return
	}
	for _, e := range next.Events {
		s.note("event %s at %d", e.ID, next.End)
	}
	events := make([]outbox.Event, 0, len(next.Events))
	for i, e := range next.Events {
		copied := *e
		copied.EndpointIDs = slices.Clone(e.EndpointIDs)
		if events = append(events, copied); i < len(next.Events)-1 && s.chance(50) {
			p.batches <- webhook.Batch{Events: events, CommitTime: next.At}
			events = nil
			s.await(func() bool { return lost() || len(p.batches) < cap(p.batches) })
			if lost() || p.stopped {
				return
			}
		}
	}
	b := webhook.Batch{Events: events, End: next.End, CommitTime: next.At}
	if next.Echo != "" {
		b.Echoes = []string{next.Echo}
	}
	if len(next.Events) == 0 && next.Echo == "" {
		b.CommitTime = time.Time{} // a keepalive's position
	}
	p.batches <- b
	c.sent = next.End
}
