package oracle

import (
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
)

// A Fate is what became of an event's transaction.
type Fate uint8

// The fates. An event is Open until its transaction has ended, and Unknown when
// the connection broke during the commit: then the table tells, afterwards. It is
// Undone when the database went on without it, after a failover or a restore: it
// may have been sent before.
const (
	Open Fate = iota
	Committed
	RolledBack
	Unknown
	Undone
)

// An Event is one row that the driver inserted.
type Event struct {
	ID    uuid.UUID
	Org   string
	Type  string
	N     int64 // in the payload: tells whose data was sent
	Fate  Fate
	Began time.Time     // before its commit was sent
	Bound pglogrepl.LSN // Committed: its commit lies before; 0 where that is not known
}

// A Journal holds what the driver and the receivers saw, in the order of seeing.
type Journal struct {
	mu       sync.Mutex
	events   []*Event
	requests []*Request
}

// Open notes events that are about to be inserted.
func (j *Journal) Open(events []*Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, events...)
}

// End notes the fate of a transaction's events.
func (j *Journal) End(events []*Event, fate Fate, began time.Time, bound pglogrepl.LSN) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range events {
		e.Fate, e.Began, e.Bound = fate, began, bound
	}
}

// Undo notes that of the events with these fates the database kept only those that
// are there, and returns how many are gone.
func (j *Journal) Undo(there map[uuid.UUID]Stored, fates ...Fate) (undone int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.events {
		if _, kept := there[e.ID]; !kept && slices.Contains(fates, e.Fate) {
			e.Fate = Undone
			undone++
		}
	}
	return undone
}

// Received notes a request, before it is answered.
func (j *Journal) Received(r *Request) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.requests = append(j.requests, r)
}

// Answered notes what a request is answered with, just before.
func (j *Journal) Answered(r *Request, status int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r.Status = status
}

// Broke notes that a request's connection is broken without an answer, just before.
func (j *Journal) Broke(r *Request) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r.Broken = true
}

// AnsweredWhole notes that the answer is written to its end.
func (j *Journal) AnsweredWhole(r *Request) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r.Whole = time.Now()
}

// Copy returns the journal as it is now.
func (j *Journal) Copy() (events []Event, requests []Request) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.events {
		events = append(events, *e)
	}
	for _, r := range j.requests {
		requests = append(requests, *r)
	}
	return events, requests
}

// Since returns the requests from the n-th on.
func (j *Journal) Since(n int) []Request {
	j.mu.Lock()
	defer j.mu.Unlock()
	var requests []Request
	for _, r := range j.requests[min(n, len(j.requests)):] {
		requests = append(requests, *r)
	}
	return requests
}

// Count is how many requests there were so far.
func (j *Journal) Count() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.requests)
}

// Requests is how many requests there were for a delivery so far.
func (j *Journal) Requests(delivery uuid.UUID) (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range j.requests {
		if r.Delivery == delivery {
			n++
		}
	}
	return n
}

// Bound is how many events are known to be committed below a position.
func (j *Journal) Bound() (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.events {
		if e.Fate == Committed && e.Bound != 0 {
			n++
		}
	}
	return n
}

// TakeBelow returns the committed events at or below a position that are not in
// seen, and adds them to it.
func (j *Journal) TakeBelow(lsn pglogrepl.LSN, seen map[uuid.UUID]bool) []Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	var events []Event
	for _, e := range j.events {
		if e.Fate == Committed && e.Bound != 0 && e.Bound <= lsn && !seen[e.ID] {
			seen[e.ID] = true
			events = append(events, *e)
		}
	}
	return events
}

// TakeOf returns an organization's committed events that are not in seen, and adds
// them to it.
func (j *Journal) TakeOf(org string, seen map[uuid.UUID]bool) []Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	var events []Event
	for _, e := range j.events {
		if e.Fate == Committed && e.Org == org && !seen[e.ID] {
			seen[e.ID] = true
			events = append(events, *e)
		}
	}
	return events
}

// Committed returns the events that are known to be committed.
func (j *Journal) Committed() []Event {
	events, _ := j.Copy()
	return slices.DeleteFunc(events, func(e Event) bool { return e.Fate != Committed })
}
