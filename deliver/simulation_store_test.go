package deliver

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

// A simulatedStore is a process's sessions with the database. It does what
// store.Store's SQL does; the store's tests hold that against PostgreSQL.
type simulatedStore struct{ p *process }

var errSimulated = errors.New("the database does not answer")

// do runs a statement: it may be refused, take its time, and its answer may be lost
// when it has long been committed. It is planned when it begins: rows that are moved
// into another partition meanwhile it sees in neither.
func (st *simulatedStore) do(what string, effect func(*database) error) error {
	return st.run(what, false, effect)
}

// whole runs a statement that has seen to it that no row is moved meanwhile.
func (st *simulatedStore) whole(what string, effect func(*database) error) error {
	return st.run(what, true, effect)
}

func (st *simulatedStore) run(what string, whole bool, effect func(*database) error) error {
	s := st.p.s
	s.delay()
	incarnation, planned := s.db.incarnation, s.db.moves
	s.delay()
	if whole {
		planned = s.db.moves
	}
	s.db.planned = planned
	if s.chance(s.weather.refused) || s.db.hasFallenSince(incarnation) {
		s.note("%s: refused", what)
		return errSimulated
	}
	err := effect(s.db)
	s.note("%s: %v", what, err)
	s.delay()
	if err == nil && (s.chance(s.weather.lost) || s.db.hasFallenSince(incarnation)) {
		s.note("%s: the answer is lost", what)
		return errSimulated
	}
	return err
}

// delay is the time that something takes on its way.
func (s *simulation) delay() {
	if s.chance(s.weather.slow) {
		s.pass(s.within(200 * time.Millisecond))
		return
	}
	s.step()
}

// Acquire is Store's.
func (st *simulatedStore) Acquire(_ context.Context, holder uuid.UUID, session *store.Session, seq uint64) (fence store.Fence, err error) {
	err = st.do("acquire", func(db *database) error {
		if db.slot == nil || db.slot.connection == nil || db.slot.connection.session.PID != session.PID {
			return store.ErrSessionOver
		}
		next := db.nextState()
		fence = store.Fence{Holder: holder, LastWrite: next.updatedAt, Server: db.server}
		if next.epoch == 0 || next.holder != holder {
			next.epoch++
		}
		next.holder = holder
		fence.Moved = session.Moved(db.slot.confirmed)
		if !session.SlotCreated {
			fence.Settles = db.end().String()
		}
		if session.Start != 0 && !session.SlotCreated && !fence.Moved {
			if next.durable != 0 {
				next.durable = min(next.durable, session.Start)
			}
		} else {
			next.durable = 0
			next.reconcileSince(next.durableAt)
		}
		next.timeline, next.updatedAt = session.Timeline, time.Now()
		fence.Epoch, fence.Reconcile, fence.ReconcileFrom = next.epoch, !next.reconcileFrom.IsZero(), next.reconcileFrom
		db.write(&commit{visible: true, state: next, echo: fence.Echo(seq)})
		return nil
	})
	return fence, err
}

// epochStart is what the state row has where nothing was ever recorded.
var epochStart = time.Unix(0, 0)

func (db *database) nextState() *stateRow {
	if db.state == nil {
		return &stateRow{durableAt: epochStart}
	}
	next := *db.state
	return &next
}

// reconcileSince notes another value each time: another cause.
func (st *stateRow) reconcileSince(t time.Time) {
	if st.reconcileFrom.IsZero() || t.Before(st.reconcileFrom) {
		st.reconcileFrom = t
	}
	st.reconcileFrom = st.reconcileFrom.Add(-time.Microsecond)
}

// begin opens a transaction that writes deliveries.
func (db *database) begin(fence store.Fence, mark store.Mark) (*commit, error) {
	if db.fenced(fence) {
		return nil, store.ErrFenced
	}
	c := &commit{visible: true, state: db.nextState()}
	if mark.Durable > c.state.durable && fence.Server.Equal(db.server) {
		c.state.durable = mark.Durable
		if !mark.CommitAt.IsZero() {
			c.state.durableAt = mark.CommitAt
		}
	}
	c.state.updatedAt = time.Now()
	if mark.Seq != 0 {
		c.echo = fence.Echo(mark.Seq)
	}
	return c, nil
}

