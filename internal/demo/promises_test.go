package demo

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

type check = func(*evidence, *findings)

// saysOf returns what the promise of a check says.
func saysOf(c check) string {
	i := slices.IndexFunc(promises, func(p promise) bool { return reflect.ValueOf(p.check).Pointer() == reflect.ValueOf(c).Pointer() })
	return promises[i].says
}

// wantBroken wants exactly these promises to be broken.
func wantBroken(t *testing.T, err error, checks ...check) {
	t.Helper()
	got := map[string]bool{}
	collectBroken(err, got)
	for _, c := range checks {
		if !got[saysOf(c)] {
			t.Errorf("it does not complain: %s", saysOf(c))
		}
		delete(got, saysOf(c))
	}
	for says := range got {
		t.Errorf("it complains too: %s", says)
	}
	if t.Failed() {
		t.Logf("the error: %v", err)
	}
}

func collectBroken(err error, into map[string]bool) {
	if broken, ok := errors.AsType[*Broken](err); ok {
		into[broken.Promise] = true
	}
	switch err := err.(type) {
	case interface{ Unwrap() []error }:
		for _, one := range err.Unwrap() {
			collectBroken(one, into)
		}
	case interface{ Unwrap() error }:
		collectBroken(err.Unwrap(), into)
	}
}

// ideal is what everyone knows when all went well.
func ideal() *evidence {
	e := &evidence{
		committed: map[uuid.UUID]enqueued{}, rolledBack: map[uuid.UUID]enqueued{},
		endpoints: map[uuid.UUID]*endpoint{}, listed: map[uuid.UUID]int{},
	}
	for _, s := range subscriptions {
		i := slices.IndexFunc(roles, func(r role) bool { return r.name == s.receiver })
		ep := &endpoint{subscription: s, id: uuid.New(), ends: roles[i].ends}
		e.endpoints[ep.id] = ep
	}
	for _, t := range transactions {
		for _, name := range t.types {
			id := uuid.Must(uuid.NewV7())
			if t.rollBack {
				e.rolledBack[id] = enqueued{id, t.organization, name}
				continue
			}
			e.committed[id] = enqueued{id, t.organization, name}
			e.happen(event{ID: id, OrganizationID: t.organization, Type: name, Payload: `{"demo": true}`})
		}
	}
	return e
}

// happen is what an event does when all goes well.
func (e *evidence) happen(ev event) {
	for id, ep := range e.endpoints {
		if ep.organization == ev.OrganizationID && ep.wants(ev.Type) {
			ev.EndpointIDs = append(ev.EndpointIDs, id)
		}
	}
	e.events = append(e.events, ev)
	for _, id := range ev.EndpointIDs {
		ep := e.endpoints[id]
		d := delivery{ID: outbox.DeliveryID(ev.ID, id), EventID: ev.ID, EndpointID: id, OrganizationID: ev.OrganizationID,
			Type: ev.Type, Status: ep.ends.status, Attempts: ep.ends.attempts}
		e.deliveries = append(e.deliveries, d)
		e.listed[d.ID] = d.Attempts
		e.attempt(d, ev, ep)
		if d.Status == string(store.Failed) {
			e.happen(event{ID: uuid.Must(uuid.NewV7()), OrganizationID: ev.OrganizationID, Type: outbox.TypeDeliveryExhausted,
				Payload: fmt.Sprintf(`{"deliveryId": %q}`, d.ID)})
		}
	}
}

func (e *evidence) attempt(d delivery, ev event, ep *endpoint) {
	for retry := range d.Attempts {
		status := 500
		if retry == d.Attempts-1 && d.Status == string(store.Success) {
			status = 204
		}
		e.arrivals = append(e.arrivals, arrival{endpoint: ep, delivery: d.ID, retry: retry, status: status,
			body:  sha256.Sum256([]byte(ev.Payload)),
			event: message{ID: ev.ID, Event: ev.Type, Data: json.RawMessage(ev.Payload), OrganizationID: ev.OrganizationID}})
	}
}

// at returns the index of the first delivery to a receiver.
func (e *evidence) at(receiver string) int {
	return slices.IndexFunc(e.deliveries, func(d delivery) bool { return e.endpoints[d.EndpointID].receiver == receiver })
}

// came returns the first request to a receiver with so many attempts before it.
func (e *evidence) came(receiver string, retry int) *arrival {
	i := slices.IndexFunc(e.arrivals, func(a arrival) bool { return a.endpoint.receiver == receiver && a.retry == retry })
	return &e.arrivals[i]
}

func (e *evidence) exhausted() int {
	return slices.IndexFunc(e.events, func(ev event) bool { return ev.Type == outbox.TypeDeliveryExhausted })
}

func anyOf(m map[uuid.UUID]enqueued) enqueued {
	for _, e := range m {
		return e
	}
	panic("there is none")
}

