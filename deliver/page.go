package deliver

import (
	"math"
	"time"

	"github.com/walhook/walhook/internal/store"
)

// How lanes are fed from the table: whose turn it is to ask for a page, how
// large that may be, and what its outcome means. The window decides; the retrier
// asks.

const (
	// A lane's stock begins at its limit, so that a slow endpoint's rows stay in the
	// table and leave the window to others, and doubles up to maxStock times that
	// while a page does not last for stockFor.
	maxStock = 16
	stockFor = 100 * time.Millisecond

	// ratedFor is for how long the stock of an endpoint with a rate lasts.
	ratedFor = 500 * time.Millisecond

	// stockShare is the part of the room for rows which a lane's queue may hold, of
	// what is free: however many lanes are fed, there is room for one more. One lane alone
	// gets pages of a hundred, which cost no more per row than larger ones.
	stockShare = 32
)

// A pageRequest is a lane that asks, and what was true when it did.
type pageRequest struct {
	lane *lane
	size int
	got  int
	end  store.PageEnd // of what was taken in
}

// hasRows has the retrier ask for the rows of a lane.
func (w *window) hasRows(l *lane, now time.Time) {
	l.rows = true
	w.feed(l, now)
}

// found has the retrier ask for the rows of a lane that the table told of. Why
// they are due it does not tell: where the breaker is open an operator may have
// asked for them, which the look-up knows.
func (w *window) found(l *lane, now time.Time) {
	w.hasRows(l, now)
	if l.breaker.open && now.Sub(l.asOf) >= refreshAfter {
		w.want(l)
	}
}

// feed puts a lane whose rows have room into the round of those that ask.
func (w *window) feed(l *lane, now time.Time) {
	switch {
	case !l.rows || l.inHungry:
	case w.page(l, w.limits.rowsShare()-w.fetched, now) > 0:
		l.inHungry = true
		w.hungry = append(w.hungry, l)
		w.toFetch.raise()
	case l.shut:
		w.pause(l, now.Add(staleAfter))
	case l.breaker.holds(now) && now.Before(l.breaker.next):
		w.pause(l, l.breaker.next)
	default:
		w.hold(l, time.Time{}, now) // its limits may be raised
	}
}

// page says how many due rows a lane may ask for, of so much room that is free;
// 0 where there are none or it is too early.
func (w *window) page(l *lane, free int, now time.Time) int {
	if !l.rows || !w.lightEnough(l, w.limits.MaxMemory/2) {
		return 0
	}
	stock := min(l.mayStock(now), max(free/stockShare, 1))
	if l.stocked > stock/2 {
		return 0
	}
	return min(stock-l.stocked, w.fitting(l))
}

// fitting is how many rows have room if they are as large as those that the lane
// holds: what finds none was read for nothing.
func (w *window) fitting(l *lane) int {
	if l.bytes == 0 {
		return math.MaxInt
	}
	room := max((w.limits.MaxMemory/2-w.bytes)/8-l.bytes, 0)
	return 1 + int(room*int64(l.held)/l.bytes)
}

// mayStock is how many deliveries from the table a lane may have queued.
func (l *lane) mayStock(now time.Time) int {
	if l.shut || l.breaker.holds(now) {
		return max(0, l.may(now)-(l.held-l.stocked)) // the probe
	}
	stock := max(l.stock, l.limit)
	if !l.trusted {
		stock = min(l.limit, guestPlaces)
	}
	if ramp := l.breaker.ramp; ramp > 0 {
		stock = min(stock, 2*ramp)
	}
	return max(1, l.within(ratedFor, stock))
}

// toAsk takes the lanes that have room for a page, at most n, in turn.
func (w *window) toAsk(n int, now time.Time) []*pageRequest {
	if w.starved = !w.fetchRoom(); w.starved {
		return nil
	}
	var asked []*pageRequest
	free := w.limits.rowsShare() - w.fetched
	for range len(w.hungry) { // once each: one without room for now may stay in the round
		if len(asked) == n {
			break
		}
		l := w.hungry[0]
		w.hungry[0] = nil
		w.hungry = w.hungry[1:]
		l.inHungry = false
		size := w.page(l, free, now)
		if size == 0 {
			w.feed(l, now) // when it may
			continue
		}
		free -= size
		if l.after == (store.PageEnd{}) {
			l.passParks = l.parks
		}
		asked = append(asked, &pageRequest{lane: l, size: size, end: l.after})
	}
	return asked
}

// admitDue takes in a row that is due, unless it is in memory already or there
// is no room: then it stays in the table, where it is safe.
func (w *window) admitDue(due *store.Due, now time.Time) {
	l := w.lane(due.EndpointID, now)
	if d := w.deliveries[due.ID]; d != nil {
		w.seeAgain(d, due)
		return
	}
	if l.overflown || w.stopping || w.removed[due.ID] {
		return
	}
	e := newEvent(&due.Event)
	if l.overflown = !w.fetchRoom() || !w.fits(e) || !w.lightEnough(l, w.limits.MaxMemory/2) ||
		l.breaker.holds(now) && l.held >= l.may(now); l.overflown {
		return
	}
	d := &delivery{id: due.ID, event: e, lane: l, inTable: true, fetched: true}
	d.asSeen(due)
	// A lane that is spilled has its first attempts in the table too.
	d.late = due.Attempts > 0 || !l.spilled
	w.fetched++
	w.counts.Fetched++
	w.add(d)
	w.enqueue(d, now)
}

// asSeen takes what the row says of the next attempt.
func (d *delivery) asSeen(due *store.Due) {
	d.attempts, d.series = due.Attempts, due.SeriesStart
	if due.Status == store.Pending {
		d.series = due.Attempts // a replay begins a new series; a first attempt, the first
	}
	d.seen = store.Seen{Status: due.Status, DueAt: due.DueAt}
}

// seeAgain takes the row of a delivery that waits in memory: it may have been
// replayed since it was fetched, and the attempt to come is the replay's.
func (w *window) seeAgain(d *delivery, due *store.Due) {
	if d.stage == queued && d.fetched && due.Attempts >= d.attempts {
		d.asSeen(due)
	}
}

// paged takes the outcome of a page. The next begins where this one ended. Fewer
// rows than were asked for are all that is left, and the lane goes direct again;
// what was parked since the first of these pages may stand before where they
// began, and is found from the beginning.
func (w *window) paged(p *pageRequest, now time.Time) {
	l := p.lane
	left := p.got >= p.size || l.overflown
	l.overflown = false
	l.after = p.end
	if !left {
		l.after = store.PageEnd{}
		w.spill(l, false)
	}
	l.stock = max(l.stock, l.limit)
	if now.Sub(l.pagedAt) < stockFor {
		l.stock = min(2*l.stock, maxStock*l.limit)
	} else {
		l.stock = l.limit
	}
	l.pagedAt = now
	if l.rows = left || l.parks != l.passParks; l.rows {
		w.feed(l, now)
	}
}
