package main

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/walhook/walhook/internal/languages"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/process"
	"github.com/walhook/walhook/internal/testkit"
	"github.com/walhook/walhook/sign"
)

const (
	oldSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	newSecret = "a secret that is not base64"
	oddSecret = "abcdefghijklmnopqr==" // base64 whose last character has bits that do not count

	body     = `{"id":"1","event":"payment.succeeded","data":{"amount": 42},"organizationId":"org_1","timestamp":"2026-11-23T12:00:00.000Z"}`
	received = `received payment.succeeded of org_1: {"amount":42}`

	patience = time.Minute // for a process to start, and for what it then has to do
)

// A language has a receiver: commands finds what it needs, or ends the test, and returns the programs that make it up. It
// gets them only once: Go and Java would be compiled again with each start.
type language struct {
	name     string
	commands func(t *testing.T, port string) [][]string
	goesOn   bool // without its table. The others end, and whoever starts them starts them again
}

var inAllLanguages = []language{
	{"Go", func(t *testing.T, _ string) [][]string {
		program := filepath.Join(t.TempDir(), "receiver")
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
		return [][]string{{program}}
	}, true},
	{"Node", func(t *testing.T, _ string) [][]string {
		return [][]string{{languages.Program(t, "node"), "receiver.mjs"}}
	}, true},
	{"Python", func(t *testing.T, _ string) [][]string {
		return [][]string{{languages.Python(t), "receiver.py"}}
	}, false},
	{"Ruby", func(t *testing.T, _ string) [][]string {
		return [][]string{{languages.With(t, "ruby", "-e", `require "pg"; require "webrick"`), "receiver.rb"}}
	}, false},
	{"PHP", func(t *testing.T, port string) [][]string {
		php := languages.With(t, "php", "-r", `new ReflectionExtension("pdo_sqlite");`)
		// Without a php.ini, as in its official image, PHP shows errors, and answers them with 200 unless it is told otherwise.
		return [][]string{{php, "-q", "-d", "display_errors=1", "-S", "127.0.0.1:" + port, "receiver.php"}, {php, "receiver.php"}}
	}, false},
	{"Java", func(t *testing.T, _ string) [][]string {
		java, classPath := languages.JDBC(t)
		classes := t.TempDir()
		if out, err := exec.CommandContext(t.Context(), "javac", "-d", classes, "Receiver.java").CombinedOutput(); err != nil {
			t.Fatalf("javac: %v\n%s", err, out)
		}
		return [][]string{{java, "-Xshare:auto", "-cp", classes + ":" + classPath, "Receiver"}}
	}, false},
}

// A receiver is of one language, with a port and a store of its own. It can be killed and started again.
type program struct {
	addr     string
	commands [][]string
	env      []string
	store    string // a file
	db       *pgtest.DB
	running  []*process.Process

	lines chan string // what it prints, one for each webhook that it has worked on
	last  string      // of them
	again string      // was the last when it was killed
}

func newProgram(t *testing.T, l language) *program {
	t.Helper()
	port, err := process.ForWalhook.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), lines: make(chan string, 100)}
	p.commands = l.commands(t, strconv.Itoa(port))
	p.store, p.db = filepath.Join(t.TempDir(), "store"), pgtest.Empty(t)
	u, err := url.Parse(p.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	p.env = append(os.Environ(), "PORT="+strconv.Itoa(port), "WEBHOOK_STORE="+p.store,
		"PGHOST="+u.Hostname(), "PGPORT="+u.Port(), "PGDATABASE="+p.db.Slot, "PGUSER="+u.User.Username(), "PGPASSWORD="+password,
		"JDBC_DATABASE_URL=jdbc:postgresql://"+u.Host+"/"+p.db.Slot+"?"+url.Values{"user": {u.User.Username()}, "password": {password}}.Encode())
	t.Cleanup(func() { p.kill(t) })
	return p
}

// start returns when it listens.
func (p *program) start(t *testing.T, secrets []string, env ...string) {
	t.Helper()
	for _, command := range p.commands {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Env = append(append(p.env, "WEBHOOK_SECRETS="+strings.Join(secrets, ",")), env...)
		cmd.Stderr = t.Output()
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = write
		started, err := process.Start(cmd)
		write.Close()
		if err != nil {
			t.Fatal(err)
		}
		p.running = append(p.running, started)
		go func() {
			defer read.Close()
			for lines := bufio.NewScanner(read); lines.Scan(); {
				p.lines <- strings.ReplaceAll(lines.Text(), `": `, `":`)
			}
		}()
	}
	pgtest.Eventually(t, patience, "the receiver listens", func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.addr)
		if err == nil {
			err = conn.Close()
		}
		return err == nil
	})
}

