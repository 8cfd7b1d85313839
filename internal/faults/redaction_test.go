package faults

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/csv"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/oracle"
	"github.com/walhook/walhook/internal/webhook"
)

// What nobody may find anywhere. Each is of letters that nothing else has.
const (
	rolePassword  = "p1ece-one/p1ece-two@p1ece-three?p1ece-four#p1ece-five" // as it is, it breaks a connection string
	otherPassword = "wr0ng-password"
	proxyPassword = "pr0xy-password"
	headerValue   = "h3ader-value"
	queryValue    = "qu3ry-value"
	elsewhere     = "l0cation-value" // in the query of a redirect
	testData      = "t3st-webhook-data"
	wrongToken    = "t0ken-that-is-wrong"
)

// redaction makes everything fail that an operator or a customer can get wrong, with the log
// at its most talkative and a PostgreSQL that logs each statement, and looks for secrets,
// payloads, header values, queries and pieces of passwords wherever people look: walhook's
// output, its tables' columns for people, its admin server, and PostgreSQL's log and
// statistics of walhook's statements. What is delivered is for other scenarios to judge.
func redaction(t *testing.T, s Setup) {
	s.Role = true
	s.Settings = map[string]string{
		"log_statement": "all", "log_min_duration_statement": "0", "log_connections": "on", "log_replication_commands": "on",
		"logging_collector": "on", "log_destination": "csvlog", "log_rotation_size": "0", "shared_preload_libraries": "pg_stat_statements",
	}
	s.Schedule = "1s" // so that the last attempt comes soon
	impostor := newImpostor()
	t.Cleanup(impostor.server.Close)
	wrong := whatIsWrong(impostor.server.URL)
	s.Endpoints = []oracle.Endpoint{{Org: "org_1", Types: []string{"*"}}}
	for i, w := range wrong {
		s.Endpoints = append(s.Endpoints, oracle.Endpoint{Org: fmt.Sprintf("%s%d", comingAndGoing, i), Types: []string{"*"}, URL: w.url})
	}
	x := newTrial(t, s)
	r := &redacted{Trial: x, hidden: map[string]string{}}
	r.prepare(wrong)
	r.deliver()
	r.startWrongly()
	r.judge()
}

// A redacted is what is looked through.
type redacted struct {
	*Trial
	hidden map[string]string // text → what it is
	said   bytes.Buffer      // what commands and the admin server have said
	page   bytes.Buffer      // the page for operators, who see payloads there
}

// unbuildable is the path of the endpoint whose URL cannot be parsed.
const unbuildable = "/unbuildable"

// A wrongness is an endpoint that fails in one way.
type wrongness struct {
	url    string // "": a path of the receiver
	answer answer
}

func whatIsWrong(impostor string) []wrongness {
	return []wrongness{
		{url: "http://127.0.0.1:1/refuses"},
		{url: "http://10.1.2.3/blocked"},
		{url: "http://" + strings.Repeat("a", 64) + ".example/no-such-name"},
		{url: impostor + "/untrusted"},
		{answer: answer{breaks: true}},
		{answer: says(302, "", "Location: http://127.0.0.1:1/elsewhere?code="+elsewhere)},
		{answer: says(404, "")},
		{answer: says(410, "")},
		{answer: says(500, "")},
		{answer: goesOn(0, "", "HTTP/1.1 103 Early Hints\r\n\r\n", 0)},
		{answer: answer{write: func(conn net.Conn) { begin(conn); _, _ = io.Copy(io.Discard, conn) }}}, // a timeout
		{url: impostor + unbuildable},
	}
}

// hide notes a text that must not be found, as it is or encoded.
func (r *redacted) hide(what, text string) {
	r.hidden[text] = what
	r.hidden[base64.StdEncoding.EncodeToString([]byte(text))] = what + " in base64"
}

