package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/status"
)

// An operator finds a broken receiver with status alone, from a pipe too.
func TestStatus(t *testing.T) {
	w := makeWorld(t, pgtest.New(t))
	broken := newReceiver(t, always(http.StatusInternalServerError))
	id, _ := w.endpoint(broken.URL + "/hooks?token=hunter2")
	w.run("WALHOOK_RETRY_SCHEDULE=1h", "WALHOOK_ENVIRONMENT=production")
	for range 3 {
		w.insert("payment.failed")
	}
	w.eventually("its failure is known", `SELECT count(*) = 3 AND EXISTS (SELECT FROM webhook_endpoint_failures) FROM webhook_deliveries WHERE status = 'retrying'`)

	code, stdout, stderr := w.command("status", "--json")
	var got status.Status
	if err := json.Unmarshal([]byte(stdout), &got); code != exitClean || stderr != "" || err != nil || strings.Count(stdout, "\n") != 1 {
		t.Fatalf("exit %d, %q, %s, %v", code, stderr, stdout, err)
	}
	if got.Role != "active" || got.Version != version || got.Slot != w.db.Slot || got.Environment != "production" || *got.LagBytes < 0 || *got.Pending != 0 || *got.Retrying != 3 ||
		*got.OverdueSeconds != 0 || *got.Endpoints != (status.Endpoints{Failing: 1}) || len(got.Failing) != 1 {
		t.Errorf("got %s", stdout)
	}
	if f := got.Failing[0]; f.Endpoint != id.String() || f.Organization != "org_1" || f.URL != broken.URL || f.Error == "" || f.Waiting != 3 {
		t.Errorf("got %+v", f)
	}
	code, stdout, stderr = w.command("status")
	if code != exitClean || stderr != "" || !strings.Contains(stdout, "walhook    active, environment production") || !strings.Contains(stdout, id.String()+"  org_1\n") {
		t.Errorf("exit %d, %q,\n%s", code, stderr, stdout)
	}
	if strings.Contains(stdout, "hunter2") || strings.Contains(stdout, "\x1b") {
		t.Errorf("a pipe gets\n%q", stdout)
	}
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	if _, stdout, _ = w.command("status"); !strings.Contains(stdout, "down: no walhook is connected") {
		t.Errorf("without a walhook:\n%s", stdout)
	}

	// --watch looks again and again, and a signal ends it cleanly.
	for _, args := range [][]string{{"status", "--watch", "--json"}, {"status", "--watch"}} {
		ctx, stop := context.WithCancel(t.Context())
		printed, out := io.Pipe()
		ended := make(chan int, 1)
		go func() {
			ended <- command(ctx, args, out, t.Output())
			out.Close()
		}()
		looks := 0
		for lines := bufio.NewScanner(printed); lines.Scan(); {
			if strings.Contains(lines.Text(), "down") {
				looks++
			}
			if looks == 2 {
				stop()
			}
		}
		stop()
		if code := <-ended; code != exitClean || looks < 2 {
			t.Errorf("%q: exit %d after %d looks", args, code, looks)
		}
	}
}

func TestStatusRefuses(t *testing.T) {
	w := makeWorld(t, pgtest.New(t))
	for _, args := range [][]string{{"status", "--yaml"}, {"status", "now"}} {
		if code, stdout, stderr := w.command(args...); code != exitConfig || stdout != "" || stderr == "" {
			t.Errorf("%q: exit %d, %q, %q", args, code, stdout, stderr)
		}
	}
	w.exec(`DROP TABLE webhook_deliveries CASCADE`)
	for _, args := range [][]string{{"status"}, {"status", "--json", "--watch"}} {
		if code, stdout, stderr := w.command(args...); code != exitNotPrepared || stdout != "" || !strings.Contains(stderr, "webhook_deliveries") {
			t.Errorf("%q, not prepared: exit %d, %q, %q", args, code, stdout, stderr)
		}
	}
	w.env = append(w.env, "WALHOOK_DATABASE_URL=postgres://nobody@127.0.0.1:1/nothing")
	if code, stdout, stderr := w.command("status", "--json"); code != exitFailure || stdout != "" || !strings.Contains(stderr, "127.0.0.1:1") {
		t.Errorf("unreachable: exit %d, %q, %q", code, stdout, stderr)
	}
	w.env = append(w.env, "WALHOOK_MAX_IN_FLIGHT=many")
	if code, _, stderr := w.command("status"); code != exitConfig || !strings.Contains(stderr, "WALHOOK_MAX_IN_FLIGHT") {
		t.Errorf("bad configuration: exit %d, %q", code, stderr)
	}
}

// The role that runs walhook may look.
func TestStatusAsTheRoleThatRuns(t *testing.T) {
	w := newWorldWithRoles(t)
	cfg, err := config.Load(w.env)
	if err != nil {
		t.Fatal(err)
	}
	db, err := openDatabase(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer db.close()
	w.exec(`INSERT INTO webhook_endpoints (organization_id, url) VALUES ('org_1', 'https://example.com')`)
	w.exec(`INSERT INTO webhook_endpoint_failures SELECT id, now() FROM webhook_endpoints`)
	if s, err := status.Take(t.Context(), db.store, version, cfg.Slot); err != nil || len(s.Failing) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}
