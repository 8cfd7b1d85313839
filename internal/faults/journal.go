package faults

import (
	"crypto/sha256"
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

// A Request is one HTTP request that a receiver got.
type Request struct {
	Endpoint  int // index of the receiver
	Delivery  uuid.UUID
	Event     uuid.UUID // in the body
	N         int64     // in the body's data
	Type      string    // in the header
	Retry     int       // in the header
	Body      [sha256.Size]byte
	Agent     string // which walhook sent it
	At        time.Time
	Status    int       // what was answered; 0: nothing, yet or ever
	Whole     time.Time // when its answer had been written to the end; zero: never, or nobody knows
	Malformed string    // what is wrong with the request itself: its signature, its headers

	// Which of its endpoint's secrets, in the order of their making, webhook-signature
	// and X-Webhook-Signature verify with.
	Signed, SignedBody []int
}

// A Journal holds what the driver and the receivers saw, in the order of seeing.
type Journal struct {
	mu       sync.Mutex
	events   []*Event
	requests []*Request
}

// open notes events that are about to be inserted.
func (j *Journal) open(events []*Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, events...)
}

// end notes the fate of a transaction's events.
func (j *Journal) end(events []*Event, fate Fate, began time.Time, bound pglogrepl.LSN) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range events {
		e.Fate, e.Began, e.Bound = fate, began, bound
	}
}

// undo notes that the database went on with these events alone, of those with
// the fates, and returns how many are gone.
func (j *Journal) undo(there map[uuid.UUID][]uuid.UUID, fates ...Fate) (undone int) {
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

// received notes a request, before it is answered.
func (j *Journal) received(r *Request) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.requests = append(j.requests, r)
}

// answered notes what a request is answered with, just before.
func (j *Journal) answered(r *Request, status int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r.Status = status
}

// answeredWhole notes that the answer is written to its end.
func (j *Journal) answeredWhole(r *Request) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r.Whole = time.Now()
}

// copy returns the journal as it is now.
func (j *Journal) copy() (events []Event, requests []Request) {
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

// since returns the requests from the n-th on.
func (j *Journal) since(n int) []Request {
	j.mu.Lock()
	defer j.mu.Unlock()
	var requests []Request
	for _, r := range j.requests[min(n, len(j.requests)):] {
		requests = append(requests, *r)
	}
	return requests
}

// count is how many requests there were so far.
func (j *Journal) count() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.requests)
}

// bound is how many events are known to be committed below a position.
func (j *Journal) bound() (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.events {
		if e.Fate == Committed && e.Bound != 0 {
			n++
		}
	}
	return n
}

// takeBelow returns the committed events at or below a position that are not in
// seen, and adds them to it.
func (j *Journal) takeBelow(lsn pglogrepl.LSN, seen map[uuid.UUID]bool) []Event {
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

// takeOf returns an organization's committed events that are not in seen, and adds
// them to it.
func (j *Journal) takeOf(org string, seen map[uuid.UUID]bool) []Event {
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

// committed returns the events that are known to be committed.
func (j *Journal) committed() []Event {
	events, _ := j.copy()
	return slices.DeleteFunc(events, func(e Event) bool { return e.Fate != Committed })
}
