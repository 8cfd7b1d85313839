// Package schedule decides which delivery is sent when, and what may be confirmed.
// It does no I/O and knows no context: loops tell it what has happened, and do what
// it says.
//
//	scheduler    what those loops may ask; the one mutex
//	reconsider   what each lane waits for, by its facts
//	delivery     one event owed to one endpoint, while it is in memory
//	admission    what the stream brings: window says how much there may be
//	session      what a new session changes
//	lane         one endpoint's: queue, permits, known, prefetch and health are its parts
//	start        the next attempt; lookup: what its endpoint's row says
//	requeue      deliveries on their way back into the table; idle: lanes that are dropped
//	capacity     how all lanes share the permits
//	page         how lanes are fed from the table
//	timers       what time alone brings about: parking, rates, probes
//	batch        outcomes and parked deliveries on their way into rows
//	health       what attempts say of their endpoints
//	verify       the books, compared with what they count: for tests
//	ledger       pure: what may be confirmed
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

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/store"
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
	session    *store.Session
	fence      store.Fence
	marker     uint64 // the session's first batch: until its echo, the stream may repeat what has rows
	replaying  bool
	visible    bool // all is visible that was committed before the session: see Fence.ClaimXID
	causes     int  // how often there was something new to compare
	stopping   bool // nothing is admitted, no attempt is started
	deliveries map[uuid.UUID]*Delivery
	lanes      map[uuid.UUID]*lane
	lists      [lists]list.List   // of lanes, in turn
	touched    []*lane            // to be reconsidered
	paused     pausedLanes        // to be looked at when their time comes
	unreported []*lane            // whose health is to be recorded
	aging      *list.List         // deliveries that the table does not know, in order of receipt
	unprovenOf map[string]int     // unproven permits, by organization
	removed    map[uuid.UUID]bool // gone since the page under way was asked for; nil: none is

	held       int   // deliveries that are queued, running or ended
	fetched    int   // those of them that came from the table
	bytes      int64 // of the bodies of the queued and running
	running    int
	low        int // retries and replays that are under way or not recorded
	unproven   int // permits that unproven lanes hold
	ended      int // attempts whose outcome is not committed
	parked     int // deliveries without a body whose row is not committed
	aside      int // outcomes whose row someone else has locked
	spilled    int // lanes that are fed from the table
	open       int // lanes whose breaker is open
	unopenable int // lanes whose endpoint's secret cannot be opened

	newRows    []*Delivery // to be recorded by INSERT
	toBeParked []*Delivery // likewise, but without an outcome
	existing   []*Delivery // to be recorded by UPDATE
	waiting    bool        // the fan-out waits for room
	waitsFor   *lane       // and this one had none, or the window for it
	starved    bool        // the retrier waits for room

	counts Counts

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
		aging:      list.New(),
		RoomFreed:  NewSignal(),
		ToRecord:   NewSignal(),
		ToFetch:    NewSignal(),
		ToScan:     NewSignal(),
		ToLookUp:   NewSignal(),
		ToPace:     NewSignal(),
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

// End ends the session: nothing more is confirmed. It returns up to where everything is
// recorded, and whether that is everything the stream has brought.
func (s *Scheduler) End(now time.Time) (fence store.Fence, durable store.Mark, all bool) {
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
	x.Errors, x.OwnFaults = maps.Clone(s.counts.Errors), maps.Clone(s.counts.OwnFaults)
	return x
}

