package faults

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

// A Side is endpoints that the scenario judges, beside the trial's: the oracle leaves their
// organization out.
type Side struct {
	trial  *Trial
	server *httptest.Server

	mu       sync.Mutex
	answers  map[string]func(retry int) (status int, body string) // by path
	requests map[string]int
}

const sideOrg = tallied + "side"

func newSide(x *Trial) *Side {
	s := &Side{trial: x, answers: map[string]func(int) (int, string){}, requests: map[string]int{}}
	s.server = httptest.NewServer(s)
	x.Cleanup(func() {
		s.server.CloseClientConnections()
		s.server.Close()
	})
	return s
}

// ServeHTTP answers by the path's function.
func (s *Side) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	_, _ = io.Copy(io.Discard, req.Body)
	retry, err := strconv.Atoi(req.Header.Get("X-Webhook-Retry"))
	path := strings.TrimPrefix(req.URL.Path, "/")
	s.mu.Lock()
	answer := s.answers[path]
	s.requests[path]++
	s.mu.Unlock()
	if answer == nil || err != nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	status, body := answer(retry)
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func (s *Side) came(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests[name]
}

// endpoint makes an endpoint with an answer.
func (s *Side) endpoint(name string, answer func(retry int) (int, string)) (id uuid.UUID) {
	x := s.trial
	x.Helper()
	s.mu.Lock()
	s.answers[name] = answer
	s.mu.Unlock()
	if err := x.pool.QueryRow(x.Context(), `SELECT endpoint_id FROM webhook_create_endpoint($1, $2)`, sideOrg, s.server.URL+"/"+name).Scan(&id); err != nil {
		x.Fatal(err)
	}
	return id
}

