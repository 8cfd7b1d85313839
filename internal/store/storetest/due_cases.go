package storetest

import (
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

func handsOutDue(b *bench) {
	endpoint, other := b.NewEndpoint(organization), b.NewEndpoint(organization)
	var want []uuid.UUID
	for _, minutes := range []int{9, 7, 5, 3} {
		r := b.owed(endpoint)
		r.Wait = -time.Duration(minutes) * time.Minute
		want = append(want, r.ID)
		b.insert(r)
	}
	later, elsewhere := b.owed(endpoint), b.owed(other)
	later.Wait = time.Minute
	b.insert(later, elsewhere, outcome(b.owed(endpoint), webhook.Success, 1), outcome(b.owed(endpoint), webhook.Failed, 1))

	ids := func(due []webhook.Due) (ids []uuid.UUID) {
		for _, d := range due {
			ids = append(ids, d.ID)
		}
		return ids
	}
	if got := ids(b.page(webhook.Page{EndpointID: endpoint, Limit: 10})); !slices.Equal(got, want) {
		b.Errorf("due: %v, want %v", got, want)
	}
	page := b.page(webhook.Page{EndpointID: endpoint, Limit: 3})
	if !slices.Equal(ids(page), want[:3]) {
		b.Fatalf("first page: %v, want %v", ids(page), want[:3])
	}
	if got := ids(b.page(webhook.Page{EndpointID: endpoint, Limit: 3, After: page[2].End()})); !slices.Equal(got, want[3:]) {
		b.Errorf("next page: %v, want %v", got, want[3:])
	}
	d := b.one(other)
	if d.ID != elsewhere.ID || d.Status != webhook.Pending || d.Attempts != 0 || d.Orphaned || d.Unseen || d.Reassigned ||
		d.Event.ID != elsewhere.EventID || d.Event.OrganizationID != organization || d.Event.Type != elsewhere.EventType || string(d.Event.Payload) != `{"a": 1}` {
		b.Errorf("handed out: %+v", d)
	}
}

func tellsOrphans(b *bench) {
	endpoint := b.NewEndpoint(organization)
	e := event(endpoint)
	commit := b.Begin(e)
	r := record(e, endpoint)
	b.insert(r) // the stream is faster than visibility
	if d := b.one(endpoint); !d.Unseen || d.Orphaned {
		b.Errorf("before it is visible: unseen %t, orphaned %t", d.Unseen, d.Orphaned)
	}
	b.ok(b.CancelOrphans(b.Context(), b.fence, []uuid.UUID{r.ID}))
	b.has(r.ID, "pending 0")
	commit()
	if d := b.one(endpoint); d.Unseen || d.Orphaned || d.Event.Payload == nil {
		b.Errorf("when it is visible: unseen %t, orphaned %t, payload %q", d.Unseen, d.Orphaned, d.Event.Payload)
	}
	b.ok(b.CancelOrphans(b.Context(), b.fence, []uuid.UUID{r.ID}))
	b.has(r.ID, "pending 0")

	b.Forget(e.ID)
	b.eventually("it is orphaned", func() bool { return b.one(endpoint).Orphaned })
	release := b.Lock(r.ID)
	b.ok(b.CancelOrphans(b.Context(), b.fence, []uuid.UUID{r.ID}))
	b.has(r.ID, "pending 0")
	release()
	b.eventually("it is cancelled", func() bool {
		b.ok(b.CancelOrphans(b.Context(), b.fence, []uuid.UUID{r.ID}))
		return b.text(r.ID) == "cancelled 0"
	})
}

func knowsReassigned(b *bench) {
	endpoint := b.NewEndpoint(organization)
	r, done := b.owed(endpoint), b.owed(endpoint)
	b.insert(r, outcome(done, webhook.Success, 1))
	ids := []uuid.UUID{r.ID, done.ID}
	b.ok(b.CancelReassigned(b.Context(), b.fence, ids))
	if d := b.one(endpoint); d.Reassigned {
		b.Error("its own organization's is a stranger")
	}
	b.GiveAgain(endpoint, "org_2")
	if d := b.one(endpoint); !d.Reassigned {
		b.Error("another organization's is none")
	}
	b.ok(b.CancelReassigned(b.Context(), b.fence, ids))
	b.has(r.ID, "cancelled 0")
	b.has(done.ID, "success 1")
}

func operatorsHear(b *bench) {
	operators, customer := b.NewEndpoint("ops"), b.NewEndpoint(organization)
	b.ForAll(operators, true)
	r := outcome(b.owed(customer), webhook.Failed, 3)
	r.Exhausted = true
	b.insert(r)
	owed := b.owedTo(outbox.TypeDeliveryExhausted, operators, customer)
	b.insert(owed...)
	ids := []uuid.UUID{owed[0].ID, owed[1].ID}
	b.ok(b.CancelReassigned(b.Context(), b.fence, ids))
	if d := b.one(operators); d.Reassigned || d.Event.OrganizationID != organization {
		b.Errorf("operators are another organization's: %+v", d)
	}
	b.ForAll(operators, false)
	if d := b.one(operators); !d.Reassigned {
		b.Error("what operators were to hear would reach them")
	}
	b.ok(b.CancelReassigned(b.Context(), b.fence, ids))
	b.has(owed[0].ID, "cancelled 0")
	b.has(owed[1].ID, "pending 0")
}

// owedTo returns the due deliveries of the only event of a type, which has to be owed to these endpoints.
func (b *bench) owedTo(eventType string, endpoints ...uuid.UUID) (records []webhook.Record) {
	b.Helper()
	c, err := b.Missing(b.Context(), store.Position{Event: outbox.TimeID(time.Now().Add(-time.Hour))}, outbox.TimeID(time.Now().Add(time.Hour)), 100)
	b.ok(err)
	for _, endpoint := range endpoints {
		at := slices.IndexFunc(c.Missing, func(m store.Candidate) bool { return m.EndpointID == endpoint && m.EventType == eventType })
		if at < 0 {
			b.Fatalf("%s is not owed to %s, but %+v", eventType, endpoint, c.Missing)
		}
		m := c.Missing[at]
		records = append(records, webhook.Record{ID: m.ID, EventID: m.EventID, EndpointID: endpoint, OrganizationID: m.OrganizationID, EventType: m.EventType,
			Status: webhook.Pending, Wait: -time.Minute})
	}
	if len(c.Missing) != len(endpoints) {
		b.Errorf("%d deliveries are owed, want %d: %+v", len(c.Missing), len(endpoints), c.Missing)
	}
	return records
}

func findsWaiting(b *bench) {
	var all []webhook.Waiting
	for i := range 4 {
		id := b.NewEndpoint(organization)
		r := b.owed(id)
		r.Wait = -time.Duration(i+1) * time.Hour
		b.insert(r)
		all = append(all, webhook.Waiting{EndpointID: id, Enabled: true})
	}
	b.NewEndpoint(organization) // has none
	b.insert(outcome(b.owed(b.NewEndpoint(organization)), webhook.Success, 1))

	found, now, complete, err := b.NewlyDue(b.Context(), time.Now().Add(-150*time.Minute))
	b.ok(err)
	want := []uuid.UUID{all[0].EndpointID, all[1].EndpointID}
	slices.SortFunc(want, compareIDs)
	if slices.SortFunc(found, compareIDs); !slices.Equal(found, want) || !complete || !near(now, time.Now()) {
		b.Errorf("newly due: %v at %s, all %t; want %v", found, now, complete, want)
	}

	b.Enable(all[1].EndpointID, false)
	b.Delete(all[2].EndpointID)
	all[1].Enabled, all[2].Enabled = false, false
	slices.SortFunc(all, func(a, o webhook.Waiting) int { return compareIDs(a.EndpointID, o.EndpointID) })
	waiting, err := b.Waiting(b.Context(), uuid.Nil, 3)
	b.ok(err)
	if !slices.Equal(waiting, all[:3]) {
		b.Errorf("waiting: %v, want %v", waiting, all[:3])
	}
	waiting, err = b.Waiting(b.Context(), all[2].EndpointID, 3)
	b.ok(err)
	if !slices.Equal(waiting, all[3:]) {
		b.Errorf("waiting behind the third: %v, want %v", waiting, all[3:])
	}
}

func cancelsRows(b *bench) {
	for what, off := range map[string]func(uuid.UUID){"disabled": func(id uuid.UUID) { b.Enable(id, false) }, "deleted": b.Delete} {
		endpoint, other := b.NewEndpoint(organization), b.NewEndpoint(organization)
		due, later, held, done, elsewhere := b.owed(endpoint), b.owed(endpoint), b.owed(endpoint), b.owed(endpoint), b.owed(other)
		later.Wait = time.Hour
		b.insert(due, later, held, outcome(done, webhook.Failed, 2), elsewhere)
		cancelled, more, err := b.CancelRows(b.Context(), b.fence, endpoint, "off")
		b.ok(err)
		if cancelled != 0 || more {
			b.Errorf("enabled: %d cancelled, more %t", cancelled, more)
		}
		off(endpoint)
		release := b.Lock(held.ID)
		b.eventually(what+": what is owed is cancelled", func() bool {
			_, more, err := b.CancelRows(b.Context(), b.fence, endpoint, "off")
			b.ok(err)
			return !more && b.text(due.ID) == "cancelled 0" && b.text(later.ID) == "cancelled 0"
		})
		b.has(held.ID, "pending 0")
		release()
		if cancelled, _, err := b.CancelRows(b.Context(), b.fence, endpoint, "off"); err != nil || cancelled != 1 {
			b.Errorf("%s: %d of what was held are cancelled, %v", what, cancelled, err)
		}
		b.has(done.ID, "failed 2")
		b.has(elsewhere.ID, "pending 0")
	}
}

func cancelsWhatIsSettled(b *bench) {
	endpoint := b.NewEndpoint(organization)
	b.Enable(endpoint, false)
	commit := b.Begin(event()) // which may make or enable an endpoint, too
	e := event(endpoint)
	r := record(e, endpoint)
	b.insert(r)
	cancelled, more, err := b.CancelRows(b.Context(), b.fence, endpoint, "off")
	b.ok(err)
	if cancelled != 0 || !more {
		b.Errorf("%d cancelled, more %t, while a transaction is open", cancelled, more)
	}
	b.has(r.ID, "pending 0")
	commit()
	b.eventually("it is cancelled when that has ended", func() bool {
		_, _, err := b.CancelRows(b.Context(), b.fence, endpoint, "off")
		b.ok(err)
		return b.text(r.ID) == "cancelled 0"
	})
}
