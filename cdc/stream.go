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
	"github.com/walhook/walhook/internal/webhook"
)

// This file decides what happens between connections: what is retried, how soon, what
// is logged, and what ends the stream.

// A Stream follows a slot for as long as Run runs, across any number of connections.
type Stream struct {
	config  Config
	log     *slog.Logger
	batches chan webhook.Batch

	stopped context.Context // done after Stop
	stop    context.CancelFunc

	// Only Run's goroutine touches these.
	user          string    // of the replication connection
	serverVersion int       // the latest server_version_num
	prepared      bool      // the slot was usable once, or its creation has begun: errors no longer end Run
	failures      int       // since a session was last healthy
	unreadable    int       // sessions in a row that ended because the slot could not be decoded
	remakes       int       // how often the slot was recreated lately
	remade        time.Time // when it was last recreated
	voidSessions  int       // sessions in a row that the database did not list as the slot's holder
	reported      reported  // the last position sent to the server

	walSenderTimeout time.Duration // tests make it short

	lastAlive atomic.Pointer[time.Time] // when housekeep last ran; nil: there is no connection

	mu           sync.Mutex
	status       Status
	checkTrouble string // the last error of Config.Check
	leaseTrouble string // says that the lease has lapsed; "": it has not
}

// New returns a Stream that does nothing until Run.
func New(config Config) *Stream {
	s := &Stream{
		config:           config,
		log:              cmp.Or(config.Logger, slog.Default()),
		batches:          make(chan webhook.Batch, batchesAhead),
		walSenderTimeout: walSenderTimeout,
		status:           Status{Role: Connecting},
		prepared:         config.Resumed,
	}
	s.stopped, s.stop = context.WithCancel(context.Background())
	return s
}

// Batches returns the channel to the one consumer. It is closed when Run returns. While
// it is full the stream stops reading, but keeps answering the server.
func (s *Stream) Batches() <-chan webhook.Batch { return s.batches }

// Stop begins the drain: no further event is passed on. Events that still arrive are
// dropped, and no position behind them is passed on, so they will come again. Echoes
// are still passed on, so that outcomes recorded during the drain can be confirmed.
//
// For a clean end call Stop; let the attempts in flight end, be recorded, echoed and
// confirmed; then cancel Run's context, and Run sends the last confirmed position.
// After Stop a lost connection ends Run.
func (s *Stream) Stop() { s.stop() }

// Status returns what the stream is doing now.
func (s *Stream) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := s.status
	status.Err = cmp.Or(status.Err, s.checkTrouble, s.leaseTrouble)
	return status
}

// Alive returns an error if the connection's goroutine is stuck: PostgreSQL then takes
// the slot away after walSenderTimeout. Between two connections every wait has a bound
// of its own.
func (s *Stream) Alive() error {
	last := s.lastAlive.Load()
	if last == nil {
		return nil
	}
	if silent := time.Since(*last); silent > s.walSenderTimeout*4/5 { // a write may take half, and the error should come before the slot is lost
		return fmt.Errorf("the stream has made no progress for %s", silent.Round(time.Second))
	}
	return nil
}

// Run streams until ctx is cancelled, and then returns nil within about two seconds. It
// is called once. It returns the watchdog's error, and store.ErrNotPrepared if an
// operator has to fix something before the stream can begin for the first time.
// Everything else is retried for ever, as is store.ErrNotPrepared once the stream has
// run: the reason is logged once, and Status shows it.
func (s *Stream) Run(ctx context.Context) error {
	defer close(s.batches)
	if !slotName.MatchString(s.config.Slot) {
		return fmt.Errorf("WALHOOK_SLOT %q: a slot name has 1 to 63 lower-case letters, digits and underscores", s.config.Slot)
	}
	// Later a bad file is retried: somebody may just be replacing it.
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
		if err := s.waitAlive(ctx, s.backoff(err)); err != nil && s.fatal(err) {
			return err
		}
	}
}

// runOnce runs one session, from connecting to hanging up.
func (s *Stream) runOnce(ctx context.Context) error {
	opening, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.stopped, cancel)() // after Stop no connection is needed
	c, err := s.open(opening)
	if err != nil {
		if errors.Is(err, errSlotUnreadable) {
			s.unreadable = unreadableLimit
		}
		return err
	}
	defer hangUp(c.pg)
	s.prepared = true
	s.setStatus(func(st *Status) { st.Role = Streaming })
	err = c.run(ctx)
	s.progress(c)
	s.noteUnreadable(c, err)
	if c.reported != 0 { // 0: the position of the session before stays valid
		s.reported = reported{by: c.session, lsn: c.reported}
	}
	if c.announced || !c.session.IsVoid() {
		s.voidSessions = 0
	}
	s.forgetLeaseTrouble()
	return err
}

