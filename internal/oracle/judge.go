package oracle

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
	Events     int // committed by the application
	Deliveries int // owed
	Requests   int
	Duplicates int   // requests beyond what was necessary
	Resent     int   // requests that came again within their attempt, because the receiver had broken the connection
	Failed     int   // rows that ended without success
	perCrash   []int // deliveries with requests that were repeated for it
	problems   map[Rule][]string
}

// A Rule is what was broken.
type Rule string

// The rules.
const (
	Lost             Rule = "an owed delivery never got a 2xx and is not failed"
	Phantom          Rule = "a request for an event that was not committed, or not owed to this endpoint"
	RowMissing       Rule = "an owed delivery without a row"
	RowBeyond        Rule = "a row that is not owed, or is there twice"
	OutboxDiffers    Rule = "webhook_outbox does not hold what was committed"
	OwedDiffers      Rule = "webhook_outbox owes an event to other endpoints than those that subscribe to it"
	NotFinal         Rule = "a row that is not final"
	AttemptsWrong    Rule = "a row's attempts do not match the requests"
	BytesDiffer      Rule = "requests of one delivery with different bytes"
	DeliveryDiffers  Rule = "a delivery id that is not that of its event and endpoint"
	ContentWrong     Rule = "a request whose content is not the event's"
	MalformedRequest Rule = "a request that does not verify"
	Repeated         Rule = "a request was repeated, and no crash lies between the two"
	TooMany          Rule = "more duplicates than a crash allows"
	Online           Rule = "seen while running"
)

// Rules are all of them.
var Rules = []Rule{Lost, Phantom, RowMissing, RowBeyond, OutboxDiffers, OwedDiffers, NotFinal, AttemptsWrong, BytesDiffer, DeliveryDiffers,
	ContentWrong, MalformedRequest, Repeated, TooMany, Online}

// Found adds a case in which a rule was broken.
func (v *Verdict) Found(rule Rule, format string, args ...any) {
	if v.problems == nil {
		v.problems = map[Rule][]string{}
	}
	v.problems[rule] = append(v.problems[rule], fmt.Sprintf(format, args...))
}

