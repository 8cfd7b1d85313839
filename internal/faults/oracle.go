package faults

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/walhook/walhook/outbox"
)

// A Verdict is what the oracle found.
type Verdict struct {
	Events     int // committed
	Deliveries int // owed
	Requests   int
	Duplicates int // requests beyond what was necessary
	Failed     int // rows that ended without success
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
	tooMany          = "more duplicates than the crashes allow"
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
	o := &oracle{Evidence: e, verdict: &Verdict{Requests: len(e.Requests)}, events: map[uuid.UUID]*Event{}, deliveries: map[uuid.UUID]*delivery{}}
	o.expect()
	o.sortRequests()
	o.sortRows()
	for _, d := range o.deliveries {
		o.judgeDelivery(d)
	}
	if most := e.Crashes * e.PerCrash; o.verdict.Duplicates > most {
		o.verdict.found(tooMany, "%d after %d crashes, at most %d", o.verdict.Duplicates, e.Crashes, most)
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
	o.verdict.Deliveries = len(o.deliveries)
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
		if d == nil && o.undone(r.Event, r.Endpoint) && r.Delivery == id {
			continue
		}
		if d == nil {
			o.verdict.found(phantom, "event %s (%s) to endpoint %d at %s", r.Event, r.Type, r.Endpoint, r.At.Format("15:04:05.000"))
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

// undone says whether a delivery was owed until the database went on without its event.
func (o *oracle) undone(event uuid.UUID, endpoint int) bool {
	e := o.events[event]
	return e != nil && e.Fate == Undone && o.Endpoints[endpoint].owed(e.Org, e.Type)
}

// sortRows gives each row to its delivery.
func (o *oracle) sortRows() {
	for i := range o.Rows {
		r := &o.Rows[i]
		d := o.deliveries[r.ID]
		if e := o.events[r.Event]; d == nil && e != nil && e.Fate == Undone && r.ID == outbox.DeliveryID(r.Event, r.Endpoint) {
			continue
		}
		if d == nil || d.event.ID != r.Event || o.Endpoints[d.endpoint].ID != r.Endpoint {
			o.verdict.found(rowBeyond, "row %s of event %s (%s)", r.ID, r.Event, r.Status)
			continue
		}
		d.rows = append(d.rows, r)
	}
}

func (o *oracle) judgeDelivery(d *delivery) {
	switch len(d.rows) {
	case 0:
		o.verdict.found(rowMissing, "delivery %s of event %s, committed at %s", d.id, d.event.ID, d.event.Began.Format("15:04:05.000"))
	case 1:
		o.judgeRow(d, d.rows[0])
	default:
		o.verdict.found(rowBeyond, "delivery %s has %d rows", d.id, len(d.rows))
	}
	delivered, seen, bodies := false, map[int]bool{}, map[[sha256.Size]byte]bool{}
	for _, r := range d.requests {
		if delivered || seen[r.Retry] {
			o.verdict.Duplicates++
		}
		delivered = delivered || succeeded(r)
		seen[r.Retry], bodies[r.Body] = true, true
	}
	if len(bodies) > 1 {
		o.verdict.found(bytesDiffer, "delivery %s: %d bodies in %d requests", d.id, len(bodies), len(d.requests))
	}
	failed := len(d.rows) == 1 && d.rows[0].Status == outbox.Failed
	if !delivered && !failed {
		o.verdict.found(lost, "delivery %s of event %s, committed at %s: %d requests", d.id, d.event.ID, d.event.Began.Format("15:04:05.000"), len(d.requests))
	}
}

func succeeded(r *Request) bool { return r.Status >= 200 && r.Status < 300 }

func (o *oracle) judgeRow(d *delivery, row *Row) {
	highest, answered := -1, false
	for _, r := range d.requests {
		highest = max(highest, r.Retry)
		answered = answered || r.Retry == row.Attempts-1 && succeeded(r)
	}
	switch {
	case row.Status != outbox.Success && row.Status != outbox.Failed:
		o.verdict.found(notFinal, "delivery %s is %s after %d attempts", d.id, row.Status, row.Attempts)
	case row.Status == outbox.Success && !answered:
		o.verdict.found(attemptsWrong, "delivery %s is a success after %d attempts, and request %d got no 2xx", d.id, row.Attempts, row.Attempts-1)
	case row.Status == outbox.Failed && row.Attempts != o.LastAttempt:
		o.verdict.found(attemptsWrong, "delivery %s failed after %d attempts, the last is %d", d.id, row.Attempts, o.LastAttempt)
	case highest+1 > row.Attempts:
		o.verdict.found(attemptsWrong, "delivery %s: %d attempts, and request %d was sent", d.id, row.Attempts, highest)
	}
	if row.Status == outbox.Failed {
		o.verdict.Failed++
	}
}
