package schedule

import (
	"bytes"
	"container/list"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/store"
)

const (
	// staleAfter is how long an endpoint's row may be relied on after it was read:
	// a change is in force within a second of its commit.
	staleAfter = time.Second

	// refreshAfter is when a lane in use asks for its endpoint again, so that it
	// need not wait for the answer.
	refreshAfter = 500 * time.Millisecond

	// burstFor is how much of its rate an endpoint may get at once after a lull. A
	// tenth of a second makes up for timers that are late, and is no burst.
	burstFor = 100 * time.Millisecond
)

// A lane is one endpoint's queue and its limits: how many attempts at once, how
// many in a second, and what its breaker lets through. It goes direct, from the
// stream, until it is so far behind that deliveries have to be parked. Then it is
// spilled: what the stream brings is parked at once, and the lane is fed in
// pages from the table, until a page holds all that is left.
type lane struct {
	id          uuid.UUID
	first       []*Delivery // first attempts, in order of arrival; what was parked meanwhile is skipped
	late        []*Delivery // retries and replays: what comes after those
	turns       int         // first attempts since the last late one
	held        int         // queued and running
	stocked     int         // queued, from the table
	bytes       int64       // of the bodies of all that is held
	running     int
	lateRunning int // those of them that are no first attempts
	limit       int
	ended       int           // attempts whose outcome is not committed
	guests      int           // of its places, those that count in Scheduler.guests
	trusted     bool          // its endpoint answers
	sign        time.Time     // when it last did, or when the first attempt under way began
	rate        *rate.Limiter // nil: no limit
	breaker     breaker
	in          [lists]*list.Element
	touched     bool      // to be reconsidered
	resume      time.Time // in Scheduler.paused until then; zero: it is not
	paused      int       // where in it
	used        time.Time

	organization string          // once it was looked up
	endpoint     *store.Endpoint // as of asOf; nil: it does not exist
	target       *send.Target
	asOf         time.Time // before the look-up; zero: never
	ask          bool      // the endpoint has to be looked up, whatever its age
	asked        bool      // it is just being
	refused      bool      // disabled or deleted: what is owed is cancelled
	shut         bool      // its secret cannot be opened, which is our own fault: what is owed waits
	gone         bool      // answered 410, which is not committed yet: nothing more is sent
	notBefore    time.Time // a look-up from before is not to be relied on

	spilled   bool
	rows      bool // rows may be due in the table that are not in memory
	paging    bool // a page is under way
	overflown bool // it had rows that found no room
	after     store.PageEnd
	stock     int       // how much it may hold from the table
	pagedAt   time.Time // when the last page came
	parking   int       // parked deliveries whose row is not committed
	parks     uint64    // how many have been committed: tells whether a page is complete
	passParks uint64    // as of the first page, when after was the beginning
	sweep     bool      // rows wait in the table to be cancelled
	swept     bool      // they are just being

	health    health
	lookedAt  time.Time             // when failing was last looked at
	retriedAt time.Time             // when an operator last asked for what waits
	news      *store.EndpointHealth // to be recorded; nil: nothing
}

// lane returns an endpoint's lane, making it where there is none.
func (s *Scheduler) lane(id uuid.UUID, now time.Time) *lane {
	l := s.lanes[id]
	if l == nil {
		l = &lane{id: id, limit: s.limits.EndpointInFlight}
		s.lanes[id] = l
	}
	l.used = now
	return l
}

// idle says that forgetting the lane loses nothing but a cached endpoint, and
// what the table knows of it.
func (l *lane) idle() bool {
	return l.held == 0 && l.ended == 0 && l.parking == 0 && !l.gone && !l.spilled && !l.rows && !l.sweep && !l.ask && !l.listed() && l.news == nil
}

// may is how many attempts may be under way at once, as far as the lane goes.
func (l *lane) may(now time.Time) int {
	if l.shut {
		return 0
	}
	return min(l.limit, l.breaker.limit(now))
}

// ahead is how many deliveries may be queued from the stream: what the lane can
// work off within ParkAfter, so that nothing is queued that will be parked.
func (s *Scheduler) ahead(l *lane, now time.Time) int {
	if l.shut || l.breaker.holds(now) {
		return min(l.may(now)-l.held, 1) // the probe
	}
	// Half of what is free: however many lanes are behind, there is room for one more.
	n := min(s.limits.laneQueue(), (s.limits.streamShare()-(s.held-s.fetched))/2)
	return max(1, l.within(s.limits.ParkAfter, n))
}

// within is how much of n the lane's rate lets through in a time.
func (l *lane) within(d time.Duration, n int) int {
	if l.rate == nil {
		return n
	}
	return int(min(float64(l.rate.Limit())*d.Seconds(), float64(n)))
}

