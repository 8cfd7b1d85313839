package deliver

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/store/storetest"
	"github.com/walhook/walhook/outbox"
)

// A journal is what the application committed and what the receivers saw.
type journal struct {
	s         *simulation
	receivers map[uuid.UUID]answering
	refused   map[uuid.UUID]bool // endpoints that were ever disabled or deleted
	known     map[uuid.UUID]*journaled
	order     []*journaled
	told      int                     // consequences, apart from the outcomes
	closed    map[uuid.UUID]time.Time // endpoints whose secret cannot be opened, since when
}

// A journaled is what is known of a delivery.
type journaled struct {
	id       uuid.UUID
	event    *outbox.Event
	endpoint uuid.UUID
	requests int
	good     int       // that were answered with 2xx
	gone     int       // with 410
	excused  int       // how many more successes there may be than one
	goodAt   time.Time // when the last request began that was answered with 2xx
	anew     time.Time // when it was last replayed; zero: never, or that is lost
	byHand   bool      // it was cancelled by hand, and not replayed since
	unsure   bool      // the database fell back behind a version of its row
	by       *process  // the last request's
	begun    time.Time // the last request; zero: it was answered
	leased   time.Time // nobody else may send before
}

func newJournal(s *simulation) *journal {
	return &journal{s: s, receivers: map[uuid.UUID]answering{}, refused: map[uuid.UUID]bool{}, known: map[uuid.UUID]*journaled{},
		closed: map[uuid.UUID]time.Time{}}
}

func (j *journal) committed(e *outbox.Event) {
	for _, endpoint := range e.EndpointIDs {
		d := &journaled{id: outbox.DeliveryID(e.ID, endpoint), event: e, endpoint: endpoint}
		j.known[d.id] = d
		j.order = append(j.order, d)
	}
}

// excuse allows for so many more successes of a delivery.
func (j *journal) excuse(id uuid.UUID, n int) {
	if d := j.known[id]; d != nil {
		d.excused += n
	}
}

// replayed sees an operator begin a delivery anew.
func (j *journal) replayed(id uuid.UUID) {
	j.excuse(id, 1)
	if d := j.known[id]; d != nil {
		d.anew, d.byHand, d.leased = time.Now(), false, time.Time{}
	}
}

// cancelled sees an operator cancel a delivery.
func (j *journal) cancelled(id uuid.UUID) {
	if d := j.known[id]; d != nil {
		d.anew, d.byHand = time.Time{}, true
	}
}

// ended sees a delivery cancelled with its endpoint: that is later than any replay.
func (j *journal) ended(id uuid.UUID) {
	if d := j.known[id]; d != nil {
		d.anew = time.Time{}
	}
}

// sealed sees an endpoint's secret sealed so that it cannot be opened, or mended.
func (j *journal) sealed(id uuid.UUID, closed bool) {
	switch {
	case !closed:
		delete(j.closed, id)
	case j.closed[id].IsZero():
		j.closed[id] = time.Now()
	}
}

// lost is a version of a row that the database fell back behind.
func (j *journal) lost(id uuid.UUID) {
	if j.excuse(id, 1); j.known[id] != nil {
		d := j.known[id]
		d.leased, d.anew, d.unsure = time.Time{}, time.Time{}, true
	}
}

// wrote sees what a process has committed.
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

// inserted sees a row; that of an attempt under way is a lease.
func (j *journal) inserted(p *process, r store.Record) {
	d := j.known[r.ID]
	if d == nil || !slices.Contains(d.event.EndpointIDs, r.EndpointID) {
		j.s.violate("a row for delivery %s, which is not owed", r.ID)
		return
	}
	if r.Attempt == nil && d.by == p && !d.begun.IsZero() {
		d.leased = d.begun.Add(j.s.limits.Timeout)
	}
}

// request is one that has arrived.
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
	// What had begun when a process froze goes on when it thaws.
	if closed := j.closed[d.endpoint]; !closed.IsZero() && now.Sub(closed) > 2*time.Second && now.Sub(p.thaws) > 2*time.Second {
		j.s.violate("delivery %s was sent %v after its endpoint's secret was sealed", d.id, now.Sub(closed))
	}
	if why := p.mayNotSend(); why != "" {
		j.s.violate("delivery %s was sent %s", d.id, why)
	}
	// A process that has lost the slot and does not know yet cannot know of the lease.
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

// An answering says what a receiver answers to a request, and after how long.
type answering func(at time.Time) (status int, after time.Duration)

// newReceiver says how a receiver answers: well, now and then not, never, not at
// first, slowly, or with 410.
func (s *simulation) newReceiver() answering {
	quick := func() time.Duration { return s.within(30 * time.Millisecond) }
	rough := func() bool { return time.Since(s.began) < roughTime } // what is slow is not waited for in the end
	bad := func() (int, time.Duration) {
		if rough() && s.chance(40) {
			return 0, s.limits.Timeout
		}
		return 503, quick()
	}
	up := s.began.Add(s.within(2 * roughTime))
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

// send is one attempt: there, at the receiver, and back.
func (p *process) send(_ context.Context, r send.Request) (store.Attempt, bool) {
	s := p.s
	begun := time.Now()
	s.step()
	if !p.engine.Live() { // as a Sender asks before it writes
		return store.Attempt{}, false
	}
	status, after := s.journal.request(p, r)
	s.pass(after)
	s.journal.answered(r, p)
	a := store.Attempt{StatusCode: status, EndedAt: time.Now(), Duration: time.Since(begun)}
	switch {
	case status == 0:
		a.Class = store.ErrTimeout
	case status > 299:
		a.Class = send.StatusClass(status)
	}
	s.note("answer %s: %d", r.DeliveryID, status)
	return a, true
}
