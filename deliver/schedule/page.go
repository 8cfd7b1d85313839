package schedule

import (
	"math"
	"time"

	"github.com/walhook/walhook/internal/store"
)

// How lanes are fed from the table: whose turn it is to ask for a page, how
// large that may be, and what its outcome means. The window decides; the retrier
// asks.

const (
	// A lane's prefetch begins at its limit, so that a slow endpoint's rows stay in the
	// table and leave the window to others, and doubles up to maxPrefetch times that
	// while a page does not last for pageFor.
	maxPrefetch = 16
	pageFor     = 100 * time.Millisecond

	// ratedFor is how long the prefetch of an endpoint with a rate lasts.
	ratedFor = 500 * time.Millisecond

	// prefetchShare is the part of the room for rows which a lane's queue may hold, of
	// what is free: however many lanes are fed, there is room for one more. One lane alone
	// gets pages of a hundred, which cost no more per row than larger ones.
	prefetchShare = 32
)

// A Page is what a lane asks of the table.
type Page struct {
	lane *lane
	size int
	got  int
	end  store.PageEnd // of what was taken in
}

// Query is the page as the store is asked for it.
func (p *Page) Query() store.Page {
	return store.Page{EndpointID: p.lane.id, After: p.end, Limit: p.size}
}

// hasRows has the retrier ask for the rows of a lane.
func (s *Scheduler) hasRows(l *lane) {
	l.rows = true
	s.touch(l)
}

// found has the retrier ask for the rows of a lane that the table told of. Why
// they are due it does not tell: where the breaker is open an operator may have
// asked for them, which the look-up knows.
func (s *Scheduler) found(l *lane, now time.Time) {
	if s.hasRows(l); l.breaker.open && now.Sub(l.asOf) >= refreshAfter {
		l.ask = true
	}
}

// page says how many due rows a lane may ask for, of so much room that is free;
// 0 where there are none or it is too early.
func (s *Scheduler) page(l *lane, free int, now time.Time) int {
	if !l.rows || !s.bytesFit(l, s.limits.MaxMemory/2) {
		return 0
	}
	size := min(l.mayPrefetch(now), max(free/prefetchShare, 1))
	if l.prefetched > size/2 {
		return 0
	}
	return min(size-l.prefetched, s.fitting(l))
}

// fitting is how many rows have room if they are as large as those that the lane
// holds: what finds none was read for nothing.
func (s *Scheduler) fitting(l *lane) int {
	if l.bytes == 0 {
		return math.MaxInt
	}
	room := max((s.limits.MaxMemory/2-s.bytes)/8-l.bytes, 0)
	return 1 + int(room*int64(l.held)/l.bytes)
}

// mayPrefetch is how many deliveries from the table a lane may have queued.
func (l *lane) mayPrefetch(now time.Time) int {
	if l.shut || l.breaker.holds(now) {
		return max(0, l.may(now)-(l.held-l.prefetched)) // the probe
	}
	size := max(l.size, l.limit)
	if !l.proven {
		size = min(l.limit, unprovenPermits)
	}
	if ramp := l.breaker.ramp; ramp > 0 {
		size = min(size, 2*ramp)
	}
	return max(1, l.within(ratedFor, size))
}

// toAsk takes the lanes that have room for a page, at most n, in turn.
func (s *Scheduler) toAsk(n int, now time.Time) []*Page {
	s.reconsiderTouched(now)
	if s.starved = !s.fetchRoom(); s.starved {
		return nil
	}
	var asked []*Page
	free := s.limits.rowsShare() - s.fetched
	for range s.lists[toFetch].Len() { // once each: one without room for now may stay in the round
		if len(asked) == n {
			break
		}
		l := s.takeFirst(toFetch)
		size := s.page(l, free, now)
		if size == 0 {
			s.touch(l) // when it may
			continue
		}
		free -= size
		asked = append(asked, &Page{lane: l, size: size, end: l.begin()})
	}
	return asked
}

// admitDue takes in a row that is due, unless it is in memory already or there
// is no room: then it stays in the table, where it is safe.
func (s *Scheduler) admitDue(due *store.Due, now time.Time) {
	l := s.lane(due.EndpointID, now)
	if d := s.deliveries[due.ID]; d != nil {
		s.seeAgain(d, due)
		return
	}
	if l.overflown || s.stopping || s.removed[due.ID] {
		return
	}
	e := newEvent(&due.Event)
	if l.overflown = !s.fetchRoom() || !s.fits(e) || !s.bytesFit(l, s.limits.MaxMemory/2) ||
		l.breaker.holds(now) && l.held >= l.may(now); l.overflown {
		return
	}
	d := &Delivery{id: due.ID, event: e, lane: l, inTable: true, fetched: true}
	d.asSeen(due)
	// A lane that is spilled has its first attempts in the table too.
	d.low = due.Attempts > 0 || !l.spilled
	s.fetched++
	s.counts.Fetched++
	s.add(d)
	s.enqueue(d, now)
}

// asSeen takes what the row says of the next attempt.
func (d *Delivery) asSeen(due *store.Due) {
	d.attempts, d.series = due.Attempts, due.SeriesStart
	if due.Status == store.Pending {
		d.series = due.Attempts // a replay begins a new series; a first attempt, the first
	}
	d.seen = store.Seen{Status: due.Status, DueAt: due.DueAt}
}

// seeAgain takes the row of a delivery that waits in memory: it may have been
// replayed since it was fetched, and the attempt to come is the replay's.
func (s *Scheduler) seeAgain(d *Delivery, due *store.Due) {
	if d.stage == queued && d.fetched && due.Attempts >= d.attempts {
		d.asSeen(due)
	}
}

// paged takes the end of a page. Where that was all, the lane goes direct again.
func (s *Scheduler) paged(p *Page, now time.Time) {
	if !p.lane.prefetch.end(p.got, p.size, p.end, p.lane.limit, now) {
		s.spill(p.lane, false)
	}
	s.touch(p.lane)
}
