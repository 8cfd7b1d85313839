// Package schedule decides which delivery is sent when, and what may be confirmed.
// It does no I/O and knows no context: loops tell it what has happened, and do what
// it says.
//
//	scheduler    the one mutex, and what engine, workers and fan-out may ask; what the other
//	             loops may ask stands where it is decided
//	reconsider   what each lane waits for, by its facts
//	delivery     one event owed to one endpoint, while it is in memory
//	admission    what the stream brings: window says how much there may be
//	session      what a new session changes
//	lane         one endpoint's: queue, permits, known, prefetch and health are its parts
//	start        the next attempt; lookup: what its endpoint's row says
//	requeue      deliveries on their way back into the table; idle: lanes that are dropped
//	capacity     how all lanes share the permits
//	page         how lanes are fed from the table
//	transition   what operators hear of
//	timers       what time alone brings about: parking, rates, probes
//	batch        outcomes and parked deliveries on their way into rows
//	health       what attempts say of their endpoints
//	verify       the books, compared with what they count: for tests
//	ledger       pure: what may be confirmed
//	counts       totals for metrics; latency: how long after the commit
//	fault        what keeps deliveries waiting and is no endpoint's doing
//	breaker      pure: how much a failing endpoint is still asked; backoff: when to try again
package schedule

import (
	"container/list"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/webhook"
)

// A Scheduler holds every delivery that is in memory, with the lanes, and the
// ledger of what may be confirmed. One mutex guards all of it and is never held
// during I/O. The Scheduler decides; the loops around it (fan-out, clock, workers,
// recorder, retrier, directory) act. Its exported methods take the mutex, and are
// all that those loops know.
//
// A delivery goes one way:
//
//	queued ──▶ running ──▶ ended ──▶ gone
//	   └─────▶ parked ───────────────▲
//
// It is gone from memory when its outcome, or its pending row, is committed.
type Scheduler struct {
	limits  Limits
	backoff Backoff
	jitter  func() float64 // in [0,1)
	onStart func(*Delivery)

	mu         sync.Mutex
	ledger     ledger
	session    *webhook.Session
	fence      webhook.Fence
	marker     uint64 // the session's first batch: until its echo, the stream may repeat what has rows
	replaying  bool
	visible    bool // all is visible that was committed before the session: see Fence.ClaimXID
	causes     int  // how often there was something new to compare
	stopping   bool // nothing is admitted, no attempt is started
	deliveries map[uuid.UUID]*Delivery
	lanes      map[uuid.UUID]*lane
	lists      [lists]list.List   // of lanes, in turn
	touched    []*lane            // to be reconsidered
	timed      timedLanes         // to be touched when their time comes
	unreported []*lane            // whose health is to be recorded
	aging      *list.List         // deliveries that the table does not know, in order of receipt
	unprovenOf map[string]int     // unproven permits, by organization
	removed    map[uuid.UUID]bool // gone since the page under way was asked for; nil: none is

	held     int   // deliveries that are queued, running or ended
	fetched  int   // those of them that came from the table
	bytes    int64 // of the bodies of the queued and running
	running  int
	low      int // retries and replays that are under way or not recorded
	unproven int // permits that unproven lanes hold
	ended    int // attempts whose outcome is not committed
	parked   int // deliveries without a body whose row is not committed
	aside    int // outcomes whose row someone else has locked
	spilled  int // lanes that are fed from the table
	open     int // lanes whose breaker is open

	faults    map[webhook.OwnFault]*faultOf
	shutInRow int       // lanes that attempts have shut, with none since that met no fault
	shutSince time.Time // the first of them was
	tryNext   time.Time // while all lanes are held, no attempt begins before

	newRows    []*Delivery // to be recorded by INSERT
	toBeParked []*Delivery // likewise, but without an outcome
	existing   []*Delivery // to be recorded by UPDATE
	waiting    bool        // the fan-out waits for room
	waitsFor   *lane       // and this one had none, or the window for it
	starved    bool        // the retrier waits for room

	counts      Counts
	transitions []Transition // that nobody has taken
	exhausted   Exhausted

	RoomFreed Signal // wakes the fan-out
	ToRecord  Signal // wakes the recorder
	ToFetch   Signal // wakes the retrier
	ToScan    Signal // likewise: somebody else has changed deliveries or endpoints
	ToLookUp  Signal // wakes the directory
	ToPace    Signal // wakes the clock
}

// Options configure a Scheduler. Limits and Backoff are required.
type Options struct {
	Limits
	Backoff Backoff
	Jitter  func() float64 // in [0,1), concurrently; nil: random
}