// Finish takes an attempt's outcome and returns the next delivery for the same worker,
// or nil.
func (s *Scheduler) Finish(d *Delivery, a store.Attempt, now time.Time) *Delivery {
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

// Abandon returns the permit of an attempt that the end of the process cut off. It has
// no outcome.
func (s *Scheduler) Abandon(d *Delivery, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release(d, &store.Attempt{}, now)
}

// NextSession numbers the marker of a new session, its first batch, and returns the
// fence of the session before.
func (s *Scheduler) NextSession() (marker uint64, before store.Fence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ledger.take(), s.fence
}

// Begin begins a session that has claimed the slot. Until the marker's echo, the stream
// may repeat events whose deliveries have rows. No batch is under way.
func (s *Scheduler) Begin(session *store.Session, fence store.Fence, marker uint64, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ledger.reset(session.Confirmed)
	s.forgetRows(now)
	s.claimed(session, fence, marker)
}

// Replaying reports whether the session may still repeat such events, and when the last
// of their rows was written.
func (s *Scheduler) Replaying() (lastWrite time.Time, replaying bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fence.LastWrite, s.replaying
}

// Holds adds the deliveries that are in memory to known.
func (s *Scheduler) Holds(ids []uuid.UUID, known map[uuid.UUID]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if s.deliveries[id] != nil {
			known[id] = true
		}
	}
}

// Passed takes the rest of a batch whose events are admitted: echoes, and how far the
// stream has come.
func (s *Scheduler) Passed(b *store.Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Events += uint64(len(b.Events))
	for _, message := range b.Echoes {
		if seq, ours := s.fence.ParseEcho(message); ours {
			s.ledger.echo(seq)
			s.replaying = s.replaying && seq < s.marker
		} else if message == store.ChangeHint {
			s.ToScan.Raise()
		}
	}
	if b.End != 0 {
		s.ledger.end(b.End, b.CommitTime)
	}
	s.confirm()
}

// Fence returns the session's right to write. Its Epoch is 0 before the first session.
func (s *Scheduler) Fence() store.Fence {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fence
}

// Jitter returns a random number in [0,1).
func (s *Scheduler) Jitter() float64 { return s.jitter() }

// BatchReady reports whether the next batch should be written now.
func (s *Scheduler) BatchReady() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unwritten() >= recordBatch || s.stopping
}

// Unwritten reports whether there is something to write, and the right to.
func (s *Scheduler) Unwritten() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fence.Epoch != 0 && s.unwritten() > 0
}

// A Batch is what one transaction records.
type Batch struct {
	Records []store.Record // of the deliveries as they were when it was taken
	Mark    store.Mark
	Fence   store.Fence
	taken   []*Delivery
}

// TakeNew takes a batch of deliveries without a row, or returns nil. Its Mark has the
// batch's number, whose echo confirms it, and the endpoints' health if news is true.
func (s *Scheduler) TakeNew(news bool) *Batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken, records := s.takeNew()
	if len(taken) == 0 {
		return nil
	}
	seq, at := s.recordedBy(taken)
	b := &Batch{Records: records, Mark: store.Mark{Seq: seq, Durable: at.lsn, CommitAt: at.at}, Fence: s.fence, taken: taken}
	if news {
		b.Mark.Health = s.takeHealth()
	}
	return b
}

// TakeExisting takes a batch of deliveries that have a row, likewise.
func (s *Scheduler) TakeExisting(news bool) *Batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken, records := s.takeExisting()
	if len(taken) == 0 {
		return nil
	}
	b := &Batch{Records: records, Mark: s.durable(), Fence: s.fence, taken: taken}
	if news {
		b.Mark.Health = s.takeHealth()
	}
	return b
}

// durable returns a Mark of how far everything is recorded.
func (s *Scheduler) durable() store.Mark {
	return store.Mark{Durable: s.ledger.recorded.lsn, CommitAt: s.ledger.recorded.at}
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
// both back. Deliveries in again wait to be sent once more, and may sort before their
// lane's last page.
func (s *Scheduler) Updated(b *Batch, busy, refused, again map[uuid.UUID]bool, now time.Time) (aside, stuck []*Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	aside, stuck = s.updated(b.taken, busy, refused, again, now)
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

// TakeHealth takes the endpoints' health to be recorded.
func (s *Scheduler) TakeHealth() []store.EndpointHealth {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takeHealth()
}

// ReturnHealth gives back health that could not be recorded. Newer reports win.
func (s *Scheduler) ReturnHealth(health []store.EndpointHealth, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.returnHealth(health, now)
}

// HasHealth reports whether there is health to be recorded.
func (s *Scheduler) HasHealth() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.unreported) > 0
}

