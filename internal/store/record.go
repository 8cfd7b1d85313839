package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// A Record is one delivery's row as it is to be written: an outcome (Attempt is
// set), or a parked or leased delivery (Pending).
type Record struct {
	ID, EventID, EndpointID uuid.UUID
	OrganizationID          string
	EventType               string
	Status                  Status
	Attempts                int           // how many have ended, with this one
	SeriesStart             int           // how many had ended when the present series began
	Wait                    time.Duration // Pending, Retrying: from the end of the attempt (or from now) until the next
	Attempt                 *Attempt      // nil: no attempt
	Exhausted               bool          // the schedule is used up: tell the organization
	Gone                    bool          // answered 410: disable the endpoint
	Seen                    Seen          // Update: what tells whether somebody else has changed the row since
}

// Seen is what a delivery's row says of its next attempt, unless somebody else has
// changed that while an attempt was under way: an operator who replays or cancels
// it. The zero Seen is not compared.
type Seen struct {
	Status Status             // as the row was fetched, where DueAt is valid
	DueAt  pgtype.Timestamptz // likewise
	Lease  time.Duration      // not fetched: if there is a row, walhook wrote it as parked, or with this lease
}

// A Mark says what a recording transaction moves besides its rows.
type Mark struct {
	Seq      uint64           // the batch's number; its echo proves it durable. 0: no echo
	Durable  pglogrepl.LSN    // with this batch, every transaction up to here is recorded; 0: not known
	CommitAt time.Time        // when the last of them was committed; zero: not known
	Health   []EndpointHealth // of the endpoints about which there is news
	Alone    bool             // the rows alone: what they mean, and Health, is for Tell
}

// EndpointHealth is how an endpoint stands, told when it changes and never per
// attempt. It is the state after all attempts that have ended, whichever batch
// their outcomes are in.
type EndpointHealth struct {
	EndpointID uuid.UUID
	Recovered  bool      // it has succeeded since it was last told of
	Failing    bool      // its last attempt failed
	Open       bool      // and its breaker is open
	Look       bool      // it was failing before: time to compare for how long
	At         time.Time // end of the last attempt
	Own        bool      // which was for one of walhook's own events
}

// Insert writes records whose deliveries have no row yet, in one transaction,
// and reports whether all of them were new. Where not, a row of the same id was
// there: outcomes among the records then go through Update, which applies each
// only if it is later than its row.
func (s *Store) Insert(ctx context.Context, fence Fence, mark Mark, records []Record) (allNew bool, err error) {
	rows := newColumns(records)
	var b pgx.Batch
	s.queueFence(&b, fence, mark)
	inserted := int64(0)
	b.Queue(insertDeliveries, rows.args(s.fenceArgs(fence))).Exec(func(tag pgconn.CommandTag) error {
		inserted = tag.RowsAffected()
		return nil
	})
	queueConsequences(&b, s, fence, mark, records)
	if err := s.send(ctx, &b); err != nil {
		return false, fmt.Errorf("record %d new deliveries: %w", len(records), err)
	}
	return inserted == int64(len(records)), nil
}

