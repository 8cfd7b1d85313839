package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/webhook"
)

// LockTimeout bounds how long a statement of walhook waits for a lock. It is under a
// second, so that one locked row or table delays all other outcomes no longer than that.
const LockTimeout = "900ms"

// ErrFenced means that another process has taken over the slot. Nothing was written, and
// this process must not write anything it still holds.
var ErrFenced = errors.New("another walhook has taken over the slot")

// ErrSessionOver means that the session no longer holds the slot: perhaps another process
// does.
var ErrSessionOver = errors.New("the replication session has ended")

// A State is the row of webhook_state: up to where outcomes are known to be recorded.
type State struct {
	Epoch       int64
	DurableLSN  pglogrepl.LSN
	DurableAt   time.Time // commit time of the transaction that ends at DurableLSN
	SystemID    string
	Timeline    int32
	Environment string
}

const selectState = `
SELECT epoch, coalesce(durable_lsn, '0/0')::text, coalesce(durable_at, 'epoch'), coalesce(system_identifier, ''),
       coalesce(timeline, 0), coalesce(environment, '')
FROM webhook_state WHERE slot = $1`

// State reads the state row. A slot that was never acquired has the zero State.
func (s *Store) State(ctx context.Context) (State, error) {
	var st State
	var lsn string
	err := s.pool.QueryRow(ctx, selectState, s.slot).Scan(&st.Epoch, &lsn, &st.DurableAt, &st.SystemID, &st.Timeline, &st.Environment)
	if errors.Is(err, pgx.ErrNoRows) {
		return State{}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("read webhook_state: %w", err)
	}
	st.DurableLSN, err = pglogrepl.ParseLSN(lsn)
	return st, err
}

// StartSession notes the publication's identity, and decides where the stream begins: at
// the durable position, which may be ahead of the slot on disk after a crash of
// PostgreSQL. But PostgreSQL accepts a position in the future, and then skips events in
// silence. So after a failover or a restore (another system, another timeline, or a
// position beyond the flushed WAL) the stream begins at 0, the slot's own position.
func (s *Store) StartSession(ctx context.Context, session *webhook.Session, flushed pglogrepl.LSN) error {
	st, err := s.State(ctx)
	if err != nil {
		return err
	}
	if st.SystemID == session.SystemID && st.Timeline == session.Timeline && st.DurableLSN <= flushed {
		session.Start = st.DurableLSN
	}
	s.open.begin(session)
	session.Published, session.Outbox, err = s.published(ctx)
	if err == nil && session.Outbox == 0 {
		return fmt.Errorf("%w: the search_path has no table webhook_outbox; rename the table back, or run `walhook init`", ErrNotPrepared)
	}
	return err
}

// The slot's position is read too: somebody may have moved the slot after cdc read it and
// before the session acquired it. Since then only the session can move it, and has not.
const selectHoldsSlot = `
SELECT coalesce(bool_or(active_pid = @pid::int), false), coalesce(max(confirmed_flush_lsn), '0/0')::text
FROM pg_replication_slots WHERE slot_name = @slot`

// What is durable was committed before that was written, unless the clock was set back
// between the two: then what was committed with it is later than the write.
const selectLastWrite = `SELECT greatest(updated_at, durable_at) FROM webhook_state WHERE slot = @slot AND holder IS NOT NULL FOR UPDATE`

// reconcileStart is where comparing has to begin if the stream is lost at the durable
// position. A time in the future was noted by a clock that was ahead, and does not count.
const reconcileStart = `least(s.reconcile_from, CASE WHEN s.durable_at <= now() THEN s.durable_at ELSE 'epoch' END,
                                   CASE WHEN s.open_since <= now() THEN s.open_since ELSE 'epoch' END)`

