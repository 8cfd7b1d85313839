package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/walhook/walhook/internal/webhook"
)

// Insert writes records whose deliveries have no row yet, in one transaction, and reports
// whether all of them were new. If not, some rows existed, or get none because their endpoint
// was erased: the caller then passes outcomes to Update, which applies each only if it is
// later than its row.
//
// ON CONFLICT would cost each row 48 bytes of WAL and a second look into the index. So it
// comes only after a row that exists has made the plain INSERT fail.
func (s *Store) Insert(ctx context.Context, fence webhook.Fence, mark webhook.Mark, records []webhook.Record) (allNew bool, err error) {
	inserted, err := s.insert(ctx, insertDeliveries, fence, mark, records)
	if hasCode(err, "23505") { // unique_violation
		inserted, err = s.insert(ctx, insertDeliveries+skipExisting, fence, mark, records)
	}
	if err != nil {
		return false, fmt.Errorf("record %d new deliveries: %w", len(records), err)
	}
	return inserted == len(records), nil
}

func (s *Store) insert(ctx context.Context, sql string, fence webhook.Fence, mark webhook.Mark, records []webhook.Record) (inserted int, err error) {
	var b pgx.Batch
	s.queueFence(&b, fence, mark)
	b.Queue(sql, newColumns(records).args(s.fenceArgs(fence))).Exec(func(tag pgconn.CommandTag) error {
		inserted = int(tag.RowsAffected())
		return nil
	})
	queueConsequences(&b, s, fence, mark, records)
	return inserted, s.send(ctx, &b)
}

// Update writes outcomes of deliveries that have a row, in one transaction. It never waits
// for a row: rows that someone else has locked are returned as locked, to be tried again. An
// outcome is applied only if its attempt is later than the row's; rows that are gone are
// skipped. A pending record with a lease gives that lease back: the row is due. If an operator
// has replayed or cancelled a delivery meanwhile, the attempt is counted and logged, and the
// operator's change stands: replayed are the deliveries that wait because of it.
func (s *Store) Update(ctx context.Context, fence webhook.Fence, mark webhook.Mark, records []webhook.Record) (locked, replayed []uuid.UUID, err error) {
	rows := newColumns(records)
	held := make(map[uuid.UUID]bool, len(records))
	var b pgx.Batch
	s.queueFence(&b, fence, mark)
	b.Queue(updateDeliveries, rows.args(s.fenceArgs(fence))).Query(func(r pgx.Rows) error {
		var id uuid.UUID
		var waits bool
		_, err := pgx.ForEachRow(r, []any{asBytes(&id), &waits}, func() error {
			if held[id] = true; waits {
				replayed = append(replayed, id)
			}
			return nil
		})
		return err
	})
	queueConsequences(&b, s, fence, mark, records)
	if err := s.send(ctx, &b); err != nil {
		return nil, nil, fmt.Errorf("record %d outcomes: %w", len(records), err)
	}
	var missed []uuid.UUID
	for i := range records {
		if !held[records[i].ID] {
			missed = append(missed, records[i].ID)
		}
	}
	if len(missed) == 0 {
		return nil, replayed, nil
	}
	there := map[uuid.UUID]bool{}
	if err := s.Existing(ctx, missed, there); err != nil {
		return nil, nil, err
	}
	return slices.DeleteFunc(missed, func(id uuid.UUID) bool { return !there[id] }), replayed, nil
}

// Mark writes a mark without rows. Its echo proves that the stream has passed everything
// written before it.
func (s *Store) Mark(ctx context.Context, fence webhook.Fence, mark webhook.Mark) error {
	var b pgx.Batch
	s.queueFence(&b, fence, mark)
	queueConsequences(&b, s, fence, mark, nil)
	if err := s.send(ctx, &b); err != nil {
		return fmt.Errorf("emit a marker: %w", err)
	}
	return nil
}

// send runs a batch as one implicit transaction in one round trip.
func (s *Store) send(ctx context.Context, b *pgx.Batch) error {
	return s.pool.SendBatch(ctx, b).Close()
}

