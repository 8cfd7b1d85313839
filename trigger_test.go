package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/process"
	"github.com/walhook/walhook/internal/testkit"
	"github.com/walhook/walhook/sign"
)

// command types a command with the world's environment.
func (w *world) command(args ...string) (code int, stdout, stderr string) {
	w.t.Helper()
	unset(w.t)
	for _, pair := range w.env {
		name, value, _ := strings.Cut(pair, "=")
		w.t.Setenv(name, value)
	}
	return typed(w.t, args...)
}

// listening runs walhook listen until the test ends.
func listening(t *testing.T, args ...string) (url string, printed *testkit.Output) {
	t.Helper()
	printed = new(testkit.Output)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- command(ctx, append([]string{"listen", "--addr", "127.0.0.1:0"}, args...), printed, t.Output())
	}()
	t.Cleanup(func() {
		stop()
		if code := <-ended; code != exitClean {
			t.Errorf("listen: exit %d", code)
		}
	})
	address := regexp.MustCompile(`http://127\.0\.0\.1:\d+`)
	pgtest.Eventually(t, patience, "it listens", func() bool { return address.MatchString(printed.String()) })
	return address.FindString(printed.String()), printed
}

// What a receiver's developer types, with an application behind it that knows nothing of walhook.
func TestTriggerAndListen(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("there is no node here")
	}
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	w := makeWorld(t, pgtest.New(t))
	port, err := process.ForWalhook.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	app := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	received := new(testkit.Output)
	cmd := exec.CommandContext(t.Context(), node, "examples/receivers/receiver.mjs")
	cmd.Env = append(os.Environ(), "PORT="+strconv.Itoa(port), "WEBHOOK_SECRETS="+secret, "WEBHOOK_STORE="+filepath.Join(t.TempDir(), "store"))
	cmd.Stdout, cmd.Stderr = received, t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	pgtest.Eventually(t, patience, "the application listens", func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", app)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	url, printed := listening(t, "--secret", secret, "--fail", "1", "--forward", "http://"+app)
	w.exec(`SELECT webhook_create_endpoint('org_1', $1, '{payment.*}', $2)`, url+"/hooks?token=hunter2", secret)
	w.exec(`SELECT webhook_create_endpoint('org_1', 'https://example.com/hooks?token=hunter2', '{org.*}')`)
	w.run("WALHOOK_RETRY_SCHEDULE=1s") // trigger looks five times a second, and has to see that the delivery waits

	code, stdout, stderr := w.command("trigger", "org_1", "payment.succeeded", `{"amount": 4200}`)
	if code != exitClean || stderr != "" {
		t.Errorf("exit %d, %s", code, stderr)
	}
	for _, want := range []string{
		"payment.succeeded of org_1\n", "#1  " + url + "  endpoint ", "--  https://example.com  endpoint ", ": not owed: not subscribed to payment.succeeded\n",
		"#1  attempt 1: 500 http_5xx (", "; the next is due in ", "#1  attempt 2: 204 in ", "#1  success\n", "all succeeded: 1 of 1\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("want %q in\n%s", want, stdout)
		}
	}
	pgtest.Eventually(t, patience, "the application works on it, after its answer", func() bool { return received.String() != "" })
	if got := received.String(); got != `received payment.succeeded of org_1: {"amount":4200}`+"\n" {
		t.Errorf("the application says %q", got)
	}
	for _, want := range []string{
		"POST /hooks?…\n", "X-Webhook-Retry        1\n", "verified: made with secret " + sign.Fingerprint(secret), "answered 500", "answered 204 No Content: http://" + app + " said so in ",
	} {
		if !strings.Contains(printed.String(), want) {
			t.Errorf("want %q in\n%s", want, printed)
		}
	}
	if all := stdout + printed.String(); strings.Contains(all, "hunter2") || strings.Contains(all, secret) {
		t.Errorf("a secret is shown:\n%s", all)
	}
	if n := query[int](w, `SELECT count(*) FROM webhook_audit WHERE action = 'test.sent'`); n != 1 {
		t.Errorf("%d test webhooks are in the audit", n)
	}
}

// Whatever else comes of it is exit 1, and says why.
func TestTriggerOfWhatDoesNotSucceed(t *testing.T) {
	w := makeWorld(t, pgtest.New(t))
	broken := newReceiver(t, always(http.StatusInternalServerError))
	fine := newReceiver(t, always(http.StatusNoContent))
	bad, _ := w.endpoint(broken.URL, "payment.failed", "payment.refunded")
	good, _ := w.endpoint(fine.URL, "payment.failed")

	code, stdout, stderr := w.command("trigger", "--wait", "0s", "org_1", "payment.refunded")
	if code != exitFailure || !strings.Contains(stdout, "still waiting: owed: no outcome yet") || !strings.Contains(stdout, "no walhook is connected") || !strings.Contains(stderr, "1 wait") {
		t.Errorf("without a walhook: exit %d\n%s%s", code, stdout, stderr)
	}
	w.run()
	code, stdout, stderr = w.command("trigger", "org_1", "payment.failed")
	if code != exitFailure || !strings.Contains(stdout, "attempt 4: 500") || !strings.Contains(stdout, "  failed\n") || !strings.Contains(stderr, "1 of 2 did, 1 failed") {
		t.Errorf("one fails: exit %d\n%s%s", code, stdout, stderr)
	}
	for _, args := range [][]string{
		{"trigger", "--endpoint", good.String(), "org_1", "org.created"}, {"trigger", "org_1", "org.created", "--endpoint=" + good.String()},
		{"trigger", "org_1", "--endpoint", good.String(), "org.created", "{}"}, {"trigger", "--endpoint", good.String(), "--", "org_1", "org.created", "-1"},
	} {
		if code, stdout, stderr = w.command(args...); code != exitClean || strings.Contains(stdout, bad.String()+", delivery") {
			t.Errorf("%q: exit %d\n%s%s", args, code, stdout, stderr)
		}
	}
	w.exec(`UPDATE webhook_endpoints SET enabled = false WHERE id = $1`, good)
	for eventType, why := range map[string]string{"org.created": "not subscribed to org.created", "payment.failed": "disabled when the event was inserted"} {
		w.exec(`UPDATE webhook_endpoints SET enabled = false`)
		code, stdout, stderr = w.command("trigger", "org_1", eventType)
		if code != exitFailure || !strings.Contains(stdout, why) || !strings.Contains(stderr, "nobody is owed event") {
			t.Errorf("%s: exit %d\n%s%s", eventType, code, stdout, stderr)
		}
	}
}

