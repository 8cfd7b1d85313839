package faults

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// A Verdict is what the oracle found.
type Verdict struct {
	Events     int // committed
	Deliveries int // owed
	Requests   int
	Duplicates int   // requests beyond what was necessary
	Failed     int   // rows that ended without success
	perCrash   []int // deliveries with requests that were repeated for it
	problems   map[string][]string
}

// The problems, as rules that were broken.
const (
	lost             = "an owed delivery never got a 2xx and is not failed"
	phantom          = "a request for an event that was not committed, or not owed to this endpoint"
	rowMissing       = "an owed delivery without a row"
	rowBeyond        = "a row that is not owed, or is there twice"
	outboxDiffers    = "webhook_outbox does not hold what the driver committed"
	notFinal         = "a row that is not final"
	attemptsWrong    = "a row's attempts do not match the requests"
	bytesDiffer      = "requests of one delivery with different bytes"
	deliveryDiffers  = "a delivery id that is not that of its event and endpoint"
	contentWrong     = "a request whose content is not the event's"
	malformedRequest = "a request that does not verify"
	repeated         = "a request was repeated, and no crash lies between the two"
	tooMany          = "more duplicates than a crash allows"
	online           = "seen while running"
)

func (v *Verdict) found(rule, format string, args ...any) {
	if v.problems == nil {
		v.problems = map[string][]string{}
	}
	v.problems[rule] = append(v.problems[rule], fmt.Sprintf(format, args...))
}

// Err is nil where nothing is wrong; else it names each broken rule, how often,
// and the first few cases.
func (v *Verdict) Err() error {
	if len(v.problems) == 0 {
		return nil
	}
	const cases = 4
	var b strings.Builder
	for rule, found := range v.problems {
		fmt.Fprintf(&b, "\n%d × %s", len(found), rule)
		for _, one := range found[:min(cases, len(found))] {
			fmt.Fprintf(&b, "\n      %s", one)
		}
	}
	return fmt.Errorf("the oracle found:%s", b.String())
}

// broke says whether a rule was broken.
func (v *Verdict) broke(rule string) bool { return len(v.problems[rule]) > 0 }

// A delivery is what the three sources say of one event owed to one endpoint.
type delivery struct {
	id       uuid.UUID
	event    *Event
	endpoint int
	undone   bool // the database went on without its event: it need not have come to an end
	requests []*Request
	rows     []*Row
}

// An oracle lays the three sources side by side.
type oracle struct {
	*Evidence
	verdict    *Verdict
	events     map[uuid.UUID]*Event
	deliveries map[uuid.UUID]*delivery
}

// judge compares what was committed with what was sent and what was recorded.
func judge(e *Evidence) *Verdict {
	o := &oracle{Evidence: e, verdict: &Verdict{Requests: len(e.Requests), perCrash: make([]int, len(e.Crashes))}, events: map[uuid.UUID]*Event{}, deliveries: map[uuid.UUID]*delivery{}}
	o.expect()
	o.sortRequests()
	o.sortRows()
	for _, d := range o.deliveries {
		o.judgeDelivery(d)
	}
	for i, n := range o.verdict.perCrash {
		if n > e.PerCrash {
			o.verdict.found(tooMany, "%d for crash %d of %d, at %s, at most %d", n, i+1, len(e.Crashes), clock(e.Crashes[i].From), e.PerCrash)
		}
	}
	for _, p := range e.Online {
		o.verdict.found(online, "%s", p)
	}
	return o.verdict
}

