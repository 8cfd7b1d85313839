package deliver

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/store/storetest"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// A journal records what the application committed and what the receivers saw.
type journal struct {
	s         *simulation
	receivers map[uuid.UUID]answering
	refused   map[uuid.UUID]bool // endpoints that were ever disabled or deleted
	known     map[uuid.UUID]*journaled
	order     []*journaled
	closed    map[uuid.UUID]time.Time // endpoints that are paused, or whose secret cannot be opened, since when
	given     map[uuid.UUID]belonging // to whom each endpoint belongs
	customers map[uuid.UUID]bool      // endpoints that were ever not operators'
	demoted   map[uuid.UUID]bool      // endpoints that were operators', and then not
}

// A belonging is to whom an endpoint belongs, and since when.
type belonging struct {
	of    *storetest.Endpoint
	since time.Time
}

// A journaled has all facts about one delivery.
type journaled struct {
	id       uuid.UUID
	event    *outbox.Event
	endpoint uuid.UUID
	requests int
	good     int       // requests answered with 2xx
	gone     int       // requests answered with 410
	excused  int       // successes that are allowed beyond one
	goodAt   time.Time // begin of the last request answered with 2xx
	anew     time.Time // the last replay; zero: none, or it was lost
	byHand   bool      // cancelled by hand, and not replayed since
	unsure   bool      // the database lost a version of its row
	by       *process  // sent the last request
	begun    time.Time // begin of the last request; zero: it was answered
	leased   time.Time // until then nobody else may send
}

func newJournal(s *simulation) *journal {
	return &journal{s: s, receivers: map[uuid.UUID]answering{}, refused: map[uuid.UUID]bool{}, known: map[uuid.UUID]*journaled{},
		closed: map[uuid.UUID]time.Time{}, given: map[uuid.UUID]belonging{}, customers: map[uuid.UUID]bool{}, demoted: map[uuid.UUID]bool{}}
}

func (j *journal) committed(e *outbox.Event) {
	for _, endpoint := range e.EndpointIDs {
		d := &journaled{id: outbox.DeliveryID(e.ID, endpoint), event: e, endpoint: endpoint}
		j.known[d.id] = d
		j.order = append(j.order, d)
	}
}

// excuse allows n more successes of a delivery.
func (j *journal) excuse(id uuid.UUID, n int) {
	if d := j.known[id]; d != nil {
		d.excused += n
	}
}

// replayed notes that an operator replays a delivery.
func (j *journal) replayed(id uuid.UUID) {
	j.excuse(id, 1)
	if d := j.known[id]; d != nil {
		d.anew, d.byHand, d.leased = time.Now(), false, time.Time{}
	}
}

// cancelled notes that an operator cancels a delivery.
func (j *journal) cancelled(id uuid.UUID) {
	if d := j.known[id]; d != nil {
		d.anew, d.byHand = time.Time{}, true
	}
}

// ended notes that a delivery is cancelled with its endpoint: later than any replay.
func (j *journal) ended(id uuid.UUID) {
	if d := j.known[id]; d != nil {
		d.anew = time.Time{}
	}
}

// stands notes whether anything may be sent to an endpoint, by its row.
func (j *journal) stands(e *storetest.Endpoint) {
	switch {
	case !e.Paused && e.Sealed == "":
		delete(j.closed, e.ID)
	case j.closed[e.ID].IsZero():
		j.closed[e.ID] = time.Now()
	}
}

// belongs notes to whom an endpoint belongs, if that has changed.
func (j *journal) belongs(e *storetest.Endpoint) {
	was := j.given[e.ID].of
	if was != nil && was.OrganizationID == e.OrganizationID && was.ForAll == e.ForAll {
		return
	}
	j.given[e.ID] = belonging{e, time.Now()}
	if !e.ForAll {
		j.customers[e.ID], j.demoted[e.ID] = true, j.demoted[e.ID] || was != nil && was.ForAll
	}
}

// withdrawn reports whether a delivery may be cancelled because its endpoint is its operators'
// no longer.
func (j *journal) withdrawn(d *journaled) bool {
	return j.demoted[d.endpoint] && j.given[d.endpoint].of.OrganizationID != d.event.OrganizationID
}

// lost notes that the database lost a version of a row.
func (j *journal) lost(id uuid.UUID) {
	if j.excuse(id, 1); j.known[id] != nil {
		d := j.known[id]
		d.leased, d.anew, d.unsure = time.Time{}, time.Time{}, true
	}
}

// wrote notes a process's commit.
func (j *journal) wrote(p *process, c *storetest.Commit) {
	for _, r := range c.Rows {
		j.s.note("row %s %s %d", r.ID, r.Status, r.Attempts)
		if r.First == c {
			j.inserted(p, r.Record)
		}
	}
	for _, e := range c.Events {
		j.committed(e)
	}
	for _, e := range c.Endpoints { // which have answered 410
		j.refused[e.ID] = true
	}
}