// Locking the state row first makes a takeover wait for this transaction, or this
// transaction see the new epoch. A position is stored only in the server start in which it
// was learnt: afterwards the database may have been set back to a disk snapshot, without
// what the position stands for. open_since is the newest value, not the greatest, which may
// come from a clock that was ahead.
const advanceState = `
WITH noted AS (
    SELECT nullif(@durable::text, '0/0')::pg_lsn AS lsn, @commit_at::timestamptz AS at, @open_since::timestamptz AS open_since
    WHERE @server::timestamptz = pg_postmaster_start_time()
)
UPDATE webhook_state SET
    durable_lsn = greatest(durable_lsn, (SELECT lsn FROM noted)),
    durable_at  = CASE WHEN (SELECT lsn FROM noted) > coalesce(durable_lsn, '0/0') THEN coalesce((SELECT at FROM noted), durable_at) ELSE durable_at END,
    open_since  = CASE WHEN coalesce((SELECT open_since FROM noted), open_since) <= now() THEN coalesce((SELECT open_since FROM noted), open_since) END,
    updated_at  = now()
WHERE slot = @slot AND holder = @holder::uuid AND epoch = @epoch::bigint
RETURNING CASE WHEN @echo::text <> '' THEN pg_logical_emit_message(true, '` + webhook.MessagePrefix + `', @echo::text) END IS NULL`

func (s *Store) queueFence(b *pgx.Batch, fence webhook.Fence, mark webhook.Mark) {
	b.Queue(prepareWrite)
	args := s.fenceArgs(fence)
	args["durable"] = mark.Durable.String()
	args["server"] = fence.Server
	args["commit_at"] = pgtype.Timestamptz{Time: mark.CommitAt, Valid: !mark.CommitAt.IsZero()}
	args["open_since"] = s.open.upTo(fence.Session, mark.Durable)
	args["echo"] = ""
	if mark.Seq != 0 {
		args["echo"] = fence.Echo(mark.Seq)
	}
	b.Queue(advanceState, args).QueryRow(func(row pgx.Row) error {
		var ignored bool
		err := row.Scan(&ignored)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrFenced
		}
		return err
	})
}

func (s *Store) fenceArgs(f webhook.Fence) pgx.NamedArgs {
	return pgx.NamedArgs{"slot": s.slot, "holder": f.Holder, "epoch": f.Epoch}
}

// fenced is true only if the advanceState before it in the transaction matched.
const fenced = `EXISTS (SELECT FROM webhook_state WHERE slot = @slot AND holder = @holder::uuid AND epoch = @epoch::bigint)`

// recordRows makes a table of the records. ended is by PostgreSQL's clock, computed from the
// attempt's age in Go.
const recordRows = `
SELECT *, now() - ended_ago_ms::float8 * interval '1 ms' AS ended
FROM unnest(@id::uuid[], @event_id::uuid[], @endpoint_id::uuid[], @organization_id::text[], @event_type::text[],
            @status::text[], @attempts::int[], @series_start::int[], @wait_ms::bigint[], @ended_ago_ms::bigint[],
            @status_code::int[], @error_class::text[], @error::text[], @response::text[], @duration_ms::int[],
            @seen_status::text[], @seen_due::timestamptz[], @lease_ms::float8[])
  AS r(id, event_id, endpoint_id, organization_id, event_type, status, attempts, series_start, wait_ms, ended_ago_ms,
       status_code, error_class, error, response, duration_ms, seen_status, seen_due, lease_ms)`

const insertDeliveries = `
INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, series_start,
       next_attempt_at, status_code, error_class, error, response, duration_ms, created_at, updated_at, completed_at)
SELECT id, event_id, endpoint_id, organization_id, event_type, status, attempts, series_start,
       ended + wait_ms::float8 * interval '1 ms', status_code, error_class, error, response, duration_ms, ended, ended,
       CASE WHEN wait_ms IS NULL THEN ended END
FROM (` + recordRows + `) r
WHERE ` + fenced + ` AND NOT ` + forgotten + `
`

// forgotten is true of a record r if webhook_forget has erased its endpoint. Nothing about it
// is written any more: after webhook_forget has returned 0, an attempt under way, a delivery
// that waits in memory, or an event that only the WAL still has would bring rows back. An id
// that a restore has brought back is an endpoint's again. While nothing is erased, the first
// look is the only one, once for the statement.
const forgotten = `(EXISTS (SELECT FROM webhook_retries n WHERE n.forgotten_at IS NOT NULL)
    AND EXISTS (SELECT FROM webhook_retries n WHERE n.endpoint_id = r.endpoint_id AND n.forgotten_at IS NOT NULL OFFSET 0)
    AND NOT EXISTS (SELECT FROM webhook_endpoints e WHERE e.id = r.endpoint_id OFFSET 0))`

const skipExisting = `ON CONFLICT (id) DO NOTHING`

// maxAttemptLog bounds attempt_log. A schedule has ten attempts; of a delivery that is
// replayed often, the newest hundred remain.
const maxAttemptLog = 100

// firstEntry makes the log of a row that has none from the row's own columns, because a
// delivery that succeeds at once has no log. It also replaces a log that is not a list.
const firstEntry = `pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_object('attempt', d.attempts,
    'at', d.updated_at - coalesce(d.duration_ms, 0)::float8 * interval '1 ms', 'status_code', d.status_code,
    'error_class', d.error_class, 'error', d.error, 'duration_ms', d.duration_ms))`

