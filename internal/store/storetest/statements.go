package storetest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// Acquire is the Store's.
func (m *Memory) Acquire(_ context.Context, holder uuid.UUID, session *webhook.Session, seq uint64) (webhook.Fence, error) {
	pid, confirmed := m.Slot()
	if session.PID != 0 && session.PID != pid {
		return webhook.Fence{}, store.ErrSessionOver
	}
	next := m.NextState()
	fence := webhook.Fence{Holder: holder, LastWrite: next.UpdatedAt, Server: m.Server}
	if next.DurableAt.After(fence.LastWrite) {
		fence.LastWrite = next.DurableAt
	}
	if next.Epoch == 0 || next.Holder != holder {
		next.Epoch++
	}
	next.Holder = holder
	fence.Moved = session.Moved(confirmed)
	if !session.SlotCreated {
		fence.ClaimXID = m.End().String()
	}
	if session.Start != 0 && !session.SlotCreated && !fence.Moved {
		if next.Durable != 0 {
			next.Durable = min(next.Durable, session.Start)
		}
	} else {
		next.Durable = 0
		next.ReconcileSince(next.DurableAt)
	}
	next.Timeline, next.UpdatedAt = session.Timeline, time.Now()
	fence.Epoch, fence.Reconcile, fence.ReconcileFrom = next.Epoch, !next.ReconcileFrom.IsZero(), next.ReconcileFrom
	m.Write(&Commit{Visible: true, State: next, Echo: fence.Echo(seq)})
	return fence, nil
}

// AwaitSlot is the Store's.
func (m *Memory) AwaitSlot(context.Context) error {
	next := m.NextState()
	next.Durable = 0
	next.ReconcileSince(next.DurableAt)
	m.Write(&Commit{Visible: true, State: next})
	return nil
}

// nothingRecorded is what the state row has where nothing was ever recorded.
var nothingRecorded = time.Unix(0, 0)

// NextState is the state row, to be changed and written.
func (m *Memory) NextState() *State {
	if m.State == nil {
		return &State{DurableAt: nothingRecorded}
	}
	next := *m.State
	return &next
}

// begin opens a transaction that writes deliveries.
func (m *Memory) begin(fence webhook.Fence, mark webhook.Mark) (*Commit, error) {
	if m.Fenced(fence) {
		return nil, store.ErrFenced
	}
	c := &Commit{Visible: true, State: m.NextState()}
	if mark.Durable > c.State.Durable && fence.Server.Equal(m.Server) {
		c.State.Durable = mark.Durable
		if !mark.CommitAt.IsZero() {
			c.State.DurableAt = mark.CommitAt
		}
	}
	c.State.UpdatedAt = time.Now()
	if mark.Seq != 0 {
		c.Echo = fence.Echo(mark.Seq)
	}
	return c, nil
}

// Existing is the Store's.
func (m *Memory) Existing(_ context.Context, ids []uuid.UUID, known map[uuid.UUID]bool) error {
	for _, id := range ids {
		if m.Rows[id] != nil && !m.missed(id) {
			known[id] = true
		}
	}
	return nil
}

// Insert is the Store's.
func (m *Memory) Insert(_ context.Context, fence webhook.Fence, mark webhook.Mark, records []webhook.Record) (allNew bool, err error) {
	c, err := m.begin(fence, mark)
	if err != nil {
		return false, err
	}
	if err := m.refuse(mark, records); err != nil {
		return false, err
	}
	for _, r := range records {
		if m.Rows[r.ID] == nil && m.Erased(r.EndpointID) == nil {
			c.Rows = append(c.Rows, newRow(r))
		}
	}
	if !mark.Alone {
		m.consequences(c, mark.Health, records)
	}
	m.Write(c)
	return len(c.Rows) == len(records), nil
}

func newRow(r webhook.Record) *Row {
	from := time.Now()
	if r.Attempt != nil {
		from = r.Attempt.EndedAt
	}
	return &Row{Record: r, DueAt: from.Add(r.Wait.Truncate(time.Millisecond))}
}

// Update is the Store's.
func (m *Memory) Update(_ context.Context, fence webhook.Fence, mark webhook.Mark, records []webhook.Record) (locked, replayed []uuid.UUID, err error) {
	c, err := m.begin(fence, mark)
	if err != nil {
		return nil, nil, err
	}
	if err := m.refuse(mark, records); err != nil {
		return nil, nil, err
	}
	for _, r := range records {
		old := m.Rows[r.ID]
		switch {
		case old == nil:
		case m.IsLocked(r.ID), m.missed(r.ID):
			locked = append(locked, r.ID)
		case old.Attempts < r.Attempts && old.Status != webhook.Success:
			row := newRow(r)
			row.First = old.First
			if old.overrules(r) {
				row.Status, row.DueAt, row.Said = old.Status, old.DueAt, old.Said
				if old.Status == webhook.Pending {
					row.SeriesStart = r.Attempts
				}
				if old.Waits() {
					replayed = append(replayed, r.ID)
				}
			}
			c.Rows = append(c.Rows, row)
		case old.Attempts == r.Attempts && r.Status == webhook.Pending && r.Seen.Lease > 0 && old.Status != webhook.Success && !old.overrules(r):
			row := newRow(r)
			row.First = old.First
			c.Rows = append(c.Rows, row)
		}
	}
	if !mark.Alone {
		m.consequences(c, mark.Health, records)
	}
	m.Write(c)
	return locked, replayed, nil
}

// refuse is what somebody's constraints and triggers do: they take a row in no
// form, or with nothing that the receiver said, or none of walhook's own events.
func (m *Memory) refuse(mark webhook.Mark, records []webhook.Record) error {
	now := time.Now()
	for _, r := range records {
		if now.Before(m.Refused[r.ID]) || now.Before(m.Picky[r.ID]) && r.Attempt != nil && r.Attempt.StatusCode != 0 {
			return &pgconn.PgError{Code: "23514"}
		}
	}
	if !mark.Alone && now.Before(m.RefuseConsequences) && len(store.Consequences(mark.Health, records)) > 0 {
		return &pgconn.PgError{Code: "P0001"}
	}
	return nil
}

// WriteConsequence is the Store's, without the events about what it disables or exhausts.
func (m *Memory) WriteConsequence(_ context.Context, fence webhook.Fence, of store.Consequence) (rest []store.Consequence, err error) {
	c, err := m.begin(fence, webhook.Mark{})
	if err != nil {
		return nil, err
	}
	if time.Now().Before(m.RefuseConsequences) && len(of.Endpoints()) == 0 {
		return nil, &pgconn.PgError{Code: "P0001"}
	}
	for _, id := range of.Endpoints() {
		m.disable(c, id)
	}
	for _, h := range of.Health {
		m.stands(c, h)
	}
	m.Write(c)
	return nil, nil
}

// NoteMissing is the Store's.
func (m *Memory) NoteMissing(_ context.Context, fence webhook.Fence, from time.Time) (noted time.Time, err error) {
	if m.Fenced(fence) {
		return time.Time{}, store.ErrFenced
	}
	next := m.NextState()
	next.ReconcileSince(from)
	m.Write(&Commit{Visible: true, State: next})
	return next.ReconcileFrom, nil
}

// begunWithin is how much later than it did an attempt may seem to have begun by
// PostgreSQL's clock: the store's SQL allows as much.
const begunWithin = 250 * time.Millisecond

// overrules says that an operator has said what is to become of a delivery since
// the attempt began that an outcome is of.
func (r *Row) overrules(outcome webhook.Record) bool {
	changed := r.Said && outcome.Seen.Lease > 0
	if seen := outcome.Seen; seen.DueAt.Valid {
		changed = r.Status != seen.Status || !r.DueAt.Equal(seen.DueAt.Time)
	}
	if outcome.Status != webhook.Success {
		return changed || r.Status == webhook.Cancelled
	}
	begun := outcome.Attempt.EndedAt.Add(-outcome.Attempt.Duration - begunWithin)
	return changed && r.Status == webhook.Pending && r.DueAt.After(begun)
}

// consequences are what outcomes mean beyond their rows.
func (m *Memory) consequences(c *Commit, health []webhook.EndpointHealth, records []webhook.Record) {
	for _, r := range records {
		failed := func(o *Row) bool { return o.ID == r.ID && o.Status == webhook.Failed }
		if r.Exhausted && !outbox.IsOwnType(r.EventType) && slices.ContainsFunc(c.Rows, failed) {
			m.insertOwnEvent(c, outbox.TypeDeliveryExhausted, r.OrganizationID, r.ID)
		}
		if r.Gone && m.disable(c, r.EndpointID) && !outbox.IsOwnType(r.EventType) {
			m.insertOwnEvent(c, outbox.TypeEndpointDisabled, m.Endpoint(r.EndpointID).OrganizationID, r.EndpointID)
		}
	}
	for _, h := range health {
		m.stands(c, h)
	}
}

// disable disables an endpoint that has answered 410.
func (m *Memory) disable(c *Commit, id uuid.UUID) bool {
	e := m.Endpoint(id)
	if e == nil || !e.Enabled {
		return false
	}
	off := *e
	off.Enabled = false
	c.Endpoints = append(c.Endpoints, &off)
	c.Failures = append(c.Failures, Failure{Endpoint: e.ID})
	return true
}