// If the slot was just created, or somebody has moved it beyond what is known to be
// recorded, the stream does not bring the commits before it. Nor does it bring commits
// from while the outbox was not published, whether or not a walhook was running then.
// Transactions that were open at that time may have inserted long before: since
// open_since. The old position is forgotten, so that if this process dies before it has
// reconciled, the next one does.
//
// durable_lsn never goes beyond this session's start. A batch that was under way when the
// database was set back to a disk snapshot has been retried since, with a position that
// is now in the future.
const acquireState = `
INSERT INTO webhook_state AS s (slot, epoch, holder, system_identifier, timeline, published, reconcile_from, updated_at)
VALUES (@slot, 1, @holder::uuid, @system, @timeline::int, @published, 'epoch', now())
ON CONFLICT (slot) DO UPDATE SET
    epoch             = s.epoch + CASE WHEN s.holder IS DISTINCT FROM excluded.holder THEN 1 ELSE 0 END,
    holder            = excluded.holder,
    durable_lsn       = CASE WHEN @goes_on::bool AND s.durable_lsn IS NOT NULL THEN least(s.durable_lsn, @start::text::pg_lsn) END,
    reconcile_from    = CASE WHEN @goes_on::bool AND coalesce(s.published = excluded.published, true) THEN s.reconcile_from
                             ELSE ` + reconcileStart + ` - interval '1 microsecond' END,
    system_identifier = excluded.system_identifier,
    timeline          = excluded.timeline,
    published         = excluded.published,
    updated_at        = now()
RETURNING epoch, reconcile_from IS NOT NULL, coalesce(reconcile_from, 'epoch'), pg_postmaster_start_time(),
          CASE WHEN NOT @created::bool THEN s.xmin::text ELSE '' END`

// The microsecond makes each call write another value, so that a comparison that is
// already under way does not clear this one's note as its own.
const awaitSlot = `
INSERT INTO webhook_state AS s (slot, reconcile_from) VALUES (@slot, 'epoch')
ON CONFLICT (slot) DO UPDATE SET
    durable_lsn    = NULL,
    reconcile_from = ` + reconcileStart + ` - interval '1 microsecond'`

// AwaitSlot notes, before a slot is created, that the outbox has to be reconciled: the
// stream will not bring earlier commits. If this process dies first, another one
// reconciles.
func (s *Store) AwaitSlot(ctx context.Context) error {
	if _, err := s.pool.Exec(ctx, awaitSlot, pgx.NamedArgs{"slot": s.slot}); err != nil {
		return fmt.Errorf("note in webhook_state that the slot is created: %w", err)
	}
	return nil
}

// claim_xid is the xmin of the state row, so the id of the transaction that claimed the slot.
const selectClaimVisible = `SELECT coalesce(age(nullif(@claim_xid::text, '')::xid) > age(pg_snapshot_xmin(pg_current_snapshot())::xid), true)`

// ClaimVisible reports whether every commit before the slot's position is visible now.
func (s *Store) ClaimVisible(ctx context.Context, f webhook.Fence) (visible bool, err error) {
	if err := s.pool.QueryRow(ctx, selectClaimVisible, pgx.NamedArgs{"claim_xid": f.ClaimXID}).Scan(&visible); err != nil {
		return false, fmt.Errorf("look for transactions from before the slot was claimed: %w", err)
	}
	return visible, nil
}

// Only on the server that was compared: one that was restored, or promoted, since then
// may lack rows that the comparison has inserted.
const reconciled = `
UPDATE webhook_state SET reconcile_from = NULL
WHERE slot = @slot AND holder = @holder AND epoch = @epoch AND reconcile_from = @from AND @server::timestamptz = pg_postmaster_start_time()`

const selectReconcileFrom = `
SELECT reconcile_from FROM webhook_state
WHERE slot = @slot AND holder = @holder AND epoch = @epoch AND reconcile_from IS NOT NULL`

