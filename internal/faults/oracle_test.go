package faults

import (
	"crypto/sha256"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/outbox"
)

// clean is evidence in which nothing is wrong: for every event type one event
// that was committed at once, one whose commit's outcome the driver did not
// hear, and one that was rolled back. The first delivery needed two attempts.
func clean() *Evidence {
	e := &Evidence{Endpoints: threeEndpoints(), Outbox: map[uuid.UUID][]uuid.UUID{}, PerCrash: 1, LastAttempt: lastAttempt}
	for i := range e.Endpoints {
		e.Endpoints[i].ID = uuid.Must(uuid.NewV7())
	}
	for _, typ := range eventTypes {
		for _, fate := range []Fate{Committed, Unknown, RolledBack} {
			e.Events = append(e.Events, Event{ID: uuid.Must(uuid.NewV7()), Org: "org_1", Type: typ, N: int64(len(e.Events)), Fate: fate, Began: time.Now()})
		}
	}
	for _, event := range e.Events {
		if event.Fate == RolledBack {
			continue
		}
		e.Outbox[event.ID] = []uuid.UUID{}
		for i := range e.Endpoints {
			if e.Endpoints[i].owed(event.Org, event.Type) {
				e.deliver(event, i)
			}
		}
	}
	first := &e.Requests[0]
	first.Status = 500
	second := *first
	second.Retry, second.Status = 1, 200
	e.Requests = append(e.Requests, second)
	e.Rows[0].Attempts = 2
	return e
}

func (e *Evidence) deliver(event Event, endpoint int) {
	id := e.Endpoints[endpoint].ID
	e.Outbox[event.ID] = append(e.Outbox[event.ID], id)
	delivery := outbox.DeliveryID(event.ID, id)
	e.Rows = append(e.Rows, Row{ID: delivery, Event: event.ID, Endpoint: id, Status: outbox.Success, Attempts: 1})
	e.Requests = append(e.Requests, Request{
		Endpoint: endpoint, Delivery: delivery, Event: event.ID, N: event.N, Type: event.Type, Status: 200,
		Body: sha256.Sum256([]byte(strconv.FormatInt(event.N, 10))), At: time.Now(),
	})
}

func TestOracleFindsNothingWrong(t *testing.T) {
	t.Parallel()
	v := judge(clean())
	if err := v.Err(); err != nil {
		t.Error(err)
	}
	if v.Events != 8 || v.Deliveries != 16 || v.Requests != 17 || v.Duplicates != 0 {
		t.Errorf("got %+v, want 8 events, 16 deliveries, 17 requests and no duplicate", v)
	}
}