// Existing is Store's.
func (st *simulatedStore) Existing(_ context.Context, ids []uuid.UUID, known map[uuid.UUID]bool) error {
	return st.whole("look up", func(db *database) error {
		for _, id := range ids {
			if db.rows[id] != nil && !db.missed(id) {
				known[id] = true
			}
		}
		return nil
	})
}

// Insert is Store's.
func (st *simulatedStore) Insert(_ context.Context, fence store.Fence, mark store.Mark, records []store.Record) (allNew bool, err error) {
	return st.insert("insert", fence, mark, records)
}

func (st *simulatedStore) insert(what string, fence store.Fence, mark store.Mark, records []store.Record) (allNew bool, err error) {
	err = st.do(what, func(db *database) error {
		c, err := db.begin(fence, mark)
		if err != nil {
			return err
		}
		if err := db.refuse(mark, records); err != nil {
			return err
		}
		allNew = true
		for _, r := range records {
			if db.rows[r.ID] != nil {
				allNew = false
				continue
			}
			db.s.note("row %s %s %d", r.ID, r.Status, r.Attempts)
			db.s.journal.inserted(st.p, r)
			c.rows = append(c.rows, newRow(r))
		}
		if !mark.Alone {
			db.consequences(c, mark.Health, records)
		}
		db.write(c)
		return nil
	})
	return allNew, err
}

func newRow(r store.Record) *deliveryRow {
	from := time.Now()
	if r.Attempt != nil {
		from = r.Attempt.EndedAt
	}
	return &deliveryRow{Record: r, due: from.Add(r.Wait.Truncate(time.Millisecond))}
}

// Update is Store's.
func (st *simulatedStore) Update(_ context.Context, fence store.Fence, mark store.Mark, records []store.Record) (busy, again []uuid.UUID, err error) {
	err = st.do("update", func(db *database) error {
		c, err := db.begin(fence, mark)
		if err != nil {
			return err
		}
		if err := db.refuse(mark, records); err != nil {
			return err
		}
		for _, r := range records {
			old := db.rows[r.ID]
			switch {
			case old == nil:
			case db.isLocked(r.ID), db.missed(r.ID):
				busy = append(busy, r.ID)
			case old.Attempts < r.Attempts && old.Status != store.Success:
				row := newRow(r)
				row.first = old.first
				if old.overrules(r) {
					row.Status, row.due, row.said = old.Status, old.due, old.said
					if old.Status == store.Pending {
						row.SeriesStart = r.Attempts
					}
					if old.waits() {
						again = append(again, r.ID)
					}
				}
				db.s.note("row %s %s %d", r.ID, row.Status, r.Attempts)
				c.rows = append(c.rows, row)
			}
		}
		if !mark.Alone {
			db.consequences(c, mark.Health, records)
		}
		db.write(c)
		return nil
	})
	return busy, again, err
}

// refuse is what somebody's constraints and triggers do: they take a row in no
// form, or with nothing that the receiver said, or none of walhook's own events.
func (db *database) refuse(mark store.Mark, records []store.Record) error {
	now := time.Now()
	for _, r := range records {
		if now.Before(db.refused[r.ID]) || now.Before(db.picky[r.ID]) && r.Attempt != nil && r.Attempt.StatusCode != 0 {
			return &pgconn.PgError{Code: "23514"}
		}
	}
	if !mark.Alone && now.Before(db.mute) && len(store.Consequences(mark.Health, records)) > 0 {
		return &pgconn.PgError{Code: "P0001"}
	}
	return nil
}

// Tell is Store's. What it is about is for the packages of its own to know: what was
// owed is told when the rows are looked at.
func (st *simulatedStore) Tell(_ context.Context, fence store.Fence, c store.Consequence) (rest []store.Consequence, err error) {
	err = st.do("tell", func(db *database) error {
		w, err := db.begin(fence, store.Mark{})
		if err != nil {
			return err
		}
		if time.Now().Before(db.mute) && len(c.Endpoints()) == 0 {
			return &pgconn.PgError{Code: "P0001"}
		}
		for _, id := range c.Endpoints() {
			db.disable(w, id)
		}
		for _, h := range c.Health {
			db.stands(w, h)
		}
		db.s.journal.told += c.Len()
		db.write(w)
		return nil
	})
	return rest, err
}

