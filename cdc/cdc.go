// Package cdc turns a PostgreSQL logical replication stream into committed
// events of webhook_outbox, in commit order, and tells PostgreSQL how far the
// slot may move.
//
//	Stream      connects, reconnects, decides what is worth telling an operator
//	slot        who the server is; finds the slot, or waits for it as a standby
//	create      makes the slot, and makes it anew
//	connection  the one goroutine that reads, hands on, and answers
//	witness     asks by another connection whether the slot is still ours
//	sieve       keeps large messages of others out of memory
//	decoder     pure: bytes of pgoutput, protocol version 1, to Batches
//
// In protocol version 1 the server sends a transaction only after it has
// committed. So a piece of a transaction can be handed on before its Commit
// message has been read, and a transaction of a million rows never needs a
// million events in memory.
//
// The package promises: nothing rolled back is handed on; positions that are
// handed on never decrease within a session, and never run ahead of the events
// before them; what is confirmed was handed on in the same session and then
// confirmed by the consumer. It does not remember anything: where to begin is
// Config.Start's answer, and after a reconnect everything that was not confirmed
// comes again.
package cdc

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/store"
)

// empty reports whether a batch is nothing but a position.
func empty(b *store.Batch) bool { return b.Session == nil && len(b.Events) == 0 && len(b.Echoes) == 0 }

// Config says what to stream. Server, Slot and Publication are required.
type Config struct {
	// Server says how to connect, and is asked before each connection: a password may
	// have been rotated. The stream adds what it needs: replication=database, and
	// settings that make text decoding deterministic.
	Server      func() (*pgconn.Config, error)
	Slot        string
	Publication string

	// CreateSlot makes a missing slot, and remakes one that PostgreSQL has
	// invalidated. Without it both are store.ErrNotPrepared.
	CreateSlot bool

	// Creating is called before a slot is made: what was committed before does not
	// come by the stream, and somebody has to remember that. Nil: nobody has to.
	Creating func(ctx context.Context) error

	// Start says in session.Start where to begin, at every connect (0 is the slot's
	// own position), and in session.Outbox which table the events are in. flushed is the server's WAL flush position; PostgreSQL takes a
	// position beyond it and skips in silence. Nil: always 0, and no events.
	Start func(ctx context.Context, session *store.Session, flushed pglogrepl.LSN) error

	// Check says whether publication, table and columns are as they must be. It is
	// asked every checkEvery, by a goroutine of its own, and must end with its
	// context; until it says yes nothing is confirmed, and store.ErrRepublished ends
	// the session: what was committed while nothing was published is for the
	// acquisition of the next to remember. Nil: they are.
	Check func(ctx context.Context, session *store.Session) error

	// Resumed says that this process has streamed before, or stood by: what an
	// operator has to mend is waited for from the beginning.
	Resumed bool

	// Alive is the watchdog: an error means that a loop of this process no longer
	// turns. The stream then gives up the slot, and Run returns that error. It
	// must not block. Nil: always alive.
	Alive func() error

	Logger *slog.Logger // nil: slog.Default()
}

// A Role is what the stream is doing, as seen from outside.
type Role string

// The roles of a Stream. A standby waits for a slot that another process holds:
// that is ready, not an error.
const (
	Connecting Role = "connecting"
	Standby    Role = "standby"
	Streaming  Role = "streaming"
)

// Status is a snapshot for /readyz and /metrics.
type Status struct {
	Role        Role
	Err         string        // what is wrong now, in words for an operator; empty when nothing is
	Received    pglogrepl.LSN // the newest position that came by the stream
	Confirmed   pglogrepl.LSN // the position that was last sent to PostgreSQL as flushed
	LastMessage time.Time     // when the server was last heard, to the nearest tick; zero before the first time
}

const (
	// batchEvents and batchBytes bound a Batch: small enough that the consumer
	// turns often, large enough that a channel operation costs nothing per event.
	// Bytes are those of payloads and endpoint ids.
	batchEvents = 64
	batchBytes  = 256 << 10

	// batchesAhead bounds what waits between the stream and its consumer, with
	// batchBytes to 4 MiB. A few batches let the two work at the same time; more
	// would only be memory, since the socket's buffers hold what comes next.
	batchesAhead = 16

	// walSenderTimeout is what the session asks the server for: how long the
	// server bears our silence, so how long a frozen walhook keeps the slot.
	walSenderTimeout = 10 * time.Second

	// tick is how often the connection's goroutine looks at anything but the
	// socket. It bounds how late a confirmation is sent and a cancellation seen.
	tick = 100 * time.Millisecond

	// tailEvery is how often an empty position is handed on at most: a busy
	// database sends one for every foreign commit.
	tailEvery = 20 * time.Millisecond

	// checkEvery is how often Config.Check is asked, and recheckEvery while it fails.
	checkEvery   = 5 * time.Second
	recheckEvery = time.Second

	// healthyAfter is how long a session must live before its predecessor's error
	// is forgotten, so that a session that fails again and again is reported once.
	healthyAfter = 2 * time.Second
)