// Reconciled notes that this acquisition of the slot has reconciled the outbox. If
// another cause was noted meanwhile, as by a process that was about to create the slot
// and found it created, or if the server was restarted since, reconciling is not done:
// it returns the time from which to compare once more.
func (s *Store) Reconciled(ctx context.Context, f webhook.Fence) (since time.Time, err error) {
	args := s.fenceArgs(f)
	args["from"], args["server"] = f.ReconcileFrom, f.Server
	tag, err := s.pool.Exec(ctx, reconciled, args)
	if err != nil {
		return time.Time{}, fmt.Errorf("note in webhook_state that the outbox is reconciled: %w", err)
	}
	if tag.RowsAffected() > 0 {
		return time.Time{}, nil
	}
	err = s.pool.QueryRow(ctx, selectReconcileFrom, args).Scan(&since)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) { // fenced, or an answer was lost
		return time.Time{}, fmt.Errorf("read what is left to reconcile: %w", err)
	}
	return since, nil
}

// The microsecond: see awaitSlot.
const noteMissing = `
UPDATE webhook_state SET reconcile_from = least(coalesce(reconcile_from, @from::timestamptz), @from::timestamptz) - interval '1 microsecond'
WHERE slot = @slot AND holder = @holder AND epoch = @epoch
RETURNING reconcile_from`

// NoteMissing notes that a delivery has no row although the stream has passed its event, which
// was inserted at from. This process, or the slot's next holder, then reconciles.
func (s *Store) NoteMissing(ctx context.Context, f webhook.Fence, from time.Time) (noted time.Time, err error) {
	args := s.fenceArgs(f)
	args["from"] = from
	err = s.pool.QueryRow(ctx, noteMissing, args).Scan(&noted)
	if errors.Is(err, pgx.ErrNoRows) {
		return time.Time{}, ErrFenced
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("note in webhook_state that deliveries have no rows: %w", err)
	}
	return noted, nil
}

const emitMessage = `SELECT pg_logical_emit_message(true, '` + webhook.MessagePrefix + `', @echo::text)`

// Acquire claims the right to write for a process that has just acquired the slot. It
// raises the epoch if the last holder was another process, and emits marker number seq:
// its echo proves that the stream has passed everything written before.
//
// A former holder that froze inside a transaction would block the claim for ever. So
// after the lock timeout the backend that locks the row is terminated; that needs the
// same role, or membership in pg_signal_backend. If a walhook with another slot delivers
// from these tables, Acquire returns ErrHeldBack.
func (s *Store) Acquire(ctx context.Context, holder uuid.UUID, session *webhook.Session, seq uint64) (webhook.Fence, error) {
	fence, err := s.acquire(ctx, holder, session, seq)
	if hasCode(err, "55P03") { // lock_not_available
		if err := s.terminateHolder(ctx); err != nil {
			return webhook.Fence{}, fmt.Errorf("terminate the former holder's writer: %w", err)
		}
		fence, err = s.acquire(ctx, holder, session, seq)
	}
	if err != nil {
		return webhook.Fence{}, fmt.Errorf("claim the slot in webhook_state: %w", err)
	}
	return fence, nil
}

func (s *Store) acquire(ctx context.Context, holder uuid.UUID, session *webhook.Session, seq uint64) (fence webhook.Fence, err error) {
	fence.Holder, fence.Session, fence.Nonce = holder, session, s.nonce
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, prepareWrite); err != nil {
			return err
		}
		// If two with different slots claim at the same time, the second sees the first.
		if _, err := tx.Exec(ctx, lockState); err != nil {
			return err
		}
		if err := s.heldByOther(ctx, tx); err != nil {
			return err
		}
		args := pgx.NamedArgs{"slot": s.slot, "holder": holder, "system": session.SystemID, "timeline": session.Timeline,
			"published": session.Published, "start": session.Start.String(), "created": session.SlotCreated}
		err := tx.QueryRow(ctx, selectLastWrite, pgx.NamedArgs{"slot": s.slot}).Scan(&fence.LastWrite)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		// The row is locked: whoever acquires the slot after this check claims it after us.
		ours, confirmed, err := s.holdsSlot(ctx, tx, session)
		if err != nil {
			return err
		}
		if session.PID != 0 && !ours {
			return ErrSessionOver
		}
		fence.Moved = session.Moved(confirmed)
		args["goes_on"] = session.Start != 0 && !session.SlotCreated && !fence.Moved
		if err := tx.QueryRow(ctx, acquireState, args).Scan(&fence.Epoch, &fence.Reconcile, &fence.ReconcileFrom, &fence.Server, &fence.ClaimXID); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, emitMessage, pgx.NamedArgs{"echo": fence.Echo(seq)})
		return err
	})
	return fence, err
}