// Owe is Store's.
func (st *simulatedStore) Owe(_ context.Context, fence store.Fence, from time.Time) (noted time.Time, err error) {
	err = st.do("owe", func(db *database) error {
		if db.fenced(fence) {
			return store.ErrFenced
		}
		next := db.nextState()
		next.reconcileSince(from)
		next.reconcileFrom = next.reconcileFrom.Add(-time.Microsecond)
		noted = next.reconcileFrom
		db.write(&commit{visible: true, state: next})
		return nil
	})
	return noted, err
}

// overrules says that an operator has said what is to become of a delivery since
// the attempt began that an outcome is of.
func (r *deliveryRow) overrules(outcome store.Record) bool {
	changed := r.said
	if seen := outcome.Seen; seen.DueAt.Valid {
		changed = r.Status != seen.Status || !r.due.Equal(seen.DueAt.Time)
	}
	if outcome.Status != store.Success {
		return changed || r.Status == store.Cancelled
	}
	begun := outcome.Attempt.EndedAt.Add(-outcome.Attempt.Duration)
	return changed && r.Status == store.Pending && r.due.After(begun)
}

// consequences are what outcomes mean beyond their rows.
func (db *database) consequences(c *commit, health []store.EndpointHealth, records []store.Record) {
	for _, r := range records {
		failed := func(o *deliveryRow) bool { return o.ID == r.ID && o.Status == store.Failed }
		if r.Exhausted && !outbox.IsOwnType(r.EventType) && slices.ContainsFunc(c.rows, failed) {
			db.tell(c, outbox.TypeDeliveryExhausted, r.OrganizationID, r.ID)
		}
		if r.Gone && db.disable(c, r.EndpointID) && !outbox.IsOwnType(r.EventType) {
			db.tell(c, outbox.TypeEndpointDisabled, db.endpoint(r.EndpointID).OrganizationID, r.EndpointID)
		}
	}
	for _, h := range health {
		db.stands(c, h)
	}
}

// disable disables an endpoint that has answered 410.
func (db *database) disable(c *commit, id uuid.UUID) bool {
	e := db.endpoint(id)
	if e == nil || !e.Enabled {
		return false
	}
	off := *e
	off.Enabled = false
	c.endpoints = append(c.endpoints, &off)
	c.failures = append(c.failures, endpointFailure{endpoint: e.ID})
	db.s.journal.refused[e.ID] = true
	return true
}

// stands notes how an endpoint stands.
func (db *database) stands(c *commit, h store.EndpointHealth) {
	if h.Recovered || db.enabled(h.EndpointID) {
		c.failures = append(c.failures, endpointFailure{endpoint: h.EndpointID, failing: h.Failing, open: h.Open})
	}
}

// tell inserts one of walhook's own events.
func (db *database) tell(c *commit, typ, organization string, about uuid.UUID) {
	e := &outbox.Event{ID: outbox.DeliveryID(db.s.id(time.Now()), about), OrganizationID: organization, Type: typ, Payload: []byte(`{}`),
		CreatedAt: time.Now(), EndpointIDs: db.owed(organization, typ)}
	c.events = append(c.events, e)
	db.s.journal.committed(e)
}

// Now is Store's.
func (st *simulatedStore) Now(context.Context) (now time.Time, err error) {
	err = st.do("now", func(*database) error {
		now = time.Now()
		return nil
	})
	return now, err
}

// NewlyDue is Store's.
func (st *simulatedStore) NewlyDue(_ context.Context, since time.Time) (endpoints []uuid.UUID, now time.Time, all bool, err error) {
	err = st.do("newly due", func(db *database) error {
		now = time.Now()
		for _, r := range db.order {
			if r.waits() && !r.due.After(now) && r.due.After(since) && !slices.Contains(endpoints, r.EndpointID) {
				endpoints = append(endpoints, r.EndpointID)
			}
		}
		return nil
	})
	return endpoints, now, true, err
}

