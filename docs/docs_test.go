// Package docs holds the maintainers' pages, and the tests that keep the README true.
package docs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/sign"
)

// blocks returns the README's code blocks of a language.
func blocks(t *testing.T, language string) []string {
	t.Helper()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		found = append(found, m[1])
	}
	return found
}

// block returns the only one that contains a text.
func block(t *testing.T, language, text string) string {
	t.Helper()
	var found []string
	for _, b := range blocks(t, language) {
		if strings.Contains(b, text) {
			found = append(found, b)
		}
	}
	if len(found) != 1 {
		t.Fatalf("README.md has %d blocks of %s with %q, want 1", len(found), language, text)
	}
	return found[0]
}

const (
	oldSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	newSecret = "a secret that is not base64"
	body      = `{"id":"1","event":"payment.succeeded","data":{"amount": 42},"organizationId":"org_1","timestamp":"2026-11-23T12:00:00.000Z"}`
	received  = `received payment.succeeded of org_1: {"amount":42}`
)

// A request is a webhook as walhook sends it, perhaps tampered with.
type request struct {
	what     string
	delivery string
	secrets  []string // that it is signed with, oldest first
	age      time.Duration
	tamper   func(h http.Header, body *string)
	want     int
}

func TestReceiversOfTheREADME(t *testing.T) {
	t.Parallel()
	write := func(t *testing.T, language, name string) (path string) {
		t.Helper()
		path = filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(block(t, language, "// "+name+": ")), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Run("Node", func(t *testing.T) {
		t.Parallel()
		node, err := exec.LookPath("node")
		if err != nil {
			t.Skip("there is no node here")
		}
		testReceiver(t, exec.CommandContext(t.Context(), node, write(t, "js", "receiver.mjs")))
	})
	t.Run("Go", func(t *testing.T) {
		t.Parallel()
		source := write(t, "go", "receiver.go")
		if out, err := exec.CommandContext(t.Context(), "gofmt", "-l", source).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("gofmt has changes: %v %s", err, out)
		}
		program := strings.TrimSuffix(source, ".go")
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, source).CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
		testReceiver(t, exec.CommandContext(t.Context(), program))
	})
}

