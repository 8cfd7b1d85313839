package schedule

import (
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/webhook"
)

// From deliveries to rows, and what the commit of a batch means.

// recordBatch bounds the rows of one recording transaction: about 5 ms of work. Larger
// batches are no faster per row and hold their locks longer.
const recordBatch = 500

// parkedShare is the part of a batch reserved for parked deliveries, if any wait.
// Outcomes go first, because they hold permits.
const parkedShare = recordBatch / 5

// takeNew takes a batch of deliveries without a row.
func (s *Scheduler) takeNew() ([]*Delivery, []webhook.Record) {
	outcomes := min(len(s.newRows), recordBatch-min(len(s.toBeParked), parkedShare))
	taken, records := s.take(&s.newRows, outcomes)
	parked, more := s.take(&s.toBeParked, min(len(s.toBeParked), recordBatch-outcomes))
	return append(taken, parked...), append(records, more...)
}

func (s *Scheduler) takeExisting() ([]*Delivery, []webhook.Record) {
	n := min(len(s.existing), recordBatch)
	return s.take(&s.existing, n)
}

func (s *Scheduler) take(from *[]*Delivery, n int) ([]*Delivery, []webhook.Record) {
	if n == 0 {
		return nil, nil
	}
	taken := (*from)[:n:n]
	records := make([]webhook.Record, n)
	for i, d := range taken {
		d.enlisted = false
		d.writing = true
		records[i] = s.record(d)
	}
	if *from = (*from)[n:]; len(*from) == 0 {
		*from = nil
	}
	return taken, records
}

// recordedBy counts a batch as recorded and returns its number and how far everything
// is recorded. The number is taken first: only the batch's own echo may confirm it.
func (s *Scheduler) recordedBy(taken []*Delivery) (batch uint64, upTo position) {
	batch = s.ledger.take()
	for _, d := range taken {
		if d.tx != nil {
			d.tx.pending--
			d.tx = nil
		}
	}
	return batch, s.ledger.advance()
}

// record returns a delivery's row as of now.
func (s *Scheduler) record(d *Delivery) webhook.Record {
	r := webhook.Record{
		ID: d.id, EventID: d.event.id, EndpointID: d.lane.id,
		OrganizationID: d.event.organization, EventType: d.event.typ,
		Attempts: d.attempts, SeriesStart: d.series,
	}
	switch {
	case d.stage == ended:
		s.outcome(d, &r)
	case d.stage == parked:
		r.Status, r.Wait = webhook.Pending, -webhook.ParkedDue
		if !d.fetched {
			r.Seen.Lease = d.lease // if it has a row
		}
	default: // running: the lease
		r.Status, r.Wait = webhook.Pending, d.lease
	}
	return r
}

// outcome decides what follows an attempt.
func (s *Scheduler) outcome(d *Delivery, r *webhook.Record) {
	r.Attempt, r.Gone = d.attempt, d.gone
	r.Attempts = d.attempts + 1
	if r.Seen = d.seen; !d.fetched {
		r.Seen.Lease = d.lease
	}
	switch send.Judge(*d.attempt) {
	case send.Delivered:
		r.Status = webhook.Success
	case send.Gone:
		r.Status = webhook.Failed
	case send.Retry:
		wait, again := d.lane.backoff.Wait(r.Attempts-d.series, d.attempt.RetryAfter, s.jitter())
		if r.Status = webhook.Retrying; !again {
			r.Status, r.Exhausted = webhook.Failed, true
		}
		r.Wait = wait
	}
	d.outcome, d.exhausted = r.Status, r.Exhausted
}

// inserted is Inserted.
func (s *Scheduler) inserted(taken []*Delivery, allNew bool, refused map[uuid.UUID]bool, now time.Time) (stuck []*Delivery) {
	for _, d := range taken {
		d.writing, d.inTable = false, !refused[d.id]
		switch {
		case refused[d.id]:
			stuck = append(stuck, s.putAside(d, now)...)
		case d.stage == running: // the lease is written; its outcome will follow
		case d.stage == parked && d.enlisted: // it was written as a lease, and was not sent: that is written too
		case d.stage == ended && (d.enlisted || !allNew): // the lease was written, or another row was there
			s.enlist(d)
		default:
			s.done(d, now)
		}
	}
	s.dispatch(now)
	return stuck
}

// updated is Updated.
func (s *Scheduler) updated(taken []*Delivery, locked, refused, replayed map[uuid.UUID]bool, now time.Time) (aside, stuck []*Delivery) {
	for _, d := range taken {
		d.writing = false
		switch {
		case locked[d.id]:
			aside = append(aside, s.putAside(d, now)...)
			continue
		case refused[d.id]:
			stuck = append(stuck, s.putAside(d, now)...)
			continue
		}
		if s.done(d, now); replayed[d.id] {
			l := s.lane(d.lane.id, now)
			l.restart()
			s.hasRows(l)
		}
	}
	s.dispatch(now)
	return aside, stuck
}