// clockTolerance is how much too late an attempt may seem to have begun by PostgreSQL's
// clock: its age is computed when the statement is sent, and subtracted when it runs.
const clockTolerance = 250 * time.Millisecond

// overruled is true if somebody else has replayed or cancelled a delivery after the attempt
// began whose outcome is r. Rows that walhook wrote itself are known to the microsecond: a
// lease is exactly that much after updated_at, a parked row exactly ParkedDue before, and
// nobody else writes updated_at. A success ends a waiting delivery, unless a replay came
// after the attempt began: a replay from before has had its attempt.
var overruled = fmt.Sprintf(`CASE
    WHEN r.status = 'success' THEN d.status = 'pending' AND %[1]s
         AND d.next_attempt_at > r.ended - (coalesce(r.duration_ms, 0) + %[2]d)::float8 * interval '1 ms'
    ELSE d.status = 'cancelled' OR %[1]s END`,
	fmt.Sprintf(`(CASE
         WHEN r.seen_due IS NOT NULL THEN d.status <> r.seen_status OR d.next_attempt_at IS DISTINCT FROM r.seen_due
         WHEN r.lease_ms IS NOT NULL THEN d.status <> 'pending' OR (d.next_attempt_at <> d.updated_at + r.lease_ms::float8 * interval '1 ms'
              AND d.next_attempt_at <> d.updated_at - interval '%d s')
         ELSE false END)`, int(webhook.ParkedDue.Seconds())), clockTolerance.Milliseconds())

// FOR NO KEY UPDATE checks each row again under the lock, so it cannot change before the
// UPDATE. The UPDATE's snapshot may be older, but its WHERE and its values use the newest
// version of a row.
var updateDeliveries = fmt.Sprintf(`
WITH r AS MATERIALIZED (
    SELECT r.*, %[5]s AS overruled FROM (%[1]s) r JOIN webhook_deliveries d ON d.id = r.id WHERE %[2]s
    FOR NO KEY UPDATE OF d SKIP LOCKED
), applied AS (
    UPDATE webhook_deliveries d SET
        status = CASE WHEN r.overruled THEN d.status ELSE r.status END,
        attempts = r.attempts,
        series_start = CASE WHEN r.overruled AND d.status = 'pending' THEN r.attempts ELSE r.series_start END,
        next_attempt_at = CASE WHEN r.overruled THEN d.next_attempt_at ELSE r.ended + r.wait_ms::float8 * interval '1 ms' END,
        status_code = r.status_code, error_class = r.error_class, error = r.error, response = r.response,
        duration_ms = r.duration_ms, updated_at = r.ended,
        completed_at = CASE WHEN r.overruled THEN d.completed_at WHEN r.wait_ms IS NULL THEN r.ended END,
        attempt_log = CASE WHEN d.attempts > 0 THEN
            CASE WHEN jsonb_typeof(d.attempt_log) IS DISTINCT FROM 'array' THEN %[4]s
                 WHEN jsonb_array_length(d.attempt_log) >= %[3]d THEN d.attempt_log - 0
                 ELSE d.attempt_log END
            || pg_catalog.jsonb_build_object('attempt', r.attempts, 'at', r.ended - coalesce(r.duration_ms, 0)::float8 * interval '1 ms',
                   'status_code', r.status_code, 'error_class', r.error_class, 'error', r.error, 'duration_ms', r.duration_ms)
        END
    FROM r WHERE d.id = r.id AND (d.attempts < r.attempts OR r.attempts = d.attempts AND r.status = 'pending' AND r.lease_ms IS NOT NULL AND NOT r.overruled)
      AND d.status <> 'success'
    RETURNING d.id, r.overruled AND d.status IN ('pending', 'retrying') AS waits
)
SELECT id, false FROM r UNION ALL SELECT id, true FROM applied WHERE waits`, recordRows, fenced, maxAttemptLog, firstEntry, overruled)

// columns hold the records column by column, for unnest.
type columns struct {
	id, event, endpoint        []pgtype.UUID
	org, typ, status           []pgtype.Text
	attempts, series           []int32
	wait, ago                  []pgtype.Int8
	code                       []pgtype.Int4
	class, errorText, response []pgtype.Text
	duration                   []pgtype.Int4
	seenStatus                 []pgtype.Text
	seenDue                    []pgtype.Timestamptz
	lease                      []pgtype.Float8
}

