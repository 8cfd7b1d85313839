package cdc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// This file asks PostgreSQL again and again, by another connection, whether the
// slot is still this session's. The replication connection itself cannot say: what
// is read from it after a freeze may be old, and while the consumer is not taking
// nothing is read at all.

// witness sees to it that the session is live for as long as the slot is its own.
func (c *connection) witness(ctx context.Context) {
	for {
		err := c.testify(ctx)
		// It is shutting down: a smart or fast shutdown waits for us.
		c.down.CompareAndSwap(false, sqlState(err) == codeCannotConnectNow)
		if c.session.IsVoid() || !sleep(ctx, c.stream.witnessEvery()) {
			return
		}
	}
}

// witnessEvery is how often the question is asked, and silence broken: ten times
// in what the server bears.
func (s *Stream) witnessEvery() time.Duration { return s.walSenderTimeout / 10 }

// lease is for how long an answer counts. The server has heard of us a third of
// its patience before at the latest, so another process gets the slot after the
// other two thirds at the earliest.
func (s *Stream) lease() time.Duration { return s.walSenderTimeout / 2 }

// Where several hosts are given another may answer, as a standby does while the primary
// has no connection free: what it says of its own slots is no answer. No right is needed
// to ask for when a server was started.
const heldSQL = `SELECT NOT pg_catalog.pg_is_in_recovery() AND pg_catalog.pg_postmaster_start_time() = %s::pg_catalog.timestamptz,
	EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE active_pid = %d AND slot_name = %s)`

// errOtherServer means that the witness was connected with a server that is not the session's.
var errOtherServer = errors.New("the slot check reached another server than the stream")

// testify asks on one connection for as long as that works.
func (c *connection) testify(ctx context.Context) error {
	pg, err := c.stream.connectOrdinary(ctx)
	if err != nil {
		return err
	}
	defer hangUp(pg)
	for {
		asked := time.Now()
		held, err := c.held(ctx, pg)
		if err != nil {
			return err
		}
		if !held {
			c.session.Void()
			return nil
		}
		c.session.Seen(asked)
		if !sleep(ctx, c.stream.witnessEvery()) {
			return nil
		}
	}
}

func (c *connection) held(ctx context.Context, pg *pgconn.PgConn) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, c.stream.lease())
	defer cancel()
	rows, err := query(ctx, pg, fmt.Sprintf(heldSQL, quoteLiteral(c.session.ServerStarted), c.session.PID, quoteLiteral(c.stream.config.Slot)))
	if err != nil || len(rows) != 1 {
		return false, err
	}
	if rows[0][0] != "t" {
		return false, errOtherServer
	}
	return rows[0][1] == "t", nil
}
