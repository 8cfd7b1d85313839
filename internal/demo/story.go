package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	// tellWithin bounds the story from the moment that the database is up. It takes
	// about 20 seconds.
	tellWithin = 90 * time.Second

	// lookEvery is how often the rows are looked at.
	lookEvery = 100 * time.Millisecond

	// quiet is how long everything has to be at rest before it is believed: what
	// comes twice has the time to come.
	quiet = time.Second

	// goodbyeWithin bounds what is asked after the context has ended.
	goodbyeWithin = 5 * time.Second
)

var errTooLong = errors.New("the story did not come to its end in time")

// A story is one telling: everyone in it, and what they know.
type story struct {
	cfg   Config
	page  *page
	url   string // of the database
	slot  string
	roles []role

	within time.Duration

	// rollBack ends the transaction that is rolled back.
	rollBack func(context.Context, pgx.Tx) error

	admin     string
	db        *pgx.Conn
	receivers map[string]*receiver
	evidence  *evidence
	narrator  *narrator
	follow    uuid.UUID // the event that is followed to its end
}

func newStory(cfg Config, page *page, url string) *story {
	evidence := &evidence{
		committed: map[uuid.UUID]enqueued{}, rolledBack: map[uuid.UUID]enqueued{}, endpoints: map[uuid.UUID]*endpoint{},
	}
	return &story{
		cfg: cfg, page: page, url: url, slot: "walhook", roles: roles, within: tellWithin, evidence: evidence,
		rollBack:  func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) },
		receivers: map[string]*receiver{},
		narrator:  newNarrator(page, evidence),
	}
}

// tell runs everyone, from the receivers to walhook, and ends them in reverse.
func (s *story) tell(parent context.Context) (err error) {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	defer func() {
		for _, r := range s.receivers {
			addProblem(&err, "close the "+r.name+" receiver", r.close())
		}
	}()
	if err := s.prepare(ctx); err != nil {
		return s.reason(parent, ctx, err)
	}
	defer s.disconnect(ctx)

	w := startWalhook(ctx, s.cfg.Start, environ(s.url, s.slot, s.admin), s.cfg.Log, cancel)
	defer func() {
		addProblem(&err, "stop walhook", w.end())
		if err != nil && !errors.Is(err, ErrInterrupted) {
			s.page.log(w.log.lines())
		}
	}()
	if err := s.perform(ctx); err != nil {
		return s.reason(parent, ctx, err)
	}
	if !s.cfg.Stay {
		return nil
	}
	s.page.stays()
	if err := s.watch(ctx, nil); parent.Err() == nil {
		return s.reason(parent, ctx, err)
	}
	s.page.goodbye()
	return nil
}

// disconnect has nobody to tell when it fails: the server goes away next.
func (s *story) disconnect(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyeWithin)
	defer cancel()
	_ = s.db.Close(ctx)
}

// reason says why it ended: what failed because the context had ended failed
// because of what ended it.
func (s *story) reason(parent, ctx context.Context, err error) error {
	switch {
	case parent.Err() != nil:
		return ErrInterrupted
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		return err
	}
}

// prepare opens what has to be there before walhook.
func (s *story) prepare(ctx context.Context) (err error) {
	for _, role := range s.roles {
		if s.receivers[role.name], err = openReceiver(ctx, role); err != nil {
			delete(s.receivers, role.name)
			return err
		}
	}
	if s.admin, err = freeAddress(ctx); err != nil {
		return err
	}
	return s.connect(ctx)
}

func (s *story) connect(ctx context.Context) error {
	db, err := pgx.Connect(ctx, s.url)
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	s.db = db
	return nil
}

// perform is the story itself.
func (s *story) perform(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.within, errTooLong)
	defer cancel()
	if err := s.awaitWalhook(ctx); err != nil {
		return s.late(ctx, err)
	}
	if err := s.subscribe(ctx); err != nil {
		return s.late(ctx, err)
	}
	s.page.receivers(s.roles, s.receivers)
	if err := s.transact(ctx); err != nil {
		return s.late(ctx, err)
	}
	s.page.begin()
	err := s.watch(ctx, s.evidence.atRest)
	s.narrator.flush()
	if err = s.late(ctx, err); err != nil && !errors.Is(err, errTooLong) {
		return err
	}
	return s.conclude(ctx, err)
}

