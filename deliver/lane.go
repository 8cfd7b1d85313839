package deliver

import (
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/outbox"
)

const (
	// staleAfter is how long an endpoint's row may be relied on after it was read:
	// a change is in force within a second of its commit.
	staleAfter = time.Second

	// refreshAfter is when a lane in use asks for its endpoint again, so that it
	// need not wait for the answer.
	refreshAfter = 500 * time.Millisecond

	// failureLook is how often a failing endpoint is compared with
	// WALHOOK_DISABLE_AFTER, which is a matter of hours.
	failureLook = time.Minute
)

// A lane is one endpoint's queue and concurrency limit. It goes direct, from
// the stream, until it is so far behind that deliveries have to be parked. Then
// it is spilled: what the stream brings is parked at once, and the lane is fed
// in pages from the table, until a page holds all that is left.
type lane struct {
	id      uuid.UUID
	queue   []*delivery // in order of arrival; what was parked meanwhile is skipped
	held    int         // queued and running
	running int
	limit   int
	inReady bool
	used    time.Time

	endpoint  *outbox.Endpoint // as of asOf; nil: it does not exist
	target    *Target
	asOf      time.Time // before the look-up; zero: never
	wanted    bool      // in window.wanted
	refused   bool      // disabled or deleted: what is owed is cancelled
	gone      bool      // answered 410, which is not committed yet: nothing more is sent
	notBefore time.Time // a look-up from before is not to be relied on

	spilled   bool
	rows      bool // rows may be due in the table that are not in memory
	inHungry  bool // in window.hungry
	overflown bool // the page under way had rows that found no room
	after     outbox.PageEnd
	stock     int       // how much it may hold from the table
	pagedAt   time.Time // when the last page came
	parking   int       // parked deliveries whose row is not committed
	parks     uint64    // how many have been committed: tells whether a page is complete
	passParks uint64    // as of the first page, when after was the beginning
	sweep     bool      // rows wait in the table to be cancelled

	health   outbox.EndpointHealth // the last that was said of it: Unchanged (nothing), Recovered or Failing
	lookedAt time.Time             // when failing was last looked at
}

// lane returns an endpoint's lane, making it where there is none.
func (w *window) lane(id uuid.UUID, now time.Time) *lane {
	l := w.lanes[id]
	if l == nil {
		l = &lane{id: id, limit: w.limits.EndpointInFlight}
		w.lanes[id] = l
	}
	l.used = now
	return l
}

// idle says that forgetting the lane loses nothing but a cached endpoint.
func (l *lane) idle() bool {
	return l.held == 0 && l.parking == 0 && !l.spilled && !l.rows && !l.sweep && !l.inReady && !l.wanted && !l.inHungry
}

func (w *window) enqueue(d *delivery) {
	d.stage = queued
	d.lane.held++
	d.lane.queue = append(d.lane.queue, d)
	w.makeReady(d.lane)
}

// trim drops from the head of the queue what has been parked.
func (l *lane) trim() {
	i := 0
	for i < len(l.queue) && l.queue[i].stage != queued {
		l.queue[i] = nil
		i++
	}
	if l.queue = l.queue[i:]; len(l.queue) == 0 {
		l.queue = nil
	}
}

// makeReady puts a lane that may have something to start into the round.
func (w *window) makeReady(l *lane) {
	if !l.inReady && len(l.queue) > 0 && l.running < l.limit {
		l.inReady = true
		w.ready = append(w.ready, l)
	}
}

// next starts the next delivery, lanes in turn, or returns nil where none may
// start: room for the outcome is reserved before the request.
func (w *window) next(now time.Time) *delivery {
	for len(w.ready) > 0 && !w.stopping &&
		w.running < w.limits.MaxInFlight && w.running+w.ended < w.limits.MaxInFlight+unrecordedRoom {
		l := w.ready[0]
		w.ready[0] = nil
		w.ready = w.ready[1:]
		l.inReady = false
		if d := w.start(l, now); d != nil {
			w.makeReady(l)
			return d
		}
	}
	return nil
}

func (w *window) start(l *lane, now time.Time) *delivery {
	l.trim()
	if len(l.queue) == 0 || l.running >= l.limit || l.gone {
		return nil
	}
	age := now.Sub(l.asOf)
	if l.asOf.IsZero() || age >= refreshAfter {
		w.want(l)
	}
	if l.asOf.IsZero() || age >= staleAfter {
		return nil // the look-up makes it ready again
	}
	if l.refused {
		w.emptyQueue(l)
		return nil
	}
	d := l.queue[0]
	l.queue[0] = nil
	l.queue = l.queue[1:]
	d.stage, d.target = running, l.target
	l.running++
	w.running++
	return d
}

// want asks the directory for a lane's endpoint.
func (w *window) want(l *lane) {
	if !l.wanted {
		l.wanted = true
		w.wanted = append(w.wanted, l)
		w.toLookUp.raise()
	}
}

