package cdc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

// This file runs one replication connection after START_REPLICATION: it reads,
// passes batches on, answers the server, and decides when to give the connection up.
// The Stream decides whether to reconnect.

const (
	// burstPings keepalives that request a reply, at one position within burstWithin,
	// mean that the server is shutting down and waits for our confirmation. Otherwise
	// it asks once in half a wal_sender_timeout.
	burstPings  = 5
	burstWithin = time.Second

	// closeTimeout bounds how long closing a connection takes: a stop or a reconnect
	// waits for it.
	closeTimeout = time.Second
)

// A connection is one session of the stream. One goroutine, that of run, reads,
// decodes, passes batches on and answers; nothing else touches the socket. The read
// deadline is a tick, so housekeep runs at least once a tick.
type connection struct {
	stream  *Stream
	pg      *pgconn.PgConn
	sieve   *sieve
	session *webhook.Session
	decoder decoder

	pushed       pglogrepl.LSN // the newest position passed on; at first, where the session began
	tail         pglogrepl.LSN // a position without events that is to be passed on, if beyond pushed
	eventDropped bool          // an event was dropped after Stop: no later position may be passed on

	received  pglogrepl.LSN // the newest position received
	flushed   pglogrepl.LSN // the last position sent as flushed
	reported  pglogrepl.LSN // the last flushed position beyond the slot's own that the server may have got; 0: none
	sent      time.Time     // when a status was last sent
	began     time.Time
	heard     time.Time // when the server was last heard
	bytesSeen uint64    // the sieve's count when checkHeard last ran
	deadline  time.Time // of the current read

	pings pings

	ticks        *time.Ticker // for housekeep while the batch channel is full
	checkPassed  atomic.Bool  // the last Config.Check returned nil
	republished  atomic.Bool  // Config.Check returned store.ErrRepublished
	shuttingDown atomic.Bool  // PostgreSQL said that it is shutting down

	background sync.WaitGroup // check and keepLease

	announced   bool // this session was logged as healthy
	leaseLapsed bool // the lapsed lease was logged
}

// newConnection takes over a connection on which replication has started.
func newConnection(s *Stream, pg *pgconn.PgConn, sieve *sieve, session *webhook.Session) *connection {
	now := time.Now()
	begin := max(session.Start, session.Confirmed)
	c := &connection{
		stream: s, pg: pg, sieve: sieve, session: session, decoder: decoder{outbox: session.Outbox},
		pushed: begin, received: begin, flushed: session.Confirmed,
		began: now,
	}
	c.noteHeard(now)
	return c
}

// noteHeard notes that the server was heard.
func (c *connection) noteHeard(now time.Time) {
	c.heard = now
	c.session.Heard(now)
}

// run streams until ctx is cancelled or the session ends. On cancellation it sends
// the last confirmed position before it returns.
func (c *connection) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer c.background.Wait()
	defer cancel()
	c.ticks = time.NewTicker(tick)
	defer c.ticks.Stop()
	c.background.Go(func() { c.check(ctx) })
	c.background.Go(func() { c.keepLease(ctx) })

	err := c.follow(ctx)
	c.session.End()
	c.stream.lastAlive.Store(nil)
	if ctx.Err() != nil {
		return c.endStream()
	}
	return err
}

func (c *connection) follow(ctx context.Context) error {
	if err := c.push(ctx, webhook.Batch{Session: c.session}); err != nil {
		return err
	}
	for {
		if err := c.housekeep(ctx, time.Now(), false); err != nil {
			return err
		}
		if c.tail > c.pushed { // at most once a read, so once in tailEvery
			if err := c.pushTail(ctx); err != nil {
				return err
			}
		}
		if err := c.read(ctx); err != nil {
			return err
		}
	}
}

// read handles messages until the next tick. It sets the deadline on the socket: a
// context with a deadline costs more than decoding an event. pgconn keeps the part
// of a message that it had read.
func (c *connection) read(ctx context.Context) error {
	if err := c.readUntil(time.Now().Add(tick)); err != nil {
		return err
	}
	for {
		message, err := c.pg.ReceiveMessage(context.Background())
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if err := c.handleMessage(ctx, message); err != nil {
			return err
		}
	}
}