// expect makes the deliveries that are owed, and compares the outbox.
func (o *oracle) expect() {
	for i := range o.Events {
		e := &o.Events[i]
		stored, there := o.Outbox[e.ID]
		committed := e.Fate == Committed || e.Fate == Unknown && there
		o.events[e.ID] = e
		if there != committed {
			o.verdict.found(outboxDiffers, "event %s: committed %t, in the table %t", e.ID, committed, there)
		}
		if e.Fate == Undone {
			o.mayOwe(e)
		}
		if !committed {
			continue
		}
		o.verdict.Events++
		owed := 0
		for k := range o.Endpoints {
			if !o.Endpoints[k].owed(e.Org, e.Type) {
				continue
			}
			owed++
			o.verdict.Deliveries++
			id := outbox.DeliveryID(e.ID, o.Endpoints[k].ID)
			o.deliveries[id] = &delivery{id: id, event: e, endpoint: k}
			if there && !slices.Contains(stored, o.Endpoints[k].ID) {
				o.verdict.found(outboxDiffers, "event %s (%s) is not owed to endpoint %d", e.ID, e.Type, k)
			}
		}
		if there && len(stored) != owed {
			o.verdict.found(outboxDiffers, "event %s (%s) is owed to %d endpoints, want %d", e.ID, e.Type, len(stored), owed)
		}
	}
}

// mayOwe makes the deliveries of an event that is gone: nothing need have come of
// them, but what came is judged as ever.
func (o *oracle) mayOwe(e *Event) {
	for k := range o.Endpoints {
		if o.Endpoints[k].owed(e.Org, e.Type) {
			id := outbox.DeliveryID(e.ID, o.Endpoints[k].ID)
			o.deliveries[id] = &delivery{id: id, event: e, endpoint: k, undone: true}
		}
	}
}

// sortRequests gives each request to its delivery.
func (o *oracle) sortRequests() {
	for i := range o.Requests {
		r := &o.Requests[i]
		if r.Malformed != "" {
			o.verdict.found(malformedRequest, "delivery %s: %s", r.Delivery, r.Malformed)
		}
		id := outbox.DeliveryID(r.Event, o.Endpoints[r.Endpoint].ID)
		d := o.deliveries[id]
		if d == nil {
			o.verdict.found(phantom, "event %s (%s) to endpoint %d at %s", r.Event, r.Type, r.Endpoint, clock(r.At))
			continue
		}
		if r.Delivery != id {
			o.verdict.found(deliveryDiffers, "event %s to endpoint %d as %s, want %s", r.Event, r.Endpoint, r.Delivery, id)
		}
		if r.N != d.event.N || r.Type != d.event.Type {
			o.verdict.found(contentWrong, "delivery %s: n %d of type %s, want %d of %s", id, r.N, r.Type, d.event.N, d.event.Type)
		}
		d.requests = append(d.requests, r)
	}
}

// sortRows gives each row to its delivery.
func (o *oracle) sortRows() {
	for i := range o.Rows {
		r := &o.Rows[i]
		d := o.deliveries[r.ID]
		if d == nil || d.event.ID != r.Event || o.Endpoints[d.endpoint].ID != r.Endpoint {
			o.verdict.found(rowBeyond, "row %s of event %s (%s)", r.ID, r.Event, r.Status)
			continue
		}
		d.rows = append(d.rows, r)
	}
}

func (o *oracle) judgeDelivery(d *delivery) {
	switch {
	case len(d.rows) == 1:
		o.judgeRow(d, d.rows[0])
	case len(d.rows) > 1:
		o.verdict.found(rowBeyond, "delivery %s has %d rows", d.id, len(d.rows))
	case !d.undone:
		o.verdict.found(rowMissing, "delivery %s of event %s, committed at %s", d.id, d.event.ID, clock(d.event.Began))
	}
	delivered, bodies := false, map[[sha256.Size]byte]bool{}
	for _, r := range d.requests {
		delivered = delivered || succeeded(r)
		bodies[r.Body] = true
	}
	if len(bodies) > 1 {
		o.verdict.found(bytesDiffer, "delivery %s: %d bodies in %d requests", d.id, len(bodies), len(d.requests))
	}
	failed := len(d.rows) == 1 && d.rows[0].Status == webhook.Failed
	if !delivered && !failed && !d.undone {
		o.verdict.found(lost, "delivery %s of event %s, committed at %s: %d requests", d.id, d.event.ID, clock(d.event.Began), len(d.requests))
	}
	o.judgeRepeats(d)
}

