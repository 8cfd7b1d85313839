package storetest_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/store/storetest"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(*testing.T) storetest.World {
		return &memory{storetest.NewMemory(storetest.Config{
			FirstLSN: 1000,
			Length:   func() pglogrepl.LSN { return 8 },
			NewID:    func(time.Time) uuid.UUID { return uuid.Must(uuid.NewV7()) },
			Slot:     func() (uint32, pglogrepl.LSN) { return 0, 0 },
		})}
	})
}

// A memory is a World of one process.
type memory struct{ *storetest.Memory }

func (m *memory) NewEndpoint(organization string) uuid.UUID {
	id := uuid.New()
	m.change(storetest.Endpoint{Own: true, Endpoint: webhook.Endpoint{ID: id, OrganizationID: organization, Enabled: true}})
	return id
}

func (m *memory) change(e storetest.Endpoint) {
	m.Write(&storetest.Commit{Visible: true, Endpoints: []*storetest.Endpoint{&e}})
}

func (m *memory) Enable(endpoint uuid.UUID, enabled bool) {
	e := *m.Endpoint(endpoint)
	e.Enabled = enabled
	m.change(e)
}

func (m *memory) Delete(endpoint uuid.UUID) {
	e := *m.Endpoint(endpoint)
	e.Deleted = true
	m.change(e)
}

func (m *memory) Erase(organization string) {
	for _, e := range m.EndpointRows {
		if e.OrganizationID == organization {
			erased := *e
			erased.Deleted, erased.Erased = true, true
			m.change(erased)
		}
	}
}

func (m *memory) GiveAgain(endpoint uuid.UUID, organization string) {
	at := slices.IndexFunc(m.EndpointRows, func(e *storetest.Endpoint) bool { return e.ID == endpoint })
	e := *m.EndpointRows[at]
	e.OrganizationID, e.Deleted, e.Erased = organization, false, false
	m.change(e)
}

func (m *memory) ForAll(endpoint uuid.UUID, forAll bool) {
	e := *m.Endpoint(endpoint)
	e.ForAll = forAll
	m.change(e)
}

func (m *memory) Begin(e outbox.Event) (commit func()) {
	c := &storetest.Commit{Events: []*outbox.Event{&e}}
	m.Write(c)
	return func() { c.Visible = true }
}

func (m *memory) Forget(event uuid.UUID) {
	delete(m.Inserted, event)
	m.Events = slices.DeleteFunc(m.Events, func(e *outbox.Event) bool { return e.ID == event })
}

func (m *memory) Say(delivery uuid.UUID, status webhook.Status, due time.Time) {
	r := *m.Rows[delivery]
	r.Status, r.DueAt, r.Said = status, due, true
	m.Write(&storetest.Commit{Visible: true, Rows: []*storetest.Row{&r}})
}

func (m *memory) Lock(delivery uuid.UUID) (release func()) {
	m.Locked[delivery] = time.Now().Add(time.Hour)
	return func() { delete(m.Locked, delivery) }
}

func (m *memory) Row(delivery uuid.UUID) (line storetest.Line, found bool) {
	r := m.Rows[delivery]
	if r == nil {
		return line, false
	}
	return storetest.Line{Status: r.Status, Attempts: r.Attempts, SeriesStart: r.SeriesStart, DueAt: r.DueAt}, true
}

func (m *memory) Position() (pglogrepl.LSN, time.Time) { return m.State.Durable, m.State.DurableAt }

func (m *memory) Listen() func() []string {
	from := len(m.WAL)
	return func() (echoes []string) {
		for _, c := range m.WAL[from:] {
			if c.Echo != "" {
				echoes = append(echoes, c.Echo)
			}
		}
		return echoes
	}
}

func (m *memory) OwnEvents(eventType string) (n int) {
	for _, e := range m.Events {
		if e.Type == eventType {
			n++
		}
	}
	return n
}
