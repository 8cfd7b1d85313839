package deliver

import (
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/sabotage"
	"github.com/walhook/walhook/internal/store"
)

// The window's side of recording: from deliveries to rows, and what the commit of
// a batch means. It decides and does no I/O; the recorder writes.

// parkedShare is how much of a batch of new rows parked deliveries get at least,
// where they wait. Outcomes go first: they hold places, and a parked delivery does
// not.
const parkedShare = recordBatch / 5

// takeNew takes a batch of deliveries without a row, as they are now.
func (w *window) takeNew() ([]*delivery, []store.Record) {
	outcomes := min(len(w.newRows), recordBatch-min(len(w.toBeParked), parkedShare))
	taken, records := w.take(&w.newRows, outcomes)
	parked, more := w.take(&w.toBeParked, min(len(w.toBeParked), recordBatch-outcomes))
	return append(taken, parked...), append(records, more...)
}

func (w *window) takeExisting() ([]*delivery, []store.Record) {
	n := min(len(w.existing), recordBatch)
	return w.take(&w.existing, n)
}

func (w *window) take(from *[]*delivery, n int) ([]*delivery, []store.Record) {
	if n == 0 {
		return nil, nil
	}
	taken := (*from)[:n:n]
	records := make([]store.Record, n)
	for i, d := range taken {
		d.enlisted = false
		d.writing = true
		records[i] = w.record(d)
	}
	if *from = (*from)[n:]; len(*from) == 0 {
		*from = nil
	}
	return taken, records
}

// recordedBy lets a taken batch count as recorded, and returns its number and how
// far everything is. The number comes first: the batch's own echo is what confirms.
func (w *window) recordedBy(taken []*delivery) (batch uint64, upTo position) {
	batch = w.ledger.take()
	for _, d := range taken {
		if d.tx != nil {
			d.tx.pending--
			d.tx = nil
		}
	}
	return batch, w.ledger.advance()
}

// record is a delivery's row as of now.
func (w *window) record(d *delivery) store.Record {
	r := store.Record{
		ID: d.id, EventID: d.event.id, EndpointID: d.lane.id,
		OrganizationID: d.event.organization, EventType: d.event.typ,
		Attempts: d.attempts, SeriesStart: d.series,
	}
	switch {
	case d.stage == ended:
		w.outcome(d, &r)
	case d.stage == parked || sabotage.On(sabotage.NoLease):
		r.Status, r.Wait = store.Pending, -store.ParkedDue
	default: // running: the lease
		r.Status, r.Wait = store.Pending, w.leaseTime()
	}
	return r
}

func (w *window) leaseTime() time.Duration { return w.limits.Timeout + leaseMargin }

// lease is when a pending row that somebody else writes is due: as a parked one, unless
// an attempt is under way, of what was taken in before its slot was lost.
func (w *window) lease(id uuid.UUID) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d := w.deliveries[id]; d != nil && d.stage == running {
		return w.leaseTime()
	}
	return -store.ParkedDue
}

// outcome decides what follows an attempt.
func (w *window) outcome(d *delivery, r *store.Record) {
	r.Attempt, r.Gone = d.attempt, d.gone
	r.Attempts = d.attempts + 1
	if r.Seen = d.seen; !d.fetched {
		r.Seen.Lease = w.leaseTime()
	}
	if sabotage.On(sabotage.EarlierWord) {
		r.Seen = store.Seen{}
	}
	switch send.Judge(*d.attempt) {
	case send.Delivered:
		r.Status = store.Success
	case send.Gone:
		r.Status = store.Failed
	case send.Retry:
		wait, again := w.schedule.Wait(r.Attempts-d.series, d.attempt.RetryAfter, w.jitter())
		if r.Status = store.Retrying; !again {
			r.Status, r.Exhausted = store.Failed, true
		}
		r.Wait = wait
	}
}

// inserted takes the commit of a batch of new rows. Where not all were new, an
// outcome among them may not be written yet: it goes on as an update, which
// applies only what is later than the row. It returns those that the database has
// refused, and that have no row.
func (w *window) inserted(taken []*delivery, allNew bool, refused map[uuid.UUID]bool) (stuck []*delivery) {
	for _, d := range taken {
		d.writing, d.inTable = false, !refused[d.id]
		switch {
		case refused[d.id]:
			stuck = append(stuck, w.putAside(d)...)
		case d.stage == running: // the lease is written; its outcome will follow
		case d.stage == parked && d.enlisted: // it was written as a lease, and was not sent: that is written too
		case d.stage == ended && (d.enlisted || !allNew): // the lease was written, or another row was there
			w.enlist(d)
		default:
			w.done(d)
		}
	}
	w.dispatch(time.Now())
	return stuck
}

// updated takes the commit of a batch of existing rows, and returns those that
// someone else had locked, and those that the database has refused. Those that an
// operator has said are to be sent again may stand before where their lane reads.
func (w *window) updated(taken []*delivery, busy, refused, again map[uuid.UUID]bool) (aside, stuck []*delivery) {
	for _, d := range taken {
		d.writing = false
		switch {
		case busy[d.id]:
			aside = append(aside, w.putAside(d)...)
			continue
		case refused[d.id]:
			stuck = append(stuck, w.putAside(d)...)
			continue
		}
		if w.done(d); again[d.id] {
			l := w.lane(d.lane.id, time.Now())
			l.readAnew()
			w.hasRows(l, time.Now())
		}
	}
	w.dispatch(time.Now())
	return aside, stuck
}

// putAside lets a delivery wait that could not be written, for as long as an operator
// likes, without its place among the late ones. One whose attempt was under way need
// not wait: its outcome follows, or has been lined up as that of a row.
func (w *window) putAside(d *delivery) []*delivery {
	if d.enlisted {
		w.existing = slices.DeleteFunc(w.existing, func(o *delivery) bool { return o == d })
		d.enlisted = false
		w.enlist(d)
		return nil
	}
	if d.stage == running {
		return nil
	}
	w.settled(d)
	return []*delivery{d}
}

// done lets a delivery go whose outcome, or whose pending row, is committed.
func (w *window) done(d *delivery) {
	l := d.lane
	if d.stage == ended {
		w.ended--
		l.ended--
		w.settled(d)
		w.counts.Recorded++
		if d.gone {
			l.gone, l.notBefore, l.asOf = false, time.Now(), time.Time{}
			w.want(l)
		}
	} else {
		l.parking--
		l.parks++
		if w.hasRows(l, time.Now()); l.refused {
			w.toSweep(l)
		}
	}
	w.remove(d)
	if len(w.lanes) > maxIdleLanes && l.idle() && time.Since(l.used) >= staleAfter {
		w.drop(l)
	}
}