func TestPromises(t *testing.T) {
	t.Parallel()
	broken := map[string]bool{}
	for _, c := range []struct {
		name   string
		spoil  func(*evidence)
		breaks []check
	}{
		{"all is well", func(*evidence) {}, nil},
		{"nothing happened", func(e *evidence) { *e = evidence{} }, []check{committedIsThere, rolledBackIsNowhere, owedToSubscribers, rowsEndWell,
			attemptsCount, noDuplicates, signaturesVerify, bytesArePayload, organizationsApart, exhaustedIsTold}},
		{"a committed event is gone", func(e *evidence) { id := uuid.Must(uuid.NewV7()); e.committed[id] = enqueued{id, acme, "org.created"} }, []check{committedIsThere}},
		{"an event of nobody", func(e *evidence) {
			e.events = append(e.events, event{ID: uuid.New(), OrganizationID: "other", Type: "org.created"})
		}, []check{committedIsThere}},
		{"an event of another type", func(e *evidence) { ev := e.events[0]; e.committed[ev.ID] = enqueued{ev.ID, acme, "org.created"} }, []check{committedIsThere}},
		{"a rolled back event has a row", func(e *evidence) { e.deliveries[0].EventID = anyOf(e.rolledBack).id }, []check{rolledBackIsNowhere}},
		{"a rolled back event arrived", func(e *evidence) {
			lost := anyOf(e.rolledBack)
			e.arrivals = append(e.arrivals, arrival{endpoint: e.arrivals[0].endpoint, delivery: uuid.New(),
				event: message{ID: lost.id, Event: lost.eventType, OrganizationID: lost.organization}})
		}, []check{rolledBackIsNowhere, noDuplicates, bytesArePayload}},
		{"owed to too few", func(e *evidence) { e.events[0].EndpointIDs = e.events[0].EndpointIDs[1:] }, []check{owedToSubscribers, rowsEndWell, noDuplicates}},
		{"owed to a stranger", func(e *evidence) { e.events[0].EndpointIDs = append(e.events[0].EndpointIDs, uuid.New()) }, []check{owedToSubscribers}},
		{"owed to the other organization", func(e *evidence) {
			for id, ep := range e.endpoints {
				if ep.organization == globex && ep.receiver == steady {
					e.events[0].EndpointIDs = append(e.events[0].EndpointIDs, id)
				}
			}
		}, []check{owedToSubscribers, rowsEndWell, attemptsCount}},
		{"a row is missing", func(e *evidence) { i := e.at(steady); e.deliveries = slices.Delete(e.deliveries, i, i+1) }, []check{rowsEndWell, attemptsCount, noDuplicates}},
		{"a row too many", func(e *evidence) {
			d := e.deliveries[e.at(steady)]
			d.ID = uuid.New()
			e.deliveries = append(e.deliveries, d)
		}, []check{rowsEndWell}},
		{"a row still retries", func(e *evidence) { e.deliveries[e.at(flaky)].Status = "retrying" }, []check{rowsEndWell}},
		{"an attempt was not counted", func(e *evidence) { i := e.at(flaky); e.deliveries[i].Attempts--; e.listed[e.deliveries[i].ID]-- }, []check{attemptsCount, noDuplicates}},
		{"an attempt is not listed", func(e *evidence) { e.listed[e.deliveries[0].ID]-- }, []check{attemptsCount}},
		{"a delivery came twice", func(e *evidence) { e.arrivals = append(e.arrivals, *e.came(steady, 0)) }, []check{noDuplicates}},
		{"a delivery came again after its success", func(e *evidence) { e.came(flaky, 1).status = 204 }, []check{noDuplicates}},
		{"a retry says that it is the first", func(e *evidence) { e.came(silent, 2).retry = 0 }, []check{noDuplicates}},
		{"a request to nowhere", func(e *evidence) { e.strays++ }, []check{noDuplicates}},
		{"a wrong signature", func(e *evidence) { e.came(silent, 0).problem = errors.New("no signature matches") }, []check{signaturesVerify}},
		{"other data", func(e *evidence) { e.came(steady, 0).event.Data = json.RawMessage(`{}`) }, []check{bytesArePayload}},
		{"other bytes in a retry", func(e *evidence) { e.came(flaky, 1).body[0]++ }, []check{bytesArePayload}},
		{"another's event", func(e *evidence) {
			a := e.came(flaky, 0)
			other := *a.endpoint
			other.organization += "'s neighbour"
			a.endpoint = &other
		}, []check{organizationsApart}},
		{"a row at another's endpoint", func(e *evidence) { e.deliveries[0].OrganizationID = "other" }, []check{organizationsApart}},
		{"nobody was told of a failure", func(e *evidence) { e.events[e.exhausted()].Payload = e.events[e.exhausted()+1].Payload }, []check{exhaustedIsTold, bytesArePayload}},
		{"told of no failure", func(e *evidence) {
			i := e.exhausted()
			e.events = append(e.events, event{ID: uuid.New(), OrganizationID: "other", Type: outbox.TypeDeliveryExhausted, Payload: e.events[i-1].Payload})
		}, []check{exhaustedIsTold}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := ideal()
			c.spoil(e)
			var errs []error
			for _, p := range promises {
				if v := p.judge(e); v.broken != nil {
					errs = append(errs, v.broken)
				}
			}
			wantBroken(t, errors.Join(errs...), c.breaks...)
		})
		for _, one := range c.breaks {
			if c.name != "nothing happened" {
				broken[saysOf(one)] = true
			}
		}
	}
	for _, p := range promises {
		if !broken[p.says] {
			t.Errorf("nothing here breaks: %s", p.says)
		}
	}
}

func TestAtRest(t *testing.T) {
	t.Parallel()
	e := ideal()
	if !e.atRest() {
		t.Error("the end is not at rest")
	}
	e.deliveries[0].Status = "retrying"
	if e.atRest() {
		t.Error("a retry is at rest")
	}
	e = ideal()
	e.deliveries = e.deliveries[1:]
	if e.atRest() {
		t.Error("a delivery without a row is at rest")
	}
}

func TestWants(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*", "org.created", true},
		{"*", outbox.TypeTest, false},
		{"org.*", "org.member.added", true},
		{"org.member.*", "org.created", false},
		{"org.created", "org.created", true},
		{"webhook.*", outbox.TypeTest, true},
	} {
		if got := (subscription{types: []string{c.pattern}}).wants(c.name); got != c.want {
			t.Errorf("%s wants %s: %t", c.pattern, c.name, got)
		}
	}
}
