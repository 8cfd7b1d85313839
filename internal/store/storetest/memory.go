// Package storetest holds the store and its stand-in in memory to the same
// promises. The simulation of package deliver runs over the stand-in: Run has one
// table of cases for both, so that it cannot drift from what the SQL does.
package storetest

import (
	"bytes"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// A Memory is PostgreSQL as far as walhook's statements rely on it. Everything that
// was committed is in its WAL, and what is in the tables follows from that: a
// database that falls back, after a crash or to a standby, is the replay of what it
// kept. It has the store's methods, each in one step: who calls it decides what
// comes between them, and what is refused or lost on its way.
type Memory struct {
	*Tables
	WAL                []*Commit
	Timeline           int32
	Server             time.Time               // when it was started
	Locked             map[uuid.UUID]time.Time // deliveries: until when somebody else holds the row
	Refused            map[uuid.UUID]time.Time // deliveries whose row is not taken in any form until then
	Picky              map[uuid.UUID]time.Time // or not with what the receiver said
	RefuseConsequences time.Time               // no consequence is taken before
	Moves              int                     // how often rows were moved into other partitions
	Moved              map[uuid.UUID]int       // events and deliveries: by which of the moves, the last time
	Planned            int                     // after how many of them the statement that runs now was planned

	Config
}

// Config is what a Memory needs.
type Config struct {
	FirstLSN pglogrepl.LSN
	Length   func() pglogrepl.LSN           // of the next commit in the WAL
	NewID    func(time.Time) uuid.UUID      // makes an id of that time
	Slot     func() (uint32, pglogrepl.LSN) // the PID of the session that uses it, 0 where none does, and its position
}

// NewMemory makes an empty database.
func NewMemory(c Config) *Memory {
	return &Memory{Tables: newTables(), Timeline: 1, Locked: map[uuid.UUID]time.Time{}, Refused: map[uuid.UUID]time.Time{},
		Picky: map[uuid.UUID]time.Time{}, Moved: map[uuid.UUID]int{}, Config: c}
}

// A Commit is a transaction in the WAL, with the new versions of its rows.
type Commit struct {
	End       pglogrepl.LSN
	At        time.Time
	Visible   bool // to other sessions
	Events    []*outbox.Event
	Rows      []*Row
	Gone      []uuid.UUID // deliveries whose rows were deleted
	Endpoints []*Endpoint
	Failures  []Failure
	State     *State
	Echo      string
}

// A Row is a version of a delivery's row.
type Row struct {
	webhook.Record
	DueAt time.Time
	Said  bool // by an operator, and not by walhook
	First *Commit
	by    *Commit
}

// Waits says whether another attempt is to come.
func (r *Row) Waits() bool { return r.Status == webhook.Pending || r.Status == webhook.Retrying }

// An Endpoint is a version of an endpoint's row.
type Endpoint struct {
	webhook.Endpoint
	Deleted bool
	Erased  bool // by webhook_forget: nothing that is owed to it gets a row
	Own     bool // it gets walhook's own events, too
	by      *Commit
}

// A Failure is the row that says how an endpoint stands.
type Failure struct {
	Endpoint uuid.UUID
	Failing  bool
	Open     bool
	Told     bool
}

// A State is webhook_state's row.
type State struct {
	Epoch         int64
	Holder        uuid.UUID
	Durable       pglogrepl.LSN
	DurableAt     time.Time
	Timeline      int32
	ReconcileFrom time.Time // zero: not to be reconciled
	UpdatedAt     time.Time
}

// ReconcileSince notes another value each time: another cause.
func (s *State) ReconcileSince(t time.Time) {
	if s.ReconcileFrom.IsZero() || t.Before(s.ReconcileFrom) {
		s.ReconcileFrom = t
	}
	s.ReconcileFrom = s.ReconcileFrom.Add(-time.Microsecond)
}

// Tables are what the WAL up to now comes to.
type Tables struct {
	Events       []*outbox.Event // by id
	Inserted     map[uuid.UUID]*Commit
	Rows         map[uuid.UUID]*Row
	Order        []*Row      // by id
	EndpointRows []*Endpoint // in the order that they were made
	Failing      map[uuid.UUID]Failure
	State        *State // nil: none yet
}

func newTables() *Tables {
	return &Tables{Inserted: map[uuid.UUID]*Commit{}, Rows: map[uuid.UUID]*Row{}, Failing: map[uuid.UUID]Failure{}}
}

func (t *Tables) apply(c *Commit) {
	for _, e := range c.Events {
		at, _ := slices.BinarySearchFunc(t.Events, e.ID, func(o *outbox.Event, id uuid.UUID) int { return compareIDs(o.ID, id) })
		t.Events = slices.Insert(t.Events, at, e)
		t.Inserted[e.ID] = c
	}
	for _, r := range c.Rows {
		at, found := slices.BinarySearchFunc(t.Order, r.ID, func(o *Row, id uuid.UUID) int { return compareIDs(o.ID, id) })
		if found {
			t.Order[at] = r
		} else {
			t.Order = slices.Insert(t.Order, at, r)
		}
		t.Rows[r.ID] = r
	}
	for _, id := range c.Gone {
		delete(t.Rows, id)
		t.Order = slices.DeleteFunc(t.Order, func(r *Row) bool { return r.ID == id })
	}
	for _, e := range c.Endpoints {
		if at := slices.IndexFunc(t.EndpointRows, func(o *Endpoint) bool { return o.ID == e.ID }); at >= 0 {
			t.EndpointRows[at] = e
		} else {
			t.EndpointRows = append(t.EndpointRows, e)
		}
	}
	for _, f := range c.Failures {
		if f.Failing {
			t.Failing[f.Endpoint] = f
		} else {
			delete(t.Failing, f.Endpoint)
		}
	}
	if c.State != nil {
		t.State = c.State
	}
}

// Endpoint is an endpoint as other sessions see it, or nil.
func (t *Tables) Endpoint(id uuid.UUID) *Endpoint {
	for _, e := range t.EndpointRows {
		if e.ID == id && !e.Deleted && e.by.Visible {
			return e
		}
	}
	return nil
}

// Erased is the commit since which nothing that is owed to an endpoint gets a row, or nil.
func (t *Tables) Erased(id uuid.UUID) *Commit {
	for _, e := range t.EndpointRows {
		if e.ID == id && e.Deleted && e.Erased && e.by.Visible {
			return e.by
		}
	}
	return nil
}

func (t *Tables) enabled(id uuid.UUID) bool {
	e := t.Endpoint(id)
	return e != nil && e.Enabled
}

// Owed are the enabled endpoints that want a type, as a trigger in a transaction
// that has also made endpoints would find them.
func (t *Tables) Owed(organization, typ string, made ...*Endpoint) (ids []uuid.UUID) {
	for _, e := range slices.Concat(t.EndpointRows, made) {
		mine := e.by == nil || e.by.Visible
		gets := e.OrganizationID == organization && (e.Own || !outbox.IsOwnType(typ))
		if e.ForAll {
			gets = outbox.IsOwnType(typ)
		}
		if mine && e.Enabled && !e.Deleted && gets {
			ids = append(ids, e.ID)
		}
	}
	return ids
}

// End is where the WAL ends.
func (m *Memory) End() pglogrepl.LSN {
	if len(m.WAL) == 0 {
		return m.FirstLSN
	}
	return m.WAL[len(m.WAL)-1].End
}

// Write commits.
func (m *Memory) Write(c *Commit) {
	c.End = m.End() + m.Length()
	c.At = time.Now()
	for _, r := range c.Rows {
		if r.by = c; r.First == nil {
			r.First = c
		}
	}
	for _, e := range c.Endpoints {
		e.by = c
	}
	m.WAL = append(m.WAL, c)
	m.apply(c)
}

// ShowAll makes everything that was committed visible to all.
func (m *Memory) ShowAll() {
	for _, c := range m.WAL {
		c.Visible = true
	}
}

// FallBack loses what is in the WAL behind a position, and returns it.
func (m *Memory) FallBack(to pglogrepl.LSN) (lost []*Commit) {
	kept := m.WAL
	if at := slices.IndexFunc(m.WAL, func(c *Commit) bool { return c.End > to }); at >= 0 {
		kept, lost = m.WAL[:at:at], m.WAL[at:]
	}
	m.WAL, m.Tables = kept, newTables()
	for _, c := range kept {
		m.apply(c)
	}
	clear(m.Locked)
	m.Server = time.Now()
	return lost
}

// settled says of a row what the store's SQL says by xmin: every transaction that was
// under way when it was written is visible.
func (m *Memory) settled(r *Row) bool {
	for _, c := range m.WAL {
		if c.End >= r.by.End {
			return true
		}
		if !c.Visible {
			return false
		}
	}
	return true
}

// Fenced says whether another process has taken over.
func (m *Memory) Fenced(f webhook.Fence) bool {
	return m.State == nil || m.State.Holder != f.Holder || m.State.Epoch != f.Epoch
}

// missed says that a statement sees a row neither where it was nor where it is.
func (m *Memory) missed(id uuid.UUID) bool { return m.Moved[id] > m.Planned }

// IsLocked says whether somebody else holds a delivery's row.
func (m *Memory) IsLocked(id uuid.UUID) bool { return time.Now().Before(m.Locked[id]) }

func compareIDs(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }
