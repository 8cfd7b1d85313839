package storetest

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// This file has the statements of the retrier: what is due, and what is cancelled.

// NewlyDue is the Store's.
func (m *Memory) NewlyDue(_ context.Context, since time.Time) (endpoints []uuid.UUID, now time.Time, all bool, err error) {
	now = time.Now()
	for _, r := range m.Order {
		if r.Waits() && !r.DueAt.After(now) && r.DueAt.After(since) && !slices.Contains(endpoints, r.EndpointID) {
			endpoints = append(endpoints, r.EndpointID)
		}
	}
	return endpoints, now, true, nil
}

// Waiting is the Store's.
func (m *Memory) Waiting(_ context.Context, after uuid.UUID, limit int) (found []webhook.Waiting, err error) {
	for _, r := range m.Order {
		id := r.EndpointID
		if r.Waits() && afterID(id, after) && !slices.ContainsFunc(found, func(w webhook.Waiting) bool { return w.EndpointID == id }) {
			found = append(found, webhook.Waiting{EndpointID: id, Enabled: m.enabled(id)})
		}
	}
	slices.SortFunc(found, func(a, b webhook.Waiting) int { return compareIDs(a.EndpointID, b.EndpointID) })
	return found[:min(limit, len(found))], nil
}

// Due is the Store's.
func (m *Memory) Due(_ context.Context, pages []webhook.Page, take func(*webhook.Due)) error {
	var found []*webhook.Due
	for _, p := range pages {
		found = append(found, m.page(p)...)
	}
	for _, d := range found {
		take(d)
	}
	return nil
}

func (m *Memory) page(p webhook.Page) (due []*webhook.Due) {
	later := func(a, b *Row) int { return cmp.Or(a.DueAt.Compare(b.DueAt), compareIDs(a.ID, b.ID)) }
	after := &Row{Record: webhook.Record{ID: p.After.ID}, DueAt: p.After.DueAt.Time}
	var rows []*Row
	for _, r := range m.Order {
		if r.EndpointID == p.EndpointID && !m.missed(r.ID) && r.Waits() && !r.DueAt.After(time.Now()) && (!p.After.DueAt.Valid || later(r, after) > 0) {
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, later)
	for _, r := range rows[:min(p.Limit, len(rows))] {
		d := &webhook.Due{ID: r.ID, EndpointID: r.EndpointID, Status: r.Status, Attempts: r.Attempts, SeriesStart: r.SeriesStart,
			DueAt: webhook.DueTime{Time: r.DueAt, Valid: true}, Reassigned: m.isReassigned(r)}
		d.Event = outbox.Event{ID: r.EventID, OrganizationID: r.OrganizationID, Type: r.EventType}
		switch e := m.Event(r.EventID); {
		case e != nil:
			d.Event.Payload, d.Event.CreatedAt = e.Payload, e.CreatedAt
		case m.settled(r):
			d.Orphaned = true
		default:
			d.Unseen = true
		}
		due = append(due, d)
	}
	return due
}

func (m *Memory) isReassigned(r *Row) bool {
	e := m.Endpoint(r.EndpointID)
	return e != nil && !e.Gets(r.OrganizationID, r.EventType)
}

// Event is an event as other sessions see it, or nil.
func (m *Memory) Event(id uuid.UUID) *outbox.Event {
	c := m.Inserted[id]
	if c == nil || !c.Visible || m.missed(id) {
		return nil
	}
	return c.Events[slices.IndexFunc(c.Events, func(e *outbox.Event) bool { return e.ID == id })]
}

// CancelRows is the Store's.
func (m *Memory) CancelRows(_ context.Context, fence webhook.Fence, endpoint uuid.UUID, _ string) (cancelled int, more bool, err error) {
	c, err := m.begin(fence, webhook.Mark{})
	if err != nil {
		return 0, false, err
	}
	if !m.enabled(endpoint) {
		c.Failures = append(c.Failures, Failure{Endpoint: endpoint})
		for _, r := range m.Order {
			switch {
			case r.EndpointID != endpoint || !r.Waits() || m.IsLocked(r.ID) || m.missed(r.ID):
			case !m.settled(r):
				more = true
			default:
				c.cancel(r)
			}
		}
	}
	m.Write(c)
	return len(c.Rows), more, nil
}

func (c *Commit) cancel(r *Row) {
	row := *r
	row.Status = webhook.Cancelled
	c.Rows = append(c.Rows, &row)
}

// CancelReassigned is the Store's.
func (m *Memory) CancelReassigned(_ context.Context, fence webhook.Fence, ids []uuid.UUID) error {
	return m.cancelThose(fence, ids, m.isReassigned)
}

// CancelOrphans is the Store's.
func (m *Memory) CancelOrphans(_ context.Context, fence webhook.Fence, ids []uuid.UUID) error {
	return m.cancelThose(fence, ids, func(r *Row) bool { return m.settled(r) && m.Event(r.EventID) == nil })
}

func (m *Memory) cancelThose(fence webhook.Fence, ids []uuid.UUID, which func(*Row) bool) error {
	c, err := m.begin(fence, webhook.Mark{})
	if err != nil {
		return err
	}
	for _, id := range ids {
		if r := m.Rows[id]; r != nil && r.Waits() && !m.IsLocked(id) && which(r) {
			c.cancel(r)
		}
	}
	m.Write(c)
	return nil
}