// An organization without endpoints may have events, as the application's: this one is written, and owed to nobody.
func TestTriggerForNobody(t *testing.T) {
	w := makeWorld(t, pgtest.New(t))
	code, stdout, stderr := w.command("trigger", "org_9", "payment.failed")
	if code != exitFailure || !strings.Contains(stdout, "payment.failed of org_9\n") || !strings.Contains(stderr, `organization "org_9" has no endpoint`) || !strings.Contains(stderr, "webhook_create_endpoint") {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
	if n := query[int](w, `SELECT count(*) FROM webhook_outbox WHERE organization_id = 'org_9' AND endpoint_ids = '{}'`); n != 1 {
		t.Errorf("%d events were written", n)
	}
}

// What cannot be sent is bad configuration, and nothing is written.
func TestTriggerRefuses(t *testing.T) {
	w := makeWorld(t, pgtest.New(t))
	id, _ := w.endpoint("https://example.com/")
	other := query[uuid.UUID](w, `INSERT INTO webhook_endpoints (organization_id, url) VALUES ('org_2', 'https://example.com/') RETURNING id`)
	for _, tt := range []struct {
		says string
		args []string
	}{
		{"it got 0 arguments", nil},
		{"it got 1 arguments", []string{"org_1"}},
		{"it got 4 arguments", []string{"org_1", "payment.failed", "{}", "{}"}},
		{"it got 2 arguments", []string{"", "payment.failed"}},
		{"the data is not JSON", []string{"org_1", "payment.failed", "{amount: 1}"}},
		{"the data is not JSON", []string{"org_1", "payment.failed", ""}},
		{"known types: ", []string{"org_1", "payment.filed"}},
		{"--endpoint", []string{"org_1", "payment.failed", "--endpoint", "first"}},
		{"is not an endpoint of organization", []string{"org_1", "payment.failed", "--endpoint", other.String()}},
		{"is not an endpoint of organization", []string{"org_1", "payment.failed", "--endpoint", uuid.NewString()}},
		{"--wait", []string{"org_1", "payment.failed", "--wait", "-1s"}},
		{"-later", []string{"org_1", "payment.failed", "--later"}},
		{"256 KiB", []string{"org_1", "payment.failed", `"` + strings.Repeat("x", 300<<10) + `"`}},
		{"Unicode", []string{"org_1", "payment.failed", `"\u0000"`, "--endpoint", id.String()}},
	} {
		code, stdout, stderr := w.command(append([]string{"trigger"}, tt.args...)...)
		if code != exitConfig || stdout != "" || !strings.Contains(stderr, tt.says) {
			t.Errorf("%.80q: exit %d, %q, %q", tt.args, code, stdout, stderr)
		}
	}
	if n := query[int](w, `SELECT count(*) FROM webhook_outbox`); n != 0 {
		t.Errorf("%d events were written", n)
	}
	w.exec(`DROP VIEW webhook_attempts`)
	w.exec(`DROP TABLE webhook_deliveries CASCADE`)
	if code, _, stderr := w.command("trigger", "org_1", "payment.failed"); code != exitNotPrepared {
		t.Errorf("not prepared: exit %d, %s", code, stderr)
	}
	w.env = append(w.env, "WALHOOK_DATABASE_URL=postgres://nobody@127.0.0.1:1/nothing")
	if code, _, stderr := w.command("trigger", "org_1", "payment.failed"); code != exitFailure || !strings.Contains(stderr, "127.0.0.1:1") {
		t.Errorf("unreachable: exit %d, %s", code, stderr)
	}
}

// The role that runs walhook may send test webhooks too.
func TestTriggerAsTheRoleThatRuns(t *testing.T) {
	w := newWorldWithRoles(t)
	r := newReceiver(t, always(http.StatusNoContent))
	w.as("walhook_backend", `SELECT webhook_create_endpoint('org_1', $1, '{payment.*}')`, r.URL)
	w.run()
	what, err := testWebhook([]string{"org_1", "payment.failed"}, "")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(w.env)
	if err != nil {
		t.Fatal(err)
	}
	db, err := openDatabase(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer db.close()
	if err := trigger(t.Context(), db.store, what, patience, io.Discard); err != nil {
		t.Error(err)
	}
}
