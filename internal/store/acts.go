package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/outbox"
)

// This file does what the buttons of the admin server's page do.

// ErrNothingThere means that an action names an endpoint or a delivery that does not exist.
var ErrNothingThere = errors.New("it does not exist, or no longer")

// The actions of the page are what operators type in SQL. The tables' triggers write into
// webhook_audit what they change.
const (
	retryNow     = `SELECT webhook_retry_now($1::uuid)`
	replay       = `SELECT webhook_replay($1::uuid)`
	replayFailed = `SELECT webhook_replay_failed($1::uuid, now() - $2::text::interval)`
	sendTest     = `SELECT webhook_send_test($1::uuid)`
	pause        = `SELECT webhook_pause($1::uuid)`
	resume       = `SELECT webhook_resume($1::uuid)`
	enable       = `UPDATE webhook_endpoints SET enabled = true WHERE id = $1::uuid RETURNING ''`
)

// RetryNow makes all that waits for an endpoint due now, and returns how much that is.
func (s *Store) RetryNow(ctx context.Context, endpoint uuid.UUID) (waiting int64, err error) {
	return waiting, s.act(ctx, retryNow, &waiting, endpoint)
}

// Replay sends a delivery again, whatever its status.
func (s *Store) Replay(ctx context.Context, delivery uuid.UUID) error {
	var there bool
	if err := s.act(ctx, replay, &there, delivery); err != nil || there {
		return err
	}
	return ErrNothingThere
}

// ReplayFailed sends again what failed or was cancelled at an endpoint, of events since an interval
// of PostgreSQL's. It returns how many deliveries that are.
func (s *Store) ReplayFailed(ctx context.Context, endpoint uuid.UUID, since string) (replayed int64, err error) {
	return replayed, s.act(ctx, replayFailed, &replayed, endpoint, since)
}

// SendTestTo sends a test event to an endpoint, and returns the delivery that it becomes.
func (s *Store) SendTestTo(ctx context.Context, endpoint uuid.UUID) (delivery uuid.UUID, err error) {
	var event uuid.UUID
	if err := s.act(ctx, sendTest, &event, endpoint); err != nil {
		return uuid.Nil, err
	}
	return outbox.DeliveryID(event, endpoint), nil
}

// Pause has what is owed to an endpoint wait until Resume.
func (s *Store) Pause(ctx context.Context, endpoint uuid.UUID) error {
	return s.act(ctx, pause, nil, endpoint)
}

// Resume ends a pause.
func (s *Store) Resume(ctx context.Context, endpoint uuid.UUID) error {
	return s.act(ctx, resume, nil, endpoint)
}

// Enable has a disabled endpoint get what is owed to it from now on.
func (s *Store) Enable(ctx context.Context, endpoint uuid.UUID) error {
	return s.act(ctx, enable, nil, endpoint)
}

// act runs a statement about an id. It gives up where that takes longer than a page may, and says
// what to type instead.
func (s *Store) act(ctx context.Context, sql string, into any, id uuid.UUID, more ...string) error {
	args, typed := []any{asUUID(id)}, strings.Replace(sql, "$1::uuid", "'"+id.String()+"'", 1)
	for i, arg := range more {
		args, typed = append(args, arg), strings.Replace(typed, fmt.Sprintf("$%d::text", i+2), "'"+arg+"'", 1)
	}
	var b pgx.Batch
	b.Queue(claimLockTimeout)
	b.Queue(prepareBrowse)
	b.Queue(sql, args...).QueryRow(func(row pgx.Row) error { return row.Scan(into) })
	err := s.send(ctx, &b)
	pg, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case err == nil:
		return nil
	case ok && pg.Code == "P0002", errors.Is(err, pgx.ErrNoRows): // no_data_found
		return ErrNothingThere
	case ok && pg.Code == "57014": // query_canceled
		return fmt.Errorf("it takes longer than %s, so nothing was changed; in psql it has the time it needs: %s", browseTimeout, typed)
	case ok && pg.Code == "42501": // insufficient_privilege
		return fmt.Errorf("walhook's role may not do this: apply roles.sql (walhook init --roles) again, or do it as another role: %s: %w", typed, err)
	}
	return fmt.Errorf("%s: %w", typed, err)
}
