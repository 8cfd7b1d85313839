package cdc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/store"
)

// This file decides what happens between connections: what is retried, how soon,
// what is told to the operator, and what ends the stream.

// A Stream follows a slot for as long as Run runs, across any number of connections.
type Stream struct {
	config  Config
	log     *slog.Logger
	batches chan store.Batch

	stopped context.Context // done after Stop
	stop    context.CancelFunc

	// What only Run's goroutine touches.
	user          string    // of the replication connection
	serverVersion int       // as server_version_num, when it was last asked
	prepared      bool      // the slot was once streamed from or seen in another's hands, or its making has begun
	failures      int       // since a session was last healthy
	unreadable    int       // sessions in a row that ended because the slot cannot be decoded
	remakes       int       // how often the slot was made anew lately
	remade        time.Time // when it was last
	voids         int       // sessions in a row that the database did not know as the slot's
	told          told      // what the last session told the slot

	walSenderTimeout time.Duration // tests make it short

	turned atomic.Pointer[time.Time] // when the connection's goroutine last did; nil: there is no connection

	mu           sync.Mutex
	status       Status
	checkTrouble string // Config.Check's last answer
	doubt        string // why it is not certain that the slot is still ours
}

// New returns a Stream that does nothing until Run.
func New(config Config) *Stream {
	s := &Stream{
		config:           config,
		log:              cmp.Or(config.Logger, slog.Default()),
		batches:          make(chan store.Batch, batchesAhead),
		walSenderTimeout: walSenderTimeout,
		status:           Status{Role: Connecting},
		prepared:         config.Resumed,
	}
	s.stopped, s.stop = context.WithCancel(context.Background())
	return s
}

// Batches is where the stream hands on, to one consumer. It is closed when Run
// returns. While it is full the stream stops reading, but keeps answering the server.
func (s *Stream) Batches() <-chan store.Batch { return s.batches }

// Stop begins the drain: no further event is handed on. What comes by the stream
// all the same is dropped, and no position behind it is handed on, so it will
// come again; echoes still come, so that what the drain records can be confirmed.
// The sequence for a clean end is: Stop; let what is in flight end, be recorded,
// echoed and confirmed; cancel Run's context, upon which the last confirmed
// position is sent. After Stop a lost connection ends Run.
func (s *Stream) Stop() { s.stop() }

// Status returns what the stream is doing now.
func (s *Stream) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := s.status
	status.Err = cmp.Or(status.Err, s.checkTrouble, s.doubt)
	return status
}

// Alive returns an error where the connection's goroutine no longer turns, for
// which PostgreSQL takes the slot away after walSenderTimeout. Between two
// connections every wait has a bound of its own.
func (s *Stream) Alive() error {
	turned := s.turned.Load()
	if turned == nil {
		return nil
	}
	if silent := time.Since(*turned); silent > s.walSenderTimeout*4/5 { // an answer may take half, and the reason should be said first
		return fmt.Errorf("the stream has not turned for %s", silent.Round(time.Second))
	}
	return nil
}

// Run streams until ctx is cancelled, and then returns nil within about two
// seconds; it is called once. It returns an error that wraps store.ErrNotPrepared where an operator
// has to mend something before the stream could begin for the first time, and
// the watchdog's error. Everything else is retried for ever, what an operator
// has to mend included once the stream has run: its reason is logged once and
// shown by Status.
func (s *Stream) Run(ctx context.Context) error {
	defer close(s.batches)
	if !slotName.MatchString(s.config.Slot) {
		return fmt.Errorf("WALHOOK_SLOT %q: a slot name has 1 to 63 lower-case letters, digits and underscores", s.config.Slot)
	}
	// Later a file that says how to connect may just be swapped: then it is tried again.
	if _, err := s.configure(); err != nil && !s.config.Resumed {
		return err
	}
	for {
		err := s.runOnce(ctx)
		if ctx.Err() != nil || s.stopped.Err() != nil {
			s.log.InfoContext(ctx, "stream stopped", "slot", s.config.Slot, "confirmed", s.Status().Confirmed.String(), "reason", err)
			return nil
		}
		if s.fatal(err) {
			return err
		}
		s.report(ctx, err)
		if err := s.aliveWithin(ctx, s.backoff(err)); err != nil && s.fatal(err) {
			return err
		}
	}
}

// runOnce is one session, from connecting to hanging up.
func (s *Stream) runOnce(ctx context.Context) error {
	opening, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.stopped, cancel)() // there is nothing to stream any more
	c, err := s.open(opening)
	if err != nil {
		if errors.Is(err, errSlotUnreadable) {
			s.unreadable = unreadableTwice
		}
		return err
	}
	defer hangUp(c.pg)
	s.prepared = true
	s.setStatus(func(st *Status) { st.Role = Streaming })
	err = c.run(ctx)
	s.progress(c)
	s.noteUnreadable(c, err)
	if c.told != 0 { // else nothing is known that was not before
		s.told = told{by: c.session, lsn: c.told}
	}
	if c.announced || !c.session.IsVoid() {
		s.voids = 0
	}
	s.forgetDoubt()
	return err
}

// told is how far a session has told the server that the slot may move.
type told struct {
	by  *store.Session // nil: there was none
	lsn pglogrepl.LSN
}

