// Package cdc turns a PostgreSQL logical replication stream into committed
// events of webhook_outbox, in commit order, and tells PostgreSQL how far the
// slot may move.
//
//	Stream      connects, reconnects, decides what an operator is told
//	slot        identifies the server; finds the slot, or waits for it as a standby
//	connect     makes connections, and runs simple queries on them
//	create      creates the slot, and recreates it
//	connection  the one goroutine that reads, passes events on, and answers
//	status      what the two sides tell each other of positions
//	lease       checks on a second connection that the slot is still ours
//	sieve       keeps large messages of others out of memory
//	decoder     pure: bytes of pgoutput, protocol version 1, to Batches
//
// In protocol version 1 the server sends a transaction only after it has
// committed. So the stream can pass on a part of a transaction before it has read
// the Commit message, and a transaction of a million rows never needs a million
// events in memory.
//
// The package promises three things. Nothing rolled back is passed on. Positions
// never decrease within a session, and never run ahead of the events before them.
// Only what was passed on in the same session, and then confirmed by the consumer,
// is confirmed to the server. The package remembers nothing: Config.Start says
// where to begin, and after a reconnect everything unconfirmed comes again.
package cdc

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/webhook"
)

// positionOnly reports whether a batch has nothing but a position.
func positionOnly(b *webhook.Batch) bool {
	return b.Session == nil && len(b.Events) == 0 && len(b.Echoes) == 0
}

// Config says what to stream. Server, Slot and Publication are required.
type Config struct {
	// Server says how to connect. It is called before each connection, because a
	// password may have been rotated. The stream adds replication=database, and the
	// settings that make text decoding deterministic.
	Server      func() (*pgconn.Config, error)
	Slot        string
	Publication string

	// CreateSlot creates a missing slot, and recreates one that PostgreSQL has
	// invalidated. Without it both are store.ErrNotPrepared.
	CreateSlot bool

	// Creating is called before a slot is created. The stream will not bring what was
	// committed before, so the callee has to remember to reconcile. Nil: not called.
	Creating func(ctx context.Context) error

	// Start is called at every connect. It sets session.Start, where to begin (0: the
	// slot's own position), and session.Outbox, the table of the events. flushed is
	// the server's WAL flush position: PostgreSQL accepts a start beyond it, and skips
	// events in silence. Nil: always 0, and no events.
	Start func(ctx context.Context, session *webhook.Session, flushed pglogrepl.LSN) error

	// Check says whether publication, table and columns are what schema.sql makes. A
	// goroutine of its own calls it every checkEvery; it must end with its context.
	// Until it returns nil nothing is confirmed. store.ErrRepublished ends the session,
	// so that the next one notes that events may be missing. Nil: always good.
	Check func(ctx context.Context, session *webhook.Session) error

	// Resumed says that this process has streamed or stood by before. Then the stream
	// waits for an operator from the beginning, and does not end.
	Resumed bool

	// Alive is the watchdog. An error means that a loop of this process is stuck: the
	// stream gives up the slot, and Run returns that error. It must not block. Nil:
	// always alive.
	Alive func() error

	Logger *slog.Logger // nil: slog.Default()
}

// A Role says what the stream is doing.
type Role string

// The roles of a Stream. A standby waits for a slot that another process holds. It
// counts as ready.
const (
	Connecting Role = "connecting"
	Standby    Role = "standby"
	Streaming  Role = "streaming"
)

// Status is a snapshot for /readyz and /metrics.
type Status struct {
	Role        Role
	Err         string        // the present trouble, in words for an operator; "": none
	Received    pglogrepl.LSN // the newest position received
	Confirmed   pglogrepl.LSN // the position last sent to PostgreSQL as flushed
	LastMessage time.Time     // when the server last sent something, to the nearest tick; zero: never
}

const (
	// batchEvents and batchBytes bound a Batch: small enough that the consumer's loop
	// runs often, large enough that a channel operation per batch costs next to
	// nothing. The bytes are those of payloads and endpoint ids.
	batchEvents = 64
	batchBytes  = 256 << 10

	// batchesAhead bounds the batches between the stream and its consumer: 4 MiB at
	// batchBytes each. A few let the two work at the same time. More would only cost
	// memory, because the socket's buffers hold what comes next.
	batchesAhead = 16

	// walSenderTimeout is the session's wal_sender_timeout: how long the server waits
	// for a silent walhook, so how long a frozen one keeps the slot.
	walSenderTimeout = 10 * time.Second

	// tick is how often the connection's goroutine leaves the socket for its other
	// work. It bounds how late a confirmation is sent and a cancellation is noticed.
	tick = 100 * time.Millisecond

	// tailEvery bounds how often a position without events is passed on: a busy
	// database sends one for every commit of other tables.
	tailEvery = 20 * time.Millisecond

	// checkEvery is the interval of Config.Check, and recheckEvery while it fails.
	checkEvery   = 5 * time.Second
	recheckEvery = time.Second

	// healthyAfter is how long a session must last before the error of the one before
	// is cleared, so that repeated failures are logged once.
	healthyAfter = 2 * time.Second
)