// Update writes outcomes of deliveries that have a row, in one transaction. It
// never waits for a row: what someone else has locked is left alone and
// returned as busy, to be tried again. An outcome is applied only where it is a
// later attempt than the row has; a row that is gone is passed over. Where an
// operator has said meanwhile what is to become of a delivery, the attempt is
// counted and logged and his word stands: again are those that wait by it.
func (s *Store) Update(ctx context.Context, fence Fence, mark Mark, records []Record) (busy, again []uuid.UUID, err error) {
	rows := newColumns(records)
	held := make(map[uuid.UUID]bool, len(records))
	var b pgx.Batch
	s.queueFence(&b, fence, mark)
	b.Queue(updateDeliveries, rows.args(s.fenceArgs(fence))).Query(func(r pgx.Rows) error {
		var id uuid.UUID
		var waits bool
		_, err := pgx.ForEachRow(r, []any{&id, &waits}, func() error {
			if held[id] = true; waits {
				again = append(again, id)
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
		return nil, again, nil
	}
	there := map[uuid.UUID]bool{}
	if err := s.Existing(ctx, missed, there); err != nil {
		return nil, nil, err
	}
	return slices.DeleteFunc(missed, func(id uuid.UUID) bool { return !there[id] }), again, nil
}

// Mark writes a mark without rows. Its echo says that the stream has passed
// everything that was written before it.
func (s *Store) Mark(ctx context.Context, fence Fence, mark Mark) error {
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

// Locking the state row first makes a takeover wait for us, or us see its epoch. A
// position is noted only by the server that it was learnt from: what it stands on
// may be lost where the database was set back to a snapshot of its disk. open_since
// is the newest that is known, and never the greatest: that may be of a clock that
// was ahead, and has been set back since.
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
RETURNING CASE WHEN @echo::text <> '' THEN pg_logical_emit_message(true, '` + MessagePrefix + `', @echo::text) END IS NULL`

func (s *Store) queueFence(b *pgx.Batch, fence Fence, mark Mark) {
	b.Queue(prepareWrite)
	args := s.fenceArgs(fence)
	args["durable"] = mark.Durable.String()
	args["server"] = fence.Server
	args["commit_at"] = pgtype.Timestamptz{Time: mark.CommitAt, Valid: !mark.CommitAt.IsZero()}
	args["open_since"] = s.open.upTo(fence.session, mark.Durable)
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

func (s *Store) fenceArgs(f Fence) pgx.NamedArgs {
	return pgx.NamedArgs{"slot": s.slot, "holder": f.Holder, "epoch": f.Epoch}
}

// fenced is true in a statement that follows advanceState only if that matched.
const fenced = `EXISTS (SELECT FROM webhook_state WHERE slot = @slot AND holder = @holder::uuid AND epoch = @epoch::bigint)`

// records as a table; ended is by PostgreSQL's clock, from the age that Go saw.
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
WHERE ` + fenced + `
ON CONFLICT (id) DO NOTHING`

// maxAttemptLog bounds attempt_log: ten attempts are one schedule; the newest
// hundred remain of a delivery that is replayed again and again.
const maxAttemptLog = 100

// firstEntry is the log of a row that has none, made from the row's own columns:
// a delivery that succeeds at once carries no log. It takes the place of anything
// that is not a list, too.
const firstEntry = `pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_object('attempt', d.attempts,
    'at', d.updated_at - coalesce(d.duration_ms, 0)::float8 * interval '1 ms', 'status_code', d.status_code,
    'error_class', d.error_class, 'error', d.error, 'duration_ms', d.duration_ms))`

// ParkedDue is how long ago a parked delivery became due, as its row says: so
// that first attempts come before retries, unless those have waited for so long
// themselves; and that the look at what has newly become due is not crowded with
// rows whose lane knows of them.
const ParkedDue = 10 * time.Minute

// clockTolerance is how much later than it did an attempt may seem to have begun by
// PostgreSQL's clock, which knows its age as of when the statement was sent.
const clockTolerance = 250 * time.Millisecond

// overruled is true where somebody else has said what is to become of a delivery
// (a replay, a cancel) after its attempt began, whose outcome is r. What walhook
// wrote itself is known to the microsecond: a lease or a parked row is so much after
// or before its updated_at, which nobody else is to write. A success ends what
// waits, unless it is to be sent again: a replay from before the attempt has had it.
var overruled = fmt.Sprintf(`CASE
    WHEN r.status = 'success' THEN d.status = 'pending' AND %[1]s
         AND d.next_attempt_at > r.ended - (coalesce(r.duration_ms, 0) + %[2]d)::float8 * interval '1 ms'
    ELSE d.status = 'cancelled' OR %[1]s END`,
	fmt.Sprintf(`(CASE
         WHEN r.seen_due IS NOT NULL THEN d.status <> r.seen_status OR d.next_attempt_at IS DISTINCT FROM r.seen_due
         WHEN r.lease_ms IS NOT NULL THEN d.status <> 'pending' OR (d.next_attempt_at <> d.updated_at + r.lease_ms::float8 * interval '1 ms'
              AND d.next_attempt_at <> d.updated_at - interval '%d s')
         ELSE false END)`, int(ParkedDue.Seconds())), clockTolerance.Milliseconds())

// What is locked was looked at again under the lock, and is still as it was then
// when the UPDATE, whose snapshot may be older, looks at it: its WHERE and what
// it computes are by the newest version of the row.
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
    FROM r WHERE d.id = r.id AND d.attempts < r.attempts AND d.status <> 'success'
    RETURNING d.id, r.overruled AND d.status IN ('pending', 'retrying') AS waits
)
SELECT id, false FROM r UNION ALL SELECT id, true FROM applied WHERE waits`, recordRows, fenced, maxAttemptLog, firstEntry, overruled)

// columns are records turned on their side, for unnest.
type columns struct {
	id, event, endpoint        []pgtype.UUID
	org, typ, status           []string
	attempts, series           []int32
	wait, ago                  []pgtype.Int8
	code                       []pgtype.Int4
	class, errorText, response []pgtype.Text
	duration                   []pgtype.Int4
	seenStatus                 []pgtype.Text
	seenDue                    []pgtype.Timestamptz
	lease                      []pgtype.Float8
}

func newColumns(records []Record) *columns {
	n := len(records)
	c := &columns{
		id: make([]pgtype.UUID, n), event: make([]pgtype.UUID, n), endpoint: make([]pgtype.UUID, n),
		org: make([]string, n), typ: make([]string, n), status: make([]string, n),
		attempts: make([]int32, n), series: make([]int32, n), wait: make([]pgtype.Int8, n), ago: make([]pgtype.Int8, n),
		code: make([]pgtype.Int4, n), class: make([]pgtype.Text, n), errorText: make([]pgtype.Text, n),
		response: make([]pgtype.Text, n), duration: make([]pgtype.Int4, n),
		seenStatus: make([]pgtype.Text, n), seenDue: make([]pgtype.Timestamptz, n), lease: make([]pgtype.Float8, n),
	}
	now := time.Now()
	for i := range records {
		r := &records[i]
		c.id[i], c.event[i], c.endpoint[i] = asUUID(r.ID), asUUID(r.EventID), asUUID(r.EndpointID)
		c.org[i], c.typ[i], c.status[i] = r.OrganizationID, r.EventType, string(r.Status)
		c.attempts[i], c.series[i] = int32(r.Attempts), int32(r.SeriesStart)
		if r.Status == Pending || r.Status == Retrying {
			c.wait[i] = pgtype.Int8{Int64: r.Wait.Milliseconds(), Valid: true}
		}
		c.seenStatus[i], c.seenDue[i] = textOrNull(string(r.Seen.Status)), r.Seen.DueAt
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
	args["id"], args["event_id"], args["endpoint_id"] = c.id, c.event, c.endpoint
	args["organization_id"], args["event_type"], args["status"] = c.org, c.typ, c.status
	args["attempts"], args["series_start"], args["wait_ms"], args["ended_ago_ms"] = c.attempts, c.series, c.wait, c.ago
	args["status_code"], args["error_class"], args["error"] = c.code, c.class, c.errorText
	args["response"], args["duration_ms"] = c.response, c.duration
	args["seen_status"], args["seen_due"], args["lease_ms"] = c.seenStatus, c.seenDue, c.lease
	return args
}

func asUUID(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

func asUUIDs(ids []uuid.UUID) []pgtype.UUID {
	out := make([]pgtype.UUID, len(ids))
	for i, id := range ids {
		out[i] = asUUID(id)
	}
	return out
}

func textOrNull(s string) pgtype.Text { return pgtype.Text{String: s, Valid: s != ""} }