// MayFetch reports whether rows may be fetched. A standby leaves them to the active
// process.
func (s *Scheduler) MayFetch(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live(now) && !s.stopping
}

// Found takes endpoints that have due rows.
func (s *Scheduler) Found(endpoints []uuid.UUID, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range endpoints {
		s.found(s.lane(id, now), now)
	}
	s.reconsiderTouched(now)
}

// FoundWaiting takes endpoints that have unfinished rows.
func (s *Scheduler) FoundWaiting(waiting []store.Waiting, now time.Time) {
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

// Pages takes up to n lanes that have room for a page of due rows, in turn. Each must
// be given back to Paged.
func (s *Scheduler) Pages(n int, now time.Time) []*Page {
	s.mu.Lock()
	defer s.mu.Unlock()
	pages := s.toAsk(n, now)
	if len(pages) > 0 {
		s.removed = map[uuid.UUID]bool{}
	}
	return pages
}

// Due takes one row of a page. It is admitted unless it is in memory, has no room, or
// must not be sent.
func (s *Scheduler) Due(p *Page, due *store.Due, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.got++
	if !due.Orphaned && !due.Stranger && !due.Unseen {
		s.admitDue(due, now)
	}
	if !p.lane.overflown {
		p.end = due.End()
	}
}

// Paged takes the end of pages that were read, or have failed.
func (s *Scheduler) Paged(pages []*Page, failed bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removed = nil
	for _, p := range pages {
		if failed {
			p.lane.paging = false
			s.hasRows(p.lane)
			continue
		}
		s.paged(p, now)
	}
	s.dispatch(now)
}

// Again takes endpoints whose rows could not all be fetched or cancelled, because a
// committed transaction was not visible yet.
func (s *Scheduler) Again(endpoints []uuid.UUID, now time.Time) {
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

// Cancellations takes the disabled and deleted endpoints that have rows to cancel.
func (s *Scheduler) Cancellations() []*Cancellation {
	s.mu.Lock()
	defer s.mu.Unlock()
	var cancellations []*Cancellation
	for l := s.takeFirst(toCancel); l != nil; l = s.takeFirst(toCancel) {
		l.cancelling = true
		cancellations = append(cancellations, &Cancellation{l})
	}
	return cancellations
}

// ReturnCancellations gives back endpoints whose rows could not be cancelled.
func (s *Scheduler) ReturnCancellations(cancellations []*Cancellation, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range cancellations {
		x.lane.cancelling = false
		s.touch(x.lane)
	}
	s.reconsiderTouched(now)
}

// A Cancellation is an endpoint with rows to cancel.
type Cancellation struct{ lane *lane }

// EndpointID returns the endpoint's id.
func (x *Cancellation) EndpointID() uuid.UUID { return x.lane.id }

// Refusal returns why nothing is sent to the endpoint of a Cancellation.
func (s *Scheduler) Refusal(x *Cancellation) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return x.lane.refusal()
}

// Cancelled takes the end of one chunk of a Cancellation, and whether there may be more.
func (s *Scheduler) Cancelled(x *Cancellation, more bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.lane.cancelling, x.lane.toBeCancelled = false, more
	s.touch(x.lane)
	s.reconsiderTouched(now)
}

// A LookUp is an endpoint to be looked up.
type LookUp struct {
	EndpointID uuid.UUID
	Endpoint   *store.Endpoint // as last known, and then as it is; nil: it does not exist
	Target     *send.Target    // of that
	lane       *lane
}

// LookUps takes up to n lanes whose endpoint has to be looked up.
func (s *Scheduler) LookUps(n int, now time.Time) []LookUp {
	s.mu.Lock()
	defer s.mu.Unlock()
	lanes := s.lookUpNext(n, now)
	wanted := make([]LookUp, len(lanes))
	for i, l := range lanes {
		wanted[i] = LookUp{EndpointID: l.id, Endpoint: l.endpoint, Target: l.target, lane: l}
	}
	return wanted
}

// ReturnLookUps gives back look-ups that failed.
func (s *Scheduler) ReturnLookUps(wanted []LookUp, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range wanted {
		x.lane.asked, x.lane.ask = false, true
		s.touch(x.lane)
	}
	s.reconsiderTouched(now)
}

// LookedUp takes answers, as of a time before they were asked for.
func (s *Scheduler) LookedUp(answers []LookUp, asOf, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range answers {
		s.lookedUp(x.lane, x.Endpoint, x.Target, asOf, now)
	}
	s.dispatch(now)
}

// Forget drops lanes that have been idle for a while, a few at a time.
func (s *Scheduler) Forget(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(now)
}

// Unopenable returns how many endpoints have secrets that cannot be opened, and one of them.
func (s *Scheduler) Unopenable() (n int, one *store.Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unopenable == 0 {
		return 0, nil
	}
	for _, l := range s.lanes {
		if l.unopenable {
			return s.unopenable, l.endpoint
		}
	}
	return s.unopenable, nil
}

// AllUnopenable returns one of them if that is so for all endpoints that have something to
// do, or nil.
func (s *Scheduler) AllUnopenable() (one *store.Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unopenable == 0 {
		return nil
	}
	for _, l := range s.lanes {
		switch {
		case l.unopenable:
			one = l.endpoint
		case l.endpoint != nil && !l.refused:
			return nil
		}
	}
	return one
}

// Tick does what is due and returns when to call it again.
func (s *Scheduler) Tick(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tick(now)
}

// A Cause is a reason to compare events with deliveries. No two are equal.
type Cause struct {
	since  int64 // the fence's ReconcileFrom, in microseconds
	number int
}

// Session returns the current session, its fence, and its Cause for a comparison.
func (s *Scheduler) Session() (*store.Session, store.Fence, Cause) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session, s.fence, s.cause()
}