// stands notes how an endpoint stands, and tells its organization that its breaker has
// opened or closed.
func (m *Memory) stands(c *Commit, h webhook.EndpointHealth) {
	was := m.Failing[h.EndpointID]
	now := was
	if h.Recovered {
		now = Failure{Endpoint: h.EndpointID}
	}
	if h.Failing && m.enabled(h.EndpointID) {
		now = Failure{Endpoint: h.EndpointID, Failing: true, Open: h.Open, Told: h.Open && (h.Tell || now.Told)}
	}
	if was.Told && (h.Recovered || !now.Told) {
		m.tell(c, outbox.TypeEndpointRecovered, h.EndpointID)
	}
	if now.Told && (h.Recovered || !was.Told) {
		m.tell(c, outbox.TypeEndpointFailing, h.EndpointID)
	}
	if h.Recovered || now != was {
		c.Failures = append(c.Failures, now)
	}
}

func (m *Memory) tell(c *Commit, typ string, endpoint uuid.UUID) {
	if e := m.Endpoint(endpoint); e != nil {
		m.insertOwnEvent(c, typ, e.OrganizationID, endpoint)
	}
}

// insertOwnEvent inserts one of walhook's own events.
func (m *Memory) insertOwnEvent(c *Commit, typ, organization string, about uuid.UUID) {
	c.Events = append(c.Events, &outbox.Event{ID: outbox.DeliveryID(m.NewID(time.Now()), about), OrganizationID: organization, Type: typ,
		Payload: fmt.Appendf(nil, `{"about":%q}`, about), CreatedAt: time.Now(), EndpointIDs: m.Owed(organization, typ)})
}

// Now is the Store's.
func (m *Memory) Now(context.Context) (time.Time, error) { return time.Now(), nil }

// Endpoints is the Store's.
func (m *Memory) Endpoints(_ context.Context, ids []uuid.UUID) (found []webhook.Endpoint, err error) {
	for _, id := range ids {
		if e := m.Endpoint(id); e != nil {
			copied := e.Endpoint
			copied.BreakerOpen = m.Failing[id].Open
			found = append(found, copied)
		}
	}
	return found, nil
}

// Missing is the Store's.
func (m *Memory) Missing(_ context.Context, from store.Position, until uuid.UUID, limit int) (store.Compared, error) {
	c := store.Compared{Upto: from}
	n := 0
	for _, e := range m.Events {
		if m.Event(e.ID) == nil || afterID(from.Event, e.ID) || !afterID(until, e.ID) {
			continue
		}
		if len(e.EndpointIDs) == 0 && e.ID != from.Event && n < limit {
			n, c.Upto, c.Events = n+1, store.Position{Event: e.ID}, c.Events+1
		}
		for i, endpoint := range e.EndpointIDs {
			if n == limit || e.ID == from.Event && i < from.Owed {
				continue
			}
			if n, c.Upto = n+1, (store.Position{Event: e.ID, Owed: i + 1}); i == 0 {
				c.Events++
			}
			id := outbox.DeliveryID(e.ID, endpoint)
			if m.Rows[id] == nil || m.missed(id) {
				c.Missing = append(c.Missing, store.Candidate{ID: id, EventID: e.ID, EndpointID: endpoint, OrganizationID: e.OrganizationID, EventType: e.Type})
			}
		}
	}
	c.End = n < limit
	return c, nil
}

// InsertMissing is the Store's.
func (m *Memory) InsertMissing(ctx context.Context, fence webhook.Fence, records []webhook.Record) (inserted int, err error) {
	before := len(m.Rows)
	_, err = m.Insert(ctx, fence, webhook.Mark{}, records)
	return len(m.Rows) - before, err
}

// InsertLSN is the Store's.
func (m *Memory) InsertLSN(context.Context) (pglogrepl.LSN, error) { return m.End(), nil }

// Mark is the Store's.
func (m *Memory) Mark(ctx context.Context, fence webhook.Fence, mark webhook.Mark) error {
	_, err := m.Insert(ctx, fence, mark, nil)
	return err
}

// ClaimVisible is the Store's.
func (m *Memory) ClaimVisible(_ context.Context, fence webhook.Fence) (bool, error) {
	if fence.ClaimXID == "" {
		return true, nil
	}
	upTo, err := pglogrepl.ParseLSN(fence.ClaimXID)
	return err == nil && !slices.ContainsFunc(m.WAL, func(c *Commit) bool { return c.End <= upTo && !c.Visible }), err
}

// Reconciled is the Store's.
func (m *Memory) Reconciled(_ context.Context, fence webhook.Fence) (since time.Time, err error) {
	switch {
	case m.Fenced(fence):
	case m.State.ReconcileFrom.Equal(fence.ReconcileFrom) && fence.Server.Equal(m.Server):
		next := m.NextState()
		next.ReconcileFrom = time.Time{}
		m.Write(&Commit{Visible: true, State: next})
	default:
		since = m.State.ReconcileFrom
	}
	return since, nil
}

func afterID(id, after uuid.UUID) bool { return bytes.Compare(id[:], after[:]) > 0 }
