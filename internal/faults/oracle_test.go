package faults

import (
	"crypto/sha256"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
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
	second.Retry, second.Status, second.At, second.Whole = 1, 200, first.At.Add(time.Second), first.At.Add(time.Second+answersIn)
	e.Requests = append(e.Requests, second)
	e.Rows[0].Attempts = 2
	return e
}

// answersIn is how long the receivers take in clean evidence.
const answersIn = 10 * time.Millisecond

func (e *Evidence) deliver(event Event, endpoint int) {
	at := time.Now()
	id := e.Endpoints[endpoint].ID
	e.Outbox[event.ID] = append(e.Outbox[event.ID], id)
	delivery := outbox.DeliveryID(event.ID, id)
	e.Rows = append(e.Rows, Row{ID: delivery, Event: event.ID, Endpoint: id, Status: webhook.Success, Attempts: 1})
	e.Requests = append(e.Requests, Request{
		Endpoint: endpoint, Delivery: delivery, Event: event.ID, N: event.N, Type: event.Type, Status: 200,
		Body: sha256.Sum256([]byte(strconv.FormatInt(event.N, 10))), At: at, Whole: at.Add(answersIn), Agent: "walhook-1",
	})
}

// last is the request of the last delivery.
func (e *Evidence) last() *Request {
	last := e.Rows[len(e.Rows)-1].ID
	return &e.Requests[slices.IndexFunc(e.Requests, func(r Request) bool { return r.Delivery == last })]
}

// repeat sends the last delivery again, later and with a change.
func (e *Evidence) repeat(change func(*Request)) {
	again := *e.last()
	again.At = again.At.Add(repeatsAfter)
	again.Whole = again.At.Add(answersIn)
	change(&again)
	e.Requests = append(e.Requests, again)
}

// repeatsAfter is how much later a repeated request comes.
const repeatsAfter = 10 * time.Second

// crash makes a crash of a walhook that begins so long after the last delivery's request.
func (e *Evidence) crash(after, lasts time.Duration, agent string) {
	from := e.last().At.Add(after)
	e.Crashes = append(e.Crashes, Crash{From: from, Until: from.Add(lasts), Agent: agent})
}

// fail gives the last delivery all attempts, of which each had its request, and none a 2xx.
func (e *Evidence) fail() (row *Row) {
	r := e.last()
	r.Status, r.Whole = 500, time.Time{}
	for retry := 1; retry < lastAttempt; retry++ {
		next := *r
		next.Retry, next.At = retry, r.At.Add(time.Duration(retry)*time.Second)
		e.Requests = append(e.Requests, next)
	}
	row = &e.Rows[len(e.Rows)-1]
	row.Status, row.Attempts = webhook.Failed, lastAttempt
	return row
}

