package cdc

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/webhook"
)

// This file identifies the server, finds the slot or waits for it as a standby, and
// starts replication. It uses the replication connection for all of that: simple
// queries work there.

const (
	// commandTimeout bounds every statement except slot creation, which waits for the
	// transactions of others.
	commandTimeout = 10 * time.Second

	// standbyPollEvery is how often a standby checks whether the slot is free. With the
	// time that PostgreSQL needs to notice a killed process it bounds a takeover.
	standbyPollEvery = 500 * time.Millisecond

	// nameHolderAfter is how long a standby waits before the log names the holder: a
	// restart is over sooner.
	nameHolderAfter = 5 * time.Second
)

var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// open connects, checks that everything needed is there, and starts replication. While
// another process holds the slot it waits.
func (s *Stream) open(ctx context.Context) (*connection, error) {
	sieve := &sieve{}
	pg, err := s.connectReplicating(ctx, sieve)
	if err != nil {
		return nil, err
	}
	c, err := s.start(ctx, pg, sieve)
	if err != nil {
		hangUp(pg)
		return nil, err
	}
	return c, nil
}

// Probe connects as a stream would, changes nothing, and returns the name of the database
// that it reached. It finds out whether the role may replicate: no catalogue tells, because
// managed services have privileges of their own for it.
func Probe(ctx context.Context, config Config) (database string, err error) {
	s := New(config)
	pg, err := s.connectReplicating(ctx, &sieve{})
	if err == nil {
		defer hangUp(pg)
		var system pglogrepl.IdentifySystemResult
		system, err = s.identifySystem(ctx, pg)
		database = system.DBName
	}
	if e, ok := errors.AsType[*preparationError](err); ok && e.temporary {
		return "", errors.New(e.Error()) // not ErrNotPrepared: it may go away by itself
	}
	return database, err
}

// Prepare checks what a stream needs, creates the slot if it is missing, and reports
// whether it did.
func Prepare(ctx context.Context, config Config) (created bool, err error) {
	s := New(config)
	pg, err := s.connectReplicating(ctx, &sieve{})
	if err != nil {
		return false, err
	}
	defer hangUp(pg)
	if _, _, err := s.identify(ctx, pg); err != nil {
		return false, err
	}
	if created, err = s.ensureSlot(ctx, pg, false); errors.Is(err, errSlotHeld) {
		return false, nil
	}
	return created, err
}

func (s *Stream) start(ctx context.Context, pg *pgconn.PgConn, sieve *sieve) (*connection, error) {
	if _, _, err := s.identify(ctx, pg); err != nil {
		return nil, err
	}
	created, err := s.ensureSlot(ctx, pg, true)
	if err != nil {
		return nil, err
	}
	// Again, because a standby may have waited for the slot for days: the flush
	// position has moved.
	session, flushed, err := s.identify(ctx, pg)
	if err != nil {
		return nil, err
	}
	session.SlotCreated = created
	if s.config.Start != nil {
		start := func(ctx context.Context) error { return s.config.Start(ctx, session, flushed) }
		if err := bounded(ctx, start); err != nil {
			return nil, fmt.Errorf("find the start position: %w", err)
		}
	}
	// Again, because Start may have taken long: a status must never carry a position
	// before the slot's own.
	slot, err := s.lookUpSlot(ctx, pg)
	if err != nil {
		return nil, err
	}
	if slot == nil || slot.activePID != 0 {
		return nil, errSlotHeld
	}
	session.Confirmed, session.Reported, session.Lease = slot.confirmed, s.reported.on(session), s.lease()
	sieve.outbox = session.Outbox
	if err := s.startReplication(ctx, pg, session.Start); err != nil {
		return nil, err
	}
	return newConnection(s, pg, sieve, session), nil
}

// bounded calls what asks the database on another connection, for at most commandTimeout:
// that one may lead to a server that is gone without a word, as after a failover.
func bounded(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	return call(ctx)
}

const serverSQL = `SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('wal_level'),
	pg_catalog.current_setting('server_version_num'), pg_catalog.pg_backend_pid(), pg_catalog.pg_postmaster_start_time(),
	EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = %s)`

