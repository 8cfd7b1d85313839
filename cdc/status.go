package cdc

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
)

// This file is what the two sides tell each other of positions: keepalives and status updates
// (PostgreSQL manual, "Streaming Replication Protocol").

// handleKeepalive notes the server's position, and replies if asked to. A position
// inside a transaction is no position to confirm.
func (c *connection) handleKeepalive(k pglogrepl.PrimaryKeepaliveMessage) error {
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
	return c.sendStatus(now, false)
}

// pings counts keepalives that request a reply at one position.
type pings struct {
	at    pglogrepl.LSN
	since time.Time
	n     int
}

// burst counts one, and reports whether there were enough to mean a shutdown.
func (p *pings) burst(at pglogrepl.LSN, now time.Time) bool {
	if at != p.at || now.Sub(p.since) > burstWithin {
		*p = pings{at: at, since: now}
	}
	p.n++
	return p.n >= burstPings
}

// confirmable returns the position that may be sent as flushed.
func (c *connection) confirmable() pglogrepl.LSN {
	if !c.checkPassed.Load() {
		return c.flushed
	}
	return max(c.flushed, min(c.session.Flushed(), c.pushed))
}

// sendStatus sends a status update. Its write position is never zero. Its flush
// position is zero until it is beyond the slot's own, so that the server leaves the
// slot alone: somebody may have moved the slot just before we acquired it, and an
// older position would hide that without bringing back the skipped events.
func (c *connection) sendStatus(now time.Time, replyRequested bool) error {
	flushed := c.confirmable()
	report := flushed
	if report == c.session.Confirmed {
		report = 0
	}
	c.reported = max(c.reported, report)
	message := statusUpdate(max(c.received, flushed), report, now, replyRequested)
	if err := c.pg.Conn().SetWriteDeadline(now.Add(c.stream.walSenderTimeout / 2)); err != nil {
		return fmt.Errorf("send status update: %w", err)
	}
	if err := c.pg.Frontend().SendUnbufferedEncodedCopyData(message); err != nil {
		return fmt.Errorf("send status update: %w", err)
	}
	c.flushed, c.sent = flushed, now
	return nil
}

// statusUpdate encodes a Standby status update as CopyData.
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
