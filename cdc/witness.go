package cdc

import (
	"context"
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

const heldSQL = `SELECT coalesce(active_pid = %d, false) FROM pg_catalog.pg_replication_slots WHERE slot_name = %s`

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
	rows, err := query(ctx, pg, fmt.Sprintf(heldSQL, c.session.PID, quoteLiteral(c.stream.config.Slot)))
	return err == nil && len(rows) == 1 && rows[0][0] == "t", err
}