func TestOracleGoesRed(t *testing.T) {
	t.Parallel()
	last := func(e *Evidence) *Request { return &e.Requests[len(e.Requests)-2] } // of the last delivery
	repeat := func(e *Evidence, change func(*Request)) {
		again := *last(e)
		change(&again)
		e.Requests = append(e.Requests, again)
	}
	tests := map[string]struct {
		rule   string
		doctor func(*Evidence)
	}{
		"a delivery that was never sent": {lost, func(e *Evidence) { e.Requests = e.Requests[1 : len(e.Requests)-1] }},
		"a delivery that was only answered 500": {lost, func(e *Evidence) {
			last(e).Status = 500
		}},
		"a delivery that was never answered":             {lost, func(e *Evidence) { last(e).Status = 0 }},
		"a delivery whose event nobody heard of, unsent": {lost, func(e *Evidence) { e.Events[1].Fate = Committed; e.dropRequests(e.Events[1].ID) }},
		"an event that was rolled back and sent": {phantom, func(e *Evidence) {
			repeat(e, func(r *Request) { r.Event = e.Events[2].ID })
		}},
		"an event of unknown fate that is not in the table, sent": {phantom, func(e *Evidence) { delete(e.Outbox, e.Events[1].ID) }},
		"an event that nobody made": {phantom, func(e *Evidence) {
			repeat(e, func(r *Request) { r.Event = uuid.Must(uuid.NewV7()) })
		}},
		"an event sent to an endpoint that does not want it": {phantom, func(e *Evidence) { last(e).Endpoint = 1 }},
		"a committed event that is not in the outbox":        {outboxDiffers, func(e *Evidence) { delete(e.Outbox, e.Events[0].ID) }},
		"a rolled back event in the outbox":                  {outboxDiffers, func(e *Evidence) { e.Outbox[e.Events[2].ID] = nil }},
		"an event owed to one endpoint too few": {outboxDiffers, func(e *Evidence) {
			e.Outbox[e.Events[0].ID] = e.Outbox[e.Events[0].ID][1:]
		}},
		"a row that is missing": {rowMissing, func(e *Evidence) { e.Rows = e.Rows[1:] }},
		"a row that is there twice": {rowBeyond, func(e *Evidence) {
			e.Rows = append(e.Rows, e.Rows[0])
		}},
		"a row for an event that was rolled back": {rowBeyond, func(e *Evidence) {
			id := e.Endpoints[0].ID
			e.Rows = append(e.Rows, Row{ID: outbox.DeliveryID(e.Events[2].ID, id), Event: e.Events[2].ID, Endpoint: id, Status: outbox.Pending})
		}},
		"a row under another id":            {rowBeyond, func(e *Evidence) { e.Rows[0].ID = uuid.New() }},
		"a row that waits":                  {notFinal, func(e *Evidence) { e.Rows[1].Status = outbox.Retrying }},
		"a row that was cancelled":          {notFinal, func(e *Evidence) { e.Rows[1].Status = outbox.Cancelled }},
		"a failure before the last attempt": {attemptsWrong, func(e *Evidence) { e.Rows[1].Status = outbox.Failed }},
		"a success that no request explains": {attemptsWrong, func(e *Evidence) {
			e.Rows[1].Attempts = 3
		}},
		"an attempt that is not recorded": {attemptsWrong, func(e *Evidence) { e.Rows[0].Attempts = 1; e.Requests[0].Status = 200 }},
		"a duplicate with different bytes": {bytesDiffer, func(e *Evidence) {
			e.Crashes = 1
			repeat(e, func(r *Request) { r.Body[0]++ })
		}},
		"a duplicate with another delivery id": {deliveryDiffers, func(e *Evidence) {
			e.Crashes = 1
			repeat(e, func(r *Request) { r.Delivery = uuid.New() })
		}},
		"another event's data":                 {contentWrong, func(e *Evidence) { last(e).N++ }},
		"another event type":                   {contentWrong, func(e *Evidence) { last(e).Type = "org.deleted" }},
		"a signature that does not verify":     {malformedRequest, func(e *Evidence) { last(e).Malformed = "no signature matches" }},
		"a duplicate without a crash":          {tooMany, func(e *Evidence) { repeat(e, func(*Request) {}) }},
		"a duplicate attempt without a crash":  {tooMany, func(e *Evidence) { last(e).Status = 500; repeat(e, func(r *Request) { r.Status = 200 }) }},
		"an attempt after a 2xx":               {tooMany, func(e *Evidence) { repeat(e, func(r *Request) { r.Retry++ }) }},
		"more duplicates than one crash means": {tooMany, func(e *Evidence) { e.Crashes = 1; repeat(e, func(*Request) {}); repeat(e, func(*Request) {}) }},
		"what the monitor saw":                 {online, func(e *Evidence) { e.Online = []string{"a row is missing"} }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := clean()
			tt.doctor(e)
			if v := judge(e); !v.broke(tt.rule) {
				t.Errorf("the oracle did not find %q: %v", tt.rule, v.Err())
			}
		})
	}
}

func (e *Evidence) dropRequests(event uuid.UUID) {
	var kept []Request
	for _, r := range e.Requests {
		if r.Event != event {
			kept = append(kept, r)
		}
	}
	e.Requests = kept
}

func TestOracleAccepts(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*Evidence){
		"a duplicate after a crash": func(e *Evidence) {
			e.Crashes = 1
			e.Requests = append(e.Requests, e.Requests[1])
		},
		"a failure after the last attempt": func(e *Evidence) {
			e.Rows[0].Status, e.Rows[0].Attempts = outbox.Failed, lastAttempt
			e.Requests[len(e.Requests)-1].Status = 500
		},
		"an unknown commit that did not happen": func(e *Evidence) {
			e.Events = append(e.Events, Event{ID: uuid.Must(uuid.NewV7()), Org: "org_1", Type: "org.created", Fate: Unknown})
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := clean()
			change(e)
			if err := judge(e).Err(); err != nil {
				t.Error(err)
			}
		})
	}
}