// lookedUp takes the directory's answer; nil where the endpoint does not exist.
func (w *window) lookedUp(l *lane, e *outbox.Endpoint, target *Target, asOf time.Time) {
	l.wanted = false
	if asOf.Before(l.notBefore) {
		w.want(l)
		return
	}
	l.endpoint, l.target, l.asOf = e, target, asOf
	l.limit = w.limits.EndpointInFlight
	if e != nil && e.MaxInFlight > 0 {
		l.limit = e.MaxInFlight
	}
	refused := e == nil || !e.Enabled
	if refused && (!l.refused || len(l.queue) > 0) {
		w.emptyQueue(l)
	}
	l.refused = refused
	w.makeReady(l)
}

// emptyQueue empties the lane of an endpoint that is disabled or deleted: into
// the table, where the sweep cancels what is there. Not at once: the transaction
// that brought a delivery may not be visible yet, and may have made or enabled
// the endpoint.
func (w *window) emptyQueue(l *lane) {
	for _, d := range l.queue {
		if d.stage != queued {
			continue
		}
		l.held--
		w.release(d.event)
		if d.inTable {
			w.remove(d)
			continue
		}
		w.held--
		w.young(d)
		w.toPark(d)
	}
	l.queue = nil
	l.rows, l.spilled = false, false
	w.toSweep(l)
}

// toSweep has the retrier cancel the rows of a lane that is refused.
func (w *window) toSweep(l *lane) {
	if !l.sweep {
		l.sweep = true
		w.sweeping = append(w.sweeping, l)
		w.toFetch.raise()
	}
}

// hasRows has the retrier ask for the rows of a lane.
func (w *window) hasRows(l *lane) {
	l.rows = true
	if !l.inHungry {
		l.inHungry = true
		w.hungry = append(w.hungry, l)
	}
	if l.page() > 0 {
		w.toFetch.raise()
	}
}

func (l *lane) refusal() string {
	if l.endpoint == nil {
		return "the endpoint was deleted"
	}
	return "the endpoint is disabled"
}

// judge says what a verdict changes about the endpoint.
func (l *lane) judge(v Verdict, now time.Time) outbox.EndpointHealth {
	switch {
	case v == Gone:
		l.gone = true
		l.asOf = time.Time{}
		return outbox.Gone
	case v == Delivered && l.health != outbox.Recovered:
		l.health = outbox.Recovered
		return outbox.Recovered
	case v == Retry && l.health != outbox.Failing:
		l.health, l.lookedAt = outbox.Failing, now
		return outbox.Failing
	case v == Retry && now.Sub(l.lookedAt) >= failureLook:
		l.lookedAt = now
		return outbox.StillFailing
	}
	return outbox.Unchanged
}

// A lane's stock begins at its limit, so that a slow endpoint's rows stay in the
// table and leave the window to others, and doubles up to maxStock times that
// while a page does not last for stockFor.
const (
	maxStock = 16
	stockFor = 100 * time.Millisecond
)

// page says how many due rows to ask for, 0 where there are none or it is too early.
func (l *lane) page() int {
	stock := max(l.stock, l.limit)
	if !l.rows || l.held > stock/2 {
		return 0
	}
	return stock - l.held
}

// paged takes the outcome of a page. The next begins where this one ended. Fewer
// rows than were asked for are all that is left, and the lane goes direct again;
// what was parked since the first of these pages may stand before where they
// began, and is found from the beginning.
func (w *window) paged(l *lane, asked, got int, end outbox.PageEnd, now time.Time) {
	left := got >= asked || l.overflown
	l.overflown = false
	l.after = end
	if !left {
		l.after = outbox.PageEnd{}
	}
	l.spilled = l.spilled && left
	l.stock = max(l.stock, l.limit)
	if now.Sub(l.pagedAt) < stockFor {
		l.stock = min(2*l.stock, maxStock*l.limit)
	} else {
		l.stock = l.limit
	}
	l.pagedAt = now
	if l.rows = left || l.parks != l.passParks; l.rows {
		w.hasRows(l)
	}
}

// forget drops lanes that have been idle for a while.
func (w *window) forget(now time.Time) {
	for id, l := range w.lanes {
		if l.idle() && (now.Sub(l.used) >= laneMemory || len(w.lanes) > maxIdleLanes) {
			delete(w.lanes, id)
		}
	}
}

const (
	// laneMemory is how long an idle lane keeps its endpoint's parsed form.
	laneMemory = time.Minute

	// maxIdleLanes bounds the idle lanes that are kept for laneMemory, at about
	// 2 KiB each: 16 MiB.
	maxIdleLanes = 8192
)

// toAsk takes the lanes that have room for a page, at most n, in turn.
func (w *window) toAsk(n int) []*lane {
	if w.starved = !w.fetchRoom(); w.starved {
		return nil
	}
	var lanes []*lane
	for range len(w.hungry) {
		if len(lanes) == n {
			break
		}
		l := w.hungry[0]
		w.hungry[0] = nil
		w.hungry = w.hungry[1:]
		switch {
		case !l.rows:
			l.inHungry = false
		case l.page() == 0:
			w.hungry = append(w.hungry, l)
		default:
			l.inHungry = false
			lanes = append(lanes, l)
		}
	}
	return lanes
}
