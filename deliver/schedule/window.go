package schedule

import (
	"container/list"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

type stage uint8

const (
	queued  stage = iota
	running       // an attempt is under way
	ended         // the attempt's outcome waits to be committed
	parked        // a pending row waits to be committed; the body is released
)

// A Delivery is one event owed to one endpoint, while it is in memory.
type Delivery struct {
	id       uuid.UUID
	event    *event
	lane     *lane
	stage    stage
	attempts int // that have ended, as the row says
	series   int // how many had ended when the present series began
	fetched  bool
	seen     store.Seen   // fetched: the row as it was then
	late     bool         // no first attempt: it comes after what the stream brings
	target   *send.Target // running: the endpoint as of the start
	attempt  *store.Attempt
	gone     bool // the attempt was answered with 410

	received time.Time
	age      *list.Element // in Scheduler.aging
	tx       *transaction  // that cannot be confirmed before this is recorded; nil: the table or a taken batch has it
	inTable  bool          // a row is committed
	writing  bool          // a row is being written
	enlisted bool          // in newRows or existing
}

// Request is what the attempt under way sends.
func (d *Delivery) Request() send.Request {
	return send.Request{Endpoint: d.target, DeliveryID: d.id, EventType: d.event.typ, Retry: d.attempts, Body: d.event.body}
}

// An event is held once, however many endpoints it is owed to.
type event struct {
	id           uuid.UUID
	organization string
	typ          string
	body         []byte // of the request; nil when no queued or running delivery needs it
	size         int64  // of the body, while it counts
	users        int
	pinned       bool // the fan-out may have further users for it
}

func newEvent(e *outbox.Event) *event {
	return &event{id: e.ID, organization: e.OrganizationID, typ: e.Type, body: send.Body(e)}
}

// use counts an event's body once, for its first user.
func (s *Scheduler) use(e *event) {
	if e.users == 0 {
		e.size = int64(len(e.body))
		s.bytes += e.size
	}
	e.users++
}

// release lets the body go with its last user.
func (s *Scheduler) release(e *event) {
	e.users--
	if e.users == 0 {
		s.bytes -= e.size
		e.unused()
	}
}

// unused lets the body go that nobody needs, and nobody will.
func (e *event) unused() {
	if e.users == 0 && !e.pinned {
		e.body = nil
	}
}

// admit takes in a delivery that the stream brought, or reports that there is
// no room for it yet. A lane that is behind parks it at once. For a full window,
// and for a full lane while all others have work too, room is waited for until
// patience ends.
func (s *Scheduler) admit(e *event, endpoint, id uuid.UUID, received, patience, now time.Time) bool {
	l := s.lane(endpoint, now)
	d := &Delivery{id: id, event: e, lane: l, received: received}
	direct := s.limits.ParkAfter > 0 && !l.spilled
	laneRoom := len(l.first) < s.ahead(l, now) && s.lightEnough(l, s.limits.MaxMemory)
	windowRoom := s.held-s.fetched < s.limits.streamShare() && s.fits(e)
	switch {
	case direct && laneRoom && windowRoom:
		s.add(d)
		d.age = s.aging.PushBack(d)
		s.enqueue(d, now)
	case direct && (laneRoom || s.worthWaiting(l, now)) && now.Before(patience):
		s.waitsFor = l
		return false
	case s.parked >= parkedRoom:
		s.waitsFor = l
		return false
	default:
		s.deliveries[id] = d
		s.spill(l, true)
		s.toPark(d)
	}
	d.tx = s.ledger.current()
	d.tx.pending++
	return true
}

// worthWaiting says whether the stream may wait for room in a lane, so that a
// backlog is read no faster than it is delivered, and written once. Not for one
// whose limits hold it back; and not for a queue of all that a lane may have while
// another lane is out of work, whose events may stand behind.
func (s *Scheduler) worthWaiting(l *lane, now time.Time) bool {
	if l.shut || l.breaker.holds(now) || l.rate != nil {
		return false
	}
	if len(l.first) < s.limits.laneQueue() {
		return true // the window is about to be full
	}
	for _, other := range s.lanes {
		if other != l && !other.spilled && !other.refused && other.running == 0 && len(other.first) == 0 {
			return false
		}
	}
	return true
}

// fits says whether an event's delivery has room. A body that is larger than
// all of MaxMemory must pass too, alone.
func (s *Scheduler) fits(e *event) bool {
	size := int64(len(e.body))
	if e.users > 0 {
		size = 0
	}
	return s.held < s.limits.Window && (s.bytes+size <= s.limits.MaxMemory || s.bytes == 0)
}

// adopt lets a delivery that is still in memory stand for its repetition by a
// new session, and reports whether it is.
func (s *Scheduler) adopt(id uuid.UUID) bool {
	d := s.deliveries[id]
	if d == nil {
		return false
	}
	if d.tx != nil && d.tx.generation != s.ledger.generation {
		d.tx = s.ledger.current()
		d.tx.pending++
	}
	return true
}

// distrust forgets what is known of rows: the database that a new session is with
// may have fallen back behind them. What the session repeats, and is in memory,
// waits for a row once more, and is written as if it had none. What waits in memory
// because it has a row goes back to it: nothing would ever park it, and confirming
// would wait for its turn. No batch is under way.
func (s *Scheduler) distrust(now time.Time) {
	for _, l := range s.stockedLanes() {
		s.unstock(l, now)
	}
	before := &transaction{generation: s.ledger.generation - 1}
	for _, d := range s.deliveries {
		d.tx, d.inTable = before, false
	}
	s.newRows, s.existing = append(s.newRows, s.existing...), nil
}

// stockedLanes are those with deliveries from the table, in order of id: that of
// the map is another every time.
func (s *Scheduler) stockedLanes() (lanes []*lane) {
	for _, l := range s.lanes {
		if l.stocked > 0 {
			lanes = append(lanes, l)
		}
	}
	slices.SortFunc(lanes, func(a, b *lane) int { return CompareIDs(a.id, b.id) })
	return lanes
}

// lightEnough says whether a lane may hold more, of what is free of so many bytes
// for all: an eighth, which is 32 of the largest bodies at the beginning.
func (s *Scheduler) lightEnough(l *lane, all int64) bool { return l.bytes < max((all-s.bytes)/8, 1) }

// fetchRoom says whether rows may be fetched.
func (s *Scheduler) fetchRoom() bool {
	return s.held < s.limits.Window && s.fetched < s.limits.rowsShare() && s.bytes < s.limits.MaxMemory/2 && s.aside <= maxAside
}

func (s *Scheduler) add(d *Delivery) {
	s.deliveries[d.id] = d
	s.use(d.event)
	s.held++
}

// remove takes a delivery out of memory.
func (s *Scheduler) remove(d *Delivery) {
	delete(s.deliveries, d.id)
	if s.removed != nil {
		s.removed[d.id] = true
	}
	if d.stage == parked {
		s.parked--
	} else {
		s.held--
	}
	if d.fetched {
		s.fetched--
	}
	if s.starved && s.fetchRoom() {
		s.starved = false
		s.ToFetch.Raise()
	}
	s.room()
}

// room tells the fan-out that there is some, when it is worth waking up for: of
// a full lane's queue, a quarter.
func (s *Scheduler) room() {
	if s.waiting && len(s.waitsFor.first) <= s.limits.laneQueue()*3/4 {
		s.waiting = false
		s.RoomFreed.Raise()
	}
}

// parkOverdue parks what has had no outcome for ParkAfter: what is queued gives
// up its place and its lane goes on from the table; for what is running a row
// is written beside the attempt, with a lease.
func (s *Scheduler) parkOverdue(now time.Time) {
	for s.parked < parkedRoom {
		front := s.aging.Front()
		if front == nil {
			return
		}
		d := front.Value.(*Delivery)
		if now.Sub(d.received) < s.limits.ParkAfter {
			return
		}
		s.young(d)
		switch d.stage {
		case queued:
			s.spill(d.lane, true)
			s.leave(d, now)
			s.held--
			s.toPark(d)
			d.lane.trim()
		case running:
			s.counts.Leased++
			s.enlist(d)
		}
	}
}

// young takes a delivery off the list of those that grow old.
func (s *Scheduler) young(d *Delivery) {
	if d.age != nil {
		s.aging.Remove(d.age)
		d.age = nil
	}
}

// toPark hands a delivery, whose body is released, to the recorder.
func (s *Scheduler) toPark(d *Delivery) {
	d.stage = parked
	s.parked++
	d.lane.parking++
	s.counts.Parked++
	s.enlist(d)
}

// finish takes an attempt's outcome, for the recorder.
func (s *Scheduler) finish(d *Delivery, a store.Attempt, now time.Time) {
	l := d.lane
	s.vacate(d, &a, now)
	s.young(d)
	s.leave(d, now)
	d.stage = ended
	d.attempt = &a
	s.ended++
	l.ended++
	s.counts.attempt(a)
	s.judge(d, &a, now)
	s.enlist(d)
	s.touch(l)
	s.room()
}

// unsent takes back a delivery whose request may not be sent any more, because
// another process may have the slot: it goes to the table, or stays there.
func (s *Scheduler) unsent(d *Delivery, now time.Time) {
	s.vacate(d, &store.Attempt{}, now)
	s.settled(d, now)
	s.young(d)
	s.leave(d, now)
	d.lane.readAnew()
	if d.inTable && !d.enlisted && !d.writing {
		s.remove(d)
		s.hasRows(d.lane)
		return
	}
	s.held--
	s.spill(d.lane, true)
	s.toPark(d)
}

// enlist hands a delivery to the recorder, which looks at its stage only when
// it takes it: a lease that was overtaken by its outcome is never written.
func (s *Scheduler) enlist(d *Delivery) {
	if d.enlisted {
		return
	}
	d.enlisted = true
	switch {
	case d.inTable || d.writing:
		s.existing = append(s.existing, d)
	case d.stage == parked:
		s.toBeParked = append(s.toBeParked, d)
	default:
		s.newRows = append(s.newRows, d)
	}
	if n := s.unwritten(); n == 1 || n == recordBatch {
		s.ToRecord.Raise()
	}
}

// unwritten is how many deliveries wait for the recorder.
func (s *Scheduler) unwritten() int { return len(s.newRows) + len(s.toBeParked) + len(s.existing) }

// claimed takes the session that has the slot now. What was compared before says
// nothing of what this one does not bring, nor of rows in a database that was set
// back. ReconcileFrom alone does not tell: where a comparison was noted as done, and
// nothing recorded since, the next cause has the value of the one before.
func (s *Scheduler) claimed(session *store.Session, fence store.Fence, marker uint64) {
	goesOn := s.session != nil && session.Start != 0 && !session.SlotCreated && !fence.Moved
	if !goesOn || session.Published != s.session.Published || !fence.Server.Equal(s.fence.Server) {
		s.causes++
	}
	s.session, s.fence, s.marker, s.replaying, s.visible = session, fence, marker, true, fence.ClaimXID == ""
}

func (s *Scheduler) cause() Cause { return Cause{s.fence.ReconcileFrom.UnixMicro(), s.causes} }

func (s *Scheduler) live(now time.Time) bool { return s.session != nil && s.session.Live(now) }

// confirm passes on how far the slot may move.
func (s *Scheduler) confirm() {
	if s.session != nil {
		s.session.Confirm(s.ledger.confirmed)
	}
}

// dispatch starts what may be started.
func (s *Scheduler) dispatch(now time.Time) {
	for d := s.next(now); d != nil; d = s.next(now) {
		s.onStart(d)
	}
}