// inserted notes a new row. The row of an attempt under way is a lease.
func (j *journal) inserted(p *process, r webhook.Record) {
	d := j.known[r.ID]
	if d == nil || !slices.Contains(d.event.EndpointIDs, r.EndpointID) {
		j.s.violate("a row for delivery %s, which is not owed", r.ID)
		return
	}
	if r.Attempt == nil && d.by == p && !d.begun.IsZero() {
		d.leased = d.begun.Add(j.s.limits.Timeout)
	}
}

// request notes a request that has arrived.
func (j *journal) request(p *process, r send.Request) (status int, after time.Duration) {
	d := j.known[r.DeliveryID]
	if d == nil || j.s.db.Inserted[d.event.ID] == nil {
		j.s.violate("delivery %s was sent, whose event is not committed", r.DeliveryID)
		return 404, 0
	}
	if string(r.Body) != string(send.Body(d.event)) {
		j.s.violate("delivery %s was sent with another body", d.id)
	}
	now := time.Now()
	// A request that had begun before a freeze continues after it.
	if closed := j.closed[d.endpoint]; !closed.IsZero() && now.Sub(closed) > time.Second && now.Sub(p.thaws) > 2*time.Second {
		j.s.violate("delivery %s was sent %v after its endpoint was paused, or its secret sealed", d.id, now.Sub(closed))
	}
	if to := j.given[d.endpoint]; !to.of.Gets(d.event.OrganizationID, d.event.Type) && now.Sub(to.since) > 2*time.Second && now.Sub(p.thaws) > 2*time.Second {
		j.s.violate("delivery %s of %s was sent %v after its endpoint went to %s, for all %t", d.id, d.event.OrganizationID, now.Sub(to.since), to.of.OrganizationID, to.of.ForAll)
	}
	if why := p.mayNotSend(); why != "" {
		j.s.violate("delivery %s was sent %s", d.id, why)
	}
	// A process that has not noticed the loss of its slot cannot know of the lease.
	if d.by != p && now.Before(d.leased) && !j.s.db.Fenced(p.engine.scheduler.Fence()) {
		j.s.violate("delivery %s was sent again within the lease", d.id)
	}
	if d.by == p && !d.begun.IsZero() {
		j.s.violate("delivery %s was sent twice at once", d.id)
	}
	status, after = j.receivers[d.endpoint](now)
	j.s.note("request %s retry %d: %d after %v", d.id, r.Retry, status, after)
	d.requests++
	d.by, d.begun = p, now
	switch {
	case status == 410:
		d.gone++
	case status/100 == 2:
		d.good++
		d.goodAt = now
	}
	return status, after
}

func (j *journal) answered(r send.Request, p *process) {
	if d := j.known[r.DeliveryID]; d != nil && d.by == p {
		d.begun, d.leased = time.Time{}, time.Time{}
	}
}

// An answering returns a receiver's answer to a request, and its delay.
type answering func(at time.Time) (status int, after time.Duration)

// newReceiver draws how a receiver answers: always well, with some failures, with
// failures only, with failures at first, slowly, or with 410.
func (s *simulation) newReceiver() answering {
	quick := func() time.Duration { return s.within(30 * time.Millisecond) }
	rough := func() bool { return time.Since(s.began) < faultTime } // slow answers end with the faults
	bad := func() (int, time.Duration) {
		if rough() && s.chance(40) {
			return 0, s.limits.Timeout
		}
		return 503, quick()
	}
	up := s.began.Add(s.within(2 * faultTime))
	kind := s.rng.IntN(10)
	return func(at time.Time) (int, time.Duration) {
		switch {
		case kind == 0, kind == 1 && s.chance(30), kind == 2 && at.Before(up):
			return bad()
		case kind == 3 && s.chance(3):
			return 410, quick()
		case kind == 4 && rough():
			return 200, s.within(s.limits.Timeout)
		}
		return 200, quick()
	}
}

// send is one attempt: on its way, at the receiver, and back.
func (p *process) send(_ context.Context, r send.Request) (webhook.Attempt, bool) {
	s := p.s
	begun := time.Now()
	s.step()
	if !p.engine.Live() { // as a Sender asks before it writes
		return webhook.Attempt{}, false
	}
	if d := s.journal.known[r.DeliveryID]; d != nil && s.ownFault.met(d.endpoint) {
		s.pass(s.within(s.limits.Timeout))
		s.note("own fault %s: %s", r.DeliveryID, s.ownFault.kind)
		return webhook.Attempt{EndedAt: time.Now(), Duration: time.Since(begun), Class: webhook.ErrConnect, OwnFault: s.ownFault.kind}, true
	}
	status, after := s.journal.request(p, r)
	s.pass(after)
	s.journal.answered(r, p)
	a := webhook.Attempt{StatusCode: status, EndedAt: time.Now(), Duration: time.Since(begun)}
	switch {
	case status == 0:
		a.Class = webhook.ErrTimeout
	case status > 299:
		a.Class = send.StatusClass(status)
	}
	s.note("answer %s: %d", r.DeliveryID, status)
	return a, true
}