func testReceiver(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	addr := freeAddr(t)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "PORT="+port, "WEBHOOK_SECRETS="+oldSecret+","+newSecret)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	pgtest.Eventually(t, 20*time.Second, "the receiver listens", func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err == nil {
			err = conn.Close()
		}
		return err == nil
	})

	onlyBody := func(h http.Header, _ *string) {
		for _, name := range []string{sign.HeaderID, sign.HeaderTimestamp, sign.HeaderSignature} {
			h.Del(name)
		}
	}
	for _, r := range []request{
		{"a webhook", "d1", []string{oldSecret}, 0, nil, 204},
		{"the same again", "d1", []string{oldSecret}, 0, nil, 204},
		{"the other secret", "d2", []string{newSecret}, 0, nil, 204},
		{"both, in a rotation", "d3", []string{"an older secret", newSecret}, 0, nil, 204},
		{"the body's signature alone", "d4", []string{oldSecret}, 0, onlyBody, 204},
		{"a stranger's secret", "x", []string{"a stranger's secret"}, 0, nil, 401},
		{"an old request", "x", []string{oldSecret}, 10 * time.Minute, nil, 401},
		{"a request of the future", "x", []string{oldSecret}, -10 * time.Minute, nil, 401},
		{"another body", "x", []string{oldSecret}, 0, func(_ http.Header, b *string) { *b = strings.Replace(*b, "42", "43", 1) }, 401},
		{"another body, the body's signature alone", "x", []string{oldSecret}, 0, func(h http.Header, b *string) {
			onlyBody(h, b)
			*b = strings.Replace(*b, "42", "43", 1)
		}, 401},
		{"another time", "x", []string{oldSecret}, 0, func(h http.Header, _ *string) {
			h.Set(sign.HeaderTimestamp, strconv.FormatInt(time.Now().Unix()+1, 10))
		}, 401},
		{"no time", "x", []string{oldSecret}, 0, func(h http.Header, _ *string) { h.Del(sign.HeaderTimestamp) }, 401},
		{"not signed", "x", []string{oldSecret}, 0, func(h http.Header, b *string) {
			onlyBody(h, b)
			h.Del(sign.HeaderBodySignature)
		}, 401},
	} {
		if got := deliver(t, "http://"+addr+"/", r); got != r.want {
			t.Errorf("%s: answered with %d, want %d", r.what, got, r.want)
		}
	}

	// Of the five that verify, one came twice.
	lines := bufio.NewScanner(stdout)
	for n := range 4 {
		if !lines.Scan() || strings.ReplaceAll(lines.Text(), `": `, `":`) != received {
			t.Fatalf("line %d is %q, want %q", n, lines.Text(), received)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(stdout); lines.Scan() || len(rest) > 0 {
		t.Errorf("it received more: %q %q", lines.Text(), rest)
	}
}

// deliver signs and sends a request, and returns the status.
func deliver(t *testing.T, url string, r request) int {
	t.Helper()
	signer, err := sign.New(r.secrets...)
	if err != nil {
		t.Fatal(err)
	}
	const id = "0193a1f0-7c00-7abc-8def-0123456789ab"
	unix, sent := time.Now().Add(-r.age).Unix(), body
	h := http.Header{}
	h.Set("X-Webhook-Delivery-ID", r.delivery)
	h.Set(sign.HeaderBodySignature, signer.Body([]byte(body)))
	h.Set(sign.HeaderID, id)
	h.Set(sign.HeaderTimestamp, strconv.FormatInt(unix, 10))
	h.Set(sign.HeaderSignature, signer.Standard(id, unix, []byte(body)))
	if r.tamper != nil {
		r.tamper(h, &sent)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(sent))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = h
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", r.what, err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
	return resp.StatusCode
}

// freeAddr returns an address that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

// Every statement of the README runs, in a database that has walhook in the schema where
// the README leads, and its roles can do with it what it says. Roles belong to the server:
// they get names of this test's own, and are rolled back with the rest.
func TestSQLOfTheREADME(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	role := regexp.MustCompile(`\b(ROLE|TO) (walhook|app|backend|ops)\b`)
	ours := func(statement string) string {
		statement = strings.ReplaceAll(statement, "DATABASE app", "DATABASE "+pgx.Identifier{db.Slot}.Sanitize())
		return role.ReplaceAllString(statement, fmt.Sprintf(`$1 "%s_$2"`, db.Slot))
	}
	installAsREADME(t, db, ours)
	conn, err := pgx.Connect(t.Context(), db.URL) // the database's search_path is in force in new connections
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	statements := 0
	if _, err := tx.Exec(t.Context(), `INSERT INTO webhook_endpoints (id, organization_id, url) VALUES ('44444444-4444-4444-8444-444444444444', 'org_1', 'https://example.com/')`); err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks(t, "sql") {
		for statement := range statementsOf(b) {
			if statement = ours(statement); statement == "BEGIN" || statement == "COMMIT" {
				continue
			}
			if _, err := tx.Exec(t.Context(), statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
			statements++
		}
	}
	if statements < 20 {
		t.Errorf("only %d statements were found", statements)
	}

	const (
		insert = `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.succeeded', '{}') RETURNING `
		secret = `SELECT webhook_set_secret('44444444-4444-4444-8444-444444444444', 'a secret of your own')`
	)
	for _, c := range []struct {
		role, statement string
		may             bool
	}{
		{"app", insert + "id", true},
		{"app", insert + "*", false},
		{"app", secret, false},
		{"backend", `SELECT * FROM webhook_create_endpoint('org_1', 'https://example.com/')`, true},
		{"backend", `UPDATE webhook_endpoints SET max_in_flight = 4`, true},
		{"backend", `SELECT webhook_rotate_secret('44444444-4444-4444-8444-444444444444', '1 hour')`, true},
		{"backend", secret, true},
		{"backend", `SELECT webhook_send_test('44444444-4444-4444-8444-444444444444')`, true},
		{"backend", `SELECT * FROM webhook_secrets`, false},
		{"ops", `SELECT * FROM webhook_status`, true},
		{"ops", `SELECT * FROM webhook_stats('org_1')`, true},
		{"ops", `SELECT * FROM webhook_explain((SELECT max(id::text)::uuid FROM webhook_outbox))`, true},
		{"ops", `SELECT webhook_replay((SELECT max(id::text)::uuid FROM webhook_deliveries))`, true},
		{"ops", `SELECT webhook_replay_failed('44444444-4444-4444-8444-444444444444', now() - interval '2 days')`, true},
		{"ops", `SELECT webhook_retry_now('44444444-4444-4444-8444-444444444444')`, true},
		{"ops", insert + "id", false},
		{"ops", `SELECT * FROM webhook_secrets`, false},
	} {
		if may, err := mayDo(t, tx, fmt.Sprintf("%s_%s", db.Slot, c.role), c.statement); may != c.may {
			t.Errorf("%s: %s: %v", c.role, c.statement, err)
		}
	}
	if _, err := tx.Exec(t.Context(), `GRANT INSERT, SELECT ON webhook_outbox TO `+pgx.Identifier{db.Slot + "_app"}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	if may, err := mayDo(t, tx, db.Slot+"_app", insert+"*"); !may {
		t.Errorf("app, granted SELECT: %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
}

// installAsREADME gives the database the search_path of the README, and applies the
// schema where its commands say.
func installAsREADME(t *testing.T, db *pgtest.DB, ours func(string) string) {
	t.Helper()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`WALHOOK_SCHEMA=(\w+)`).FindStringSubmatch(string(text))
	path := regexp.MustCompile(`ALTER DATABASE app SET search_path = [^;]+`).FindString(string(text))
	if named == nil || path == "" {
		t.Fatal("README.md names no schema, or no search_path")
	}
	if _, err := db.Pool.Exec(t.Context(), ours(path)); err != nil {
		t.Fatal(err)
	}
	config, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.RuntimeParams["search_path"] = named[1]
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	schema, err := os.ReadFile("../schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	st := store.New(pool, db.Slot, 0)
	if err := st.CreateSchema(t.Context(), named[1]); err != nil {
		t.Fatal(err)
	}
	if err := st.Migrate(t.Context(), string(schema)); err != nil {
		t.Fatal(err)
	}
}

// statementsOf returns the statements of a block, without comments.
func statementsOf(block string) iter.Seq[string] {
	block = regexp.MustCompile(`(?m)--.*$`).ReplaceAllString(block, "")
	return func(yield func(string) bool) {
		for statement := range strings.SplitSeq(block, ";\n") {
			if statement = strings.TrimSpace(statement); statement != "" && !yield(statement) {
				return
			}
		}
	}
}

// mayDo says whether a role may execute a statement, which leaves nothing behind. Any
// error but a missing right fails the test.
func mayDo(t *testing.T, tx pgx.Tx, role, statement string) (may bool, err error) {
	t.Helper()
	inner, err := tx.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Rollback(t.Context())
	if _, err := inner.Exec(t.Context(), `SET LOCAL ROLE `+pgx.Identifier{role}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	_, err = inner.Exec(t.Context(), statement)
	if pg, ok := errors.AsType[*pgconn.PgError](err); err != nil && (!ok || pg.Code != "42501") {
		t.Errorf("%s: %s: %v", role, statement, err)
	}
	return err == nil, err
}