// Confirmed returns how far the current session is confirmed.
func (s *Scheduler) Confirmed() (*store.Session, pglogrepl.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session, s.ledger.confirmed
}

// Visible reports whether everything is visible that a session with this fence will not
// bring.
func (s *Scheduler) Visible(fence store.Fence) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.visible && s.fence.Epoch == fence.Epoch && s.fence.ClaimXID == fence.ClaimXID
}

// SetVisible notes that it is.
func (s *Scheduler) SetVisible(fence store.Fence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fence.Epoch == fence.Epoch && s.fence.ClaimXID == fence.ClaimXID {
		s.visible = true
	}
}

// Compared notes that a comparison is complete, unless there is another cause.
func (s *Scheduler) Compared(of Cause) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause() == of {
		s.fence.Reconcile = false
	}
}

// CompareAgain notes another cause at the end of a comparison, unless there is one
// already, and reports whether it did.
func (s *Scheduler) CompareAgain(of Cause, since time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause() != of {
		return false
	}
	s.fence.ReconcileFrom = since
	s.causes++
	return true
}

// Owe notes that a delivery has no row although its batch is written.
func (s *Scheduler) Owe(from time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fence.Reconcile, s.fence.ReconcileFrom = true, from
	s.causes++
}

// Number numbers a batch without records.
func (s *Scheduler) Number() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ledger.take()
}

// Lease returns when a pending row from the reconciler becomes due: at once, like a
// parked one, unless an attempt is under way that began before the slot was lost.
func (s *Scheduler) Lease(id uuid.UUID) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.deliveries[id]; d != nil && d.stage == running {
		return s.leaseTime()
	}
	return -store.ParkedDue
}

// Reconciled counts rows that the reconciler inserted.
func (s *Scheduler) Reconciled(inserted int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Found += uint64(inserted)
}