// send commits an event for one of them.
func (s *Side) send(endpoint uuid.UUID) {
	s.trial.Helper()
	s.trial.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload, endpoint_ids) VALUES ($1, 'payment.succeeded', '{"n": 1}', ARRAY[$2::uuid])`, sideOrg, endpoint)
}

// rows waits until a query of an endpoint's rows returns a text.
func (s *Side) rows(what string, within time.Duration, endpoint uuid.UUID, expression, want string) {
	x := s.trial
	x.Helper()
	got := ""
	deadline := time.Now().Add(x.patient(within))
	for look := time.NewTicker(20 * time.Millisecond); got != want && time.Now().Before(deadline); <-look.C {
		if err := x.pool.QueryRow(x.Context(), `SELECT coalesce(string_agg(`+expression+`, ', ' ORDER BY id), '') FROM webhook_deliveries WHERE endpoint_id = $1`, endpoint).Scan(&got); err != nil {
			x.Fatal(err)
		}
	}
	x.expect(got == want, "%s: %q, want %q within %s", what, got, want, within)
}

// What an operator does to a delivery.
const (
	saysReplay = `SELECT webhook_replay(id) FROM webhook_deliveries WHERE endpoint_id = $1`
	saysCancel = `UPDATE webhook_deliveries SET status = 'cancelled', next_attempt_at = NULL WHERE endpoint_id = $1`
)

// theLaterWord has an operator replay and cancel deliveries during their first or last
// attempt.
func theLaterWord(t *testing.T, s Setup) {
	s.Schedule = "200ms,300ms"
	x := newTrial(t, s)
	side := newSide(x)
	x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate / 2})
	cases := []struct {
		at, answer int // the attempt under way, and its answer
		says, want string
		requests   int
	}{
		{2, 500, saysReplay, "success 4", 4},
		{2, 200, saysReplay, "success 4", 4},
		{2, 500, saysCancel, "cancelled 3", 3},
		{2, 200, saysCancel, "success 3", 3},
		{0, 500, saysReplay, "success 2", 2},
		{0, 200, saysReplay, "success 2", 2},
		{0, 500, saysCancel, "cancelled 1", 1},
	}
	ids := make([]uuid.UUID, len(cases))
	for i, c := range cases {
		name := fmt.Sprintf("word%d", i)
		held, release := make(chan struct{}), make(chan struct{})
		ids[i] = side.endpoint(name, func(retry int) (int, string) {
			switch {
			case retry < c.at:
				return 500, "not yet"
			case retry > c.at:
				return 200, "thanks"
			}
			close(held)
			select {
			case <-release:
			case <-time.After(timeout / 2):
			}
			return c.answer, "at last"
		})
		side.send(ids[i])
		x.eventually(20*time.Second, "the attempt is under way", func() bool {
			select {
			case <-held:
				return true
			default:
				return false
			}
		})
		side.rows("a row beside the attempt", 2*time.Second, ids[i], `attempts::text`, strconv.Itoa(c.at))
		x.exec(c.says, ids[i])
		close(release)
		side.rows(fmt.Sprintf("after attempt %d was answered with %d, and %q", c.at, c.answer, c.says), 10*time.Second, ids[i], `status || ' ' || attempts`, c.want)
	}
	<-time.After(time.Second) // longer than the waits of the schedule
	for i, c := range cases {
		got := side.came(fmt.Sprintf("word%d", i))
		x.expect(got == c.requests, "attempt %d answered with %d, and %q: %d requests came, want %d", c.at, c.answer, c.says, got, c.requests)
		side.rows("in the end", time.Second, ids[i], `status || ' ' || attempts`, c.want)
	}
	stop()
	x.finish(time.Minute, fmt.Sprintf("words=%d", len(cases)))
}

// refusedConsequences deletes walhook's own event types, and adds a constraint and a
// trigger of a deployment to its tables. Outcomes must still be recorded and 410 must
// disable; the refused consequences are written as soon as they can be.
func refusedConsequences(t *testing.T, s Setup) {
	s.Schedule = "200ms,300ms"
	x := newTrial(t, s)
	side := newSide(x)
	x.exec(`ALTER TABLE webhook_deliveries ADD CONSTRAINT faults_short CHECK (length(response) < 5)`)
	x.exec(`CREATE FUNCTION faults_no_failures() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'nothing fails here'; END $$`)
	x.exec(`CREATE TRIGGER faults_no_failures BEFORE INSERT OR UPDATE ON webhook_deliveries FOR EACH ROW
		WHEN (new.status = 'failed' AND new.organization_id = '` + sideOrg + `' AND new.status_code IS DISTINCT FROM 410) EXECUTE FUNCTION faults_no_failures()`)
	x.start()
	x.ready() // before the deletion, because a start puts back missing event types
	x.exec(`BEGIN; SET LOCAL session_replication_role = replica; DELETE FROM webhook_event_types WHERE category = 'webhook'; COMMIT`)
	stop := x.driveOn(Load{Rate: *rate / 2})
	const each = 3
	three := func(word string) string { return strings.Join([]string{word, word, word}, ", ") }
	answers := func(status int) func(int) (int, string) {
		return func(int) (int, string) { return status, "a long answer" }
	}
	good, failing, gone := side.endpoint("good", answers(200)), side.endpoint("failing", answers(500)), side.endpoint("gone", answers(410))
	for range each {
		side.send(good)
		side.send(failing)
	}
	side.send(gone)
	side.rows("an answer that is not stored", 10*time.Second, good, `status || ' ' || attempts || ' ' || coalesce(response, '-')`, three("success 1 -"))
	x.eventually(10*time.Second, "410 disables, though nobody can be told", func() bool {
		var off bool
		err := x.pool.QueryRow(t.Context(), `SELECT NOT enabled AND disabled_reason IS NOT NULL FROM webhook_endpoints WHERE id = $1`, gone).Scan(&off)
		return err == nil && off
	})
	x.eventually(20*time.Second, "the last attempts are made", func() bool { return side.came("failing") >= 3*each })
	side.rows("outcomes that are refused wait", time.Second, failing, `status || ' ' || attempts`, three("retrying 2"))
	<-time.After(2 * time.Second) // a walhook that had dropped the outcomes would send again
	got := side.came("failing")
	x.expect(got == 3*each, "%d requests came while their outcomes were refused, want %d", got, 3*each)

	x.exec(`DROP TRIGGER faults_no_failures ON webhook_deliveries`)
	x.exec(`ALTER TABLE webhook_deliveries DROP CONSTRAINT faults_short`)
	x.exec(`INSERT INTO webhook_event_types (name, category) VALUES ('webhook.test', 'webhook'), ('webhook.endpoint.disabled', 'webhook'), ('webhook.delivery.exhausted', 'webhook')
		ON CONFLICT DO NOTHING`)
	side.rows("once they are taken", 20*time.Second, failing, `status || ' ' || attempts`, three("failed 3"))
	x.eventually(20*time.Second, "all consequences are written", func() bool {
		var told string
		err := x.pool.QueryRow(t.Context(), `SELECT concat_ws(' ', count(*) FILTER (WHERE event_type = 'webhook.endpoint.disabled'),
			count(*) FILTER (WHERE event_type = 'webhook.delivery.exhausted')) FROM webhook_outbox WHERE organization_id = $1`, sideOrg).Scan(&told)
		return err == nil && told == fmt.Sprintf("1 %d", each)
	})
	x.eventually(20*time.Second, "the endpoint's health is recorded", func() bool {
		var noted bool
		err := x.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM webhook_endpoint_failures WHERE endpoint_id = $1)`, failing).Scan(&noted)
		return err == nil && noted
	})
	stop()
	x.finish(time.Minute)
}