// prepare gives every endpoint a header and a query, and the role a password.
func (r *redacted) prepare(wrong []wrongness) {
	r.Helper()
	answers := map[int]answer{}
	for i, w := range wrong {
		answers[1+i] = w.answer
	}
	r.receiver.turn(answers)
	r.exec(`CREATE EXTENSION pg_stat_statements`)
	r.exec(`UPDATE webhook_endpoints SET url = url || '?key=' || $1, headers = jsonb_build_object('Authorization', 'Bearer ' || $2, 'X-Api-Key', $2)`, queryValue, headerValue)
	r.exec(`DO $$ BEGIN
	PERFORM set_config('session_replication_role', 'replica', true); -- as rows come from elsewhere, without the trigger's checks
	UPDATE webhook_endpoints SET url = 'https://%zz:' || replace(url, 'https://', '') WHERE url LIKE '%` + unbuildable + `%';
	END $$`)
	r.wantPassword(rolePassword)
	r.hide("a piece of a password", "p1ece")
	for what, text := range map[string]string{
		"a wrong password": otherPassword, "the proxy's password": proxyPassword, "a header's value": headerValue, "a URL's query": queryValue,
		"a redirect's query": elsewhere, "a test webhook's data": testData, "the admin token": adminToken, "a wrong token": wrongToken,
		"a payload": strings.Repeat("x", 40), "the proxy's credentials": "operator:" + proxyPassword,
	} {
		r.hide(what, text)
	}
	for _, e := range r.endpoints {
		r.hide("a signing secret", e.Secret)
	}
}

// withPassword is walhook's URL with a password.
func (r *redacted) withPassword(name, password string) string {
	return strings.Replace(r.walhookURL(name), roleName+"@", url.UserPassword(roleName, password).String()+"@", 1)
}

// deliver runs three walhooks, one after the other: with a key, with another key and a proxy
// that refuses, and without the proxy. The password of the last one is rotated.
func (r *redacted) deliver() {
	r.Helper()
	key, next := sealingKey(1), sealingKey(2)
	r.hide("a sealing key", key)
	r.hide("a sealing key", next)
	r.delivers("resealed signing secrets", "WALHOOK_SECRET_KEY="+key, "WALHOOK_LOG_FORMAT=json")
	r.delivers("resealed signing secrets", "WALHOOK_SECRET_KEY="+next, "WALHOOK_SECRET_KEY_OLD="+key, "WALHOOK_PROXY_URL=http://operator:"+proxyPassword+"@"+r.proxy())
	r.delivers("streaming", "WALHOOK_SECRET_KEY="+next)
}

// delivers runs a walhook that sends an event to every endpoint, until the log says something.
func (r *redacted) delivers(until string, env ...string) {
	r.Helper()
	name := fmt.Sprintf("walhook-%d", len(r.processes)+1)
	p := r.start(append(env, "WALHOOK_LOG_LEVEL=debug", "WALHOOK_TIMEOUT=1s", "WALHOOK_DATABASE_URL="+r.withPassword(name, rolePassword))...)
	r.ready()
	r.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT organization_id, 'payment.failed', jsonb_build_object('pad', $1::text)
		FROM webhook_endpoints WHERE enabled`, strings.Repeat("x", 40))
	r.eventually(30*time.Second, "the log says: "+until, func() bool { return p.logged(until) > 0 })
	r.askAdmin(p)
	if until == "streaming" {
		r.eventually(time.Minute, "all deliveries have ended", func() bool {
			var open int
			err := r.pool.QueryRow(r.Context(), `SELECT count(*) FROM webhook_deliveries WHERE next_attempt_at IS NOT NULL`).Scan(&open)
			return err == nil && open == 0
		})
		r.rotate(p)
	}
	if _, err := p.stop(timeout + exitMargin); err != nil {
		r.Error(err)
	}
}

// rotate changes the password of walhook's role for a moment, and signing secrets.
func (r *redacted) rotate(p *Process) {
	r.Helper()
	r.exec(`ALTER ROLE ` + roleName + ` PASSWORD '` + otherPassword + `'`)
	r.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1`, roleName)
	r.eventually(20*time.Second, "the log says that the password is wrong", func() bool { return p.logged("password authentication failed") > 0 })
	r.askAdmin(p)
	r.exec(`ALTER ROLE ` + roleName + ` PASSWORD '` + rolePassword + `'`)
	r.ready()
	var secret string
	r.look(`SELECT webhook_rotate_secret(id) FROM webhook_endpoints WHERE organization_id = 'org_1'`, &secret)
	r.hide("a rotated secret", secret)
}

func sealingKey(b byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) }

// proxy returns the address of a proxy that refuses every tunnel, and says what it was told.
func (r *redacted) proxy() string {
	r.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Proxy-Authenticate", req.Header.Get("Proxy-Authorization"))
		w.WriteHeader(http.StatusProxyAuthRequired)
		_, _ = io.WriteString(w, req.Header.Get("Proxy-Authorization"))
	})}
	go func() { _ = server.Serve(l) }()
	r.Cleanup(func() { _ = server.Close() })
	return l.Addr().String()
}

