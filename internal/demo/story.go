package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/oracle"
	"github.com/walhook/walhook/internal/process"
	"github.com/walhook/walhook/internal/terminal"
)

const (
	// tellWithin bounds the story once the database is up. It takes about 20 seconds.
	tellWithin = 90 * time.Second

	// lookEvery is the interval at which the rows are read.
	lookEvery = 100 * time.Millisecond

	// quiet is how long nothing may be under way before the story ends: a request that
	// is wrongly repeated has this time to arrive.
	quiet = time.Second

	// judgeWithin bounds the judgement, which takes some tens of milliseconds.
	judgeWithin = 5 * time.Second
)

var errTooLong = errors.New("the demo did not finish in time")

// A story is one run of the demo.
type story struct {
	cfg      Config
	page     *page
	url      string // of the database
	slot     string
	roles    []role
	within   time.Duration
	rollBack error // ends the transaction that is rolled back; nil in the test in which it commits

	admin     string
	db        *pgx.Conn
	receivers *receivers
	endpoints []oracle.Endpoint // by subscription
	narrator  narrator
}

func newStory(cfg Config, page *page, url string) *story {
	return &story{cfg: cfg, page: page, url: url, slot: "walhook", roles: roles, within: tellWithin, rollBack: errRollBack,
		narrator: narrator{page: page, told: map[uuid.UUID]change{}}}
}

// tell starts everyone, from the receivers to walhook, and stops them in reverse.
func (s *story) tell(ctx context.Context) (err error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	if s.receivers, err = openReceivers(ctx, s.roles); err != nil {
		return cause(ctx, err)
	}
	defer func() { err = errors.Join(err, s.receivers.close()) }()
	port, err := process.ForWalhook.FreePort()
	if err != nil {
		return err
	}
	s.admin = fmt.Sprintf("127.0.0.1:%d", port)
	if s.db, err = pgx.Connect(ctx, s.url); err != nil {
		return cause(ctx, fmt.Errorf("connect to the database: %w", err))
	}
	defer func() { _ = s.db.Close(context.WithoutCancel(ctx)) }() // the server is removed next
	w := startWalhook(ctx, s.cfg, environ(s.url, s.slot, s.admin), end)
	err = cause(ctx, s.perform(ctx))
	interrupted := errors.Is(err, ErrInterrupted)
	if err = errors.Join(err, w.end()); err != nil && !interrupted {
		s.page.log(w.log.String())
	}
	return err
}

// cause replaces an error by the context's cause, if the context has ended: it is why
// things fail then.
func cause(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	switch {
	case err == nil || cause == nil:
		return err
	case errors.Is(cause, errEnded) || errors.Is(cause, errTooLong):
		return cause
	default:
		return ErrInterrupted
	}
}

// perform plays the script, watches, judges, and stays if the caller wants that.
func (s *story) perform(ctx context.Context) error {
	began := time.Now()
	inTime, cancel := context.WithTimeoutCause(ctx, s.within, errTooLong)
	defer cancel()
	if err := s.play(inTime); err != nil {
		return cause(inTime, err)
	}
	s.page.heading("What happens", "webhook_deliveries as it changes; ◀ is the event to follow")
	late := s.watch(ctx, began.Add(s.within))
	if late != nil && !errors.Is(late, errTooLong) {
		return late
	}
	s.narrator.say(0)
	if err := errors.Join(late, s.conclude(ctx)); err != nil || !s.cfg.Stay {
		return err
	}
	s.page.line("\n%s", s.page.paint.Text(terminal.Bold, "Everything keeps running, and what you do shows here. Ctrl-C stops and removes it all."))
	if err := s.watch(ctx, time.Time{}); !errors.Is(cause(ctx, err), ErrInterrupted) {
		return err
	}
	s.page.line("\nRemoving everything.")
	return nil
}