// on returns the position where it means the same in another session, or 0: after
// another start of the server the database may have been set back, and the same
// position be of something else.
func (t told) on(s *store.Session) pglogrepl.LSN {
	if t.by == nil || t.by.SystemID != s.SystemID || t.by.Timeline != s.Timeline || t.by.ServerStarted != s.ServerStarted {
		return 0
	}
	return t.lsn
}

// voided counts a session that the database does not know as the slot's: once it
// may have lost the slot just then.
func (s *Stream) voided() error {
	if s.voids++; s.voids > 1 {
		return errBetween
	}
	return errVoid
}

// unreadableTwice sessions in a row that ended because the slot cannot be decoded
// are enough to make it anew. One is not: a publication may just have been
// dropped, and then the slot is not what has to be mended.
const unreadableTwice = 2

// noteUnreadable counts sessions that ended at a point of the WAL that no later
// session can pass: the WAL has gone, or the publication did not exist there (up
// to PostgreSQL 17, also when it exists now).
func (s *Stream) noteUnreadable(c *connection, err error) {
	if time.Since(c.began) > remakeForget {
		s.unreadable = 0
	}
	if code := sqlState(err); code == codeUndefinedObject || code == codeUndefinedFile {
		s.unreadable++
	} else {
		s.unreadable = 0
	}
}

// fatal reports whether an error ends Run.
func (s *Stream) fatal(err error) bool {
	if _, ok := errors.AsType[errAlive](err); ok {
		return true
	}
	if e, ok := errors.AsType[*preparationError](err); ok && e.waits {
		return false
	}
	return !s.prepared && errors.Is(err, store.ErrNotPrepared)
}

// backoff says how long to wait before the next connection. The steps are short,
// because PostgreSQL's restart should be over for us as soon as it is over.
func (s *Stream) backoff(err error) time.Duration {
	s.failures++
	first, most := 100*time.Millisecond, time.Second
	if errors.Is(err, store.ErrNotPrepared) {
		first, most = 500*time.Millisecond, 5*time.Second
	}
	if sqlState(err) == codePassword { // it is being rotated, and what has come meanwhile waits
		most = 2 * time.Second
	}
	if errors.Is(err, errSlotHeld) {
		return standbyEvery
	}
	return min(first<<min(s.failures-1, 10), most)
}

// aliveWithin waits, and returns an error where the watchdog barked or ctx ended.
func (s *Stream) aliveWithin(ctx context.Context, d time.Duration) error {
	if s.config.Alive != nil {
		if err := s.config.Alive(); err != nil {
			return errAlive{err}
		}
	}
	if !sleep(ctx, d) {
		return ctx.Err()
	}
	return nil
}

// report logs an error that ended a session or an attempt at one, once per change.
func (s *Stream) report(ctx context.Context, err error) {
	if errors.Is(err, errSlotHeld) {
		s.standBy()
		return
	}
	text := err.Error()
	known := false
	s.setStatus(func(st *Status) {
		known = st.Err == text
		st.Role, st.Err = Connecting, text
	})
	if !known {
		s.log.WarnContext(ctx, "stream interrupted; reconnecting", "slot", s.config.Slot, "reason", err)
	}
}

// reportCheck logs what Config.Check says, once per change.
func (s *Stream) reportCheck(ctx context.Context, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	s.mu.Lock()
	known := s.checkTrouble == text
	s.checkTrouble = text
	s.mu.Unlock()
	switch {
	case known:
	case err != nil:
		s.log.ErrorContext(ctx, "schema check failed; confirming suspended", "slot", s.config.Slot, "reason", err)
	default:
		s.log.InfoContext(ctx, "schema check passed; confirming resumed", "slot", s.config.Slot)
	}
}

// reportDoubt logs whether it is certain that the slot is ours, once per change.
func (s *Stream) reportDoubt(ctx context.Context, doubted bool) {
	const text = "cannot verify that this process still holds the slot; sending suspended"
	s.mu.Lock()
	known := doubted == (s.doubt != "")
	s.doubt = ""
	if doubted {
		s.doubt = text
	}
	s.mu.Unlock()
	switch {
	case known:
	case doubted:
		s.log.WarnContext(ctx, text, "slot", s.config.Slot)
	default:
		s.log.InfoContext(ctx, "slot ownership verified; sending resumed", "slot", s.config.Slot)
	}
}

// forgetDoubt ends with a session what was doubted of it. That is not said: whether the
// slot is ours, the next session finds out.
func (s *Stream) forgetDoubt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doubt = ""
}

// standBy notes that another process holds the slot.
func (s *Stream) standBy() {
	s.prepared = true
	s.setStatus(func(st *Status) { st.Role, st.Err = Standby, "" })
}

// progress publishes where a connection stands, and forgets the trouble before
// it once it has lived long enough.
func (s *Stream) progress(c *connection) {
	healthy := time.Since(c.began) > healthyAfter
	if healthy && !c.announced {
		c.announced = true
		s.failures = 0
		s.log.Info("streaming", "slot", s.config.Slot, "start", c.session.Start.String(), "confirmed", c.flushed.String())
	}
	s.setStatus(func(st *Status) {
		st.Received, st.Confirmed, st.LastMessage = c.received, c.flushed, c.heard
		if healthy {
			st.Err = ""
		}
	})
}

// setStatus changes the snapshot that Status returns.
func (s *Stream) setStatus(change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}