// askAdmin keeps what the admin server says to who has the token, to who has a wrong one, and
// to who has none.
func (r *redacted) askAdmin(p *Process) {
	r.Helper()
	for _, token := range []string{adminToken, wrongToken, ""} {
		for _, path := range []string{"/healthz", "/readyz", "/metrics", "/", "/nothing"} {
			r.request(http.MethodGet, "http://"+p.admin+path, "", token)
		}
		for _, body := range []string{
			`{"event":"payment.succeeded","organizationId":"org_1","data":{"text":"` + testData + `"}}`,
			`{"event":"payment.succeeded","organizationId":"org_1","data":{"text":"` + testData + `\u0000"}}`,
			`{"event":"payment.succeeded","organizationId":"org_1","data":{"text":"` + testData + `"`,
			`{"event":"unknown","organizationId":"org_1","data":{"text":"` + testData + `"}}`,
		} {
			r.request(http.MethodPost, "http://"+p.admin+"/api/test-webhook", body, token)
		}
	}
}

func (r *redacted) request(method, url, body, token string) {
	r.Helper()
	req, err := http.NewRequestWithContext(r.Context(), method, url, strings.NewReader(body))
	if err != nil {
		r.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.Fatal(err)
	}
	defer resp.Body.Close()
	into := &r.said
	if token == adminToken && req.URL.Path == "/" {
		into = &r.page
	}
	fmt.Fprintln(into, method, url, resp.Status)
	if _, err := io.Copy(into, resp.Body); err != nil {
		r.Fatal(err)
	}
}

// brokenStrings are connection strings around a password that is not escaped or not quoted.
var brokenStrings = []string{
	"postgres://walhook:%s@127.0.0.1:1/app", "postgres://%s@127.0.0.1:1/app", "postgres://walhook:%s", "postgres:/walhook:%s@127.0.0.1/app",
	"postgres://walhook@127.0.0.1:1/app?password=%s", "postgres://walhook:x@127.0.0.1:1/%s", "host=127.0.0.1 port=1 user=walhook password=%s x dbname=app",
	"host=127.0.0.1 port=1 user=walhook password='%s dbname=app", "jdbc:postgresql://127.0.0.1/app?password=%s", "%s",
}

// startWrongly starts commands with a wrong key, a wrong password, and broken strings.
func (r *redacted) startWrongly() {
	r.Helper()
	good := r.withPassword("walhook-wrong", rolePassword)
	for _, env := range [][]string{
		{"WALHOOK_DATABASE_URL=" + good},
		{"WALHOOK_DATABASE_URL=" + good, "WALHOOK_SECRET_KEY=" + sealingKey(3)},
		{"WALHOOK_DATABASE_URL=" + r.withPassword("walhook-wrong", otherPassword)},
		{"WALHOOK_DATABASE_URL=" + good, "WALHOOK_ADMIN_TOKEN=" + wrongToken + " x"},
		{"WALHOOK_DATABASE_URL=" + good, "WALHOOK_PROXY_URL=ftp://operator:" + proxyPassword + "@127.0.0.1"},
		{"WALHOOK_DATABASE_URL=" + good, "WALHOOK_SECRET_KEY=" + proxyPassword},
	} {
		r.runs(env)
	}
	for _, s := range brokenStrings {
		r.runs([]string{"WALHOOK_DATABASE_URL=" + strings.ReplaceAll(s, "%s", rolePassword)})
	}
}

// runs keeps what the commands say that cannot work, or can only wait.
func (r *redacted) runs(env []string) {
	r.Helper()
	const waits = 2 * time.Second
	for _, command := range []string{"doctor", "init", "run"} {
		ctx, cancel := context.WithTimeout(r.Context(), waits)
		cmd := exec.CommandContext(ctx, r.setup.Binary, command)
		cmd.Env = append(append(r.env("walhook-wrong"), "WALHOOK_ADMIN_ADDR=", "WALHOOK_LOG_LEVEL=debug"), env...)
		output, err := cmd.CombinedOutput()
		cancel()
		fmt.Fprintf(&r.said, "%s: %v\n%s", command, err, output)
	}
}

