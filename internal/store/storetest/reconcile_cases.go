package storetest

import (
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// within is a bound for ids that are all there.
func within() uuid.UUID { return outbox.TimeID(time.Now().Add(time.Hour)) }

func findsMissing(b *bench) {
	var endpoints []uuid.UUID
	for range 3 {
		endpoints = append(endpoints, b.NewEndpoint(organization))
	}
	want := map[uuid.UUID]bool{}
	for i, owed := range [][]uuid.UUID{endpoints, {}, endpoints[:1], endpoints[1:], {}} {
		e := event(owed...)
		e.EndpointIDs = append([]uuid.UUID{}, owed...) // nobody is not the default
		b.Begin(e)()
		for _, id := range owed {
			r := record(e, id)
			if want[r.ID] = i != 2; i == 2 {
				b.insert(r)
			}
		}
	}
	for limit := 1; limit < 10; limit++ {
		got := map[uuid.UUID]bool{}
		looks, events := 0, 0
		for from, end := (store.Position{}), false; !end && looks < 10; looks++ {
			c, err := b.Missing(b.Context(), from, within(), limit)
			b.ok(err)
			for _, m := range c.Missing {
				if got[m.ID] || !want[m.ID] || m.ID != outbox.DeliveryID(m.EventID, m.EndpointID) || m.OrganizationID != organization || m.EventType != "payment.failed" {
					b.Errorf("limit %d: %+v, found before: %t", limit, m, got[m.ID])
				}
				got[m.ID] = true
			}
			from, end, events = c.Upto, c.End, events+c.Events
		}
		// Three, one, two, and one for each that is owed to nobody; the last look has room.
		if n := 8/limit + 1; len(got) != 5 || looks != n || events != 5 {
			b.Errorf("limit %d: %d found in %d looks at %d events, want 5 in %d at 5", limit, len(got), looks, events, n)
		}
	}
	if c, err := b.Missing(b.Context(), store.Position{}, outbox.TimeID(time.Now().Add(-time.Hour)), 10); err != nil || len(c.Missing) > 0 || !c.End {
		b.Errorf("before all of them: %+v, %v", c, err)
	}
}

func missesInvisible(b *bench) {
	e := event(b.NewEndpoint(organization))
	commit := b.Begin(e)
	for _, want := range []int{0, 1} {
		c, err := b.Missing(b.Context(), store.Position{}, within(), 10)
		b.ok(err)
		if len(c.Missing) != want {
			b.Errorf("%d missing, want %d", len(c.Missing), want)
		}
		if want == 0 {
			commit()
		}
	}
}

func insertsMissing(b *bench) {
	endpoint := b.NewEndpoint(organization)
	there, missing := b.owed(endpoint), b.owed(endpoint)
	b.insert(outcome(there, webhook.Success, 1))
	both := []webhook.Record{there, missing}
	for _, want := range []int{1, 0} {
		n, err := b.InsertMissing(b.Context(), b.fence, both)
		b.ok(err)
		if n != want {
			b.Errorf("%d inserted, want %d", n, want)
		}
	}
	b.has(there.ID, "success 1")
	b.has(missing.ID, "pending 0")
	if row, _ := b.Row(missing.ID); !near(row.DueAt, time.Now().Add(-time.Minute)) {
		b.Errorf("due at %s", row.DueAt)
	}
}

func saysWhatToReconcile(b *bench) {
	if !b.fence.Reconcile || b.fence.Epoch != 1 {
		b.Errorf("the first claim: epoch %d, reconcile %t", b.fence.Epoch, b.fence.Reconcile)
	}
	at := time.Now().Add(-time.Hour).Truncate(time.Second)
	for what, c := range map[string]struct {
		session   *webhook.Session
		reconcile bool
		durable   pglogrepl.LSN
	}{
		"goes on":                     {&webhook.Session{Start: 200, Confirmed: 150}, false, 100},
		"goes on from before":         {&webhook.Session{Start: 60, Confirmed: 50}, false, 60},
		"goes on from what it told":   {&webhook.Session{Start: 60, Confirmed: 70, Reported: 70}, false, 60},
		"from the slot's position":    {&webhook.Session{Confirmed: 50}, true, 0},
		"the slot was made":           {&webhook.Session{Start: 100, Confirmed: 100, SlotCreated: true}, true, 0},
		"somebody has moved the slot": {&webhook.Session{Start: 60, Confirmed: 70}, true, 0},
	} {
		b.ok(b.Mark(b.Context(), b.fence, webhook.Mark{Durable: 100, CommitAt: at}))
		_, err := b.Reconciled(b.Context(), b.fence)
		b.ok(err)
		b.fence = b.claim(c.session)
		if got, _ := b.Position(); got != c.durable || b.fence.Reconcile != c.reconcile {
			b.Errorf("%s: position %s, reconcile %t; want %s, %t", what, got, b.fence.Reconcile, c.durable, c.reconcile)
		}
		if c.reconcile && !b.fence.ReconcileFrom.Before(at) { // how long before depends on what was open
			b.Errorf("%s: since %s, want from before %s", what, b.fence.ReconcileFrom, at)
		}
	}
}

func endsOneCause(b *bench) {
	at := time.Now().Add(-time.Hour).Truncate(time.Second)
	reconciled := func(what string, f webhook.Fence, want time.Time) {
		b.Helper()
		since, err := b.Reconciled(b.Context(), f)
		b.ok(err)
		if !since.Equal(want) {
			b.Errorf("%s: there is more since %s, want %s", what, since, want)
		}
	}
	b.ok(b.Mark(b.Context(), b.fence, webhook.Mark{Durable: 100, CommitAt: at}))
	reconciled("the first", b.fence, time.Time{})
	reconciled("once more, where the answer was lost", b.fence, time.Time{})
	b.fence = b.claim(&webhook.Session{Start: 100})
	if b.fence.Reconcile {
		b.Errorf("what was reconciled is to be, since %s", b.fence.ReconcileFrom)
	}
	noted, err := b.NoteMissing(b.Context(), b.fence, at)
	b.ok(err)
	if want := at.Add(-time.Microsecond); !noted.Equal(want) {
		b.Errorf("owed since %s, want %s", noted, want)
	}
	reconciled("with what is owed", b.fence, noted)
	again, err := b.NoteMissing(b.Context(), b.fence, at.Add(time.Minute))
	b.ok(err)
	if want := noted.Add(-time.Microsecond); !again.Equal(want) {
		b.Errorf("owed once more since %s, want another value, %s", again, want)
	}
	b.fence = b.claim(&webhook.Session{Start: 100})
	if !b.fence.Reconcile || !b.fence.ReconcileFrom.Equal(again) {
		b.Errorf("the next holder compares since %s, want %s", b.fence.ReconcileFrom, again)
	}
	b.ok(b.AwaitSlot(b.Context()))
	if since, err := b.Reconciled(b.Context(), b.fence); err != nil || since.IsZero() || !since.Before(again) {
		b.Errorf("when the slot is about to be made there is more since %s, %v; want from before %s", since, err, again)
	}
	if got, _ := b.Position(); got != 0 {
		b.Errorf("position %s, though the slot is lost", got)
	}
}

// endsNothingElsewhere: rows that a comparison inserted may be lost with the server that
// had them.
func endsNothingElsewhere(b *bench) {
	before := b.fence
	before.Server = before.Server.Add(-time.Minute)
	since, err := b.Reconciled(b.Context(), before)
	if err != nil || !since.Equal(b.fence.ReconcileFrom) {
		b.Errorf("it ended what another server has to compare: %v, %v", since, err)
	}
	if since, err := b.Reconciled(b.Context(), b.fence); err != nil || !since.IsZero() {
		b.Errorf("there is nothing to end any more: %v, %v", since, err)
	}
}