// putAside sets aside a delivery that could not be written, for as long as an operator
// holds its row, and returns its share of low-priority attempts. A running one need not
// wait: its outcome follows, or is already queued as an update.
func (s *Scheduler) putAside(d *Delivery, now time.Time) []*Delivery {
	if d.enlisted {
		s.existing = slices.DeleteFunc(s.existing, func(o *Delivery) bool { return o == d })
		d.enlisted = false
		s.enlist(d)
		return nil
	}
	if d.stage == running {
		return nil
	}
	s.releaseLow(d, now)
	return []*Delivery{d}
}

// done removes a delivery whose outcome or pending row is committed.
func (s *Scheduler) done(d *Delivery, now time.Time) {
	l := d.lane
	if d.stage == ended {
		s.ended--
		l.ended--
		s.releaseLow(d, now)
		s.counts.recorded(d, now)
		if d.exhausted {
			s.exhaust(d)
		}
		if d.gone {
			l.gone, l.notBefore, l.asOf = false, now, time.Time{}
			l.ask = true
			s.touch(l)
		}
	} else {
		l.parking--
		l.parks++
		if s.hasRows(l); l.refused {
			s.cancelRows(l)
		}
	}
	s.remove(d)
	if len(s.lanes) > maxIdleLanes && l.idle() && now.Sub(l.used) >= staleAfter {
		s.drop(l)
	}
}

// Unwritten reports whether there is something to write, and the right to; and whether it
// should be written now, because it fills a batch or the process ends.
func (s *Scheduler) Unwritten() (some, now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fence.Epoch != 0 && s.unwritten() > 0, s.unwritten() >= recordBatch || s.stopping
}

// A Batch is what one transaction records.
type Batch struct {
	Records []webhook.Record // of the deliveries as they were when it was taken
	Mark    webhook.Mark
	Fence   webhook.Fence
	taken   []*Delivery
}

// TakeNew takes a batch of deliveries without a row, or returns nil. Its Mark has the
// batch's number, whose echo confirms it, and the endpoints' health if withHealth is true.
func (s *Scheduler) TakeNew(withHealth bool) *Batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken, records := s.takeNew()
	if len(taken) == 0 {
		return nil
	}
	seq, at := s.recordedBy(taken)
	b := &Batch{Records: records, Mark: webhook.Mark{Seq: seq, Durable: at.lsn, CommitAt: at.at}, Fence: s.fence, taken: taken}
	if withHealth {
		b.Mark.Health = s.takeHealth()
	}
	return b
}

// TakeExisting takes a batch of deliveries that have a row, likewise.
func (s *Scheduler) TakeExisting(withHealth bool) *Batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken, records := s.takeExisting()
	if len(taken) == 0 {
		return nil
	}
	b := &Batch{Records: records, Mark: s.durable(), Fence: s.fence, taken: taken}
	if withHealth {
		b.Mark.Health = s.takeHealth()
	}
	return b
}

// durable returns a Mark of how far everything is recorded.
func (s *Scheduler) durable() webhook.Mark {
	return webhook.Mark{Durable: s.ledger.recorded.lsn, CommitAt: s.ledger.recorded.at}
}

// Inserted takes the commit of a batch from TakeNew. If not all rows were new, an
// outcome may not be written yet: it continues as an update, which applies only what is
// later than the row. It returns the deliveries that the database refused; they have no
// row, and Requeue brings them back.
func (s *Scheduler) Inserted(b *Batch, allNew bool, refused map[uuid.UUID]bool, now time.Time) (stuck []*Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stuck = s.inserted(b.taken, allNew, refused, now)
	s.aside += len(stuck)
	return stuck
}

// Updated takes the commit of a batch from TakeExisting. It returns the deliveries
// whose rows others have locked, and those that the database refused; Requeue brings
// both back. Replayed deliveries wait to be sent once more, and may sort before their
// lane's last page.
func (s *Scheduler) Updated(b *Batch, locked, refused, replayed map[uuid.UUID]bool, now time.Time) (aside, stuck []*Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	aside, stuck = s.updated(b.taken, locked, refused, replayed, now)
	s.aside += len(aside) + len(stuck)
	return aside, stuck
}

// Requeue has the recorder write deliveries again that could not be written.
func (s *Scheduler) Requeue(aside []*Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range aside {
		s.enlist(d)
	}
	s.aside -= len(aside)
}
