package deliver

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

// A simulatedStore is a process's sessions with the database. They are slow, and fail.
// storetest has the effects of each statement.
type simulatedStore struct{ p *process }

var errSimulated = errors.New("the database does not answer")

// do runs a statement. It may be refused or slow, and its answer may be lost after its
// commit. It is planned when it begins: it does not see rows that are moved into another
// partition meanwhile.
func (st *simulatedStore) do(what string, effect func(*database) error) error {
	return st.run(what, false, effect)
}

// whole runs a statement that has excluded moves of rows meanwhile.
func (st *simulatedStore) whole(what string, effect func(*database) error) error {
	return st.run(what, true, effect)
}

// record runs a statement that records outcomes or parks deliveries.
func (st *simulatedStore) record(what string, effect func(*database) error) error {
	return st.do(what, func(db *database) error {
		written := len(db.WAL)
		err := effect(db)
		for _, c := range db.WAL[written:] {
			db.s.journal.wrote(st.p, c)
		}
		return err
	})
}

func (st *simulatedStore) run(what string, whole bool, effect func(*database) error) error {
	s := st.p.s
	s.delay()
	incarnation, planned := s.db.incarnation, s.db.Moves
	s.delay()
	if whole {
		planned = s.db.Moves
	}
	s.db.Planned = planned
	if s.chance(s.faultRates.refused) || s.db.hasFallenSince(incarnation) {
		s.note("%s: refused", what)
		return errSimulated
	}
	err := effect(s.db)
	s.note("%s: %v", what, err)
	s.delay()
	if err == nil && (s.chance(s.faultRates.lost) || s.db.hasFallenSince(incarnation)) {
		s.note("%s: the answer is lost", what)
		return errSimulated
	}
	return err
}

// delay returns a random latency.
func (s *simulation) delay() {
	if s.chance(s.faultRates.slow) {
		s.pass(s.within(200 * time.Millisecond))
		return
	}
	s.step()
}

// Acquire is Store's.
func (st *simulatedStore) Acquire(ctx context.Context, holder uuid.UUID, session *webhook.Session, seq uint64) (fence webhook.Fence, err error) {
	err = st.do("acquire", func(db *database) error {
		fence, err = db.Acquire(ctx, holder, session, seq)
		return err
	})
	return fence, err
}

// Existing is Store's.
func (st *simulatedStore) Existing(ctx context.Context, ids []uuid.UUID, known map[uuid.UUID]bool) error {
	return st.whole("look up", func(db *database) error { return db.Existing(ctx, ids, known) })
}

// Insert is Store's.
func (st *simulatedStore) Insert(ctx context.Context, fence webhook.Fence, mark webhook.Mark, records []webhook.Record) (allNew bool, err error) {
	err = st.record("insert", func(db *database) error {
		allNew, err = db.Insert(ctx, fence, mark, records)
		return err
	})
	return allNew, err
}

// Update is Store's.
func (st *simulatedStore) Update(ctx context.Context, fence webhook.Fence, mark webhook.Mark, records []webhook.Record) (locked, replayed []uuid.UUID, err error) {
	err = st.record("update", func(db *database) error {
		locked, replayed, err = db.Update(ctx, fence, mark, records)
		return err
	})
	return locked, replayed, err
}

// WriteConsequence is Store's.
func (st *simulatedStore) WriteConsequence(ctx context.Context, fence webhook.Fence, c store.Consequence) (rest []store.Consequence, err error) {
	err = st.record("write consequence", func(db *database) error {
		rest, err = db.WriteConsequence(ctx, fence, c)
		return err
	})
	return rest, err
}

// NoteMissing is Store's.
func (st *simulatedStore) NoteMissing(ctx context.Context, fence webhook.Fence, from time.Time) (noted time.Time, err error) {
	err = st.do("owe", func(db *database) error {
		noted, err = db.NoteMissing(ctx, fence, from)
		return err
	})
	return noted, err
}

// Now is Store's.
func (st *simulatedStore) Now(ctx context.Context) (now time.Time, err error) {
	err = st.do("now", func(db *database) error {
		now, err = db.Now(ctx)
		return err
	})
	return now, err
}

// NewlyDue is Store's.
func (st *simulatedStore) NewlyDue(ctx context.Context, since time.Time) (endpoints []uuid.UUID, now time.Time, all bool, err error) {
	err = st.do("newly due", func(db *database) error {
		endpoints, now, all, err = db.NewlyDue(ctx, since)
		return err
	})
	return endpoints, now, true, err
}

