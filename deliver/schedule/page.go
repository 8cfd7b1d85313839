package schedule

import (
	"math"
	"time"

	"github.com/google/uuid"
	"github.com/walhook/walhook/internal/webhook"
)

// How lanes are fed from the table: which lane may ask for a page, how large it may
// be, and what its end means. The retrier fetches the pages.

const (
	// prefetchPerPermit bounds a lane's prefetched rows for each attempt that it may make
	// at once. With two, an endpoint with one permit that answers within 2 ms waits for its
	// pages; with more than eight, nothing becomes faster, and slow endpoints hold more rows.
	prefetchPerPermit = 8

	// ratedFor is how long the prefetch of an endpoint with a rate lasts.
	ratedFor = 500 * time.Millisecond

	// prefetchShare bounds a lane's prefetch to that part of the free room for rows:
	// however many lanes are fed, there is room for one more. A lane alone gets pages
	// of about a hundred rows; larger ones cost no less per row.
	prefetchShare = 32
)

// A Page is what a lane asks of the table.
type Page struct {
	lane *lane
	size int
	got  int
	end  webhook.PageEnd // of what was taken in

	generation int // of the session: the database of another one may not have these rows
}

// Query returns the page as a query for the store.
func (p *Page) Query() webhook.Page {
	return webhook.Page{EndpointID: p.lane.id, After: p.end, Limit: p.size}
}

// hasRows notes that a lane may have due rows.
func (s *Scheduler) hasRows(l *lane) {
	l.rows = true
	s.touch(l)
}

// found notes that the table has due rows for a lane. It does not say why they are due:
// if the breaker is open, an operator may have asked for them, and if the endpoint is
// paused, it may go on by now. The look-up will tell.
func (s *Scheduler) found(l *lane, now time.Time) {
	if s.hasRows(l); (l.breaker.open || l.paused) && now.Sub(l.asOf) >= refreshAfter {
		l.ask = true
	}
}

// page returns how many due rows a lane may ask for, given the free room for rows; 0 if
// it has none or must wait.
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

// fitting returns how many rows have room, if they are as large as those that the lane
// holds. Rows without room would be read in vain.
func (s *Scheduler) fitting(l *lane) int {
	if l.bytes == 0 {
		return math.MaxInt
	}
	room := max((s.limits.MaxMemory/2-s.bytes)/8-l.bytes, 0)
	return 1 + int(room*int64(l.held)/l.bytes)
}

// mayPrefetch returns how many prefetched deliveries a lane may have queued.
func (l *lane) mayPrefetch(now time.Time) int {
	if l.onlyProbes(now) {
		return max(0, l.may(now)-(l.held-l.prefetched)) // the probe
	}
	size := prefetchPerPermit * l.limit
	if !l.proven {
		size = min(l.limit, unprovenPermits)
	}
	if ramp := l.breaker.ramp; ramp > 0 {
		size = min(size, 2*ramp)
	}
	return max(1, l.within(ratedFor, size))
}

// toAsk takes up to n lanes that have room for a page, in turn.
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
		asked = append(asked, &Page{lane: l, size: size, end: l.begin(), generation: s.ledger.generation})
	}
	return asked
}

// admitDue takes in a row that is due, unless it is in memory already or there
// is no room: then it stays in the table, where it is safe.
func (s *Scheduler) admitDue(due *webhook.Due, now time.Time) {
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
		l.onlyProbes(now) && l.held >= l.may(now); l.overflown {
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
func (d *Delivery) asSeen(due *webhook.Due) {
	d.attempts, d.series = due.Attempts, due.SeriesStart
	if due.Status == webhook.Pending {
		d.series = due.Attempts // a replay begins a new series; a first attempt, the first
	}
	d.seen = webhook.Seen{Status: due.Status, DueAt: due.DueAt}
}

// seeAgain takes the row of a delivery that waits in memory: it may have been
// replayed since it was fetched, and the attempt to come is the replay's.
func (s *Scheduler) seeAgain(d *Delivery, due *webhook.Due) {
	if d.stage == queued && d.fetched && due.Attempts >= d.attempts {
		d.asSeen(due)
	}
}

// paged takes the end of a page. Where that was all, the lane goes direct again.
func (s *Scheduler) paged(p *Page) {
	if !p.lane.prefetch.end(p.got, p.size, p.end) {
		s.spill(p.lane, false)
	}
	s.touch(p.lane)
}

// MayFetch reports whether rows may be fetched. A standby leaves them to the active
// process.
func (s *Scheduler) MayFetch(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live(now) && !s.stopping
}

// FoundDue takes endpoints that have due rows.
func (s *Scheduler) FoundDue(endpoints []uuid.UUID, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range endpoints {
		s.found(s.lane(id, now), now)
	}
	s.reconsiderTouched(now)
}

// FoundWaiting takes endpoints that have unfinished rows.
func (s *Scheduler) FoundWaiting(waiting []webhook.Waiting, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range waiting {
		l := s.lane(f.EndpointID, now)
		if s.found(l, now); !f.Enabled {
			l.ask = true // the look-up finds it refused, and has it swept
		}
	}
	s.reconsiderTouched(now)
}

// TakePages takes up to n lanes that have room for a page of due rows, in turn. Each must
// be given back to Fetched.
func (s *Scheduler) TakePages(n int, now time.Time) []*Page {
	s.mu.Lock()
	defer s.mu.Unlock()
	pages := s.toAsk(n, now)
	if len(pages) > 0 {
		s.removed = map[uuid.UUID]bool{}
	}
	return pages
}

// AdmitDue takes one row of a page. It is admitted unless it is in memory, has no room, or
// must not be sent, or a new session has begun since the page was asked for.
func (s *Scheduler) AdmitDue(p *Page, due *webhook.Due, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.generation != s.ledger.generation {
		return
	}
	p.got++
	if !due.Orphaned && !due.Reassigned && !due.Unseen {
		s.admitDue(due, now)
	}
	if !p.lane.overflown {
		p.end = due.End()
	}
}

// Fetched takes the end of pages that were read, or have failed.
func (s *Scheduler) Fetched(pages []*Page, failed bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removed = nil
	for _, p := range pages {
		if failed || p.generation != s.ledger.generation {
			p.lane.paging = false
			s.hasRows(p.lane)
			continue
		}
		s.paged(p)
	}
	s.dispatch(now)
}

// RetryNotVisible takes endpoints whose rows could not all be fetched or cancelled, because a
// committed transaction was not visible yet.
func (s *Scheduler) RetryNotVisible(endpoints []uuid.UUID, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range endpoints {
		if l := s.lane(id, now); l.refused {
			s.cancelRows(l)
		} else {
			s.hasRows(l)
		}
	}
	s.reconsiderTouched(now)
}
