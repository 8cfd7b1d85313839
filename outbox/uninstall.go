package outbox

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const selectSlotHolder = `SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = $1`

// DropSlot drops the replication slot, if there is one. One that is in use is
// an error that says by whom.
func (s *Store) DropSlot(ctx context.Context) (dropped bool, err error) {
	var pid int
	err = s.pool.QueryRow(ctx, selectSlotHolder, s.slot).Scan(&pid)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look for slot %s: %w", s.slot, err)
	case pid != 0:
		return false, fmt.Errorf("slot %s is in use by pid %d: stop that walhook first", s.slot, pid)
	}
	if _, err := s.pool.Exec(ctx, `SELECT pg_drop_replication_slot($1)`, s.slot); err != nil {
		return false, fmt.Errorf("drop slot %s: %w", s.slot, err)
	}
	return true, nil
}

// DropPublication drops the publication, if there is one.
func (s *Store) DropPublication(ctx context.Context) error {
	if _, err := s.pool.Exec(ctx, `DROP PUBLICATION IF EXISTS `+Publication); err != nil {
		return fmt.Errorf("drop publication %s: %w", Publication, err)
	}
	return nil
}

// What schema.sql makes, by its own words, so that nothing of the application's
// that happens to be called webhook_… is touched.
var madeBySchema = regexp.MustCompile(`(?m)^CREATE (?:OR REPLACE |)(TABLE|VIEW|FUNCTION)(?: IF NOT EXISTS|) (webhook_\w+)`)

// DropTables drops everything that the schema made, with everything in it, in
// one transaction. Where something of the application's depends on it (a view, a
// column's default), nothing is dropped and the error says what that is. It does
// not wait for an application's transaction, whose successors would wait for it.
func (s *Store) DropTables(ctx context.Context, schema string) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, prepareRead); err != nil {
			return err
		}
		for _, kind := range []string{"VIEW", "TABLE", "FUNCTION"} {
			var names []string
			for _, made := range madeBySchema.FindAllStringSubmatch(schema, -1) {
				if made[1] == kind && !slices.Contains(names, made[2]) {
					names = append(names, made[2])
				}
			}
			if len(names) == 0 {
				continue
			}
			if _, err := tx.Exec(ctx, "DROP "+kind+" IF EXISTS "+strings.Join(names, ", ")); err != nil {
				return err
			}
		}
		return nil
	})
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Detail != "" {
		return fmt.Errorf("drop walhook's tables: %w: %s", err, pg.Detail)
	}
	if err != nil {
		return fmt.Errorf("drop walhook's tables: %w", err)
	}
	return nil
}