// reported is the last flush position that a session sent to the server.
type reported struct {
	by  *webhook.Session // nil: none was sent
	lsn pglogrepl.LSN
}

// on returns the position if it is valid in another session, or 0. After a restart of
// the server the database may have been set back to an earlier state, in which the same
// LSN means something else.
func (r reported) on(s *webhook.Session) pglogrepl.LSN {
	if r.by == nil || r.by.SystemID != s.SystemID || r.by.Timeline != s.Timeline || r.by.ServerStarted != s.ServerStarted {
		return 0
	}
	return r.lsn
}

// voidError counts a session that the database does not list as the slot's holder. One
// may just have lost the slot; two in a row mean that walhook does not reach the server
// directly.
func (s *Stream) voidError() error {
	if s.voidSessions++; s.voidSessions > 1 {
		return errPooler
	}
	return errNotHolder
}

// unreadableLimit is after how many sessions in a row that could not decode the slot it
// is recreated. One is not enough: somebody may just have dropped the publication, and
// then the slot is fine.
const unreadableLimit = 2

// noteUnreadable counts sessions that ended at a point of the WAL that no later session
// can pass: the WAL was removed, or the publication did not exist there (up to
// PostgreSQL 17 also if it exists now).
func (s *Stream) noteUnreadable(c *connection, err error) {
	if time.Since(c.began) > remakeForgetAfter {
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
	if _, ok := errors.AsType[watchdogError](err); ok {
		return true
	}
	if e, ok := errors.AsType[*preparationError](err); ok && e.temporary {
		return false
	}
	return !s.prepared && errors.Is(err, store.ErrNotPrepared)
}

// backoff returns how long to wait before the next connection. The steps are short, so
// that the stream is back soon after a restart of PostgreSQL.
func (s *Stream) backoff(err error) time.Duration {
	s.failures++
	first, most := 100*time.Millisecond, time.Second
	if errors.Is(err, store.ErrNotPrepared) {
		first, most = 500*time.Millisecond, 5*time.Second
	}
	if sqlState(err) == codePassword { // somebody is rotating it, and events wait meanwhile
		most = 2 * time.Second
	}
	if errors.Is(err, errSlotHeld) {
		return standbyPollEvery
	}
	return min(first<<min(s.failures-1, 10), most)
}

// waitAlive waits. It returns the watchdog's error, or that of ctx.
func (s *Stream) waitAlive(ctx context.Context, d time.Duration) error {
	if s.config.Alive != nil {
		if err := s.config.Alive(); err != nil {
			return watchdogError{err}
		}
	}
	if !sleep(ctx, d) {
		return ctx.Err()
	}
	return nil
}

// report logs an error that ended a session, or an attempt to open one, once per change.
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

// reportCheck logs the result of Config.Check, once per change.
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

// reportLease logs that the lease has lapsed or is valid again, once per change.
func (s *Stream) reportLease(ctx context.Context, lapsed bool) {
	const text = "cannot verify that this process still holds the slot; sending suspended"
	s.mu.Lock()
	known := lapsed == (s.leaseTrouble != "")
	s.leaseTrouble = ""
	if lapsed {
		s.leaseTrouble = text
	}
	s.mu.Unlock()
	switch {
	case known:
	case lapsed:
		s.log.WarnContext(ctx, text, "slot", s.config.Slot)
	default:
		s.log.InfoContext(ctx, "slot ownership verified; sending resumed", "slot", s.config.Slot)
	}
}

// forgetLeaseTrouble clears a lapsed lease when its session ends. It logs nothing: the
// next session finds out whether it has the slot.
func (s *Stream) forgetLeaseTrouble() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaseTrouble = ""
}

// standBy notes that another process holds the slot.
func (s *Stream) standBy() {
	s.prepared = true
	s.setStatus(func(st *Status) { st.Role, st.Err = Standby, "" })
}

// progress publishes a connection's positions in Status, and clears the previous error
// once the session has lasted for healthyAfter.
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

func (s *Stream) setStatus(change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}
