package cdc

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// This file creates a missing slot, recreates one that PostgreSQL has invalidated,
// and names the transaction that creation is waiting for.

const (
	// blockedAfter is how long creation may take before the log names the blocking
	// transaction, and blockedEvery how often the log repeats it.
	blockedAfter = 3 * time.Second
	blockedEvery = time.Minute

	// remakeMinPause and remakeMaxPause bound the pause before a slot is recreated
	// again. remakeForgetAfter is when an earlier recreation no longer counts.
	remakeMinPause    = 5 * time.Second
	remakeMaxPause    = time.Minute
	remakeForgetAfter = 10 * time.Minute
)

// noteAndMake calls Config.Creating, and creates the slot only if that succeeds.
func (s *Stream) noteAndMake(ctx context.Context, pg *pgconn.PgConn, makeSlot func(context.Context, *pgconn.PgConn) error) error {
	if s.config.Creating != nil {
		if err := bounded(ctx, s.config.Creating); err != nil {
			return err
		}
	}
	return makeSlot(ctx, pg)
}

// createSlot creates the slot. The server waits for every running transaction to
// end; a second connection finds out which one it waits for.
func (s *Stream) createSlot(ctx context.Context, pg *pgconn.PgConn) error {
	if !s.config.CreateSlot {
		return notPrepared("slot "+s.config.Slot+" does not exist", "run walhook init, or SELECT pg_create_logical_replication_slot(%s, 'pgoutput')",
			quoteLiteral(s.config.Slot))
	}
	// Creation may take hours. After that an error that needs an operator, such as a
	// password rotated meanwhile, must not end the process.
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
	if sqlState(err) == codeNotInRequiredState { // this server can have no slot at all
		s.prepared = before
	}
	switch {
	case sqlState(err) == codeDuplicateObject: // another process created it first
		return errSlotHeld
	case err != nil:
		return fmt.Errorf("create the slot: %w", withFix(err, s.user))
	}
	s.log.InfoContext(ctx, "replication slot created", "slot", s.config.Slot)
	return nil
}

// failoverVersion is the first version, as server_version_num, that has failover slots.
const failoverVersion = 17_00_00

// createCommand asks for a failover slot if the server has them. The REPLICATION
// attribute is enough for that.
func (s *Stream) createCommand() string {
	options := "NOEXPORT_SNAPSHOT" // PostgreSQL 14 knows no list
	if s.serverVersion >= failoverVersion {
		options = "(SNAPSHOT 'nothing', FAILOVER true)"
	}
	return fmt.Sprintf("CREATE_REPLICATION_SLOT %s LOGICAL pgoutput %s", quoteIdentifier(s.config.Slot), options)
}

// enableFailover makes a failover slot of one that an older walhook or PostgreSQL, or
// somebody by hand, created without that. If it fails, the stream goes on: only a
// failover would need it, and then the reconciler finds what is owed.
func (s *Stream) enableFailover(ctx context.Context, pg *pgconn.PgConn) error {
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

// remakeSlot drops a slot that PostgreSQL can no longer decode, and creates it
// again. The reconciler finds the events in between.
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

// remakePause returns how long to wait before recreating the slot, and counts it.
func (s *Stream) remakePause(now time.Time) time.Duration {
	if now.Sub(s.remade) > remakeForgetAfter {
		s.remakes = 0
	}
	s.remade = now
	s.remakes++
	if s.remakes == 1 {
		return 0
	}
	return min(remakeMinPause<<min(s.remakes-2, 10), remakeMaxPause)
}

// blockersSQL finds the oldest writing transaction: the server waits for it before
// the slot has a consistent point. Every role may read pg_locks.
const blockersSQL = `SELECT coalesce(l.pid, 0), coalesce(p.gid, ''), coalesce(a.application_name, ''), coalesce(a.state, ''),
	coalesce(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared))::bigint, 0)
	FROM pg_catalog.pg_locks l
	LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
	LEFT JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = l.transactionid
	WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
	ORDER BY age(l.transactionid) DESC LIMIT 1`

// watchCreation reports, until ctx ends, which transaction blocks the creation.
func (s *Stream) watchCreation(ctx context.Context) {
	reason := ""
	defer s.setStatus(func(st *Status) {
		if st.Err == reason {
			st.Err = ""
		}
	})
	for wait := blockedAfter; sleep(ctx, wait); wait = blockedEvery {
		pg, err := s.connectOrdinary(ctx)
		if err != nil {
			continue
		}
		asking, cancel := context.WithTimeout(ctx, commandTimeout)
		rows, err := query(asking, pg, blockersSQL)
		cancel()
		hangUp(pg)
		if err == nil && len(rows) == 1 {
			reason = blockedBy(rows[0])
			s.log.WarnContext(ctx, "replication slot creation is blocked", "slot", s.config.Slot, "reason", reason)
			s.setStatus(func(st *Status) { st.Err = reason })
		}
	}
}

// blockedBy describes a row of blockersSQL for an operator.
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
