package cdc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// This file keeps the session's lease: it asks PostgreSQL, on a second connection,
// whether the slot still belongs to this session. The replication connection cannot
// tell: what is read from it after a freeze may be old, and while the batch channel
// is full nothing is read at all.

// keepLease renews the session's lease for as long as the slot belongs to it.
func (c *connection) keepLease(ctx context.Context) {
	for {
		err := c.pollSlot(ctx)
		// A smart or fast shutdown waits for the stream to end.
		c.shuttingDown.CompareAndSwap(false, sqlState(err) == codeCannotConnectNow)
		if c.session.IsVoid() || !sleep(ctx, c.stream.leaseCheckEvery()) {
			return
		}
	}
}

// leaseCheckEvery is how often the slot is checked, and how long the server may be
// silent before it is asked for a reply: a tenth of its timeout.
func (s *Stream) leaseCheckEvery() time.Duration { return s.walSenderTimeout / 10 }

// lease is how long a check counts. A status is sent at least every third of
// wal_sender_timeout, so the server gives the slot to another process no earlier
// than two thirds after the check. Half leaves a margin.
func (s *Stream) lease() time.Duration { return s.walSenderTimeout / 2 }

// With several hosts in the connection string another server may answer, as a standby
// does while the primary has no free connection. What it says about its own slots does
// not count. Every role may ask when a server was started.
const holdsSlotSQL = `SELECT NOT pg_catalog.pg_is_in_recovery() AND pg_catalog.pg_postmaster_start_time() = %s::pg_catalog.timestamptz,
	EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE active_pid = %d AND slot_name = %s)`

// errOtherServer means that the check reached a server that is not the session's.
var errOtherServer = errors.New("the slot check reached another server than the stream")

// pollSlot checks the slot on one connection until that fails, or the slot is lost.
func (c *connection) pollSlot(ctx context.Context) error {
	pg, err := c.stream.connectOrdinary(ctx)
	if err != nil {
		return err
	}
	defer hangUp(pg)
	for {
		asked := time.Now()
		held, err := c.holdsSlot(ctx, pg)
		if err != nil {
			return err
		}
		if !held {
			c.session.Void()
			return nil
		}
		c.session.Seen(asked)
		if !sleep(ctx, c.stream.leaseCheckEvery()) {
			return nil
		}
	}
}

func (c *connection) holdsSlot(ctx context.Context, pg *pgconn.PgConn) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, c.stream.lease())
	defer cancel()
	rows, err := query(ctx, pg, fmt.Sprintf(holdsSlotSQL, quoteLiteral(c.session.ServerStarted), c.session.PID, quoteLiteral(c.stream.config.Slot)))
	if err != nil || len(rows) != 1 {
		return false, err
	}
	if rows[0][0] != "t" {
		return false, errOtherServer
	}
	return rows[0][1] == "t", nil
}