func (c *connection) readUntil(deadline time.Time) error {
	c.deadline = deadline
	return c.pg.Conn().SetReadDeadline(deadline)
}

func (c *connection) handleMessage(ctx context.Context, message pgproto3.BackendMessage) error {
	switch m := message.(type) {
	case *pgproto3.CopyData:
		return c.handleCopyData(ctx, m.Data)
	case *pgproto3.ErrorResponse:
		return pgconn.ErrorResponseToPgError(m)
	case *pgproto3.NoticeResponse:
		c.stream.log.WarnContext(ctx, "notice from PostgreSQL", "notice", m.Message, "sqlstate", m.Code)
	case *pgproto3.CopyDone, *pgproto3.CommandComplete:
		return errServerEnded
	}
	return nil
}

func (c *connection) handleCopyData(ctx context.Context, data []byte) error {
	switch {
	case len(data) > xlogHeader && data[0] == pglogrepl.XLogDataByteID:
		b, ok, err := c.decoder.decode(data[xlogHeader:])
		if err != nil || !ok {
			return err
		}
		return c.handleBatch(ctx, b)
	case len(data) > 0 && data[0] == pglogrepl.PrimaryKeepaliveMessageByteID:
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(data[1:])
		if err != nil {
			return err
		}
		return c.handleKeepalive(k)
	}
	return malformed("CopyData of unknown kind")
}

// noteTail notes a position without events, to be passed on within tailEvery.
func (c *connection) noteTail(lsn pglogrepl.LSN) {
	c.received = max(c.received, lsn)
	if lsn <= c.pushed || lsn <= c.tail || c.eventDropped {
		return
	}
	noted := c.tail > c.pushed
	c.tail = lsn
	if soon := time.Now().Add(tailEvery); !noted && soon.Before(c.deadline) {
		_ = c.readUntil(soon) // the next read reports a broken socket
	}
}

// handleBatch passes a decoded batch on, behind a noted tail position.
func (c *connection) handleBatch(ctx context.Context, b webhook.Batch) error {
	if b.End != 0 && b.End < c.pushed {
		return fmt.Errorf("%w: %s after %s", errBackwards, b.End, c.pushed)
	}
	if positionOnly(&b) {
		c.noteTail(b.End)
		return nil
	}
	if c.tail > c.pushed {
		if err := c.pushTail(ctx); err != nil {
			return err
		}
	}
	c.received = max(c.received, b.End)
	return c.push(ctx, b)
}

func (c *connection) pushTail(ctx context.Context) error {
	return c.push(ctx, webhook.Batch{End: c.tail})
}

// push passes a batch to the consumer.
func (c *connection) push(ctx context.Context, b webhook.Batch) error {
	select {
	case <-c.stream.stopped.Done():
		if b = c.afterStop(b); positionOnly(&b) && b.End == 0 {
			return nil
		}
	default:
	}
	select {
	case c.stream.batches <- b:
		c.pushed = max(c.pushed, b.End)
		return nil
	default:
		return c.pushBlocking(ctx, b)
	}
}

// pushBlocking waits for room in the channel. It does not read meanwhile, but it
// answers the server.
func (c *connection) pushBlocking(ctx context.Context, b webhook.Batch) error {
	stopped := c.stream.stopped.Done()
	if c.stream.stopped.Err() != nil {
		stopped = nil // afterStop has seen b
	}
	for {
		select {
		case c.stream.batches <- b:
			c.pushed = max(c.pushed, b.End)
			c.noteHeard(time.Now()) // the server's messages waited in the socket
			return nil
		case <-stopped:
			return c.push(ctx, b)
		case <-c.ticks.C:
			if err := c.housekeep(ctx, time.Now(), true); err != nil {
				return err
			}
		}
	}
}