func clock(at time.Time) string { return at.Format("15:04:05.000") }

func succeeded(r *Request) bool { return r.Status >= 200 && r.Status < 300 }

// judgeRepeats looks for requests that were not necessary: those after a 2xx, and
// those with the Retry of one before. Each counts for the first crash that lies
// between the last request which made it unnecessary and itself: an outcome that
// outlived a crash is lost in none that comes later. For each crash a delivery counts
// once: what was sent again and refused this time is retried.
func (o *oracle) judgeRepeats(d *delivery) {
	var last *Request // with a 2xx
	same := map[int]*Request{}
	crashes := map[int]bool{}
	for _, r := range d.requests {
		before := last
		if other := same[r.Retry]; before == nil || other != nil && other.At.After(before.At) {
			before = other
		}
		if before != nil {
			if crash := o.blame(d, before, r); crash >= 0 {
				crashes[crash] = true
			}
		}
		same[r.Retry] = r
		if succeeded(r) {
			last = r
		}
	}
	for crash := range crashes {
		o.verdict.perCrash[crash]++
	}
}

// blame returns the crash that a request was repeated for.
func (o *oracle) blame(d *delivery, before, again *Request) (crash int) {
	o.verdict.Duplicates++
	crash = slices.IndexFunc(o.Crashes, func(c Crash) bool { return c.excuses(before, again) })
	if crash < 0 {
		o.verdict.found(repeated, "delivery %s: request %d of %s at %s (%d), then %d of %s at %s", d.id, before.Retry, before.Agent, clock(before.At), before.Status,
			again.Retry, again.Agent, clock(again.At))
	}
	return crash
}

// inTime is how soon an answer is in time for every walhook of a trial, whatever
// its timeout is: what is written by then has been read.
const inTime = time.Second

// heard says whether the sender must have got a 2xx for a request.
func heard(r *Request) bool {
	return succeeded(r) && !r.Whole.IsZero() && r.Whole.Sub(r.At) < inTime
}

func (o *oracle) judgeRow(d *delivery, row *Row) {
	highest, answered, came := -1, false, map[int]bool{}
	var last *Request // of those for the last attempt
	for _, r := range d.requests {
		highest = max(highest, r.Retry)
		came[r.Retry] = true
		if r.Retry == row.Attempts-1 {
			last, answered = r, answered || succeeded(r)
		}
	}
	switch {
	case row.Status != webhook.Success && row.Status != webhook.Failed:
		if !d.undone {
			o.verdict.found(notFinal, "delivery %s is %s after %d attempts", d.id, row.Status, row.Attempts)
		}
	case row.Status == webhook.Success && !answered:
		o.verdict.found(attemptsWrong, "delivery %s is a success after %d attempts, and request %d got no 2xx", d.id, row.Attempts, row.Attempts-1)
	case row.Status == webhook.Failed && row.Attempts != o.LastAttempt:
		o.verdict.found(attemptsWrong, "delivery %s failed after %d attempts, the last is %d", d.id, row.Attempts, o.LastAttempt)
	case row.Status == webhook.Failed && last != nil && heard(last):
		o.verdict.found(attemptsWrong, "delivery %s failed after %d attempts, and request %d got a whole %d in time", d.id, row.Attempts, last.Retry, last.Status)
	case highest+1 > row.Attempts:
		o.verdict.found(attemptsWrong, "delivery %s: %d attempts, and request %d was sent", d.id, row.Attempts, highest)
	case o.Endpoints[d.endpoint].reached() && len(came) < row.Attempts:
		o.verdict.found(attemptsWrong, "delivery %s: %d attempts, and requests came for %d of them", d.id, row.Attempts, len(came))
	}
	if row.Status == webhook.Failed {
		o.verdict.Failed++
	}
}
