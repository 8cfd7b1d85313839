package deliver

import (
	"container/list"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/sabotage"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

// Limits bound what is in memory and what is under way.
type Limits struct {
	ParkAfter        time.Duration // a delivery without an outcome for this long is written as pending; 0: every one, before its first attempt
	MaxInFlight      int           // concurrent attempts
	EndpointInFlight int           // concurrent attempts of one endpoint that does not say itself
	Window           int           // deliveries in memory
	MaxMemory        int64         // bytes of their bodies
	Timeout          time.Duration // of one attempt
	DisableAfter     time.Duration // of nothing but failures, an endpoint is disabled; 0: never
}

// laneQueue bounds a lane's queue: an eighth of the window, which an endpoint
// that answers 2,000 times a second works off within the default ParkAfter. So
// a backlog for a fast endpoint is read no faster than it is delivered, and
// written once.
func (l Limits) laneQueue() int { return max(l.Window/8, 1) }

// streamShare is what the stream may hold of the window: a quarter is left to
// rows, or a stream that fills it all would keep every retry waiting.
func (l Limits) streamShare() int { return max(l.Window*3/4, 1) }

// rowsShare is what rows may hold of it: half is for what the stream brings, so
// that rows never keep it from reading.
func (l Limits) rowsShare() int { return max(l.Window/2, 1) }

const (
	// unrecordedRoom bounds the attempts that were made and are not recorded, beside
	// those in flight: what a crash may repeat. At 20,000 a second and 50 ms between
	// two batches about 1,000 are needed.
	unrecordedRoom = 2048

	// parkedRoom bounds the deliveries that wait to be written as pending: 300 bytes
	// each, without a body. What stands behind one event for very many endpoints, or
	// a burst for one that is behind, does not wait in the stream until all of that is
	// written.
	parkedRoom = 64 << 10

	// leaseMargin is how long after its attempt's timeout the row of a delivery that
	// was parked while it ran may become due: time to record the outcome.
	leaseMargin = 10 * time.Second

	// maxAside bounds the outcomes whose rows an operator's long transaction has
	// locked before no more rows are fetched: they must not use up the room that
	// fresh events' outcomes need.
	maxAside = unrecordedRoom / 4
)

// A window holds every delivery that is in memory, with the lanes, and the
// ledger of what may be confirmed. One mutex guards all of it and is never held
// during I/O. The window decides; the loops around it (fan-out, clock, workers,
// recorder, retrier, directory) act.
//
// A delivery goes one way:
//
//	queued ──▶ running ──▶ ended ──▶ gone
//	   └─────▶ parked ───────────────▲
//
// It is gone from memory when its outcome, or its pending row, is committed.
type window struct {
	limits   Limits
	schedule Schedule
	jitter   func() float64 // in [0,1)

	mu         sync.Mutex
	ledger     ledger
	session    *store.Session
	fence      store.Fence
	marker     uint64 // the session's first batch: until its echo, the stream may repeat what has rows
	replaying  bool
	visible    bool // all is visible that was committed before the session: see Fence.Settles
	causes     int  // how often there was something new to compare
	stopping   bool // nothing is admitted, no attempt is started
	deliveries map[uuid.UUID]*delivery
	lanes      map[uuid.UUID]*lane
	ready      []*lane            // may have something to start, in turn
	outOfTurn  []*lane            // have only what comes late, and too much of that is under way
	paused     pausedLanes        // to be looked at when their time comes
	news       []*lane            // whose health is to be recorded
	wanted     []*lane            // whose endpoint must be looked up for the first time
	stale      []*lane            // and again
	aging      *list.List         // deliveries that the table does not know, in order of receipt
	hungry     []*lane            // with rows that may be due, and room for them, in turn
	sweeping   []*lane            // with rows to cancel
	guestsOf   map[string]int     // guests, by organization
	removed    map[uuid.UUID]bool // gone since the page under way was asked for; nil: none is

	held    int   // deliveries that are queued, running or ended
	fetched int   // those of them that came from the table
	bytes   int64 // of the bodies of the queued and running
	running int
	late    int // retries and replays that are under way or not recorded
	guests  int // places of lanes that are not trusted
	ended   int // attempts whose outcome is not committed
	parked  int // deliveries without a body whose row is not committed
	aside   int // outcomes whose row someone else has locked
	spilled int // lanes that are fed from the table
	open    int // lanes whose breaker is open
	shut    int // lanes whose endpoint's secret cannot be opened

	newRows    []*delivery // to be recorded by INSERT
	toBeParked []*delivery // likewise, but without an outcome
	existing   []*delivery // to be recorded by UPDATE
	waiting    bool        // the fan-out waits for room
	waitsFor   *lane       // and this one had none, or the window for it
	starved    bool        // the retrier waits for room

	workers workers
	counts  Counts

	roomFreed signal // wakes the fan-out
	toRecord  signal // wakes the recorder
	toFetch   signal // wakes the retrier
	toLook    signal // likewise: somebody else has changed deliveries or endpoints
	toLookUp  signal // wakes the directory
	toPace    signal // wakes the clock
}

func newWindow(limits Limits, schedule Schedule) *window {
	return &window{
		limits:     limits,
		schedule:   schedule,
		jitter:     rand.Float64,
		deliveries: map[uuid.UUID]*delivery{},
		lanes:      map[uuid.UUID]*lane{},
		guestsOf:   map[string]int{},
		aging:      list.New(),
		roomFreed:  newSignal(),
		toRecord:   newSignal(),
		toFetch:    newSignal(),
		toLook:     newSignal(),
		toLookUp:   newSignal(),
		toPace:     newSignal(),
	}
}

// A signal wakes one loop; several before it wakes are one.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) raise() {
	select {
	case s <- struct{}{}:
	default:
	}
}