// identify identifies the server, and checks whether it can replicate to us.
func (s *Stream) identify(ctx context.Context, pg *pgconn.PgConn) (*webhook.Session, pglogrepl.LSN, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	system, err := s.identifySystem(ctx, pg)
	if err != nil {
		return nil, 0, err
	}
	rows, err := query(ctx, pg, fmt.Sprintf(serverSQL, quoteLiteral(s.config.Publication)))
	if err != nil || len(rows) != 1 {
		return nil, 0, fmt.Errorf("read the server's settings: %w", err)
	}
	recovery, walLevel, version, pid, started, publication := rows[0][0], rows[0][1], rows[0][2], rows[0][3], rows[0][4], rows[0][5]
	switch {
	case recovery == "t":
		return nil, 0, errReadOnly
	case walLevel != "logical":
		return nil, 0, notPrepared("wal_level is "+walLevel, "ALTER SYSTEM SET wal_level = 'logical'; and restart PostgreSQL "+
			"(on managed services a parameter such as rds.logical_replication)")
	case publication != "t":
		return nil, 0, notPrepared("publication "+s.config.Publication+" does not exist", "apply schema.sql (walhook init), "+
			"or in the schema of walhook's tables: CREATE PUBLICATION %s FOR TABLE webhook_outbox WITH (publish = 'insert', publish_via_partition_root = true)", quoteIfNeeded(s.config.Publication))
	}
	if s.serverVersion, err = strconv.Atoi(version); err != nil {
		return nil, 0, fmt.Errorf("read the server's version: %w", err)
	}
	session := &webhook.Session{SystemID: system.SystemID, Timeline: system.Timeline, ServerVersion: s.serverVersion, ServerStarted: started}
	// From the walsender itself: the pid that the client got when it connected may be
	// a proxy's.
	walsender, err := strconv.ParseUint(pid, 10, 32)
	if err != nil {
		return nil, 0, fmt.Errorf("read the walsender's pid: %w", err)
	}
	session.PID = uint32(walsender)
	return session, system.XLogPos, nil
}

func (s *Stream) identifySystem(ctx context.Context, pg *pgconn.PgConn) (pglogrepl.IdentifySystemResult, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	system, err := pglogrepl.IdentifySystem(ctx, pg)
	if sqlState(err) == codeSyntax { // replication=database was ignored: this is an ordinary session
		return system, &preparationError{what: "the server does not accept replication commands", fix: useDirectConnection, cause: errors.Join(ErrNoReplication, err)}
	}
	if err != nil {
		return system, fmt.Errorf("identify the server: %w", err)
	}
	return system, nil
}

// A slotRow is our slot's row of pg_replication_slots.
type slotRow struct {
	plugin, database string
	here             bool // it belongs to the current database
	activePID        int
	lost             bool
	confirmed        pglogrepl.LSN
	noFailover       bool // the server has failover slots, and this is none
}

// Columns newer than PostgreSQL 14 are read as JSON.
const slotSQL = `SELECT coalesce(plugin, ''), coalesce(database, ''), coalesce(database = current_database(), false),
	coalesce(active_pid, 0), coalesce(confirmed_flush_lsn, '0/0'),
	coalesce(wal_status = 'lost', false) OR coalesce((pg_catalog.to_jsonb(s)->>'conflicting')::boolean, false)
		OR pg_catalog.to_jsonb(s)->>'invalidation_reason' IS NOT NULL,
	coalesce(NOT (pg_catalog.to_jsonb(s)->>'failover')::boolean, false)
	FROM pg_catalog.pg_replication_slots s WHERE slot_name = %s`

// lookUpSlot returns nil if there is no slot.
func (s *Stream) lookUpSlot(ctx context.Context, pg *pgconn.PgConn) (*slotRow, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	rows, err := query(ctx, pg, fmt.Sprintf(slotSQL, quoteLiteral(s.config.Slot)))
	if err != nil {
		return nil, fmt.Errorf("look up the slot: %w", err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	row := rows[0]
	slot := &slotRow{plugin: row[0], database: row[1], here: row[2] == "t", lost: row[5] == "t", noFailover: row[6] == "t"}
	if slot.activePID, err = strconv.Atoi(row[3]); err != nil {
		return nil, fmt.Errorf("look up the slot: %w", err)
	}
	if slot.confirmed, err = pglogrepl.ParseLSN(row[4]); err != nil {
		return nil, fmt.Errorf("look up the slot: %w", err)
	}
	return slot, nil
}

// checkOwner returns an error unless the slot can be walhook's. A slot of another
// database, another plugin, or a physical one has our name by chance.
func (s *Stream) checkOwner(slot *slotRow) error {
	if slot.plugin == "pgoutput" && slot.here {
		return nil
	}
	return notPrepared(fmt.Sprintf("slot %s is not a pgoutput slot of this database (plugin %q, database %q)", s.config.Slot, slot.plugin, slot.database),
		"set WALHOOK_SLOT to another name (slot names are unique per server, not per database); or, if nobody needs that slot, run in its database: "+
			"SELECT pg_drop_replication_slot(%s)", quoteLiteral(s.config.Slot))
}

// ensureSlot returns when there is a usable slot that nobody holds, and reports whether
// it has just created the slot. Unless it waits, errSlotHeld means that somebody holds it.
func (s *Stream) ensureSlot(ctx context.Context, pg *pgconn.PgConn, waits bool) (created bool, err error) {
	since, named := time.Now(), false
	for {
		slot, err := s.lookUpSlot(ctx, pg)
		switch {
		case err != nil:
			return false, err
		case slot == nil:
			return true, s.noteAndMake(ctx, pg, s.createSlot)
		case s.checkOwner(slot) != nil:
			return false, s.checkOwner(slot)
		case slot.activePID != 0 && !waits:
			return false, errSlotHeld
		case slot.activePID != 0:
			s.standBy()
			if !named && time.Since(since) > nameHolderAfter {
				named = true
				s.logHolder(ctx, pg, slot.activePID)
			}
			if err := s.waitAlive(ctx, standbyPollEvery); err != nil {
				return false, err
			}
		case slot.lost || s.unreadable >= unreadableLimit:
			return true, s.noteAndMake(ctx, pg, s.remakeSlot)
		case slot.noFailover && s.config.CreateSlot:
			return false, s.enableFailover(ctx, pg)
		default:
			return false, nil
		}
	}
}

const holderSQL = `SELECT coalesce(client_addr::text, 'local'), coalesce(application_name, ''), coalesce(backend_start::text, '')
	FROM pg_catalog.pg_stat_activity WHERE pid = %d`

// logHolder logs which process holds the slot.
func (s *Stream) logHolder(ctx context.Context, pg *pgconn.PgConn, pid int) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	rows, err := query(ctx, pg, fmt.Sprintf(holderSQL, pid))
	if err != nil || len(rows) == 0 {
		return
	}
	s.log.InfoContext(ctx, "standing by: another process is streaming from the slot", "slot", s.config.Slot, "active_pid", pid,
		"client_addr", rows[0][0], "application_name", rows[0][1], "since", rows[0][2])
}

func (s *Stream) startReplication(ctx context.Context, pg *pgconn.PgConn, at pglogrepl.LSN) error {
	ctx, cancel := context.WithTimeout(ctx, 3*commandTimeout)
	defer cancel()
	err := pglogrepl.StartReplication(ctx, pg, quoteIdentifier(s.config.Slot), at, pglogrepl.StartReplicationOptions{PluginArgs: []string{
		"proto_version '1'",
		"publication_names " + quoteLiteral(quoteIdentifier(s.config.Publication)),
		"messages 'true'",
	}})
	switch sqlState(err) {
	case codeObjectInUse:
		return errSlotHeld
	case codeNotInRequiredState:
		return fmt.Errorf("start replication: %w: %w", errSlotUnreadable, err)
	}
	if err != nil {
		return fmt.Errorf("start replication: %w", err)
	}
	return nil
}