// Problems returns the cases in which any of the rules was broken.
func (v *Verdict) Problems(rules ...Rule) (cases []string) {
	for _, rule := range rules {
		cases = append(cases, v.problems[rule]...)
	}
	return cases
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

// A delivery is what the three sources say of one event owed to one endpoint.
type delivery struct {
	id       uuid.UUID
	event    *Event
	endpoint int
	undone   bool // the database went on without its event: it need not have come to an end
	requests []*Request
	rows     []*Row
}

// A comparison lays the three sources side by side.
type comparison struct {
	*Evidence
	verdict    *Verdict
	events     map[uuid.UUID]*Event
	deliveries map[uuid.UUID]*delivery
}

// Judge compares what was committed with what was sent and what was recorded.
func Judge(e *Evidence) *Verdict {
	c := &comparison{Evidence: e, verdict: &Verdict{Requests: len(e.Requests), perCrash: make([]int, len(e.Crashes))}, events: map[uuid.UUID]*Event{}, deliveries: map[uuid.UUID]*delivery{}}
	c.expect()
	c.sortRequests()
	c.sortRows()
	for _, d := range c.deliveries {
		c.judgeDelivery(d)
	}
	for i, n := range c.verdict.perCrash {
		if n > e.PerCrash {
			c.verdict.Found(TooMany, "%d for crash %d of %d, at %s, at most %d", n, i+1, len(e.Crashes), Clock(e.Crashes[i].From), e.PerCrash)
		}
	}
	for _, p := range e.Online {
		c.verdict.Found(Online, "%s", p)
	}
	return c.verdict
}

// expect makes the deliveries that are owed, and compares the outbox.
func (c *comparison) expect() {
	for i := range c.Events {
		e := &c.Events[i]
		c.events[e.ID] = e
		stored, there := c.Outbox[e.ID]
		committed := e.Fate == Committed || e.Fate == Unknown && there
		switch {
		case there != committed:
			c.verdict.Found(OutboxDiffers, "event %s (%s): committed %t, in the table %t", e.ID, e.Type, committed, there)
		case there && (stored.Org != e.Org || stored.Type != e.Type):
			c.verdict.Found(OutboxDiffers, "event %s: %s of %s was committed, and %s of %s is in the table", e.ID, e.Type, e.Org, stored.Type, stored.Org)
		}
		if committed && !stored.own() {
			c.verdict.Events++
		}
		if committed || e.Fate == Undone {
			owed := c.owe(e)
			if there {
				c.compareOwed(e, stored.Endpoints, owed)
			}
		}
	}
	for id, stored := range c.Outbox {
		if c.events[id] == nil {
			c.verdict.Found(OutboxDiffers, "event %s (%s of %s) is in the table, and nobody committed it", id, stored.Type, stored.Org)
		}
	}
}

// owe makes an event's deliveries, and returns the endpoints. Of those of an event that
// is gone nothing need have come, but what came is judged as ever.
func (c *comparison) owe(e *Event) (owed []uuid.UUID) {
	for k := range c.Endpoints {
		if endpoint := &c.Endpoints[k]; endpoint.Owed(e.Org, e.Type) {
			owed = append(owed, endpoint.ID)
			id := outbox.DeliveryID(e.ID, endpoint.ID)
			c.deliveries[id] = &delivery{id: id, event: e, endpoint: k, undone: e.Fate == Undone}
			if e.Fate != Undone {
				c.verdict.Deliveries++
			}
		}
	}
	return owed
}

// compareOwed compares the endpoints in the table with those that subscribe.
func (c *comparison) compareOwed(e *Event, stored, owed []uuid.UUID) {
	for _, id := range owed {
		if !slices.Contains(stored, id) {
			c.verdict.Found(OwedDiffers, "event %s (%s) is not owed to endpoint %s", e.ID, e.Type, id)
		}
	}
	if len(stored) != len(owed) {
		c.verdict.Found(OwedDiffers, "event %s (%s) is owed to %d endpoints, want %d", e.ID, e.Type, len(stored), len(owed))
	}
}

// sortRequests gives each request to its delivery.
func (c *comparison) sortRequests() {
	for i := range c.Requests {
		r := &c.Requests[i]
		if r.Malformed != "" {
			c.verdict.Found(MalformedRequest, "delivery %s: %s", r.Delivery, r.Malformed)
		}
		id := outbox.DeliveryID(r.Event, c.Endpoints[r.Endpoint].ID)
		d := c.deliveries[id]
		if d == nil {
			c.verdict.Found(Phantom, "event %s (%s) to endpoint %d at %s", r.Event, r.Type, r.Endpoint, Clock(r.At))
			continue
		}
		if r.Delivery != id {
			c.verdict.Found(DeliveryDiffers, "event %s to endpoint %d as %s, want %s", r.Event, r.Endpoint, r.Delivery, id)
		}
		if r.N != d.event.N || r.Type != d.event.Type || r.Org != d.event.Org {
			c.verdict.Found(ContentWrong, "delivery %s: n %d of type %s of %s, want %d of %s of %s", id, r.N, r.Type, r.Org, d.event.N, d.event.Type, d.event.Org)
		}
		if stored, there := c.Outbox[r.Event]; there && r.Data != stored.Data {
			c.verdict.Found(ContentWrong, "delivery %s: other data than the event has in the table", id)
		}
		d.requests = append(d.requests, r)
	}
}

// sortRows gives each row to its delivery.
func (c *comparison) sortRows() {
	for i := range c.Rows {
		r := &c.Rows[i]
		d := c.deliveries[r.ID]
		if d == nil || d.event.ID != r.Event || c.Endpoints[d.endpoint].ID != r.Endpoint || d.event.Org != r.Org {
			c.verdict.Found(RowBeyond, "row %s of %s for event %s (%s)", r.ID, r.Org, r.Event, r.Status)
			continue
		}
		d.rows = append(d.rows, r)
	}
}

func (c *comparison) judgeDelivery(d *delivery) {
	switch {
	case len(d.rows) == 1:
		c.judgeRow(d, d.rows[0])
	case len(d.rows) > 1:
		c.verdict.Found(RowBeyond, "delivery %s has %d rows", d.id, len(d.rows))
	case !d.undone:
		c.verdict.Found(RowMissing, "delivery %s of event %s, committed at %s", d.id, d.event.ID, Clock(d.event.Began))
	}
	delivered, bodies := false, map[[sha256.Size]byte]bool{}
	for _, r := range d.requests {
		delivered = delivered || r.Succeeded()
		bodies[r.Body] = true
	}
	if len(bodies) > 1 {
		c.verdict.Found(BytesDiffer, "delivery %s: %d bodies in %d requests", d.id, len(bodies), len(d.requests))
	}
	failed := len(d.rows) == 1 && d.rows[0].Status == webhook.Failed
	if !delivered && !failed && !d.undone {
		c.verdict.Found(Lost, "delivery %s of event %s, committed at %s: %d requests", d.id, d.event.ID, Clock(d.event.Began), len(d.requests))
	}
	c.judgeRepeats(d)
}

// Clock is the time of day, as findings tell it.
func Clock(at time.Time) string { return at.Format("15:04:05.000") }

// judgeRepeats looks for requests that were not necessary: those after a 2xx, and
// those with the Retry of one before. Each counts for the first crash that lies
// between the last request which made it unnecessary and itself: an outcome that
// outlived a crash is lost in none that comes later. For each crash a delivery counts
// once: what was sent again and refused this time is retried. Each replay excuses one
// request and what follows it until the next 2xx, and each attempt's first broken
// connection excuses one.
func (c *comparison) judgeRepeats(d *delivery) {
	var last *Request // with a 2xx
	type attempt struct {
		agent string // after a crash the next process makes it anew
		retry int
	}
	same, resent := map[int]*Request{}, map[attempt]bool{}
	crashes := map[int]bool{}
	replays := c.Replays[d.id]
	for _, r := range d.requests {
		before := last
		if other := same[r.Retry]; before == nil || other != nil && other.At.After(before.At) {
			before = other
		}
		switch {
		case before != nil && Resends(before, r) && !resent[attempt{r.Agent, r.Retry}]:
			resent[attempt{r.Agent, r.Retry}] = true
			c.verdict.Resent++
		case before != nil && replays > 0:
			replays--
			last = nil // it begins a series of its own
		case before != nil:
			if crash := c.blame(d, before, r); crash >= 0 {
				crashes[crash] = true
			}
		}
		same[r.Retry] = r
		if r.Succeeded() {
			last = r
		}
	}
	for crash := range crashes {
		c.verdict.perCrash[crash]++
	}
}

// resentWithin bounds when a request that goes out again at once arrives, on a busy
// machine.
const resentWithin = 2 * time.Second

// Resends reports whether a request may be a broken one that its sender has sent again
// at once. A second one may not.
func Resends(broken, again *Request) bool {
	return broken.Broken && broken.Retry == again.Retry && broken.Agent == again.Agent && again.At.Sub(broken.At) < resentWithin
}

// blame returns the crash that a request was repeated for.
func (c *comparison) blame(d *delivery, before, again *Request) (crash int) {
	c.verdict.Duplicates++
	crash = slices.IndexFunc(c.Crashes, func(crash Crash) bool { return crash.excuses(before, again) })
	if crash < 0 {
		c.verdict.Found(Repeated, "delivery %s: request %d of %s at %s (%d), then %d of %s at %s", d.id, before.Retry, before.Agent, Clock(before.At), before.Status,
			again.Retry, again.Agent, Clock(again.At))
	}
	return crash
}

// inTime is how soon an answer is in time for every walhook of a trial, whatever
// its timeout is: what is written by then has been read.
const inTime = time.Second

// heard says whether the sender must have got a 2xx for a request.
func heard(r *Request) bool {
	return r.Succeeded() && !r.Whole.IsZero() && r.Whole.Sub(r.At) < inTime
}

func (c *comparison) judgeRow(d *delivery, row *Row) {
	highest, answered, came := -1, false, map[int]bool{}
	var last *Request // of those for the last attempt
	for _, r := range d.requests {
		highest = max(highest, r.Retry)
		came[r.Retry] = true
		if r.Retry == row.Attempts-1 {
			last, answered = r, answered || r.Succeeded()
		}
	}
	switch {
	case row.Status != webhook.Success && row.Status != webhook.Failed:
		if !d.undone {
			c.verdict.Found(NotFinal, "delivery %s is %s after %d attempts", d.id, row.Status, row.Attempts)
		}
	case row.Status == webhook.Success && !answered:
		c.verdict.Found(AttemptsWrong, "delivery %s is a success after %d attempts, and request %d got no 2xx", d.id, row.Attempts, row.Attempts-1)
	case row.Status == webhook.Failed && row.Attempts != c.LastAttempt:
		c.verdict.Found(AttemptsWrong, "delivery %s failed after %d attempts, the last is %d", d.id, row.Attempts, c.LastAttempt)
	case row.Status == webhook.Failed && last != nil && heard(last):
		c.verdict.Found(AttemptsWrong, "delivery %s failed after %d attempts, and request %d got a whole %d in time", d.id, row.Attempts, last.Retry, last.Status)
	case highest+1 > row.Attempts:
		c.verdict.Found(AttemptsWrong, "delivery %s: %d attempts, and request %d was sent", d.id, row.Attempts, highest)
	case c.Endpoints[d.endpoint].reached() && len(came) < row.Attempts:
		c.verdict.Found(AttemptsWrong, "delivery %s: %d attempts, and requests came for %d of them", d.id, row.Attempts, len(came))
	}
	if row.Status == webhook.Failed {
		c.verdict.Failed++
	}
}