func (s *Scheduler) enqueue(d *Delivery, now time.Time) {
	l := d.lane
	d.stage = queued
	l.held++
	l.bytes += d.event.size
	if d.fetched {
		l.stocked++
	}
	if d.late {
		l.late = append(l.late, d)
	} else {
		l.first = append(l.first, d)
	}
	s.touch(l)
}

// leave takes a delivery off its lane. Its body may go.
func (s *Scheduler) leave(d *Delivery, now time.Time) {
	l := d.lane
	l.held--
	l.bytes -= d.event.size
	if d.fetched && d.stage == queued {
		l.stocked--
	}
	s.release(d.event)
	s.touch(l)
}

// trim drops from the head of the queue what has been parked.
func (l *lane) trim() {
	i := 0
	for i < len(l.first) && l.first[i].stage != queued {
		l.first[i] = nil
		i++
	}
	if l.first = l.first[i:]; len(l.first) == 0 {
		l.first = nil
	}
}

// next starts the next delivery, lanes in turn, or returns nil where none may
// start: the slot is not certainly ours, or there is no room for the outcome, which
// is reserved before the request.
func (s *Scheduler) next(now time.Time) *Delivery {
	for s.settle(now); !s.stopping && s.live(now) &&
		s.running < s.limits.MaxInFlight && s.running+s.ended < s.limits.MaxInFlight+unrecordedRoom; s.settle(now) {
		l := s.takeFirst(toStart)
		if l == nil {
			return nil
		}
		if d := s.start(l, now); d != nil {
			s.touch(l)
			return d
		}
	}
	return nil
}

// start starts the first delivery of a lane that was in turn, if its facts still say so.
func (s *Scheduler) start(l *lane, now time.Time) *Delivery {
	s.doubt(l, now)
	s.reconsider(l, now)
	if l.in[toStart] == nil {
		return nil
	}
	s.put(toStart, l, false)
	if l.running >= s.places(l) { // others have them: a touch, or time, brings it back
		s.pause(l, now.Add(holdAgain))
		return nil
	}
	if l.refused {
		s.emptyQueue(l, now)
		return nil
	}
	s.sendStrangersBack(l, now)
	queue := s.turn(l)
	if queue == nil {
		s.touch(l)
		return nil
	}
	l.takeToken(now)
	d := (*queue)[0]
	(*queue)[0] = nil
	*queue = (*queue)[1:]
	d.stage, d.target = running, l.target
	s.occupy(d, now)
	if d.fetched {
		l.stocked--
	}
	return d
}

// sendStrangersBack has what stands at the head of a lane's queues and is another
// organization's wait in the table, where it is cancelled: its endpoint was deleted,
// and one that has the same id must not get it.
func (s *Scheduler) sendStrangersBack(l *lane, now time.Time) {
	for _, queue := range []*[]*Delivery{&l.first, &l.late} {
		for len(*queue) > 0 && ((*queue)[0].stage != queued || (*queue)[0].event.organization != l.organization) {
			d := (*queue)[0]
			(*queue)[0] = nil
			if *queue = (*queue)[1:]; d.stage == queued {
				s.sendBack(d, now)
				l.readAnew()
				s.hasRows(l)
			}
		}
	}
}

// nextToken is when the lane's rate lets the next attempt through.
func (l *lane) nextToken(now time.Time) time.Time {
	if l.rate == nil {
		return now
	}
	tokens := l.rate.TokensAt(now)
	if tokens >= 1 {
		return now
	}
	wait := (1 - tokens) / float64(l.rate.Limit()) * float64(time.Second)
	return now.Add(time.Duration(min(wait, float64(time.Hour))) + 1) // it is looked at again before an hour is over
}

// takeToken takes one of the lane's rate.
func (l *lane) takeToken(now time.Time) {
	if l.rate != nil {
		l.rate.AllowN(now, 1)
	}
}

// lookUpNext takes up to n of the lanes that want their endpoint: those that are in
// use first, so that they need not wait behind thousands that are new.
func (s *Scheduler) lookUpNext(n int, now time.Time) (lanes []*lane) {
	s.settle(now)
	for len(lanes) < n {
		l := s.takeFirst(toLookUpAgain)
		if l == nil {
			l = s.takeFirst(toLookUpFirst)
		}
		if l == nil {
			break
		}
		l.ask, l.asked = false, true
		lanes = append(lanes, l)
	}
	return lanes
}

// lookedUp takes the directory's answer; nil where the endpoint does not exist.
func (s *Scheduler) lookedUp(l *lane, e *store.Endpoint, target *send.Target, asOf, now time.Time) {
	l.asked = false
	s.touch(l)
	if asOf.Before(l.notBefore) {
		l.ask = true
		return
	}
	first := l.asOf.IsZero() && l.health == unknown
	l.endpoint, l.target, l.asOf = e, target, asOf
	refused := e == nil || !e.Enabled
	if !refused {
		l.organization = e.OrganizationID
		s.limit(l, e, now)
		s.retryNow(l, e.RetriedAt, now)
		if first && e.BreakerOpen {
			s.changeBreaker(l, func(b *breaker) { b.trip(now, s.backoff.length()) })
			s.holdBack(l, now)
		}
	}
	s.shutOff(l, !refused && e.Sealed != "", now)
	if refused && (!l.refused || len(l.first)+len(l.late) > 0) {
		s.emptyQueue(l, now)
	}
	l.refused = refused
}