// New returns a Scheduler without a session. It starts nothing before OnStart.
func New(o Options) *Scheduler {
	s := &Scheduler{
		limits:     o.Limits,
		backoff:    o.Backoff,
		jitter:     o.Jitter,
		deliveries: map[uuid.UUID]*Delivery{},
		lanes:      map[uuid.UUID]*lane{},
		unprovenOf: map[string]int{},
		faults:     map[webhook.OwnFault]*faultOf{},
		aging:      list.New(),
		RoomFreed:  NewSignal(),
		ToRecord:   NewSignal(),
		ToFetch:    NewSignal(),
		ToScan:     NewSignal(),
		ToLookUp:   NewSignal(),
		ToPace:     NewSignal(),
	}
	for _, kind := range webhook.OwnFaults {
		s.faults[kind] = &faultOf{}
	}
	if s.jitter == nil {
		s.jitter = rand.Float64
	}
	return s
}

// OnStart sets who makes the attempts. The function is called with the mutex held, so
// it must neither block nor call the Scheduler: it hands the delivery on.
func (s *Scheduler) OnStart(f func(*Delivery)) { s.onStart = f }

// Live reports whether this process may act: send, fetch, cancel, maintain the tables.
// What it holds is recorded in any case; the fence guards that.
func (s *Scheduler) Live(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live(now)
}

// Stop admits and starts nothing more. Attempts under way go on.
func (s *Scheduler) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
}

// Drained reports whether everything that was begun is recorded and, while echoes can
// still come, confirmed.
func (s *Scheduler) Drained(echoes bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	recorded := s.running == 0 && s.ended == 0 && s.parked == 0 && len(s.newRows) == 0
	return recorded && (len(s.ledger.gates) == 0 || !echoes)
}

// Unrecorded returns the deliveries that were sent and have no outcome in the table,
// and how many rows others have locked.
func (s *Scheduler) Unrecorded() (sent []uuid.UUID, locked int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, d := range s.deliveries {
		if d.stage == running || d.stage == ended {
			sent = append(sent, id)
		}
	}
	return sent, s.aside
}

// EndSession ends the session: nothing more is confirmed. It returns up to where everything is
// recorded, and whether that is everything the stream has brought.
func (s *Scheduler) EndSession(now time.Time) (fence webhook.Fence, durable webhook.Mark, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all = s.live(now) && s.ledger.confirmed == s.ledger.recorded.lsn
	s.session = nil
	return s.fence, s.durable(), all
}

// Stats is a snapshot for metrics.
type Stats struct {
	Counts
	Window       int   // deliveries in memory, with their bodies
	Parking      int   // without: their rows are about to be written
	InFlight     int   // attempts under way
	Unrecorded   int   // attempts whose outcome is not committed
	Bytes        int64 // of bodies
	Lanes        int
	Spilled      int // lanes that are fed from the table
	Open         int // lanes whose breaker is open
	Active       bool
	Reconciling  bool          // events are to be compared with deliveries, or are just being
	RecordedLSN  pglogrepl.LSN // every transaction up to here has its rows
	ConfirmedLSN pglogrepl.LSN // and they are durable
}

// Stats returns a snapshot.
func (s *Scheduler) Stats(now time.Time) Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := Stats{
		Counts: s.counts, Window: s.held, Parking: s.parked, InFlight: s.running, Unrecorded: s.ended, Bytes: s.bytes,
		Lanes: len(s.lanes), Spilled: s.spilled, Open: s.open, Active: s.live(now), Reconciling: s.fence.Reconcile,
		RecordedLSN: s.ledger.recorded.lsn, ConfirmedLSN: s.ledger.confirmed,
	}
	x.Errors, x.OwnFaults, x.Finished = maps.Clone(s.counts.Errors), maps.Clone(s.counts.OwnFaults), maps.Clone(s.counts.Finished)
	return x
}

// Finish takes an attempt's outcome and returns the next delivery for the same worker,
// or nil.
func (s *Scheduler) Finish(d *Delivery, a webhook.Attempt, now time.Time) *Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finish(d, a, now)
	return s.next(now)
}

// Unsent takes back a delivery whose request was not sent, because another process may
// hold the slot.
func (s *Scheduler) Unsent(d *Delivery, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsent(d, now)
	s.reconsiderTouched(now)
}

// InMemory adds the deliveries that are in memory to known.
func (s *Scheduler) InMemory(ids []uuid.UUID, known map[uuid.UUID]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if s.deliveries[id] != nil {
			known[id] = true
		}
	}
}

// Admitted takes the rest of a batch whose events are admitted: echoes, and how far the
// stream has come.
func (s *Scheduler) Admitted(b *webhook.Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Events += uint64(len(b.Events))
	for _, message := range b.Echoes {
		if seq, ours := s.fence.ParseEcho(message); ours {
			s.ledger.echo(seq)
			s.replaying = s.replaying && seq < s.marker
		} else if message == webhook.ChangeHint {
			s.ToScan.Raise()
		}
	}
	if b.End != 0 {
		s.ledger.end(b.End, b.CommitTime)
	}
	s.confirm()
}

// Fence returns the session's right to write. Its Epoch is 0 before the first session.
func (s *Scheduler) Fence() webhook.Fence {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fence
}

// Jitter returns a random number in [0,1).
func (s *Scheduler) Jitter() float64 { return s.jitter() }
