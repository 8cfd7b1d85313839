package cdc

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// This file makes the slot where it is missing, and anew where PostgreSQL has
// invalidated it, and says for whom the server waits meanwhile.

const (
	// blockedAfter is how long making a slot may take before the log names who is
	// waited for, and blockedEvery how often it says so again.
	blockedAfter = 3 * time.Second
	blockedEvery = time.Minute

	// remakeFirst and remakeMost bound the pause before a slot is made anew once
	// more; remakeForget is after how long an earlier one no longer counts.
	remakeFirst  = 5 * time.Second
	remakeMost   = time.Minute
	remakeForget = 10 * time.Minute
)

// afterNotice makes a slot when it has been noted that it will be.
func (s *Stream) afterNotice(ctx context.Context, pg *pgconn.PgConn, makeSlot func(context.Context, *pgconn.PgConn) error) error {
	if s.config.Creating != nil {
		if err := s.config.Creating(ctx); err != nil {
			return err
		}
	}
	return makeSlot(ctx, pg)
}

// createSlot makes the slot. The server waits for every transaction that runs,
// so a second connection says for whom.
func (s *Stream) createSlot(ctx context.Context, pg *pgconn.PgConn) error {
	if !s.config.CreateSlot {
		return notPrepared("slot "+s.config.Slot+" does not exist", "run walhook init, or SELECT pg_create_logical_replication_slot(%s, 'pgoutput')",
			quoteLiteral(s.config.Slot))
	}
	// It may take hours, and what an operator has to mend after that, such as a password
	// that was rotated meanwhile, is no reason to end any more.
	before := s.prepared
	s.prepared = true
	watch, cancel := context.WithCancel(ctx)
	blocked := make(chan struct{})
	go func() {
		defer close(blocked)
		s.watchCreation(watch)
	}()
	_, err := query(ctx, pg, s.createCommand())
	cancel()
	<-blocked
	if sqlState(err) == codeNotInRequiredState { // there can be no slot at all
		s.prepared = before
	}
	switch {
	case sqlState(err) == codeDuplicateObject: // another process was faster
		return errSlotHeld
	case err != nil:
		return fmt.Errorf("create the slot: %w", withRemedy(err, s.user))
	}
	s.log.InfoContext(ctx, "replication slot created", "slot", s.config.Slot)
	return nil
}

// failoverVersion is the first version, as server_version_num, whose slots can go
// with a failover.
const failoverVersion = 17_00_00

// createCommand asks for a slot that standbys may synchronize, where there are
// such slots. REPLICATION is enough for it.
func (s *Stream) createCommand() string {
	options := "NOEXPORT_SNAPSHOT" // PostgreSQL 14 knows no list
	if s.serverVersion >= failoverVersion {
		options = "(SNAPSHOT 'nothing', FAILOVER true)"
	}
	return fmt.Sprintf("CREATE_REPLICATION_SLOT %s LOGICAL pgoutput %s", quoteIdentifier(s.config.Slot), options)
}

// letFailOver has standbys synchronize a slot that was made without that: by an
// older walhook or PostgreSQL, or by hand. Only the loss of a primary would need
// it, and then the reconciler finds what is owed: no reason not to stream.
func (s *Stream) letFailOver(ctx context.Context, pg *pgconn.PgConn) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	_, err := query(ctx, pg, fmt.Sprintf("ALTER_REPLICATION_SLOT %s (FAILOVER true)", quoteIdentifier(s.config.Slot)))
	switch {
	case sqlState(err) == codeObjectInUse:
		return errSlotHeld
	case ctx.Err() != nil:
		return fmt.Errorf("enable failover for the slot: %w", err)
	case err != nil:
		s.log.WarnContext(ctx, "cannot enable failover for the replication slot; walhook will recreate the slot after a failover", "slot", s.config.Slot, "reason", err)
	default:
		s.log.InfoContext(ctx, "failover enabled for the replication slot; standbys can synchronize it now", "slot", s.config.Slot)
	}
	return nil
}