// play plays everyone but walhook.
func (s *story) play(ctx context.Context) error {
	if err := s.awaitWalhook(ctx); err != nil {
		return err
	}
	if _, err := s.db.Exec(ctx, `SET jit = off`); err != nil { // compiling would take seconds, the queries take milliseconds
		return fmt.Errorf("switch the JIT off: %w", err)
	}
	if err := s.subscribe(ctx); err != nil {
		return err
	}
	s.page.receivers(s.roles, s.receivers.url)
	s.page.heading("The application", "INSERT INTO webhook_outbox (organization_id, event_type, payload), in its own transactions")
	for _, t := range transactions {
		if err := s.transact(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// awaitWalhook polls /readyz, as an orchestrator does.
func (s *story) awaitWalhook(ctx context.Context) error {
	var version string
	if err := s.db.QueryRow(ctx, `SELECT split_part(current_setting('server_version'), ' ', 1)`).Scan(&version); err != nil {
		return fmt.Errorf("ask PostgreSQL for its version: %w", err)
	}
	s.page.said("PostgreSQL %s runs at %s", version, s.url)
	for s.ask(ctx, "/readyz") != nil {
		if err := pause(ctx); err != nil {
			return err
		}
	}
	s.page.said("walhook runs beside it, with WALHOOK_RETRY_SCHEDULE=%s WALHOOK_TIMEOUT=%s", schedule, timeout)
	return nil
}

// pause waits for one interval.
func pause(ctx context.Context) error {
	select {
	case <-time.After(lookEvery):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ask expects 200 from walhook's admin server.
func (s *story) ask(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.admin+path, nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return nil
}

const createEndpoint = `SELECT endpoint_id, secret FROM webhook_create_endpoint($1, $2, $3)`

func (s *story) subscribe(ctx context.Context) error {
	for _, sub := range subscriptions {
		e := oracle.Endpoint{Org: sub.organization, Types: sub.types}
		path := "/" + sub.receiver + "/" + sub.organization
		if err := s.db.QueryRow(ctx, createEndpoint, e.Org, s.receivers.url+path, e.Types).Scan(&e.ID, &e.Secret); err != nil {
			return fmt.Errorf("create an endpoint of %s: %w", e.Org, err)
		}
		s.endpoints = append(s.endpoints, e)
		s.receivers.Add(path, e.Secret)
	}
	return nil
}

const countOwed = `
SELECT count(*), coalesce(sum(cardinality(endpoint_ids)), 0) FROM webhook_outbox WHERE id = ANY ($1)`

// transact plays the application.
func (s *story) transact(ctx context.Context, t transaction) error {
	before, _ := s.receivers.Journal.Copy()
	events, err := t.perform(ctx, s.db, len(before)+1, s.rollBack)
	if err != nil {
		return err
	}
	s.receivers.Journal.Open(events)
	if len(before) == 0 {
		s.narrator.follow = events[0].ID
	}
	var ids []uuid.UUID
	for _, e := range events {
		ids = append(ids, e.ID)
	}
	var stored, owed int
	if err := s.db.QueryRow(ctx, countOwed, ids).Scan(&stored, &owed); err != nil {
		return fmt.Errorf("count what is owed: %w", err)
	}
	s.page.transaction(t, stored, owed, len(before) == 0)
	return nil
}

const atRest = `
SELECT NOT EXISTS (
    SELECT FROM webhook_outbox AS o CROSS JOIN unnest(o.endpoint_ids) AS owed (endpoint_id)
    LEFT JOIN webhook_deliveries AS d ON d.event_id = o.id AND d.endpoint_id = owed.endpoint_id
    WHERE coalesce(d.status, 'pending') IN ('pending', 'retrying'))`

// watch reports changes until nothing has been under way for a while. Without a
// deadline it goes on until the context ends.
func (s *story) watch(ctx context.Context, deadline time.Time) error {
	for underWay := time.Now(); ; {
		if err := s.narrator.tell(ctx, s.db); err != nil {
			return err
		}
		var rest bool
		if err := s.db.QueryRow(ctx, atRest).Scan(&rest); err != nil {
			return fmt.Errorf("query what is under way: %w", err)
		}
		switch {
		case !rest:
			underWay = time.Now()
		case !deadline.IsZero() && time.Since(underWay) >= quiet:
			return nil
		}
		if !deadline.IsZero() && time.Now().After(deadline) {
			return errTooLong
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// conclude shows the final rows and the judgement.
func (s *story) conclude(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, judgeWithin)
	defer cancel()
	var problems []error
	err := pgx.BeginTxFunc(ctx, s.db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		if err := s.showRows(ctx, tx); err != nil {
			return err
		}
		verdict, err := s.judge(ctx, tx)
		if err != nil {
			return err
		}
		s.page.heading("What must be true now", "computed from what the application committed, and who had subscribed to it")
		for _, p := range promises {
			err := p.judge(verdict)
			s.page.verdict(p, verdict, err)
			problems = append(problems, err)
		}
		return nil
	})
	problems = append(problems, err)
	if err := s.ask(ctx, "/metrics"); err != nil {
		problems = append(problems, fmt.Errorf("ask walhook for its metrics: %w", err))
	}
	s.page.lookAround(s.url, s.admin, s.narrator.follow)
	return errors.Join(problems...)
}

const explain = `
SELECT split_part(url, '/', 4), split_part(url, '/', 5), reason FROM webhook_explain($1)`

const total = `
SELECT split_part(e.url, '/', 4), d.organization_id, format('%2s × %s after %s', count(*), d.status, d.attempts)
FROM webhook_deliveries AS d JOIN webhook_endpoints AS e ON e.id = d.endpoint_id
GROUP BY 1, 2, d.status, d.attempts
ORDER BY 1 DESC, 2, d.status, d.attempts`

// showRows shows the final rows, with an operator's queries.
func (s *story) showRows(ctx context.Context, tx pgx.Tx) error {
	s.page.heading("The event that was followed", fmt.Sprintf("SELECT * FROM webhook_explain('%s')", s.narrator.follow))
	if err := s.show(ctx, tx, explain, s.narrator.follow); err != nil {
		return fmt.Errorf("explain the event: %w", err)
	}
	s.page.heading("The rows at the end", "SELECT … count(*) FROM webhook_deliveries GROUP BY …")
	if err := s.show(ctx, tx, total); err != nil {
		return fmt.Errorf("count webhook_deliveries: %w", err)
	}
	return nil
}

func (s *story) show(ctx context.Context, tx pgx.Tx, sql string, args ...any) error {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	var receiver, organization, says string
	_, err = pgx.ForEachRow(rows, []any{&receiver, &organization, &says}, func() error {
		s.page.line("  %s of %-7s %s", s.page.name(receiver), organization, says)
		return nil
	})
	return err
}