// shutOff has what is owed to an endpoint wait in the table, for as long as its
// secret cannot be opened. It is no failure of the endpoint's.
func (s *Scheduler) shutOff(l *lane, shut bool, now time.Time) {
	if shut != l.shut {
		l.shut = shut
		s.shut += oneUp(shut)
	}
	if shut {
		s.counts.ownFault(secretFault)
		s.holdBack(l, now)
	}
}

// retryNow closes the breaker of a lane where an operator has asked for what waits
// since the last look-up: he says that the endpoint is mended. It goes as slowly
// at first as after a probe that succeeded.
func (s *Scheduler) retryNow(l *lane, asked, now time.Time) {
	if !asked.After(l.retriedAt) {
		return
	}
	l.retriedAt = asked
	if !l.breaker.open {
		return
	}
	s.changeBreaker(l, func(b *breaker) { *b = breaker{ramp: 1} })
	s.tell(l, false, now, false)
	s.hasRows(l)
}

// limit sets what an endpoint's row says of how much it may get.
func (s *Scheduler) limit(l *lane, e *store.Endpoint, now time.Time) {
	l.limit = s.limits.EndpointInFlight
	if e.MaxInFlight > 0 {
		l.limit = e.MaxInFlight
	}
	perSecond := rate.Limit(e.RatePerSecond)
	burst := 1 + int(min(e.RatePerSecond*burstFor.Seconds(), math.MaxInt32))
	switch {
	case perSecond == 0:
		l.rate = nil
	case l.rate == nil:
		l.rate = rate.NewLimiter(perSecond, burst)
	case l.rate.Limit() != perSecond:
		l.rate.SetLimitAt(now, perSecond)
		l.rate.SetBurstAt(now, burst)
	}
}

// putBack empties a lane's queue into the table.
func (s *Scheduler) putBack(l *lane, now time.Time) {
	for _, d := range append(l.first, l.late...) {
		if d.stage == queued {
			s.sendBack(d, now)
		}
	}
	l.first, l.late = nil, nil
	l.readAnew()
}

// sendBack lets a delivery go that has left its lane's queue, to wait in the table.
func (s *Scheduler) sendBack(d *Delivery, now time.Time) {
	s.leave(d, now)
	if d.inTable {
		s.remove(d)
		return
	}
	s.held--
	s.young(d)
	s.toPark(d)
}

// readAnew has the lane's pages begin again: what was put back may stand before
// the last one, and before that which is under way.
func (l *lane) readAnew() {
	l.after = store.PageEnd{}
	l.parks++
}

// unstock lets go what waits in a lane's queue and came from the table.
func (s *Scheduler) unstock(l *lane, now time.Time) {
	stocked := func(d *Delivery) bool {
		if d.stage != queued || !d.fetched {
			return false
		}
		s.leave(d, now)
		s.remove(d)
		return true
	}
	l.first, l.late = slices.DeleteFunc(l.first, stocked), slices.DeleteFunc(l.late, stocked)
	l.readAnew()
	s.hasRows(l)
}

// holdBack puts back what waits in the lane of an endpoint that gets only probes.
func (s *Scheduler) holdBack(l *lane, now time.Time) {
	s.spill(l, true)
	s.putBack(l, now)
	s.hasRows(l)
}

// emptyQueue empties the lane of an endpoint that is disabled or deleted: into
// the table, where the sweep cancels what is there. Not at once: the transaction
// that brought a delivery may not be visible yet, and may have made or enabled
// the endpoint. Once it is enabled again, it begins anew.
func (s *Scheduler) emptyQueue(l *lane, now time.Time) {
	l.rows = false
	s.putBack(l, now)
	s.spill(l, false)
	s.changeBreaker(l, func(b *breaker) { *b = breaker{} })
	l.health = unknown
	s.toSweep(l)
}

// spill says whether a lane is fed from the table.
func (s *Scheduler) spill(l *lane, spilled bool) {
	if l.spilled != spilled {
		l.spilled = spilled
		s.spilled += oneUp(spilled)
	}
}

// toSweep has the retrier cancel the rows of a lane that is refused.
func (s *Scheduler) toSweep(l *lane) {
	l.sweep = true
	s.touch(l)
}

func (l *lane) refusal() string {
	if l.endpoint == nil {
		return "the endpoint was deleted"
	}
	return "the endpoint is disabled"
}

// CompareIDs orders ids as PostgreSQL does.
func CompareIDs(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }
