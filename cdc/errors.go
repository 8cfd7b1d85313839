package cdc

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/store"
)

// This file classifies errors: which of them an operator has to fix, and how.

// The SQLSTATEs that are told apart here.
const (
	codeAdminShutdown      = "57P01"
	codeCannotConnectNow   = "57P03"
	codeObjectInUse        = "55006" // another process holds the slot
	codeNotInRequiredState = "55000" // the slot is unusable, or wal_level is too low
	codeUndefinedObject    = "42704" // no such slot, or no such publication at the decoded point of the WAL
	codeDuplicateObject    = "42710" // another process created the slot first
	codeUndefinedFile      = "58P01" // the WAL that the slot needs was removed
	codePrivilege          = "42501"
	codeConfigurationLimit = "53400" // max_replication_slots
	codeTooManyConnections = "53300" // max_wal_senders, max_connections
	codeAuthorization      = "28000" // pg_hba.conf
	codePassword           = "28P01"
	codeUnknownDatabase    = "3D000"
	codeSyntax             = "42601"
)

// sqlState returns the SQLSTATE of an error, or "".
func sqlState(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

// Errors that end a session. The stream reconnects.
var (
	errSilent       = errors.New("no message from the server for too long")
	errShuttingDown = errors.New("PostgreSQL is shutting down")
	errServerEnded  = errors.New("the server ended the replication stream")
	errBackwards    = errors.New("the server's WAL position went backwards")
	errRepublished  = fmt.Errorf("%w; walhook finds events committed meanwhile by comparing the outbox with the deliveries", store.ErrRepublished)
	errNotHolder    = errors.New("pg_replication_slots does not list this session as the slot's holder")
	errPooler       = fmt.Errorf("%w: walhook is connected through a pooler, proxy or load balancer, or WALHOOK_DATABASE_URL and WALHOOK_REPLICATION_URL lead to different servers; "+
		"set WALHOOK_REPLICATION_URL to a direct connection to the same PostgreSQL", errNotHolder)
	errReadOnly = errors.New("the server is a standby (pg_is_in_recovery): waiting for a primary")
)

// errSlotHeld means that another process streams from the slot: this one is a standby.
var errSlotHeld = errors.New("another process holds the slot")

// errSlotUnreadable means that the slot can never be decoded again.
var errSlotUnreadable = errors.New("the slot can no longer be decoded")

// ErrNoReplication means that the connection takes no replication commands: it leads
// to a pooler.
var ErrNoReplication = errors.New("not a replication connection")

// useDirectConnection tells an operator how to fix ErrNoReplication.
const useDirectConnection = "if this connection goes through a pooler, set WALHOOK_REPLICATION_URL to a direct connection to PostgreSQL"

// A watchdogError wraps an error of Config.Alive, which ends Run.
type watchdogError struct{ error }

func (e watchdogError) Unwrap() error { return e.error }

// A preparationError says what an operator has to fix, and how.
type preparationError struct {
	what      string
	fix       string
	cause     error // may be nil
	temporary bool  // it may go away by itself, so a first start retries it too
}

func (e *preparationError) Error() string {
	if e.cause == nil {
		return e.what + ": " + e.fix
	}
	return fmt.Sprintf("%s: %s (%v)", e.what, e.fix, e.cause)
}

func (e *preparationError) Unwrap() []error {
	if e.cause == nil {
		return []error{store.ErrNotPrepared}
	}
	return []error{store.ErrNotPrepared, e.cause}
}

func notPrepared(what, fix string, args ...any) error {
	return &preparationError{what: what, fix: fmt.Sprintf(fix, args...)}
}

// withFix turns an error of PostgreSQL into a preparationError if the fix is
// known, and returns others as they are.
func withFix(err error, user string) error {
	e := preparationError{cause: err}
	if store.NeverConnects(err) {
		e.what, e.fix = "the server rejected a connection parameter", "remove it from the connection string; "+useDirectConnection
		return &e
	}
	switch sqlState(err) {
	case codePrivilege:
		e.what = "the role may not replicate"
		e.fix = "ALTER ROLE " + quoteIfNeeded(user) + " REPLICATION (on managed services: GRANT rds_replication, or the like)"
	case codeAuthorization:
		e.what = "the server rejected the role"
		e.fix = "allow it in pg_hba.conf (a replication connection needs a line for the database itself), and give the role LOGIN"
	case codePassword:
		e.what = "the server rejected the password"
		e.fix = "correct it in the connection string"
	case codeUnknownDatabase:
		e.what = "the database does not exist"
		e.fix = "correct the connection string, or create it"
	case codeConfigurationLimit, codeNotInRequiredState: // the latter if max_replication_slots is 0
		e.what = "no replication slot is left"
		e.fix = "drop an unused one (SELECT slot_name, active FROM pg_replication_slots), or raise max_replication_slots and restart PostgreSQL"
	case codeTooManyConnections:
		e.what = "no connection is left for replication"
		e.fix = "raise max_wal_senders or max_connections and restart PostgreSQL, or close other connections"
		e.temporary = true
	default:
		return err
	}
	return &e
}

// A ColumnError reports a column of the outbox that is missing or unreadable.
// Nothing after it can be confirmed.
type ColumnError struct {
	Column  string
	Problem string
}

func (e *ColumnError) Error() string {
	return fmt.Sprintf("%s.%s %s: confirming is suspended until the column matches schema.sql; if it does and this error remains, "+
		"the WAL still holds rows from before the change: drop the slot, and walhook recreates it and finds owed events in the table",
		outboxTable, e.Column, e.Problem)
}

// Unwrap makes it a store.ErrNotPrepared.
func (e *ColumnError) Unwrap() error { return store.ErrNotPrepared }

// A malformed error means that the server's messages break the protocol.
type malformed string

func (e malformed) Error() string { return "replication protocol: " + string(e) }
