package demo

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

// A promise is something that has to be true at the end.
type promise struct {
	says  string
	check func(*evidence, *findings)
}

// Findings are what a check looked at, and what it found wrong. A check that had
// nothing to look at has found nothing out, which is wrong too.
type findings struct {
	looked   int
	problems []string
}

// expect looks at one thing.
func (f *findings) expect(ok bool, problem string, args ...any) {
	f.looked++
	if !ok {
		f.problems = append(f.problems, fmt.Sprintf(problem, args...))
	}
}

var promises = []promise{
	{fmt.Sprintf("what was committed, and nothing else, is in the outbox: all %d types", len(outbox.EventTypes)), committedIsThere},
	{"what was rolled back arrived nowhere", rolledBackIsNowhere},
	{"an event is owed to who subscribes to it, and to nobody else", owedToSubscribers},
	{"every owed delivery has its row, with the status that its receiver deserves", rowsEndWell},
	{"the steady receiver took one attempt, the flaky three, the silent all four", attemptsCount},
	{"every attempt was one request, and no delivery came again", noDuplicates},
	{"both signatures of every request verify", signaturesVerify},
	{"every request brought the event as it was committed, each time the same bytes", bytesArePayload},
	{"no organization received another's event", organizationsApart},
	{"whose delivery failed for good was told so by webhook.delivery.exhausted", exhaustedIsTold},
}

func committedIsThere(e *evidence, f *findings) {
	stored, types := map[uuid.UUID]bool{}, map[string]bool{}
	for _, ev := range e.events {
		said, known := e.committed[ev.ID]
		stored[ev.ID] = true
		types[ev.Type] = known
		if ev.Type == outbox.TypeDeliveryExhausted {
			continue
		}
		f.expect(known, "%s %s of %s is in webhook_outbox, and nobody committed it", ev.Type, ev.ID, ev.OrganizationID)
		f.expect(!known || said.organization == ev.OrganizationID && said.eventType == ev.Type,
			"%s of %s was stored as %s of %s", said.eventType, said.organization, ev.Type, ev.OrganizationID)
	}
	for id, said := range e.committed {
		f.expect(stored[id], "%s of %s was committed, and is not in webhook_outbox", said.eventType, said.organization)
	}
	for _, t := range outbox.EventTypes {
		f.expect(types[t.Name], "no %s was committed", t.Name)
	}
}

func rolledBackIsNowhere(e *evidence, f *findings) {
	found := map[uuid.UUID][]string{}
	for _, ev := range e.events {
		found[ev.ID] = append(found[ev.ID], "webhook_outbox")
	}
	for _, d := range e.deliveries {
		found[d.EventID] = append(found[d.EventID], "webhook_deliveries")
	}
	for _, a := range e.arrivals {
		found[a.event.ID] = append(found[a.event.ID], "the "+a.endpoint.receiver+" receiver")
	}
	for id, said := range e.rolledBack {
		f.expect(len(found[id]) == 0, "%s of %s was rolled back, and is in %s", said.eventType, said.organization, strings.Join(found[id], ", "))
	}
}

func owedToSubscribers(e *evidence, f *findings) {
	for _, ev := range e.events {
		for id, ep := range e.endpoints {
			want := ep.organization == ev.OrganizationID && ep.wants(ev.Type)
			f.expect(slices.Contains(ev.EndpointIDs, id) == want,
				"%s of %s owed to the endpoint of %s at %s: want %t", ev.Type, ev.OrganizationID, ep.organization, ep.receiver, want)
		}
	}
	for _, o := range e.owed() {
		f.expect(o.endpoint != nil, "%s of %s is owed to an unknown endpoint", o.event.Type, o.event.OrganizationID)
	}
}

func rowsEndWell(e *evidence, f *findings) {
	rows, expected := e.rows(), map[uuid.UUID]bool{}
	for _, o := range e.known() {
		expected[o.id] = true
		d, written := rows[o.id]
		if !written {
			f.expect(false, "%s has no row", o)
			continue
		}
		f.expect(d.Status == o.endpoint.ends.status, "%s: its row says %s, want %s", o, d.Status, o.endpoint.ends.status)
	}
	for _, d := range e.deliveries {
		f.expect(expected[d.ID], "there is a row of %s that is owed to nobody", d.Type)
	}
}

func attemptsCount(e *evidence, f *findings) {
	rows := e.rows()
	for _, o := range e.known() {
		d, want := rows[o.id], o.endpoint.ends.attempts
		f.expect(d.Attempts == want, "%s: its row counts %d attempts, want %d", o, d.Attempts, want)
		f.expect(e.listed[o.id] == d.Attempts, "%s: webhook_attempts lists %d of %d attempts", o, e.listed[o.id], d.Attempts)
	}
}

