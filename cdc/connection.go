package cdc

import (
	"context"
	"encoding/binary"
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
)

// This file is the life of one replication connection after START_REPLICATION:
// what is read, handed on, answered, and when the connection must be given up.
// Whether there will be another is the Stream's business.

const (
	// burstPings reply-requested keepalives at one position within burstWithin are
	// a server that waits for us to confirm, so that it can shut down (rule 9). In
	// normal life it asks once in half a wal_sender_timeout.
	burstPings  = 5
	burstWithin = time.Second

	// politely bounds the last words to the server.
	politely = time.Second
)

// A connection is one session of the stream. One goroutine, that of run, reads,
// decodes, hands on and answers; nothing else touches the socket. It turns at
// least once a tick, whatever it waits for: the read deadline is the tick.
type connection struct {
	stream  *Stream
	pg      *pgconn.PgConn
	sieve   *sieve
	session *store.Session
	decoder decoder

	handed pglogrepl.LSN // the newest position handed on; first, where the session began
	tail   pglogrepl.LSN // a newer one at the tail that waits to be handed on, if greater
	frozen bool          // after Stop, an event was dropped: no position may follow it

	received pglogrepl.LSN // the newest position seen
	flushed  pglogrepl.LSN // the last position sent as flushed
	told     pglogrepl.LSN // the last that the consumer has confirmed and the server may have got; 0: none
	sent     time.Time     // when a status was last sent
	began    time.Time
	heard    time.Time // when the server was last heard
	came     uint64    // how many bytes had come at the last turn
	deadline time.Time // of the current read

	pings pings

	ticks   *time.Ticker // turns while the consumer is not taking
	checked atomic.Bool  // Config.Check's last answer was yes
	changed atomic.Bool  // it said that the publication is another
	down    atomic.Bool  // PostgreSQL said that it is shutting down

	background sync.WaitGroup // Config.Check and the witness

	announced bool // the log knows that this session is healthy
	doubted   bool // and that it is not certain whether the slot is still ours
}

// newConnection takes over a connection on which replication has started.
func newConnection(s *Stream, pg *pgconn.PgConn, sieve *sieve, session *store.Session) *connection {
	now := time.Now()
	begin := max(session.Start, session.Confirmed)
	c := &connection{
		stream: s, pg: pg, sieve: sieve, session: session, decoder: decoder{outbox: session.Outbox},
		handed: begin, received: begin, flushed: session.Confirmed,
		began: now,
	}
	c.hear(now)
	return c
}

// hear notes that the server was heard.
func (c *connection) hear(now time.Time) {
	c.heard = now
	c.session.Heard(now)
}

// run streams until ctx is cancelled or the session is over. On cancellation it
// sends the last confirmed position before it returns.
func (c *connection) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer c.background.Wait()
	defer cancel()
	c.ticks = time.NewTicker(tick)
	defer c.ticks.Stop()
	c.background.Go(func() { c.check(ctx) })
	c.background.Go(func() { c.witness(ctx) })

	err := c.follow(ctx)
	c.session.End()
	c.stream.turned.Store(nil)
	if ctx.Err() != nil {
		return c.goodbye()
	}
	return err
}

func (c *connection) follow(ctx context.Context) error {
	if err := c.hand(ctx, store.Batch{Session: c.session}); err != nil {
		return err
	}
	for {
		if err := c.turn(ctx, time.Now(), false); err != nil {
			return err
		}
		if c.tail > c.handed { // at most once a read, so once in tailEvery
			if err := c.handTail(ctx); err != nil {
				return err
			}
		}
		if err := c.read(ctx); err != nil {
			return err
		}
	}
}

// read takes messages until the tick. The deadline is on the socket, because a
// context with one costs more than decoding an event; pgconn survives it, with
// the part of a message that was read.
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
		if err := c.take(ctx, message); err != nil {
			return err
		}
	}
}

func (c *connection) readUntil(deadline time.Time) error {
	c.deadline = deadline
	return c.pg.Conn().SetReadDeadline(deadline)
}

// take handles one message.
func (c *connection) take(ctx context.Context, message pgproto3.BackendMessage) error {
	switch m := message.(type) {
	case *pgproto3.CopyData:
		return c.copyData(ctx, m.Data)
	case *pgproto3.ErrorResponse:
		return pgconn.ErrorResponseToPgError(m)
	case *pgproto3.NoticeResponse:
		c.stream.log.WarnContext(ctx, "notice from PostgreSQL", "notice", m.Message, "sqlstate", m.Code)
	case *pgproto3.CopyDone, *pgproto3.CommandComplete:
		return errServerEnded
	}
	return nil
}