// remakeSlot drops a slot that PostgreSQL can no longer decode, and makes it
// anew. What lies between is for the reconciler (rule 10).
func (s *Stream) remakeSlot(ctx context.Context, pg *pgconn.PgConn) error {
	if !s.config.CreateSlot {
		return notPrepared("slot "+s.config.Slot+" was invalidated by PostgreSQL", "SELECT pg_drop_replication_slot(%[1]s); "+
			"SELECT pg_create_logical_replication_slot(%[1]s, 'pgoutput'); consider a larger max_slot_wal_keep_size", quoteLiteral(s.config.Slot))
	}
	if !sleep(ctx, s.remakePause(time.Now())) {
		return ctx.Err()
	}
	s.log.ErrorContext(ctx, "the replication slot was invalidated by PostgreSQL; walhook recreates it, "+
		"and finds missed events by comparing the outbox with the deliveries", "slot", s.config.Slot)
	drop, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	_, err := query(drop, pg, "DROP_REPLICATION_SLOT "+quoteIdentifier(s.config.Slot))
	switch sqlState(err) {
	case codeObjectInUse:
		return errSlotHeld
	case codeUndefinedObject:
	default:
		if err != nil {
			return fmt.Errorf("drop the slot: %w", err)
		}
	}
	s.unreadable = 0
	return s.createSlot(ctx, pg)
}

// remakePause says how long to wait before making the slot anew, and counts it.
func (s *Stream) remakePause(now time.Time) time.Duration {
	if now.Sub(s.remade) > remakeForget {
		s.remakes = 0
	}
	s.remade = now
	s.remakes++
	if s.remakes == 1 {
		return 0
	}
	return min(remakeFirst<<min(s.remakes-2, 10), remakeMost)
}

// blockersSQL finds the oldest transaction that writes: the server waits for it
// before it gives out a consistent point. pg_locks tells every role.
const blockersSQL = `SELECT coalesce(l.pid, 0), coalesce(p.gid, ''), coalesce(a.application_name, ''), coalesce(a.state, ''),
	coalesce(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared))::bigint, 0)
	FROM pg_catalog.pg_locks l
	LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
	LEFT JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = l.transactionid
	WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
	ORDER BY age(l.transactionid) DESC LIMIT 1`

// watchCreation names, until ctx is done, whom the making of the slot waits for.
func (s *Stream) watchCreation(ctx context.Context) {
	reason := ""
	defer s.setStatus(func(st *Status) { // the wait is over
		if st.Err == reason {
			st.Err = ""
		}
	})
	for wait := blockedAfter; sleep(ctx, wait); wait = blockedEvery {
		pg, err := s.connectOrdinary(ctx)
		if err != nil {
			continue
		}
		look, cancel := context.WithTimeout(ctx, commandTimeout)
		rows, err := query(look, pg, blockersSQL)
		cancel()
		hangUp(pg)
		if err == nil && len(rows) == 1 {
			reason = blockedBy(rows[0])
			s.log.WarnContext(ctx, "replication slot creation is blocked", "slot", s.config.Slot, "reason", reason)
			s.setStatus(func(st *Status) { st.Err = reason })
		}
	}
}

// blockedBy puts a row of blockersSQL into words.
func blockedBy(row []string) string {
	pid, gid, application, state, seconds := row[0], row[1], row[2], row[3], row[4]
	age, _ := time.ParseDuration(seconds + "s")
	if gid != "" {
		return fmt.Sprintf("slot creation is waiting for prepared transaction %s (%s old): end it with COMMIT PREPARED or ROLLBACK PREPARED %s",
			gid, age, quoteLiteral(gid))
	}
	if application != "" {
		application = " of " + application
	}
	if state == "" {
		state = "state hidden from this role"
	}
	return fmt.Sprintf("slot creation is waiting for the transaction of pid %s%s (%s, %s old): end it with SELECT pg_terminate_backend(%s)",
		pid, application, state, age, pid)
}