// holdsSlot reports whether the session holds the slot, and the slot's position.
func (s *Store) holdsSlot(ctx context.Context, tx pgx.Tx, session *webhook.Session) (ours bool, confirmed pglogrepl.LSN, err error) {
	var lsn string
	if err := tx.QueryRow(ctx, selectHoldsSlot, pgx.NamedArgs{"slot": s.slot, "pid": int32(session.PID)}).Scan(&ours, &lsn); err != nil {
		return false, 0, err
	}
	confirmed, err = pglogrepl.ParseLSN(lsn)
	return ours, confirmed, err
}

// A row's xmax is the transaction that has locked it, and every transaction holds a lock
// on its own id. So nobody else is terminated: no walhook with another slot, no reader. A
// holder of the table's lock is terminated only if it is in the mode that walhook takes,
// and idle for longer than walhook is between two statements. So nobody is terminated who
// is applying schema.sql.
const terminateHolder = `
SELECT pg_terminate_backend(l.pid) FROM webhook_state s
JOIN pg_locks l ON l.locktype = 'transactionid' AND l.transactionid = s.xmax AND l.mode = 'ExclusiveLock' AND l.granted
WHERE s.slot = @slot AND l.pid <> pg_backend_pid()
UNION ALL
SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.relation = 'webhook_state'::regclass::oid AND l.mode = 'ShareUpdateExclusiveLock' AND l.granted
  AND l.database = a.datid AND a.datname = current_database() AND l.pid <> pg_backend_pid()
  AND a.state = 'idle in transaction' AND a.state_change < clock_timestamp() - interval '2 seconds'`

func (s *Store) terminateHolder(ctx context.Context) error {
	// Not a batch: pgx prepares a batch's statements before it begins, and the lock timeout
	// has to bound that too.
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, prepareWrite)
		if err == nil {
			_, err = tx.Exec(ctx, terminateHolder, pgx.NamedArgs{"slot": s.slot})
		}
		return err
	})
}

// prepareWrite opens every transaction that writes deliveries. Lock waits are bounded,
// indexes are used whatever the statistics say, triggers send walhook no hint about its
// own writes, and the commit is at least locally durable whatever the role's default is.
const prepareWrite = prepareRead + `,
       set_config('walhook.recording', 'on', true),
       set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'local'
                                        ELSE current_setting('synchronous_commit') END, true)`

const currentInsertLSN = `SELECT pg_current_wal_insert_lsn()::text`

// InsertLSN returns the end of the WAL: everything visible now was committed before it.
func (s *Store) InsertLSN(ctx context.Context) (pglogrepl.LSN, error) {
	var lsn string
	if err := s.pool.QueryRow(ctx, currentInsertLSN).Scan(&lsn); err != nil {
		return 0, fmt.Errorf("read the insert LSN: %w", err)
	}
	return pglogrepl.ParseLSN(lsn)
}

// TimedOut reports whether a statement exceeded the caller's deadline or PostgreSQL's
// statement_timeout.
func TimedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || hasCode(err, "57014") // query_canceled
}

// hasCode reports whether err is a PostgreSQL error with one of the SQLSTATEs.
func hasCode(err error, codes ...string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return false
	}
	return slices.Contains(codes, pg.Code)
}
