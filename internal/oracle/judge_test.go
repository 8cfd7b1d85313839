package oracle

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
	e := &Evidence{PerCrash: 1, LastAttempt: lastAttempt, Outbox: map[uuid.UUID]Stored{}, Endpoints: []Endpoint{
		{Org: "org_1", Types: []string{"*"}},
		{Org: "org_1", Types: []string{"payment.*"}},
		{Org: "org_1", Types: []string{"payment.succeeded", "subscription.*"}},
	}}
	for i := range e.Endpoints {
		e.Endpoints[i].ID = uuid.Must(uuid.NewV7())
	}
	for _, typ := range []string{"payment.succeeded", "payment.failed", "subscription.created", "org.created"} {
		for _, fate := range []Fate{Committed, Unknown, RolledBack} {
			e.Events = append(e.Events, Event{ID: uuid.Must(uuid.NewV7()), Org: "org_1", Type: typ, N: int64(len(e.Events)), Fate: fate, Began: time.Now()})
		}
	}
	for _, event := range e.Events {
		if event.Fate == RolledBack {
			continue
		}
		e.Outbox[event.ID] = Stored{Org: event.Org, Type: event.Type, Data: sha256.Sum256([]byte(strconv.FormatInt(event.N, 10)))}
		for i := range e.Endpoints {
			if e.Endpoints[i].Owed(event.Org, event.Type) {
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

const lastAttempt = 15

// answersIn is how long the receivers take in clean evidence.
const answersIn = 10 * time.Millisecond

func (e *Evidence) deliver(event Event, endpoint int) {
	at := time.Now()
	id := e.Endpoints[endpoint].ID
	stored := e.Outbox[event.ID]
	stored.Endpoints = append(stored.Endpoints, id)
	e.Outbox[event.ID] = stored
	delivery := outbox.DeliveryID(event.ID, id)
	e.Rows = append(e.Rows, Row{ID: delivery, Event: event.ID, Endpoint: id, Org: event.Org, Status: webhook.Success, Attempts: 1})
	e.Requests = append(e.Requests, Request{
		Endpoint: endpoint, Delivery: delivery, Event: event.ID, Org: event.Org, N: event.N, Type: event.Type, Status: 200,
		Data: stored.Data, Body: stored.Data, At: at, Whole: at.Add(answersIn), Agent: "walhook-1",
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

// breaks has the connection of a request break.
func (r *Request) breaks() { r.Status, r.Broken, r.Whole = 0, true, time.Time{} }

// resend sends the last delivery again at once.
func (e *Evidence) resend() {
	e.repeat(func(r *Request) { r.At, r.Status, r.Broken = e.last().At.Add(time.Second), 200, false })
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

// store changes what the outbox has of an event.
func (e *Evidence) store(event int, change func(*Stored)) {
	s := e.Outbox[e.Events[event].ID]
	s.Endpoints = slices.Clone(s.Endpoints)
	change(&s)
	e.Outbox[e.Events[event].ID] = s
}

// replay sends the last delivery again, because an operator wants it.
func (e *Evidence) replay() {
	e.Replays = map[uuid.UUID]int{e.last().Delivery: 1}
	e.repeat(func(r *Request) { r.Retry = 1 })
	e.Rows[len(e.Rows)-1].Attempts = 2
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

// An operators' endpoint is owed walhook's own events of every organization, and nothing else.
func TestOperatorsAreOwed(t *testing.T) {
	t.Parallel()
	all, exhausted := Endpoint{Org: "ops", Types: []string{"*"}, ForAll: true}, Endpoint{Org: "ops", Types: []string{"webhook.delivery.exhausted"}, ForAll: true}
	for _, c := range []struct {
		org, event     string
		all, exhausted bool
	}{
		{"org_1", "webhook.endpoint.failing", true, false},
		{"org_1", "webhook.delivery.exhausted", true, true},
		{"ops", "payment.failed", false, false},
	} {
		if got, few := all.Owed(c.org, c.event), exhausted.Owed(c.org, c.event); got != c.all || few != c.exhausted {
			t.Errorf("%s of %s: %t and %t, want %t and %t", c.event, c.org, got, few, c.all, c.exhausted)
		}
	}
}

func TestOracleFindsNothingWrong(t *testing.T) {
	t.Parallel()
	v := Judge(clean())
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
	v := Judge(e)
	if err := v.Err(); err != nil || v.Duplicates != 2 {
		t.Errorf("%d duplicates, want 2; %v", v.Duplicates, err)
	}
}

func TestOracleGoesRed(t *testing.T) {
	t.Parallel()
	unchanged := func(*Request) {}
	tests := map[string]struct {
		rule   Rule
		doctor func(*Evidence)
	}{
		"a delivery that was never sent": {Lost, func(e *Evidence) { e.Requests = e.Requests[1 : len(e.Requests)-1] }},
		"a delivery that was only answered 500": {Lost, func(e *Evidence) {
			e.last().Status = 500
		}},
		"a delivery that was never answered":             {Lost, func(e *Evidence) { e.last().Status = 0 }},
		"a delivery whose event nobody heard of, unsent": {Lost, func(e *Evidence) { e.Events[1].Fate = Committed; e.dropRequests(e.Events[1].ID) }},
		"an event that was rolled back and sent": {Phantom, func(e *Evidence) {
			e.repeat(func(r *Request) { r.Event = e.Events[2].ID })
		}},
		"an event of unknown fate that is not in the table, sent": {Phantom, func(e *Evidence) { delete(e.Outbox, e.Events[1].ID) }},
		"an event that nobody made": {Phantom, func(e *Evidence) {
			e.repeat(func(r *Request) { r.Event = uuid.Must(uuid.NewV7()) })
		}},
		"an event sent to an endpoint that does not want it": {Phantom, func(e *Evidence) { e.last().Endpoint = 1 }},
		"a committed event that is not in the outbox":        {OutboxDiffers, func(e *Evidence) { delete(e.Outbox, e.Events[0].ID) }},
		"a rolled back event in the outbox":                  {OutboxDiffers, func(e *Evidence) { e.Outbox[e.Events[2].ID] = Stored{} }},
		"an event in the outbox that nobody committed":       {OutboxDiffers, func(e *Evidence) { e.Outbox[uuid.New()] = Stored{} }},
		"an event of another type in the outbox":             {OutboxDiffers, func(e *Evidence) { e.store(0, func(s *Stored) { s.Type = "org.deleted" }) }},
		"an event of another organization in the outbox":     {OutboxDiffers, func(e *Evidence) { e.store(0, func(s *Stored) { s.Org = "org_2" }) }},
		"an event owed to one endpoint too few":              {OwedDiffers, func(e *Evidence) { e.store(0, func(s *Stored) { s.Endpoints = s.Endpoints[1:] }) }},
		"an event owed to a stranger":                        {OwedDiffers, func(e *Evidence) { e.store(0, func(s *Stored) { s.Endpoints = append(s.Endpoints, uuid.New()) }) }},
		"an event owed to a stranger instead":                {OwedDiffers, func(e *Evidence) { e.store(0, func(s *Stored) { s.Endpoints[0] = uuid.New() }) }},
		"a row that is missing":                              {RowMissing, func(e *Evidence) { e.Rows = e.Rows[1:] }},
		"a row that is there twice": {RowBeyond, func(e *Evidence) {
			e.Rows = append(e.Rows, e.Rows[0])
		}},
		"a row for an event that was rolled back": {RowBeyond, func(e *Evidence) {
			id := e.Endpoints[0].ID
			e.Rows = append(e.Rows, Row{ID: outbox.DeliveryID(e.Events[2].ID, id), Event: e.Events[2].ID, Endpoint: id, Status: webhook.Pending})
		}},
		"a row of another organization":     {RowBeyond, func(e *Evidence) { e.Rows[0].Org = "org_2" }},
		"a row under another id":            {RowBeyond, func(e *Evidence) { e.Rows[0].ID = uuid.New() }},
		"a row that waits":                  {NotFinal, func(e *Evidence) { e.Rows[1].Status = webhook.Retrying }},
		"a row that was cancelled":          {NotFinal, func(e *Evidence) { e.Rows[1].Status = webhook.Cancelled }},
		"a failure before the last attempt": {AttemptsWrong, func(e *Evidence) { e.Rows[1].Status = webhook.Failed }},
		"a success that no request explains": {AttemptsWrong, func(e *Evidence) {
			e.Rows[1].Attempts = 3
		}},
		"an attempt that is not recorded": {AttemptsWrong, func(e *Evidence) { e.Rows[0].Attempts = 1; e.Requests[0].Status = 200 }},
		"a failure although the last attempt got a whole 2xx": {AttemptsWrong, func(e *Evidence) {
			e.fail()
			r := &e.Requests[len(e.Requests)-1]
			r.Status, r.Whole = 204, r.At.Add(answersIn)
		}},
		"a failure of which one attempt never came": {AttemptsWrong, func(e *Evidence) {
			e.fail()
			e.Requests = slices.Delete(e.Requests, len(e.Requests)-3, len(e.Requests)-2)
		}},
		"a failure after a single request": {AttemptsWrong, func(e *Evidence) {
			e.fail()
			e.Requests = e.Requests[:len(e.Requests)-lastAttempt+1]
		}},
		"a success of which one attempt never came": {AttemptsWrong, func(e *Evidence) {
			e.Rows[len(e.Rows)-1].Attempts = 2
			e.last().Retry = 1
		}},
		"a duplicate with different bytes": {BytesDiffer, func(e *Evidence) {
			e.crash(time.Second, 0, "")
			e.repeat(func(r *Request) { r.Body[0]++ })
		}},
		"a duplicate with another delivery id": {DeliveryDiffers, func(e *Evidence) {
			e.crash(time.Second, 0, "")
			e.repeat(func(r *Request) { r.Delivery = uuid.New() })
		}},
		"another event's data":                {ContentWrong, func(e *Evidence) { e.last().N++ }},
		"other data than is in the outbox":    {ContentWrong, func(e *Evidence) { e.last().Data[0]++ }},
		"another organization":                {ContentWrong, func(e *Evidence) { e.last().Org = "org_2" }},
		"another event type":                  {ContentWrong, func(e *Evidence) { e.last().Type = "org.deleted" }},
		"a signature that does not verify":    {MalformedRequest, func(e *Evidence) { e.last().Malformed = "no signature matches" }},
		"a duplicate without a crash":         {Repeated, func(e *Evidence) { e.repeat(unchanged) }},
		"a duplicate attempt without a crash": {Repeated, func(e *Evidence) { e.last().Status = 500; e.repeat(func(r *Request) { r.Status = 200 }) }},
		"an attempt after a 2xx":              {Repeated, func(e *Evidence) { e.repeat(func(r *Request) { r.Retry++ }) }},
		"a request that went out again, and not because its connection broke": {Repeated, func(e *Evidence) { e.last().Status = 0; e.resend() }},
		"a request that went out again twice at once": {Repeated, func(e *Evidence) {
			e.last().breaks()
			e.resend()
			e.Requests[len(e.Requests)-1].breaks()
			e.resend()
		}},
		"a repeat after a replay that succeeded": {Repeated, func(e *Evidence) {
			e.replay()
			e.repeat(func(r *Request) { r.Retry, r.At = 2, r.At.Add(time.Second) })
			e.Rows[len(e.Rows)-1].Attempts = 3
		}},
		"a broken request, repeated by another process": {Repeated, func(e *Evidence) {
			e.last().breaks()
			e.resend()
			e.Requests[len(e.Requests)-1].Agent = "walhook-2"
		}},
		"an answered request, repeated at once": {Repeated, func(e *Evidence) {
			e.resend()
			e.last().Status = 500
		}},
		"a request that went out again late": {Repeated, func(e *Evidence) {
			e.last().breaks()
			e.repeat(func(r *Request) { r.Status, r.Broken = 200, false })
		}},
		"a duplicate before the crash": {Repeated, func(e *Evidence) { e.crash(repeatsAfter+time.Second, 0, ""); e.repeat(unchanged) }},
		"a duplicate of what came after the crash": {Repeated, func(e *Evidence) {
			e.crash(-time.Second, 0, "")
			e.repeat(unchanged)
		}},
		"a duplicate of what came after another walhook was killed": {Repeated, func(e *Evidence) {
			e.crash(-2*seenWithin, 0, "walhook-2")
			e.Crashes[0].Ended = true
			e.repeat(func(r *Request) { r.Agent = "walhook-2" })
		}},
		"a duplicate after a crash that nobody has ended": {Repeated, func(e *Evidence) {
			e.crash(time.Second, 0, "")
			e.Crashes[0].Until = time.Time{}
			e.repeat(unchanged)
		}},
		"a duplicate after the crash of a walhook that sent neither": {Repeated, func(e *Evidence) {
			e.crash(time.Second, 0, "walhook-2")
			e.repeat(unchanged)
		}},
		"a second duplicate after the crash": {Repeated, func(e *Evidence) {
			e.PerCrash = 2
			e.crash(time.Second, 0, "")
			e.repeat(unchanged)
			e.repeat(func(r *Request) { r.At = r.At.Add(time.Second) })
		}},
		"a second repeat after a replay": {Repeated, func(e *Evidence) {
			e.replay()
			e.repeat(func(r *Request) { r.Retry = 2 })
			e.Rows[len(e.Rows)-1].Attempts = 3
		}},
		"more duplicates than one of two crashes allows": {TooMany, func(e *Evidence) {
			e.crash(time.Second, 0, "")
			e.crash(repeatsAfter+time.Second, 0, "")
			first := e.Requests[1]
			first.At = first.At.Add(repeatsAfter)
			e.repeat(unchanged)
			e.Requests = append(e.Requests, first)
		}},
		"an event that is gone, under another delivery id": {DeliveryDiffers, func(e *Evidence) {
			e.undo()
			e.last().Delivery = uuid.New()
			e.Rows = e.Rows[:len(e.Rows)-1]
		}},
		"an event that is gone, with another's data": {ContentWrong, func(e *Evidence) { e.undo(); e.last().N++ }},
		"an event that is gone, twice":               {Repeated, func(e *Evidence) { e.undo(); e.repeat(unchanged) }},
		"an event that is gone, with different bytes": {BytesDiffer, func(e *Evidence) {
			e.undo()
			e.crash(time.Second, 0, "")
			e.repeat(func(r *Request) { r.Body[0]++ })
		}},
		"an event that is gone, to an endpoint that does not want it": {Phantom, func(e *Evidence) { e.undo(); e.last().Endpoint = 1 }},
		"an event that is gone, as a success that no request explains": {AttemptsWrong, func(e *Evidence) {
			e.undo()
			e.last().Status = 500
		}},
		"an event that is gone, and still in the outbox": {OutboxDiffers, func(e *Evidence) {
			owed := e.Outbox[e.last().Event]
			e.undo()
			e.Outbox[e.last().Event] = owed
		}},
		"what the monitor saw": {Online, func(e *Evidence) { e.Online = []string{"a row is missing"} }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := clean()
			tt.doctor(e)
			if v := Judge(e); len(v.Problems(tt.rule)) == 0 {
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
		"requests of two processes, whose connections both broke, and that both went out again": func(e *Evidence) {
			e.last().breaks()
			e.resend()
			e.Requests[len(e.Requests)-1].breaks()
			e.crash(5*time.Second, 0, "")
			e.repeat(func(r *Request) { r.Agent = "walhook-2" })
			e.repeat(func(r *Request) { r.Agent, r.At, r.Status, r.Broken = "walhook-2", r.At.Add(time.Second), 200, false })
		},
		"a request that goes out again at once because its connection broke": func(e *Evidence) {
			e.last().breaks()
			e.resend()
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
		"a duplicate of what was on its way for long when its sender was killed": func(e *Evidence) {
			e.crash(-2*seenWithin, 0, e.last().Agent)
			e.Crashes[0].Ended = true
			e.repeat(func(r *Request) { r.Agent = "walhook-2" })
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
		"a repeat after a replay": func(e *Evidence) { e.replay() },
		"a retry after a replay that failed": func(e *Evidence) {
			e.replay()
			e.Requests[len(e.Requests)-1].Status = 500
			e.repeat(func(r *Request) { r.Retry, r.At = 2, r.At.Add(time.Second) })
			e.Rows[len(e.Rows)-1].Attempts = 3
		},
		"a failure after the last attempt": func(e *Evidence) { e.fail() },
		"a failure whose last 2xx was cut": func(e *Evidence) {
			e.fail()
			e.Requests[len(e.Requests)-1].Status = 200
		},
		"a failure whose last 2xx came late": func(e *Evidence) {
			e.fail()
			r := &e.Requests[len(e.Requests)-1]
			r.Status, r.Whole = 200, r.At.Add(5*time.Second)
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
			if err := Judge(e).Err(); err != nil {
				t.Error(err)
			}
		})
	}
}