// undo lets the database go on without the last delivery's event.
func (e *Evidence) undo() {
	for i := range e.Events {
		if e.Events[i].ID == e.last().Event {
			e.Events[i].Fate = Undone
			delete(e.Outbox, e.Events[i].ID)
		}
	}
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

// A delivery that is sent again after a crash, and refused this time, is retried: it is
// one whose outcome was lost, and not two.
func TestOracleCountsADeliveryOnceForACrash(t *testing.T) {
	t.Parallel()
	e := clean()
	e.PerCrash = 1
	e.crash(time.Second, 0, "")
	e.repeat(func(r *Request) { r.Status = 500 })
	e.repeat(func(r *Request) { r.Retry, r.At = 1, r.At.Add(time.Second) })
	e.Rows[len(e.Rows)-1].Attempts = 2
	v := judge(e)
	if err := v.Err(); err != nil || v.Duplicates != 2 {
		t.Errorf("%d duplicates, want 2; %v", v.Duplicates, err)
	}
}

func TestOracleGoesRed(t *testing.T) {
	t.Parallel()
	unchanged := func(*Request) {}
	tests := map[string]struct {
		rule   string
		doctor func(*Evidence)
	}{
		"a delivery that was never sent": {lost, func(e *Evidence) { e.Requests = e.Requests[1 : len(e.Requests)-1] }},
		"a delivery that was only answered 500": {lost, func(e *Evidence) {
			e.last().Status = 500
		}},
		"a delivery that was never answered":             {lost, func(e *Evidence) { e.last().Status = 0 }},
		"a delivery whose event nobody heard of, unsent": {lost, func(e *Evidence) { e.Events[1].Fate = Committed; e.dropRequests(e.Events[1].ID) }},
		"an event that was rolled back and sent": {phantom, func(e *Evidence) {
			e.repeat(func(r *Request) { r.Event = e.Events[2].ID })
		}},
		"an event of unknown fate that is not in the table, sent": {phantom, func(e *Evidence) { delete(e.Outbox, e.Events[1].ID) }},
		"an event that nobody made": {phantom, func(e *Evidence) {
			e.repeat(func(r *Request) { r.Event = uuid.Must(uuid.NewV7()) })
		}},
		"an event sent to an endpoint that does not want it": {phantom, func(e *Evidence) { e.last().Endpoint = 1 }},
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
			e.Rows = append(e.Rows, Row{ID: outbox.DeliveryID(e.Events[2].ID, id), Event: e.Events[2].ID, Endpoint: id, Status: webhook.Pending})
		}},
		"a row under another id":            {rowBeyond, func(e *Evidence) { e.Rows[0].ID = uuid.New() }},
		"a row that waits":                  {notFinal, func(e *Evidence) { e.Rows[1].Status = webhook.Retrying }},
		"a row that was cancelled":          {notFinal, func(e *Evidence) { e.Rows[1].Status = webhook.Cancelled }},
		"a failure before the last attempt": {attemptsWrong, func(e *Evidence) { e.Rows[1].Status = webhook.Failed }},
		"a success that no request explains": {attemptsWrong, func(e *Evidence) {
			e.Rows[1].Attempts = 3
		}},
		"an attempt that is not recorded": {attemptsWrong, func(e *Evidence) { e.Rows[0].Attempts = 1; e.Requests[0].Status = 200 }},
		"a failure although the last attempt got a whole 2xx": {attemptsWrong, func(e *Evidence) {
			e.fail()
			r := &e.Requests[len(e.Requests)-1]
			r.Status, r.Whole = 204, r.At.Add(answersIn)
		}},
		"a failure of which one attempt never came": {attemptsWrong, func(e *Evidence) {
			e.fail()
			e.Requests = slices.Delete(e.Requests, len(e.Requests)-3, len(e.Requests)-2)
		}},
		"a failure after a single request": {attemptsWrong, func(e *Evidence) {
			e.fail()
			e.Requests = e.Requests[:len(e.Requests)-lastAttempt+1]
		}},
		"a success of which one attempt never came": {attemptsWrong, func(e *Evidence) {
			e.Rows[len(e.Rows)-1].Attempts = 2
			e.last().Retry = 1
		}},
		"a duplicate with different bytes": {bytesDiffer, func(e *Evidence) {
			e.crash(time.Second, 0, "")
			e.repeat(func(r *Request) { r.Body[0]++ })
		}},
		"a duplicate with another delivery id": {deliveryDiffers, func(e *Evidence) {
			e.crash(time.Second, 0, "")
			e.repeat(func(r *Request) { r.Delivery = uuid.New() })
		}},
		"another event's data":                {contentWrong, func(e *Evidence) { e.last().N++ }},
		"another event type":                  {contentWrong, func(e *Evidence) { e.last().Type = "org.deleted" }},
		"a signature that does not verify":    {malformedRequest, func(e *Evidence) { e.last().Malformed = "no signature matches" }},
		"a duplicate without a crash":         {repeated, func(e *Evidence) { e.repeat(unchanged) }},
		"a duplicate attempt without a crash": {repeated, func(e *Evidence) { e.last().Status = 500; e.repeat(func(r *Request) { r.Status = 200 }) }},
		"an attempt after a 2xx":              {repeated, func(e *Evidence) { e.repeat(func(r *Request) { r.Retry++ }) }},
		"a duplicate before the crash":        {repeated, func(e *Evidence) { e.crash(repeatsAfter+time.Second, 0, ""); e.repeat(unchanged) }},
		"a duplicate of what came after the crash": {repeated, func(e *Evidence) {
			e.crash(-time.Second, 0, "")
			e.repeat(unchanged)
		}},
		"a duplicate after a crash that nobody has ended": {repeated, func(e *Evidence) {
			e.crash(time.Second, 0, "")
			e.Crashes[0].Until = time.Time{}
			e.repeat(unchanged)
		}},
		"a duplicate after the crash of a walhook that sent neither": {repeated, func(e *Evidence) {
			e.crash(time.Second, 0, "walhook-2")
			e.repeat(unchanged)
		}},
		"a second duplicate after the crash": {repeated, func(e *Evidence) {
			e.PerCrash = 2
			e.crash(time.Second, 0, "")
			e.repeat(unchanged)
			e.repeat(func(r *Request) { r.At = r.At.Add(time.Second) })
		}},
		"more duplicates than one of two crashes allows": {tooMany, func(e *Evidence) {
			e.crash(time.Second, 0, "")
			e.crash(repeatsAfter+time.Second, 0, "")
			first := e.Requests[1]
			first.At = first.At.Add(repeatsAfter)
			e.repeat(unchanged)
			e.Requests = append(e.Requests, first)
		}},
		"an event that is gone, under another delivery id": {deliveryDiffers, func(e *Evidence) {
			e.undo()
			e.last().Delivery = uuid.New()
			e.Rows = e.Rows[:len(e.Rows)-1]
		}},
		"an event that is gone, with another's data": {contentWrong, func(e *Evidence) { e.undo(); e.last().N++ }},
		"an event that is gone, twice":               {repeated, func(e *Evidence) { e.undo(); e.repeat(unchanged) }},
		"an event that is gone, with different bytes": {bytesDiffer, func(e *Evidence) {
			e.undo()
			e.crash(time.Second, 0, "")
			e.repeat(func(r *Request) { r.Body[0]++ })
		}},
		"an event that is gone, to an endpoint that does not want it": {phantom, func(e *Evidence) { e.undo(); e.last().Endpoint = 1 }},
		"an event that is gone, as a success that no request explains": {attemptsWrong, func(e *Evidence) {
			e.undo()
			e.last().Status = 500
		}},
		"an event that is gone, and still in the outbox": {outboxDiffers, func(e *Evidence) {
			owed := e.Outbox[e.last().Event]
			e.undo()
			e.Outbox[e.last().Event] = owed
		}},
		"what the monitor saw": {online, func(e *Evidence) { e.Online = []string{"a row is missing"} }},
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
			e.crash(time.Second, 0, "")
			e.repeat(func(*Request) {})
		},
		"a duplicate after its sender's crash": func(e *Evidence) {
			e.crash(time.Second, 0, "walhook-1")
			e.repeat(func(r *Request) { r.Agent = "walhook-2" })
		},
		"a duplicate of what came while the fault lasted": func(e *Evidence) {
			e.crash(-time.Second, 5*time.Second, "")
			e.repeat(func(*Request) {})
		},
		"a duplicate of what was on its way at the crash": func(e *Evidence) {
			e.crash(-seenWithin/2, 0, "")
			e.repeat(func(*Request) {})
		},
		"as many duplicates as two crashes allow": func(e *Evidence) {
			e.crash(time.Second, 0, "")
			e.crash(repeatsAfter+time.Second, 0, "")
			e.repeat(func(*Request) {})
			e.repeat(func(r *Request) { r.At = r.At.Add(repeatsAfter) })
		},
		"attempts after a 2xx that a crash has lost": func(e *Evidence) {
			e.PerCrash = 2
			e.crash(time.Second, 0, "")
			e.Rows[len(e.Rows)-1].Attempts = 2
			e.repeat(func(r *Request) { r.Status = 500 })
			e.repeat(func(r *Request) { r.At, r.Retry = r.At.Add(time.Second), 1 })
		},
		"a failure after the last attempt": func(e *Evidence) { e.fail() },
		"a failure whose last 2xx was cut": func(e *Evidence) {
			e.fail()
			e.Requests[len(e.Requests)-1].Status = 200
		},
		"a failure whose last 2xx came late": func(e *Evidence) {
			e.fail()
			r := &e.Requests[len(e.Requests)-1]
			r.Status, r.Whole = 200, r.At.Add(timeout)
		},
		"a failure where attempts do not reach the receiver": func(e *Evidence) {
			e.fail()
			e.Endpoints[0].URL = "http://10.0.0.1/"
			e.Requests = e.Requests[:len(e.Requests)-lastAttempt+1]
		},
		"an event that is gone, sent, with its row": func(e *Evidence) { e.undo() },
		"an event that is gone, unsent and without a row": func(e *Evidence) {
			e.undo()
			e.dropRequests(e.last().Event)
			e.Rows = e.Rows[:len(e.Rows)-1]
		},
		"an event that is gone, cancelled": func(e *Evidence) {
			e.undo()
			e.last().Status = 500
			e.Rows[len(e.Rows)-1].Status = webhook.Cancelled
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