// forPeople are the columns that operators and customers read.
const forPeople = `
SELECT coalesce(string_agg(concat_ws(' ', error_class, error, attempt_log::text), E'\n'), '') FROM webhook_deliveries
UNION ALL SELECT coalesce(string_agg(disabled_reason, ' '), '') FROM webhook_endpoints
UNION ALL SELECT coalesce(string_agg(f::text, ' '), '') FROM webhook_endpoint_failures f
UNION ALL SELECT coalesce(string_agg(h.error, ' '), '') FROM (SELECT to_jsonb(h)->>'last_error' AS error FROM webhook_endpoint_health h) h
UNION ALL SELECT coalesce(string_agg(payload::text, ' '), '') FROM webhook_outbox WHERE starts_with(event_type, 'webhook.')
UNION ALL SELECT to_jsonb(s)::text FROM webhook_status s`

// judge looks everywhere.
func (r *redacted) judge() {
	r.Helper()
	r.judged = true
	classes := r.all(`SELECT DISTINCT error_class FROM webhook_deliveries WHERE error_class IS NOT NULL`)
	for _, class := range []webhook.ErrorClass{webhook.ErrDNS, webhook.ErrConnect, webhook.ErrBlocked, webhook.ErrTLS, webhook.ErrReset, webhook.ErrRedirect,
		webhook.ErrHTTP4xx, webhook.ErrHTTP5xx, webhook.ErrProtocol, webhook.ErrTimeout, webhook.ErrBadRequest} {
		if !strings.Contains(classes, string(class)) {
			r.Errorf("nothing has failed with %s", class)
		}
	}
	r.lookInto("what commands and the admin server said", r.said.String())
	logs := 0
	for _, p := range r.processes {
		log, err := os.ReadFile(p.log)
		if err != nil {
			r.Fatal(err)
		}
		logs += len(log)
		r.lookInto("the log of "+p.Name, string(log))
	}
	r.lookInto("the tables", r.all(forPeople))
	own, others := r.serverLog()
	delete(r.hidden, testData) // whoever inserts an event has its payload in this log, as any application has
	payload := strings.Repeat("x", 40)
	delete(r.hidden, payload)
	r.lookInto("the page for operators", r.page.String())
	r.hide("a payload", payload)
	r.lookInto("PostgreSQL's log of walhook's statements", own)
	r.lookInto("pg_stat_statements", r.all(`SELECT query FROM pg_stat_statements JOIN pg_roles ON pg_roles.oid = userid WHERE rolname = '`+roleName+`'`))
	for text, what := range r.hidden {
		if strings.Contains(what, "secret") && strings.Contains(others, text) {
			r.Errorf("PostgreSQL's log of others' statements has %s", what)
		}
	}
	r.setup.Report.add("hidden=%d looked into %d KiB of walhook's output and %d KiB of PostgreSQL's log", len(r.hidden), (r.said.Len()+logs)>>10, len(own)>>10)
}

// lookInto fails the test where a place has what is hidden.
func (r *redacted) lookInto(place, text string) {
	r.Helper()
	if len(text) < 100 {
		r.Errorf("%s: %q is too little to have looked into it", place, text)
	}
	for hidden, what := range r.hidden {
		if i := strings.Index(text, hidden); i >= 0 {
			r.Errorf("%s: %s, near %q", place, what, text[max(0, i-300):min(len(text), i+len(hidden)+60)])
		}
	}
}

func (r *redacted) all(sql string) string {
	r.Helper()
	var text string
	r.look(`SELECT string_agg(t::text, E'\n') FROM (`+sql+`) t`, &text)
	return text
}

// serverLog reads PostgreSQL's log: what walhook's role has caused, and the rest.
func (r *redacted) serverLog() (own, others string) {
	r.Helper()
	const user = 1 // the column
	var text string
	r.look(`SELECT pg_read_file(pg_current_logfile('csvlog'))`, &text)
	lines := csv.NewReader(strings.NewReader(text))
	lines.FieldsPerRecord = -1
	var ours, theirs strings.Builder
	for {
		fields, err := lines.Read()
		if err == io.EOF {
			break
		}
		if err != nil {
			r.Fatal(err)
		}
		into := &theirs
		if len(fields) > user && fields[user] == roleName {
			into = &ours
		}
		into.WriteString(strings.Join(fields, "\t") + "\n")
	}
	return ours.String(), theirs.String()
}