type stage uint8

const (
	queued  stage = iota
	running       // an attempt is under way
	ended         // the attempt's outcome waits to be committed
	parked        // a pending row waits to be committed; the body is released
)

// A delivery is one event owed to one endpoint, while it is in memory.
type delivery struct {
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
	age      *list.Element // in window.aging
	tx       *transaction  // that cannot be confirmed before this is recorded; nil: the table or a taken batch has it
	inTable  bool          // a row is committed
	writing  bool          // a row is being written
	enlisted bool          // in newRows or existing
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
func (w *window) use(e *event) {
	if e.users == 0 {
		e.size = int64(len(e.body))
		w.bytes += e.size
	}
	e.users++
}

// release lets the body go with its last user.
func (w *window) release(e *event) {
	e.users--
	if e.users == 0 {
		w.bytes -= e.size
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
func (w *window) admit(e *event, endpoint, id uuid.UUID, received, patience, now time.Time) bool {
	l := w.lane(endpoint, now)
	d := &delivery{id: id, event: e, lane: l, received: received}
	direct := w.limits.ParkAfter > 0 && !l.spilled
	laneRoom := len(l.first) < w.ahead(l, now) && w.lightEnough(l, w.limits.MaxMemory)
	windowRoom := w.held-w.fetched < w.limits.streamShare() && w.fits(e)
	switch {
	case direct && laneRoom && windowRoom:
		w.add(d)
		d.age = w.aging.PushBack(d)
		w.enqueue(d, now)
	case direct && (laneRoom || w.worthWaiting(l, now)) && now.Before(patience):
		w.waitsFor = l
		return false
	case w.parked >= parkedRoom:
		w.waitsFor = l
		return false
	default:
		w.deliveries[id] = d
		w.spill(l, true)
		w.toPark(d)
	}
	d.tx = w.ledger.current()
	d.tx.pending++
	return true
}

// worthWaiting says whether the stream may wait for room in a lane, so that a
// backlog is read no faster than it is delivered, and written once. Not for one
// whose limits hold it back; and not for a queue of all that a lane may have while
// another lane is out of work, whose events may stand behind.
func (w *window) worthWaiting(l *lane, now time.Time) bool {
	if l.shut || l.breaker.holds(now) || l.rate != nil {
		return false
	}
	if len(l.first) < w.limits.laneQueue() {
		return true // the window is about to be full
	}
	for _, other := range w.lanes {
		if other != l && !other.spilled && !other.refused && other.running == 0 && len(other.first) == 0 {
			return false
		}
	}
	return true
}

// fits says whether an event's delivery has room. A body that is larger than
// all of MaxMemory must pass too, alone.
func (w *window) fits(e *event) bool {
	size := int64(len(e.body))
	if e.users > 0 {
		size = 0
	}
	return w.held < w.limits.Window && (w.bytes+size <= w.limits.MaxMemory || w.bytes == 0)
}

// adopt lets a delivery that is still in memory stand for its repetition by a
// new session, and reports whether it is.
func (w *window) adopt(id uuid.UUID) bool {
	d := w.deliveries[id]
	if d == nil {
		return false
	}
	if d.tx != nil && d.tx.generation != w.ledger.generation {
		d.tx = w.ledger.current()
		d.tx.pending++
	}
	return true
}

// distrust forgets what is known of rows: the database that a new session is with
// may have fallen back behind them. What the session repeats, and is in memory,
// waits for a row once more, and is written as if it had none. What waits in memory
// because it has a row goes back to it: nothing would ever park it, and confirming
// would wait for its turn. No batch is under way.
func (w *window) distrust(now time.Time) {
	for _, l := range w.stockedLanes() {
		w.unstock(l, now)
	}
	before := &transaction{generation: w.ledger.generation - 1}
	for _, d := range w.deliveries {
		d.tx, d.inTable = before, false
	}
	w.newRows, w.existing = append(w.newRows, w.existing...), nil
}

// stockedLanes are those with deliveries from the table, in order of id: that of
// the map is another every time.
func (w *window) stockedLanes() (lanes []*lane) {
	for _, l := range w.lanes {
		if l.stocked > 0 {
			lanes = append(lanes, l)
		}
	}
	slices.SortFunc(lanes, func(a, b *lane) int { return compareIDs(a.id, b.id) })
	return lanes
}

// lightEnough says whether a lane may hold more, of what is free of so many bytes
// for all: an eighth, which is 32 of the largest bodies at the beginning.
func (w *window) lightEnough(l *lane, all int64) bool { return l.bytes < max((all-w.bytes)/8, 1) }

// fetchRoom says whether rows may be fetched.
func (w *window) fetchRoom() bool {
	return w.held < w.limits.Window && w.fetched < w.limits.rowsShare() && w.bytes < w.limits.MaxMemory/2 && w.aside <= maxAside
}

func (w *window) add(d *delivery) {
	w.deliveries[d.id] = d
	w.use(d.event)
	w.held++
}

// remove takes a delivery out of memory.
func (w *window) remove(d *delivery) {
	delete(w.deliveries, d.id)
	if w.removed != nil {
		w.removed[d.id] = true
	}
	if d.stage == parked {
		w.parked--
	} else {
		w.held--
	}
	if d.fetched {
		w.fetched--
	}
	if w.starved && w.fetchRoom() {
		w.starved = false
		w.toFetch.raise()
	}
	w.room()
}

// room tells the fan-out that there is some, when it is worth waking up for: of
// a full lane's queue, a quarter.
func (w *window) room() {
	if w.waiting && len(w.waitsFor.first) <= w.limits.laneQueue()*3/4 {
		w.waiting = false
		w.roomFreed.raise()
	}
}

// parkOverdue parks what has had no outcome for ParkAfter: what is queued gives
// up its place and its lane goes on from the table; for what is running a row
// is written beside the attempt, with a lease.
func (w *window) parkOverdue(now time.Time) {
	for w.parked < parkedRoom {
		front := w.aging.Front()
		if front == nil {
			return
		}
		d := front.Value.(*delivery)
		if now.Sub(d.received) < w.limits.ParkAfter {
			return
		}
		w.young(d)
		switch d.stage {
		case queued:
			w.spill(d.lane, true)
			w.leave(d, now)
			w.held--
			w.toPark(d)
			d.lane.trim()
		case running:
			w.counts.Leased++
			w.enlist(d)
		}
	}
}

// young takes a delivery off the list of those that grow old.
func (w *window) young(d *delivery) {
	if d.age != nil {
		w.aging.Remove(d.age)
		d.age = nil
	}
}

// toPark hands a delivery, whose body is released, to the recorder.
func (w *window) toPark(d *delivery) {
	d.stage = parked
	w.parked++
	d.lane.parking++
	w.counts.Parked++
	sabotage.Reach(sabotage.Parking)
	w.enlist(d)
}

// finish takes an attempt's outcome, for the recorder.
func (w *window) finish(d *delivery, a store.Attempt, now time.Time) {
	l := d.lane
	w.vacate(d, &a, now)
	w.young(d)
	w.leave(d, now)
	d.stage = ended
	d.attempt = &a
	w.ended++
	l.ended++
	w.counts.attempt(a)
	w.judge(d, &a, now)
	w.enlist(d)
	w.makeReady(l, now)
	w.feed(l, now)
	w.room()
}

// unsent takes back a delivery whose request may not be sent any more, because
// another process may have the slot: it goes to the table, or stays there.
func (w *window) unsent(d *delivery, a *store.Attempt, now time.Time) {
	w.vacate(d, a, now)
	w.settled(d)
	w.young(d)
	w.leave(d, now)
	d.lane.readAnew()
	if d.inTable && !d.enlisted && !d.writing {
		w.remove(d)
		w.hasRows(d.lane, now)
		return
	}
	w.held--
	w.spill(d.lane, true)
	w.toPark(d)
}

// enlist hands a delivery to the recorder, which looks at its stage only when
// it takes it: a lease that was overtaken by its outcome is never written.
func (w *window) enlist(d *delivery) {
	if d.enlisted {
		return
	}
	d.enlisted = true
	switch {
	case d.inTable || d.writing:
		w.existing = append(w.existing, d)
	case d.stage == parked:
		w.toBeParked = append(w.toBeParked, d)
	default:
		w.newRows = append(w.newRows, d)
	}
	if n := w.unwritten(); n == 1 || n == recordBatch {
		w.toRecord.raise()
	}
}

// unwritten is how many deliveries wait for the recorder.
func (w *window) unwritten() int { return len(w.newRows) + len(w.toBeParked) + len(w.existing) }

// claimed takes the session that has the slot now. What was compared before says
// nothing of what this one does not bring, nor of rows in a database that was set
// back. ReconcileFrom alone does not tell: where a comparison was noted as done, and
// nothing recorded since, the next cause has the value of the one before.
func (w *window) claimed(s *store.Session, fence store.Fence, marker uint64) {
	goesOn := w.session != nil && s.Start != 0 && !s.SlotCreated && !fence.Moved
	if !goesOn || s.Published != w.session.Published || !fence.Server.Equal(w.fence.Server) {
		w.causes++
	}
	w.session, w.fence, w.marker, w.replaying, w.visible = s, fence, marker, true, fence.Settles == ""
}

// live says whether this process may act: send, fetch, cancel, look after the
// tables. What it holds is recorded all the same, which the fence guards.
func (w *window) live(now time.Time) bool { return w.session != nil && w.session.Live(now) }

// confirm passes on how far the slot may move.
func (w *window) confirm() {
	if w.session != nil {
		w.session.Confirm(w.ledger.confirmed)
	}
}