func (p *program) kill(t *testing.T) {
	t.Helper()
	for _, running := range p.running {
		if err := running.Signal(os.Kill); err != nil {
			t.Error(err)
		}
		<-running.Exited
	}
	p.running, p.again = nil, p.last
}

// works waits until the receiver has worked on a webhook, which has to be this one. Only the last one before it was killed
// may come once more: perhaps it was not stored yet that it was done.
func (p *program) works(t *testing.T, want string) {
	t.Helper()
	for {
		select {
		case p.last = <-p.lines:
		case <-time.After(patience):
			t.Fatalf("it did not work on %q within %s", want, patience)
		}
		again := p.again
		p.again = ""
		switch p.last {
		case want:
			return
		case again:
		default:
			t.Fatalf("it worked on %q, want %q", p.last, want)
		}
	}
}

// A request is a webhook as walhook sends it, perhaps tampered with.
type request struct {
	what     string
	delivery string
	secrets  []string // that it is signed with, oldest first
	age      time.Duration
	tamper   func(h http.Header, body *string)
	want     int
}

func onlyBody(h http.Header, _ *string) {
	for _, name := range []string{sign.HeaderTimestamp, sign.HeaderSignature} {
		h.Del(name)
	}
}

var requests = []request{
	{"a webhook", "d1", []string{oldSecret}, 0, nil, 204},
	{"the same again", "d1", []string{oldSecret}, 0, nil, 204},
	{"the same again, captured and given another id outside the signature", "d1", []string{oldSecret}, 0, func(h http.Header, _ *string) {
		h.Set("X-Webhook-Delivery-ID", "another")
	}, 204},
	{"the other secret", "d2", []string{newSecret}, 0, nil, 204},
	{"both, in a rotation", "d3", []string{"an older secret", newSecret}, 0, nil, 204},
	{"a secret that is odd base64", "d4", []string{oddSecret}, 0, nil, 204},
	{"the body's signature alone", "x", []string{oldSecret}, 0, onlyBody, 401},
	{"a stranger's secret", "x", []string{"a stranger's secret"}, 0, nil, 401},
	{"an empty secret", "x", []string{"a stranger's secret"}, 0, func(h http.Header, b *string) {
		mac := hmac.New(sha256.New, nil)
		fmt.Fprintf(mac, "x.%s.%s", h.Get(sign.HeaderTimestamp), *b)
		h.Set(sign.HeaderSignature, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}, 401},
	{"a signature that is no ASCII", "x", []string{oldSecret}, 0, func(h http.Header, _ *string) {
		h.Set(sign.HeaderSignature, "v1,"+strings.Repeat("\xe9", 44)) // as many characters as a right one, and not as many bytes
	}, 401},
	{"an old request", "x", []string{oldSecret}, 10 * time.Minute, nil, 401},
	{"a request of the future", "x", []string{oldSecret}, -10 * time.Minute, nil, 401},
	{"another body", "x", []string{oldSecret}, 0, func(_ http.Header, b *string) { *b = strings.Replace(*b, "42", "43", 1) }, 401},
	{"another id", "x", []string{oldSecret}, 0, func(h http.Header, _ *string) { h.Set(sign.HeaderID, "another") }, 401},
	{"no id", "x", []string{oldSecret}, 0, func(h http.Header, _ *string) { h.Del(sign.HeaderID) }, 401},
	{"another time", "x", []string{oldSecret}, 0, func(h http.Header, _ *string) {
		h.Set(sign.HeaderTimestamp, strconv.FormatInt(time.Now().Unix()+1, 10))
	}, 401},
	{"no time", "x", []string{oldSecret}, 0, func(h http.Header, _ *string) { h.Del(sign.HeaderTimestamp) }, 401},
	{"not signed", "x", []string{oldSecret}, 0, func(h http.Header, b *string) {
		onlyBody(h, b)
		h.Del(sign.HeaderBodySignature)
	}, 401},
}

func TestReceivers(t *testing.T) {
	t.Parallel()
	sender := newSender(t)
	for _, l := range inAllLanguages {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			p := newProgram(t, l)
			p.judges(t)
			p.answersFirst(t)
			p.losesItsTable(t, l.goesOn)
			p.isSentTo(t, sender)
		})
	}
	t.Run("official libraries", func(t *testing.T) { testLibraries(t, sender) })
}