func noDuplicates(e *evidence, f *findings) {
	requests, rows := e.requests(), e.rows()
	for _, o := range e.known() {
		came, d := requests[o.id], rows[o.id]
		underWay := !d.ended() && len(came) == d.Attempts+1
		f.expect(len(came) == d.Attempts || underWay, "%s: %d requests came, and %d attempts were recorded", o, len(came), d.Attempts)
		for i, a := range came {
			f.expect(a.retry == i, "%s: request %d says X-Webhook-Retry: %d", o, i+1, a.retry)
			f.expect(i == 0 || came[i-1].status/100 != 2, "%s: it came again after it had been accepted", o)
		}
		delete(requests, o.id)
	}
	for _, came := range requests {
		f.expect(false, "%s came to the %s receiver %d times, and is not owed to it", came[0].event.Event, came[0].endpoint.receiver, len(came))
	}
	if e.strays > 0 {
		f.expect(false, "%d requests went to URLs that no endpoint has", e.strays)
	}
}

func signaturesVerify(e *evidence, f *findings) {
	for _, a := range e.arrivals {
		f.expect(a.problem == nil, "a request to %s of %s: %v", a.endpoint.receiver, a.endpoint.organization, a.problem)
	}
}

func bytesArePayload(e *evidence, f *findings) {
	events, first := map[uuid.UUID]event{}, map[uuid.UUID]arrival{}
	for _, ev := range e.events {
		events[ev.ID] = ev
	}
	for _, a := range e.arrivals {
		ev := events[a.event.ID]
		f.expect(string(a.event.Data) == ev.Payload && a.event.Event == ev.Type && a.event.OrganizationID == ev.OrganizationID,
			"a request to %s: %s of %s differs from what was committed", a.endpoint.receiver, a.event.Event, a.event.OrganizationID)
		if before, again := first[a.delivery]; again {
			f.expect(before.body == a.body, "a request to %s: %s has other bytes than the attempt before", a.endpoint.receiver, a.event.Event)
		}
		first[a.delivery] = a
	}
}

func organizationsApart(e *evidence, f *findings) {
	for _, a := range e.arrivals {
		f.expect(a.event.OrganizationID == a.endpoint.organization,
			"%s of %s came to %s's endpoint at %s", a.event.Event, a.event.OrganizationID, a.endpoint.organization, a.endpoint.receiver)
	}
	for _, d := range e.deliveries {
		ep := e.endpoints[d.EndpointID]
		f.expect(ep != nil && ep.organization == d.OrganizationID, "a row of %s stands at an endpoint of another organization", d.OrganizationID)
	}
}

func exhaustedIsTold(e *evidence, f *findings) {
	told := map[string]int{}
	for _, ev := range e.events {
		if ev.Type == outbox.TypeDeliveryExhausted {
			told[deliveryIn(ev.Payload)]++
		}
	}
	for _, d := range e.deliveries {
		want := 0
		if d.Status == string(store.Failed) {
			want = 1
		}
		f.expect(told[d.ID.String()] == want, "%s, %s: told %d times, want %d", d.Type, d.Status, told[d.ID.String()], want)
		delete(told, d.ID.String())
	}
	for _, id := range slices.Sorted(maps.Keys(told)) {
		f.expect(false, "told of %q, which is no delivery", id)
	}
}

// known leaves out what is owed to endpoints that we did not make; another
// promise speaks of that.
func (e *evidence) known() []owed {
	return slices.DeleteFunc(e.owed(), func(o owed) bool { return o.endpoint == nil })
}

// String names a delivery for people.
func (o owed) String() string {
	return fmt.Sprintf("%s of %s to %s", o.event.Type, o.event.OrganizationID, o.endpoint.receiver)
}

// A Broken is a promise that was not kept.
type Broken struct {
	Promise  string
	Problems []string
}

// problemsShown bounds the list: when everything is wrong, the first few say why.
const problemsShown = 3

// Error names the promise and the first of what was found.
func (b *Broken) Error() string {
	shown := b.Problems[:min(len(b.Problems), problemsShown)]
	text := fmt.Sprintf("%s: %s", b.Promise, strings.Join(shown, "; "))
	if more := len(b.Problems) - len(shown); more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return text
}

// verdict is what a promise came to.
type verdict struct {
	promise promise
	looked  int
	broken  *Broken // nil: kept
}

func (p promise) judge(e *evidence) verdict {
	var f findings
	p.check(e, &f)
	if f.looked == 0 {
		f.problems = append(f.problems, "there was nothing to look at")
	}
	v := verdict{promise: p, looked: f.looked}
	if len(f.problems) > 0 {
		v.broken = &Broken{p.says, f.problems}
	}
	return v
}