// Waiting is Store's.
func (st *simulatedStore) Waiting(ctx context.Context, after uuid.UUID, limit int) (found []webhook.Waiting, err error) {
	err = st.do("scan", func(db *database) error {
		found, err = db.Waiting(ctx, after, limit)
		return err
	})
	return found, err
}

// Due is Store's.
func (st *simulatedStore) Due(ctx context.Context, pages []webhook.Page, take func(*webhook.Due)) error {
	var found []*webhook.Due
	err := st.do("pages", func(db *database) error {
		return db.Due(ctx, pages, func(d *webhook.Due) { found = append(found, d) })
	})
	for _, d := range found { // they come one by one
		st.p.s.step()
		take(d)
	}
	return err
}

// CancelRows is Store's.
func (st *simulatedStore) CancelRows(ctx context.Context, fence webhook.Fence, endpoint uuid.UUID, reason string) (cancelled int, more bool, err error) {
	err = st.do("cancel", func(db *database) error {
		written := len(db.WAL)
		cancelled, more, err = db.CancelRows(ctx, fence, endpoint, reason)
		for _, c := range db.WAL[written:] {
			for _, r := range c.Rows {
				db.s.journal.ended(r.ID)
			}
		}
		return err
	})
	return cancelled, more, err
}

// CancelReassigned is Store's.
func (st *simulatedStore) CancelReassigned(ctx context.Context, fence webhook.Fence, ids []uuid.UUID) error {
	return st.do("cancel reassigned", func(db *database) error { return db.CancelReassigned(ctx, fence, ids) })
}

// CancelOrphans is Store's.
func (st *simulatedStore) CancelOrphans(ctx context.Context, fence webhook.Fence, ids []uuid.UUID) error {
	return st.whole("cancel orphans", func(db *database) error { return db.CancelOrphans(ctx, fence, ids) })
}

// Endpoints is Store's.
func (st *simulatedStore) Endpoints(ctx context.Context, ids []uuid.UUID) (found []webhook.Endpoint, err error) {
	err = st.do("endpoints", func(db *database) error {
		found, err = db.Endpoints(ctx, ids)
		return err
	})
	return found, err
}

// Missing is Store's, with small pages.
func (st *simulatedStore) Missing(ctx context.Context, from store.Position, until uuid.UUID, limit int) (c store.Compared, err error) {
	err = st.whole("missing", func(db *database) error {
		c, err = db.Missing(ctx, from, until, min(limit, 5))
		return err
	})
	return c, err
}

// InsertMissing is Store's.
func (st *simulatedStore) InsertMissing(ctx context.Context, fence webhook.Fence, records []webhook.Record) (inserted int, err error) {
	err = st.record("insert missing", func(db *database) error {
		inserted, err = db.InsertMissing(ctx, fence, records)
		return err
	})
	return inserted, err
}

// AnyMissing is Store's: the recovery window reaches back to before the beginning.
func (st *simulatedStore) AnyMissing(context.Context, time.Time, time.Time) (bool, error) {
	return false, st.do("any missing", func(*database) error { return nil })
}

// InsertLSN is Store's.
func (st *simulatedStore) InsertLSN(ctx context.Context) (lsn pglogrepl.LSN, err error) {
	err = st.do("insert LSN", func(db *database) error {
		lsn, err = db.InsertLSN(ctx)
		return err
	})
	return lsn, err
}

// Mark is Store's.
func (st *simulatedStore) Mark(ctx context.Context, fence webhook.Fence, mark webhook.Mark) error {
	return st.do("mark", func(db *database) error { return db.Mark(ctx, fence, mark) })
}

// ClaimVisible is Store's.
func (st *simulatedStore) ClaimVisible(ctx context.Context, fence webhook.Fence) (settled bool, err error) {
	err = st.do("claim visible", func(db *database) error {
		settled, err = db.ClaimVisible(ctx, fence)
		return err
	})
	return settled, err
}

// Reconciled is Store's.
func (st *simulatedStore) Reconciled(ctx context.Context, fence webhook.Fence) (since time.Time, err error) {
	err = st.do("reconciled", func(db *database) error {
		since, err = db.Reconciled(ctx, fence)
		return err
	})
	return since, err
}