// judges sends requests good and bad.
func (p *program) judges(t *testing.T) {
	t.Helper()
	p.start(t, []string{"", oldSecret, newSecret, oddSecret, ""}) // the empty ones are a variable that was not set
	leave(t, p.addr)
	hold(t, p.addr)
	for _, r := range requests {
		if got := deliver(t, p.addr, r, body); got != r.want {
			t.Errorf("%s: answered with %d, want %d", r.what, got, r.want)
		}
	}
	tooLarge := strings.Repeat(" ", 1<<20) + body
	if got, _, err := try(t, p.addr, request{delivery: "x", secrets: []string{oldSecret}}, tooLarge); err == nil && got != http.StatusRequestEntityTooLarge {
		t.Errorf("too large a body: answered with %d, want 413, or the connection closed before all of it is there", got)
	}
	if got := deliver(t, p.addr, requests[0], body); got != http.StatusNoContent {
		t.Errorf("after too large a body: answered with %d, want 204", got)
	}
	for range 4 { // of the seven that verify, one came four times
		p.works(t, received)
	}
}

// answersFirst has work that takes an hour, and the process killed during it. What was answered is worked on then, once:
// it was stored before.
func (p *program) answersFirst(t *testing.T) {
	t.Helper()
	p.kill(t)
	p.start(t, []string{oldSecret}, "WORK_SECONDS=3600")
	for _, r := range []request{
		{what: "a webhook whose work takes an hour", delivery: "d5", secrets: []string{oldSecret}},
		{what: "the same again", delivery: "d5", secrets: []string{oldSecret}},
		{what: "one more meanwhile", delivery: "d6", secrets: []string{oldSecret}},
	} {
		if got := deliver(t, p.addr, r, strings.Replace(body, "42", r.delivery[1:], 1)); got != 204 {
			t.Errorf("%s: answered with %d, want 204", r.what, got)
		}
	}
	p.kill(t)
	p.start(t, []string{oldSecret})
	if got := deliver(t, p.addr, request{delivery: "d5", secrets: []string{oldSecret}}, strings.Replace(body, "42", "5", 1)); got != 204 {
		t.Errorf("the same after a restart: answered with %d, want 204", got)
	}
	p.works(t, strings.Replace(received, "42", "5", 1))
	p.works(t, strings.Replace(received, "42", "6", 1)) // and not d5 again
	p.kill(t)
}