// afterStop returns what may still be passed on of a batch after Stop.
func (c *connection) afterStop(b webhook.Batch) webhook.Batch {
	if len(b.Events) > 0 {
		c.eventDropped = true
		b.Events = nil
	}
	if c.eventDropped {
		b.End = 0
	}
	return b
}

// housekeep does everything besides reading: it ends the session where it has to
// end, and sends a status when one is due. It never waits for the consumer.
func (c *connection) housekeep(ctx context.Context, now time.Time, waiting bool) error {
	c.stream.lastAlive.Store(new(now))
	if err := ctx.Err(); err != nil {
		return err
	}
	if alive := c.stream.config.Alive; alive != nil {
		if err := alive(); err != nil {
			return watchdogError{err}
		}
	}
	if c.shuttingDown.Load() {
		return errShuttingDown
	}
	if c.republished.Load() {
		return errRepublished
	}
	if c.session.IsVoid() {
		return c.stream.voidError()
	}
	c.checkHeard(now, waiting)
	c.reportLease(ctx, now)
	quiet := now.Sub(c.heard)
	if quiet > c.stream.walSenderTimeout*6/5 {
		return errSilent
	}
	// An idle server sends nothing by itself as long as it hears from us.
	ask := quiet >= c.stream.leaseCheckEvery()
	if silent := now.Sub(c.sent); c.confirmable() > c.flushed || silent >= c.stream.walSenderTimeout/3 || ask && silent >= c.stream.leaseCheckEvery() {
		if err := c.sendStatus(now, ask); err != nil {
			return err
		}
	}
	c.stream.progress(c)
	return nil
}

// checkHeard notes whether anything came from the server since the last call: a
// message, or a part of one on a slow line. While the channel is full nothing is
// read, so silence proves nothing.
func (c *connection) checkHeard(now time.Time, waiting bool) {
	if c.sieve.bytesRead != c.bytesSeen || waiting {
		c.noteHeard(now)
	}
	c.bytesSeen = c.sieve.bytesRead
}

// reportLease logs, once each, that the lease has lapsed and that it is back.
// Nothing is sent in between.
func (c *connection) reportLease(ctx context.Context, now time.Time) {
	lapsed := !c.session.Live(now) && now.Sub(c.began) > c.stream.lease()
	if lapsed == c.leaseLapsed {
		return
	}
	c.leaseLapsed = lapsed
	c.stream.reportLease(ctx, lapsed)
}

// endStream sends the last confirmed position, and waits until the server has ended
// the stream: closing a socket with unread data can discard what was sent.
func (c *connection) endStream() error {
	deadline := time.Now().Add(closeTimeout)
	if err := c.sendStatus(time.Now(), false); err != nil {
		return err
	}
	if err := c.pg.Conn().SetDeadline(deadline); err != nil {
		return err
	}
	c.pg.Frontend().Send(&pgproto3.CopyDone{})
	if err := c.pg.Frontend().Flush(); err != nil {
		return err
	}
	for {
		message, err := c.pg.ReceiveMessage(context.Background())
		if err != nil {
			return fmt.Errorf("end replication: %w", err)
		}
		switch m := message.(type) {
		case *pgproto3.ReadyForQuery:
			return nil
		case *pgproto3.ErrorResponse:
			return pgconn.ErrorResponseToPgError(m)
		}
	}
}

// check calls Config.Check until ctx ends. Nothing is confirmed before it first passes.
func (c *connection) check(ctx context.Context) {
	if c.stream.config.Check == nil {
		c.checkPassed.Store(true)
		return
	}
	for {
		err := c.checkOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		c.checkPassed.Store(err == nil)
		if errors.Is(err, store.ErrRepublished) {
			c.republished.Store(true)
			return
		}
		c.stream.reportCheck(ctx, err)
		wait := checkEvery
		if err != nil {
			wait = recheckEvery
			c.shuttingDown.CompareAndSwap(false, sqlState(err) == codeCannotConnectNow)
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

func (c *connection) checkOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkEvery)
	defer cancel()
	return c.stream.config.Check(ctx, c.session)
}