func newColumns(records []webhook.Record) *columns {
	n := len(records)
	c := &columns{
		id: make([]pgtype.UUID, n), event: make([]pgtype.UUID, n), endpoint: make([]pgtype.UUID, n),
		org: make([]pgtype.Text, n), typ: make([]pgtype.Text, n), status: make([]pgtype.Text, n),
		attempts: make([]int32, n), series: make([]int32, n), wait: make([]pgtype.Int8, n), ago: make([]pgtype.Int8, n),
		code: make([]pgtype.Int4, n), class: make([]pgtype.Text, n), errorText: make([]pgtype.Text, n),
		response: make([]pgtype.Text, n), duration: make([]pgtype.Int4, n),
		seenStatus: make([]pgtype.Text, n), seenDue: make([]pgtype.Timestamptz, n), lease: make([]pgtype.Float8, n),
	}
	now := time.Now()
	for i := range records {
		r := &records[i]
		c.id[i], c.event[i], c.endpoint[i] = asUUID(r.ID), asUUID(r.EventID), asUUID(r.EndpointID)
		c.org[i], c.typ[i], c.status[i] = asText(r.OrganizationID), asText(r.EventType), asText(string(r.Status))
		c.attempts[i], c.series[i] = int32(r.Attempts), int32(r.SeriesStart)
		if r.Status == webhook.Pending || r.Status == webhook.Retrying {
			c.wait[i] = pgtype.Int8{Int64: r.Wait.Milliseconds(), Valid: true}
		}
		c.seenStatus[i], c.seenDue[i] = textOrNull(string(r.Seen.Status)), asTimestamptz(r.Seen.DueAt)
		c.lease[i] = pgtype.Float8{Float64: float64(r.Seen.Lease.Milliseconds()), Valid: r.Seen.Lease > 0}
		c.ago[i] = pgtype.Int8{Valid: true}
		if a := r.Attempt; a != nil {
			c.ago[i].Int64 = max(0, now.Sub(a.EndedAt).Milliseconds())
			c.code[i] = pgtype.Int4{Int32: int32(a.StatusCode), Valid: a.StatusCode != 0}
			c.class[i], c.errorText[i], c.response[i] = textOrNull(string(a.Class)), textOrNull(a.Error), textOrNull(a.Response)
			c.duration[i] = pgtype.Int4{Int32: int32(min(a.Duration.Milliseconds(), math.MaxInt32)), Valid: true}
		}
	}
	return c
}

func (c *columns) args(args pgx.NamedArgs) pgx.NamedArgs {
	args["id"], args["event_id"], args["endpoint_id"] = column(c.id), column(c.event), column(c.endpoint)
	args["organization_id"], args["event_type"], args["status"] = column(c.org), column(c.typ), column(c.status)
	args["attempts"], args["series_start"], args["wait_ms"], args["ended_ago_ms"] = c.attempts, c.series, column(c.wait), column(c.ago)
	args["status_code"], args["error_class"], args["error"] = column(c.code), column(c.class), column(c.errorText)
	args["response"], args["duration_ms"] = column(c.response), column(c.duration)
	args["seen_status"], args["seen_due"], args["lease_ms"] = column(c.seenStatus), column(c.seenDue), column(c.lease)
	return args
}

// column returns an array for unnest, without the NULLs at its end: unnest fills up the shorter
// ones of its arrays, and the outcomes of most batches have no value in half of the columns. It
// has pointers because pgx would allocate for each value.
func column[T driver.Valuer](values []T) []*T {
	n := len(values)
	for ; n > 0; n-- {
		if v, err := values[n-1].Value(); v != nil || err != nil {
			break
		}
	}
	array := make([]*T, n)
	for i := range array {
		array[i] = &values[i]
	}
	return array
}

func asText(s string) pgtype.Text { return pgtype.Text{String: s, Valid: true} }

func asUUID(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

// asBytes is where a uuid of a row is scanned to: pgx reads into a uuid.UUID by way of its text.
func asBytes(id *uuid.UUID) *[16]byte { return (*[16]byte)(id) }

func asUUIDs(ids []uuid.UUID) []pgtype.UUID {
	out := make([]pgtype.UUID, len(ids))
	for i, id := range ids {
		out[i] = asUUID(id)
	}
	return out
}

// asTimestamptz returns the parameter for a time that was read by dueTime.
func asTimestamptz(t webhook.DueTime) pgtype.Timestamptz {
	out := pgtype.Timestamptz{Time: t.Time, Valid: t.Valid}
	if t.Infinite {
		out.InfinityModifier = pgtype.NegativeInfinity
	}
	return out
}

func dueTime(t pgtype.Timestamptz) webhook.DueTime {
	return webhook.DueTime{Time: t.Time, Infinite: t.InfinityModifier == pgtype.NegativeInfinity, Valid: t.Valid}
}

func textOrNull(s string) pgtype.Text { return pgtype.Text{String: s, Valid: s != ""} }