// losesItsTable has what is stored taken away. What cannot be stored is not answered with a 2xx, and the answer says nothing
// of the store; the work is not given up for ever while the answers go on.
func (p *program) losesItsTable(t *testing.T, goesOn bool) {
	t.Helper()
	p.start(t, []string{oldSecret})
	if _, err := p.db.Pool.Exec(t.Context(), `DROP TABLE IF EXISTS received_webhooks`); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p.store); err == nil {
		if err := errors.Join(os.Truncate(p.store, 0), os.Rename(p.store, p.store+".lost"), os.Mkdir(p.store, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	r := request{what: "without a table", delivery: "d7", secrets: []string{oldSecret}}
	stored := func() bool { // it may have kept the file open
		text, _ := os.ReadFile(p.store + ".lost")
		return bytes.Contains(text, []byte(r.delivery))
	}
	switch status, answer, err := try(t, p.addr, r, body); {
	case err != nil: // it has ended
	case status < 300 && !stored():
		t.Errorf("without a table it answered with %d %s", status, answer)
	case strings.Contains(answer, "received") || strings.Contains(answer, p.store):
		t.Errorf("its answer of %d tells of the store: %s", status, answer)
	}
	if !goesOn {
		select {
		case <-p.running[len(p.running)-1].Exited:
		case <-time.After(patience):
			t.Error("what works on webhooks goes on without its table")
		}
	}
	p.kill(t)
	if err := os.RemoveAll(p.store); err != nil {
		t.Fatal(err)
	}
}

// A webhook that the disk has no room for is not answered with a 2xx, or it would be lost.
func TestAFullDisk(t *testing.T) {
	t.Parallel()
	p := newProgram(t, inAllLanguages[1]) // the others leave it to a database
	p.commands[0] = append([]string{"sh", "-c", `ulimit -f 1; exec "$@"`, "sh"}, p.commands[0]...)
	p.start(t, []string{oldSecret})
	var answered []string
	for {
		delivery := "d" + strconv.Itoa(len(answered))
		if deliver(t, p.addr, request{what: delivery, delivery: delivery, secrets: []string{oldSecret}}, body) != http.StatusNoContent {
			break
		}
		answered = append(answered, delivery)
	}
	text, err := os.ReadFile(p.store)
	if err != nil {
		t.Fatal(err)
	}
	var stored []string
	for line := range bytes.Lines(text) {
		var webhook struct{ Delivery, Body string }
		if err := json.Unmarshal(line, &webhook); err == nil && webhook.Body != "" {
			stored = append(stored, webhook.Delivery)
		}
	}
	if !slices.Equal(stored, answered) {
		t.Errorf("stored are %v, and answered with a 2xx %v", stored, answered)
	}
}

// A sender is a walhook with a database.
type sender struct{ db *pgtest.DB }

func newSender(t *testing.T) sender {
	t.Helper()
	db := pgtest.New(t)
	testkit.Walhook(t, db.URL, db.Slot, "WALHOOK_RETRY_SCHEDULE=24h")
	return sender{db}
}

// endpoint returns the endpoint's id.
func (s sender) endpoint(t *testing.T, organization, url, secret string) (id string) {
	t.Helper()
	const create = `SELECT endpoint_id FROM webhook_create_endpoint($1, $2, secret => $3)`
	if err := s.db.Pool.QueryRow(t.Context(), create, organization, url, secret).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

// rotate returns the new secret. The old one is live beside it for a day.
func (s sender) rotate(t *testing.T, endpoint string) (secret string) {
	t.Helper()
	if err := s.db.Pool.QueryRow(t.Context(), `SELECT webhook_rotate_secret($1)`, endpoint).Scan(&secret); err != nil {
		t.Fatal(err)
	}
	return secret
}

// send inserts an event, and waits for the status of all attempts: one for each endpoint.
func (s sender) send(t *testing.T, organization string, amount int, want string) {
	t.Helper()
	const insert = `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ($1, 'payment.succeeded', jsonb_build_object('amount', $2::int))`
	if _, err := s.db.Pool.Exec(t.Context(), insert, organization, amount); err != nil {
		t.Fatal(err)
	}
	s.answered(t, organization, want)
}

// answered waits for the last event's deliveries: how many attempts each took, and the last answer.
func (s sender) answered(t *testing.T, organization, want string) {
	t.Helper()
	const answers = `
SELECT coalesce(string_agg(attempts || ' ' || status || ' ' || status_code, ', ' ORDER BY status_code), '') FROM webhook_deliveries
WHERE event_id = (SELECT id FROM webhook_outbox WHERE organization_id = $1 ORDER BY created_at DESC LIMIT 1)`
	var got string
	defer func() {
		if t.Failed() {
			t.Logf("the deliveries of %s: %s", organization, got)
		}
	}()
	pgtest.Eventually(t, patience, "the deliveries are "+want, func() bool {
		if err := s.db.Pool.QueryRow(t.Context(), answers, organization).Scan(&got); err != nil {
			t.Fatal(err)
		}
		return got == want
	})
}

// isSentTo has a walhook deliver, with the right secret and a wrong one, once more by hand, and through a rotation.
func (p *program) isSentTo(t *testing.T, s sender) {
	t.Helper()
	const delivered = "1 success 204, 1 retrying 401"
	organization, amount := t.Name(), 0
	send := func() {
		t.Helper()
		amount++
		s.send(t, organization, amount, delivered)
		p.works(t, fmt.Sprintf(`received payment.succeeded of %s: {"amount":%d}`, organization, amount)) // and nothing again
	}
	p.start(t, []string{oldSecret})
	way := newWay(t, p.addr)
	endpoint := s.endpoint(t, organization, way.URL, oldSecret)
	s.endpoint(t, organization, "http://"+p.addr+"/", "a stranger's secret")

	send()
	const replay = `SELECT webhook_replay(id) FROM webhook_deliveries WHERE endpoint_id = $1`
	if _, err := s.db.Pool.Exec(t.Context(), replay, endpoint); err != nil {
		t.Fatal(err)
	}
	s.answered(t, organization, "2 success 204, 1 retrying 401")

	rotated := s.rotate(t, endpoint)
	for way.last().signatures() != 2 { // walhook takes a second to notice; the receiver knows the old secret
		send()
	}
	p.kill(t)
	p.start(t, []string{rotated})
	send()
}

// A way to a receiver notes what passes. Without a receiver it answers itself.
type way struct {
	*httptest.Server
	mu     sync.Mutex
	passed []passed
}

// A passed request is what the official libraries take.
type passed struct {
	Secret  string            `json:"secret"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
}

func newWay(t *testing.T, to string) *way {
	t.Helper()
	w := &way{}
	w.Server = httptest.NewServer(http.HandlerFunc(func(answer http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		one := passed{Headers: map[string]string{}, Body: string(body)}
		for name := range r.Header {
			one.Headers[strings.ToLower(name)] = r.Header.Get(name)
		}
		w.mu.Lock()
		w.passed = append(w.passed, one)
		w.mu.Unlock()
		if to == "" {
			answer.WriteHeader(http.StatusNoContent)
			return
		}
		onwards, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+to+"/", bytes.NewReader(body))
		if err != nil {
			return
		}
		onwards.Header = r.Header
		resp, err := client.Do(onwards)
		if err != nil {
			answer.WriteHeader(http.StatusBadGateway)
			return
		}
		resp.Body.Close()
		answer.WriteHeader(resp.StatusCode)
	}))
	t.Cleanup(w.Close)
	return w
}

func (w *way) last() passed {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.passed[len(w.passed)-1]
}

func (p passed) signatures() int { return len(strings.Fields(p.Headers["webhook-signature"])) }

// The official libraries verify what walhook sends, with one secret and, in a rotation, with each of both.
func testLibraries(t *testing.T, s sender) {
	t.Parallel()
	node, folder := languages.Node(t, "testdata/libraries", "testdata/libraries/verify.mjs")
	byJavaScript := func(p passed) error {
		input, err := json.Marshal(p)
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(t.Context(), node, filepath.Join(folder, "verify.mjs"))
		cmd.Stdin = bytes.NewReader(input)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	byGo := func(p passed) error {
		webhook, err := standardwebhooks.NewWebhook(p.Secret)
		if err != nil {
			return err
		}
		headers := http.Header{}
		for name, value := range p.Headers {
			headers.Set(name, value)
		}
		return webhook.Verify([]byte(p.Body), headers)
	}
	verify := func(p passed, secret string, want bool) {
		t.Helper()
		p.Secret = secret
		for library, by := range map[string]func(passed) error{"JavaScript": byJavaScript, "Go": byGo} {
			if err := by(p); (err == nil) != want {
				t.Errorf("%s: %v, want %t", library, err, want)
			}
		}
	}
	organization := t.Name()
	way := newWay(t, "")
	endpoint := s.endpoint(t, organization, way.URL, oldSecret)
	s.send(t, organization, 1, "1 success 204")
	strange := "whsec_" + base64.StdEncoding.EncodeToString([]byte("a stranger's secret in base64"))
	verify(way.last(), oldSecret, true)
	verify(way.last(), strange, false)

	rotated := s.rotate(t, endpoint)
	for way.last().signatures() != 2 {
		s.send(t, organization, 2, "1 success 204")
	}
	verify(way.last(), oldSecret, true)
	verify(way.last(), rotated, true)
	verify(way.last(), strange, false)
	tampered := way.last()
	tampered.Body = strings.Replace(tampered.Body, "2", "3", 1)
	verify(tampered, rotated, false)
}

// hold keeps connections open that have half a request, until the test ends. They must not keep others out.
func hold(t *testing.T, addr string) {
	t.Helper()
	for range 20 {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: receiver\r\nContent-Length: 100\r\n\r\nhalf"); err != nil {
			t.Error(err)
		}
	}
}

// leave sends half a request and closes the connection, which must not end the receiver.
func leave(t *testing.T, addr string) {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: receiver\r\nContent-Length: 100\r\n\r\nhalf"); err != nil {
		t.Error(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Logf("the receiver's end of the connection: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

// An answer waits for no work: it takes no longer than this, however slow the machine is.
var client = &http.Client{Timeout: patience}

// deliver signs and sends a request, and returns the status.
func deliver(t *testing.T, addr string, r request, body string) int {
	t.Helper()
	status, _, err := try(t, addr, r, body)
	if err != nil {
		t.Fatalf("%s: %v", r.what, err)
	}
	return status
}

func try(t *testing.T, addr string, r request, body string) (status int, answer string, err error) {
	t.Helper()
	signer, err := sign.New(r.secrets...)
	if err != nil {
		t.Fatal(err)
	}
	unix, sent := time.Now().Add(-r.age).Unix(), body
	h := http.Header{}
	h.Set("X-Webhook-Delivery-ID", r.delivery)
	h.Set(sign.HeaderBodySignature, signer.Body([]byte(body)))
	h.Set(sign.HeaderID, r.delivery)
	h.Set(sign.HeaderTimestamp, strconv.FormatInt(unix, 10))
	h.Set(sign.HeaderSignature, signer.Standard(r.delivery, unix, []byte(body)))
	if r.tamper != nil {
		r.tamper(h, &sent)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+"/", strings.NewReader(sent))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = h
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}