// late prefers to say that the time was up.
func (*story) late(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// awaitWalhook asks as an orchestrator would.
func (s *story) awaitWalhook(ctx context.Context) error {
	var version string
	if err := s.db.QueryRow(ctx, `SELECT split_part(current_setting('server_version'), ' ', 1)`).Scan(&version); err != nil {
		return fmt.Errorf("ask PostgreSQL for its version: %w", err)
	}
	s.page.said("PostgreSQL %s runs at %s", version, s.url)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if err := s.ask(ctx, "/readyz"); err == nil {
			s.page.said("walhook runs beside it, with WALHOOK_RETRY_SCHEDULE=%s WALHOOK_TIMEOUT=%s", schedule, timeout)
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// ask wants 200 from walhook's admin server.
func (s *story) ask(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.admin+path, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // no proxy: it is this machine
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return nil
}

const createEndpoint = `SELECT endpoint_id, secret FROM webhook_create_endpoint($1, $2, $3)`

func (s *story) subscribe(ctx context.Context) error {
	for _, sub := range subscriptions {
		r := s.receivers[sub.receiver]
		e := &endpoint{subscription: sub}
		if err := s.db.QueryRow(ctx, createEndpoint, sub.organization, r.url+"/"+sub.organization, sub.types).Scan(&e.id, &e.secret); err != nil {
			return fmt.Errorf("create an endpoint of %s: %w", sub.organization, err)
		}
		r.register(e)
		s.evidence.endpoints[e.id] = e
	}
	return nil
}

const countOwed = `
SELECT count(*), coalesce(sum(cardinality(endpoint_ids)), 0) FROM webhook_outbox WHERE id = ANY($1)`

// transact plays the application.
func (s *story) transact(ctx context.Context) error {
	s.page.application()
	for i, t := range transactions {
		events, err := t.perform(ctx, s.db, s.rollBack)
		if err != nil {
			return err
		}
		if i == 0 {
			s.follow = events[0].id
			s.narrator.follow = s.follow
		}
		ids := make([]uuid.UUID, len(events))
		for i, e := range events {
			ids[i] = e.id
			if t.rollBack {
				s.evidence.rolledBack[e.id] = e
			} else {
				s.evidence.committed[e.id] = e
			}
		}
		var stored, owed int
		if err := s.db.QueryRow(ctx, countOwed, ids).Scan(&stored, &owed); err != nil {
			return fmt.Errorf("count what is owed: %w", err)
		}
		s.page.transaction(t, stored, owed, i == 0)
	}
	return nil
}

// watch tells what changes, until it is done: has been for a while. Without an
// end it goes on.
func (s *story) watch(ctx context.Context, done func() bool) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var since time.Time // when it became done
	for {
		if err := s.evidence.look(ctx, s.db); err != nil {
			return err
		}
		s.narrator.tell(time.Now())
		switch {
		case done == nil || !done():
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) >= quiet:
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// conclude judges. When the time was up, what has not come true by then says why.
func (s *story) conclude(parent context.Context, late error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(parent), goodbyeWithin)
	defer cancel()
	if err := s.lookOnce(ctx, late != nil); err != nil {
		return errors.Join(late, err)
	}
	s.page.promises()
	problems := []error{late}
	for _, p := range promises {
		v := p.judge(s.evidence)
		s.page.verdict(v)
		if v.broken != nil {
			problems = append(problems, v.broken)
		}
	}
	if err := s.ask(ctx, "/metrics"); err != nil {
		problems = append(problems, fmt.Errorf("ask walhook for its metrics: %w", err))
	}
	s.page.lookAround(s.url, s.admin, s.follow)
	return errors.Join(problems...)
}

// lookOnce completes the evidence, and shows the final rows. Where a look was
// cut off in the middle, the connection went with it.
func (s *story) lookOnce(ctx context.Context, again bool) error {
	if again {
		s.disconnect(ctx)
		if err := s.connect(ctx); err != nil {
			return err
		}
		if err := s.evidence.look(ctx, s.db); err != nil {
			return err
		}
	}
	if err := s.evidence.list(ctx, s.db); err != nil {
		return err
	}
	for _, r := range s.receivers {
		arrivals, strays := r.remembered()
		s.evidence.arrivals = append(s.evidence.arrivals, arrivals...)
		s.evidence.strays += strays
	}
	return s.showRows(ctx)
}

const explain = `
SELECT substring(e.url FROM '[^/]*$'), e.reason, e.endpoint_id FROM webhook_explain($1) AS e`

// showRows shows the final rows, as an operator would look at them.
func (s *story) showRows(ctx context.Context) error {
	rows, err := s.db.Query(ctx, explain, s.follow)
	if err != nil {
		return fmt.Errorf("explain the event: %w", err)
	}
	explained, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (explanation, error) {
		var x explanation
		var id uuid.UUID
		err := row.Scan(&x.organization, &x.reason, &id)
		if e := s.evidence.endpoints[id]; e != nil {
			x.receiver = e.receiver
		}
		return x, err
	})
	if err != nil {
		return fmt.Errorf("explain the event: %w", err)
	}
	s.page.explained(s.follow, explained)
	s.page.totals(s.evidence)
	return nil
}

// deliveryIn reads a webhook.delivery.exhausted.
func deliveryIn(payload string) string {
	var p struct {
		DeliveryID string `json:"deliveryId"`
	}
	if err := json.Unmarshal([]byte(payload), &p); err != nil {
		return payload
	}
	return p.DeliveryID
}