func (c *connection) copyData(ctx context.Context, data []byte) error {
	switch {
	case len(data) > xlogHeader && data[0] == pglogrepl.XLogDataByteID:
		b, ok, err := c.decoder.decode(data[xlogHeader:])
		if err != nil || !ok {
			return err
		}
		return c.deliver(ctx, b)
	case len(data) > 0 && data[0] == pglogrepl.PrimaryKeepaliveMessageByteID:
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(data[1:])
		if err != nil {
			return err
		}
		return c.keepalive(k)
	}
	return malformed("CopyData of unknown kind")
}

// keepalive notes the server's position, and answers where that is requested. A
// position inside of a transaction says nothing that may be confirmed.
func (c *connection) keepalive(k pglogrepl.PrimaryKeepaliveMessage) error {
	if !c.decoder.inTx {
		c.noteTail(k.ServerWALEnd)
	}
	if !k.ReplyRequested {
		return nil
	}
	now := time.Now()
	if c.pings.burst(k.ServerWALEnd, now) {
		return errShuttingDown
	}
	return c.answer(now, false)
}

// pings counts reply-requested keepalives at one position.
type pings struct {
	at    pglogrepl.LSN
	since time.Time
	n     int
}

// burst counts one, and reports whether the server waits for us to confirm.
func (p *pings) burst(at pglogrepl.LSN, now time.Time) bool {
	if at != p.at || now.Sub(p.since) > burstWithin {
		*p = pings{at: at, since: now}
	}
	p.n++
	return p.n >= burstPings
}

// noteTail remembers an empty position, to be handed on within tailEvery.
func (c *connection) noteTail(lsn pglogrepl.LSN) {
	c.received = max(c.received, lsn)
	if lsn <= c.handed || lsn <= c.tail || c.frozen {
		return
	}
	waits := c.tail > c.handed
	c.tail = lsn
	if soon := time.Now().Add(tailEvery); !waits && soon.Before(c.deadline) {
		_ = c.readUntil(soon) // the next read reports a broken socket
	}
}

// deliver hands on what the decoder completed, behind the position that waits.
func (c *connection) deliver(ctx context.Context, b store.Batch) error {
	if b.End != 0 && b.End < c.handed {
		return fmt.Errorf("%w: %s after %s", errBackwards, b.End, c.handed)
	}
	if empty(&b) {
		c.noteTail(b.End)
		return nil
	}
	if c.tail > c.handed {
		if err := c.handTail(ctx); err != nil {
			return err
		}
	}
	c.received = max(c.received, b.End)
	return c.hand(ctx, b)
}

func (c *connection) handTail(ctx context.Context) error {
	return c.hand(ctx, store.Batch{End: c.tail})
}

// hand gives a batch to the consumer, and turns while it waits for room.
func (c *connection) hand(ctx context.Context, b store.Batch) error {
	select {
	case <-c.stream.stopped.Done():
		if b = c.drained(b); empty(&b) && b.End == 0 {
			return nil
		}
	default:
	}
	select {
	case c.stream.batches <- b:
		c.handed = max(c.handed, b.End)
		return nil
	default:
		return c.handWaiting(ctx, b)
	}
}

// handWaiting waits for the consumer. It does not read, but it answers.
func (c *connection) handWaiting(ctx context.Context, b store.Batch) error {
	stopped := c.stream.stopped.Done()
	if c.stream.stopped.Err() != nil {
		stopped = nil // b was drained already
	}
	for {
		select {
		case c.stream.batches <- b:
			c.handed = max(c.handed, b.End)
			c.hear(time.Now()) // what the server said meanwhile waits in the socket
			return nil
		case <-stopped:
			return c.hand(ctx, b)
		case <-c.ticks.C:
			if err := c.turn(ctx, time.Now(), true); err != nil {
				return err
			}
		}
	}
}

// drained is what is left of a batch after Stop.
func (c *connection) drained(b store.Batch) store.Batch {
	if len(b.Events) > 0 {
		c.frozen = true
		b.Events = nil
	}
	if c.frozen {
		b.End = 0
	}
	return b
}