// Waiting is Store's.
func (st *simulatedStore) Waiting(_ context.Context, after uuid.UUID, limit int) (found []store.Waiting, err error) {
	err = st.do("walk", func(db *database) error {
		for _, r := range db.order {
			id := r.EndpointID
			if r.waits() && afterID(id, after) && !slices.ContainsFunc(found, func(w store.Waiting) bool { return w.EndpointID == id }) {
				found = append(found, store.Waiting{EndpointID: id, Enabled: db.enabled(id)})
			}
		}
		slices.SortFunc(found, func(a, b store.Waiting) int { return compareIDs(a.EndpointID, b.EndpointID) })
		found = found[:min(limit, len(found))]
		return nil
	})
	return found, err
}

// Due is Store's.
func (st *simulatedStore) Due(_ context.Context, pages []store.Page, take func(*store.Due)) error {
	var found []*store.Due
	err := st.do("pages", func(db *database) error {
		for _, p := range pages {
			found = append(found, db.page(p)...)
		}
		return nil
	})
	for _, d := range found { // they come one by one
		st.p.s.step()
		take(d)
	}
	return err
}

func (db *database) page(p store.Page) (due []*store.Due) {
	later := func(a, b *deliveryRow) int { return cmp.Or(a.due.Compare(b.due), compareIDs(a.ID, b.ID)) }
	after := &deliveryRow{Record: store.Record{ID: p.After.ID}, due: p.After.DueAt.Time}
	var rows []*deliveryRow
	for _, r := range db.order {
		if r.EndpointID == p.EndpointID && !db.missed(r.ID) && r.waits() && !r.due.After(time.Now()) && (!p.After.DueAt.Valid || later(r, after) > 0) {
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, later)
	for _, r := range rows[:min(p.Limit, len(rows))] {
		d := &store.Due{ID: r.ID, EndpointID: r.EndpointID, Status: r.Status, Attempts: r.Attempts, SeriesStart: r.SeriesStart,
			DueAt: pgtype.Timestamptz{Time: r.due, Valid: true}}
		d.Event = outbox.Event{ID: r.EventID, OrganizationID: r.OrganizationID, Type: r.EventType}
		switch e := db.event(r.EventID); {
		case e != nil:
			d.Event.Payload, d.Event.CreatedAt = e.Payload, e.CreatedAt
		case db.settled(r):
			d.Orphaned = true
		default:
			d.Unseen = true
		}
		due = append(due, d)
	}
	return due
}

// event is one that other sessions see.
func (db *database) event(id uuid.UUID) *outbox.Event {
	c := db.inserted[id]
	if c == nil || !c.visible || db.missed(id) {
		return nil
	}
	return c.events[slices.IndexFunc(c.events, func(e *outbox.Event) bool { return e.ID == id })]
}

// CancelRows is Store's.
func (st *simulatedStore) CancelRows(_ context.Context, fence store.Fence, endpoint uuid.UUID, _ string) (cancelled int, more bool, err error) {
	err = st.do("cancel", func(db *database) error {
		c, err := db.begin(fence, store.Mark{})
		if err != nil {
			return err
		}
		if !db.enabled(endpoint) {
			c.failures = append(c.failures, endpointFailure{endpoint: endpoint})
			for _, r := range db.order {
				switch {
				case r.EndpointID != endpoint || !r.waits() || db.isLocked(r.ID) || db.missed(r.ID):
				case !db.settled(r):
					more = true
				default:
					db.s.journal.ended(r.ID)
					c.cancel(r)
				}
			}
		}
		cancelled = len(c.rows)
		db.write(c)
		return nil
	})
	return cancelled, more, err
}

func (c *commit) cancel(r *deliveryRow) {
	row := *r
	row.Status = store.Cancelled
	c.rows = append(c.rows, &row)
}

// CancelStrangers is Store's: no id is given twice here.
func (st *simulatedStore) CancelStrangers(context.Context, store.Fence, []uuid.UUID) error {
	return st.do("cancel strangers", func(*database) error { return nil })
}

// CancelOrphans is Store's.
func (st *simulatedStore) CancelOrphans(_ context.Context, fence store.Fence, ids []uuid.UUID) error {
	return st.whole("cancel orphans", func(db *database) error {
		c, err := db.begin(fence, store.Mark{})
		if err != nil {
			return err
		}
		for _, id := range ids {
			if r := db.rows[id]; r != nil && r.waits() && !db.isLocked(id) && db.settled(r) && db.event(r.EventID) == nil {
				c.cancel(r)
			}
		}
		db.write(c)
		return nil
	})
}

// Endpoints is Store's.
func (st *simulatedStore) Endpoints(_ context.Context, ids []uuid.UUID) (found []store.Endpoint, err error) {
	err = st.do("endpoints", func(db *database) error {
		for _, id := range ids {
			if e := db.endpoint(id); e != nil {
				copied := e.Endpoint
				copied.BreakerOpen = db.failing[id].open
				found = append(found, copied)
			}
		}
		return nil
	})
	return found, err
}

// Missing is Store's, with small pages.
func (st *simulatedStore) Missing(_ context.Context, from store.Position, until uuid.UUID, limit int) (c store.Compared, err error) {
	limit = min(limit, 5)
	c.Upto = from
	err = st.whole("missing", func(db *database) error {
		n := 0
		for _, e := range db.events {
			if db.event(e.ID) == nil || afterID(from.Event, e.ID) || !afterID(until, e.ID) {
				continue
			}
			if len(e.EndpointIDs) == 0 && e.ID != from.Event && n < limit {
				n, c.Upto = n+1, store.Position{Event: e.ID}
			}
			for i, endpoint := range e.EndpointIDs {
				if n == limit || e.ID == from.Event && i < from.Owed {
					continue
				}
				n, c.Upto = n+1, store.Position{Event: e.ID, Owed: i + 1}
				id := outbox.DeliveryID(e.ID, endpoint)
				if db.rows[id] == nil || db.missed(id) {
					c.Missing = append(c.Missing, store.Candidate{ID: id, EventID: e.ID, EndpointID: endpoint, OrganizationID: e.OrganizationID, EventType: e.Type})
				}
			}
		}
		c.End = n < limit
		return nil
	})
	return c, err
}

// InsertMissing is Store's.
func (st *simulatedStore) InsertMissing(ctx context.Context, fence store.Fence, records []store.Record) (inserted int, err error) {
	before := len(st.p.s.db.rows)
	_, err = st.insert("insert missing", fence, store.Mark{}, records)
	return max(len(st.p.s.db.rows)-before, 0), err
}

// AnyMissing is Store's: the recovery window reaches back to before the beginning.
func (st *simulatedStore) AnyMissing(context.Context, time.Time, time.Time) (bool, error) {
	return false, st.do("any missing", func(*database) error { return nil })
}

// InsertLSN is Store's.
func (st *simulatedStore) InsertLSN(context.Context) (lsn pglogrepl.LSN, err error) {
	err = st.do("insert LSN", func(db *database) error {
		lsn = db.end()
		return nil
	})
	return lsn, err
}

// Mark is Store's.
func (st *simulatedStore) Mark(_ context.Context, fence store.Fence, mark store.Mark) error {
	return st.do("mark", func(db *database) error {
		c, err := db.begin(fence, mark)
		if err == nil {
			db.write(c)
		}
		return err
	})
}

// Settled is Store's.
func (st *simulatedStore) Settled(_ context.Context, fence store.Fence) (settled bool, err error) {
	err = st.do("settled", func(db *database) error {
		settled = db.settles(fence)
		return nil
	})
	return settled, err
}

func (db *database) settles(fence store.Fence) bool {
	if fence.Settles == "" {
		return true
	}
	upTo, err := pglogrepl.ParseLSN(fence.Settles)
	return err == nil && !slices.ContainsFunc(db.wal, func(c *commit) bool { return c.end <= upTo && !c.visible })
}

// Reconciled is Store's.
func (st *simulatedStore) Reconciled(_ context.Context, fence store.Fence) (since time.Time, err error) {
	err = st.do("reconciled", func(db *database) error {
		switch {
		case db.fenced(fence):
		case db.state.reconcileFrom.Equal(fence.ReconcileFrom):
			next := db.nextState()
			next.reconcileFrom = time.Time{}
			db.write(&commit{visible: true, state: next})
		default:
			since = db.state.reconcileFrom
		}
		return nil
	})
	return since, err
}