// turn does what is due beside reading. It never waits for the consumer.
func (c *connection) turn(ctx context.Context, now time.Time, waiting bool) error {
	c.stream.turned.Store(new(now))
	if err := ctx.Err(); err != nil {
		return err
	}
	if alive := c.stream.config.Alive; alive != nil {
		if err := alive(); err != nil {
			return errAlive{err}
		}
	}
	if c.down.Load() {
		return errShuttingDown
	}
	if c.changed.Load() {
		return errRepublished
	}
	if c.session.IsVoid() {
		return c.stream.voided()
	}
	c.listen(now, waiting)
	c.doubt(ctx, now)
	quiet := now.Sub(c.heard)
	if quiet > c.stream.walSenderTimeout*6/5 {
		return errSilent
	}
	// An idle server says nothing by itself as long as it hears us.
	ask := quiet >= c.stream.witnessEvery()
	if silent := now.Sub(c.sent); c.confirmable() > c.flushed || silent >= c.stream.walSenderTimeout/3 || ask && silent >= c.stream.witnessEvery() {
		if err := c.answer(now, ask); err != nil {
			return err
		}
	}
	c.stream.progress(c)
	return nil
}

// listen notes whether the server was heard since the last turn: a message, or a
// part of one on a slow line. What is not read says nothing.
func (c *connection) listen(now time.Time, waiting bool) {
	if c.sieve.came != c.came || waiting {
		c.hear(now)
	}
	c.came = c.sieve.came
}

// doubt says, once, where it is not certain that the slot is still ours: then
// nothing is sent.
func (c *connection) doubt(ctx context.Context, now time.Time) {
	doubted := !c.session.Live(now) && now.Sub(c.began) > c.stream.lease()
	if doubted == c.doubted {
		return
	}
	c.doubted = doubted
	c.stream.reportDoubt(ctx, doubted)
}

// confirmable is the position that may be sent as flushed.
func (c *connection) confirmable() pglogrepl.LSN {
	if !c.checked.Load() {
		return c.flushed
	}
	return max(c.flushed, min(c.session.Flushed(), c.handed))
}

// answer sends a status. What was written is never zero. What was flushed is, until
// that is more than the slot's own position: then the server leaves the slot as it
// is. Somebody may have moved it just before it was ours, which an older position
// would undo for the eye, and not for what has been skipped.
func (c *connection) answer(now time.Time, replyRequested bool) error {
	flushed := c.confirmable()
	tell := flushed
	if tell == c.session.Confirmed {
		tell = 0
	}
	c.told = max(c.told, tell)
	message := statusUpdate(max(c.received, flushed), tell, now, replyRequested)
	if err := c.pg.Conn().SetWriteDeadline(now.Add(c.stream.walSenderTimeout / 2)); err != nil {
		return fmt.Errorf("send status update: %w", err)
	}
	if err := c.pg.Frontend().SendUnbufferedEncodedCopyData(message); err != nil {
		return fmt.Errorf("send status update: %w", err)
	}
	c.flushed, c.sent = flushed, now
	return nil
}

// statusUpdate is a Standby status update in its CopyData.
func statusUpdate(written, flushed pglogrepl.LSN, now time.Time, replyRequested bool) []byte {
	const body = 1 + 4*8 + 1
	b := make([]byte, 0, 1+4+body)
	b = append(b, 'd')
	b = binary.BigEndian.AppendUint32(b, 4+body)
	b = append(b, pglogrepl.StandbyStatusUpdateByteID)
	b = binary.BigEndian.AppendUint64(b, uint64(written))
	b = binary.BigEndian.AppendUint64(b, uint64(flushed))
	b = binary.BigEndian.AppendUint64(b, uint64(flushed)) // applied
	b = binary.BigEndian.AppendUint64(b, uint64(now.UnixMicro()-postgresEpoch))
	if replyRequested {
		return append(b, 1)
	}
	return append(b, 0)
}

// goodbye sends the last confirmed position and ends the stream so that the server
// has certainly read it: closing a socket with unread data can throw it away.
func (c *connection) goodbye() error {
	deadline := time.Now().Add(politely)
	if err := c.answer(time.Now(), false); err != nil {
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

// check asks Config.Check again and again. Nothing is confirmed before its first yes.
func (c *connection) check(ctx context.Context) {
	if c.stream.config.Check == nil {
		c.checked.Store(true)
		return
	}
	for {
		err := c.checkOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		c.checked.Store(err == nil)
		if errors.Is(err, store.ErrRepublished) {
			c.changed.Store(true)
			return
		}
		c.stream.reportCheck(ctx, err)
		wait := checkEvery
		if err != nil {
			wait = recheckEvery
			c.down.CompareAndSwap(false, sqlState(err) == codeCannotConnectNow)
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
