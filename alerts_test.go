package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/process"
)

// tool returns the path of a program of Prometheus.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("there is no %s on the PATH: install the package prometheus, as .ci/run does, to have the alerts tested", name)
	}
	return path
}

// Each rule fires on series for which it should, and is quiet on others.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	promtool := tool(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = "deploy/prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	tests := readFile(t, "deploy/prometheus/alerts_test.yml")
	for _, alert := range alertNames(t) {
		if !strings.Contains(tests, "name: "+alert+" fires\n") || !strings.Contains(tests, "name: "+alert+" is quiet\n") {
			t.Errorf("alerts_test.yml does not test %s", alert)
		}
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func alertNames(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, m := range regexp.MustCompile(`- alert: (\w+)\n`).FindAllStringSubmatch(readFile(t, "deploy/prometheus/alerts.yml"), -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	return names
}

// The page lists each rule with what to do, and each metric on which to alert has a rule.
func TestOperationsListsTheAlerts(t *testing.T) {
	t.Parallel()
	page, rules := readFile(t, "docs/operations.md"), readFile(t, "deploy/prometheus/alerts.yml")
	var listed []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(Walhook\\w+)` \\|").FindAllStringSubmatch(page, -1) {
		listed = append(listed, m[1])
	}
	slices.Sort(listed)
	if want := alertNames(t); !slices.Equal(listed, want) {
		t.Errorf("docs/operations.md lists %v, want %v", listed, want)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `(Walhook\\w+)` \\| (.*) \\|$").FindAllStringSubmatch(page, -1) {
		if want := "description: '" + annotation(m[2]) + "'"; !strings.Contains(rules, want) {
			t.Errorf("alerts.yml does not say what to do for %s as the page does; want %s", m[1], want)
		}
	}
	rows := regexp.MustCompile("(?mi)^\\| `(walhook_\\w+)` \\|.*\\*\\*alert\\*\\*").FindAllStringSubmatch(page, -1)
	if len(rows) == 0 {
		t.Error("docs/operations.md names no metric on which to alert")
	}
	for _, m := range rows {
		if !strings.Contains(rules, m[1]) {
			t.Errorf("docs/operations.md says to alert on %s, and no rule does", m[1])
		}
	}
}

// annotation returns what a row of the page says, as an alert has it: without Markdown, as a sentence,
// in YAML's quotes.
func annotation(row string) string {
	text := regexp.MustCompile(`\[([^\]]*)\]\((#[^)]*)\)`).ReplaceAllString(row, "$1 (docs/operations.md$2)")
	text = strings.NewReplacer("`", "", "'", "''").Replace(text)
	return strings.ToUpper(text[:1]) + strings.TrimSuffix(text[1:], ".") + "."
}

// A relay is a way to the database that a test can cut.
type relay struct {
	net.Listener
	to string

	mu    sync.Mutex
	conns []net.Conn
	cut   bool
}

func newRelay(t *testing.T, to string) *relay { return relayAt(t, "127.0.0.1:0", to) }

func relayAt(t *testing.T, at, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: l, to: to}
	t.Cleanup(r.stop)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go r.pass(conn)
		}
	}()
	return r
}

func (r *relay) pass(conn net.Conn) {
	defer conn.Close()
	there, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer there.Close()
	r.mu.Lock()
	r.conns = append(r.conns, conn, there)
	cut := r.cut
	r.mu.Unlock()
	if cut {
		return
	}
	go func() {
		_, _ = io.Copy(there, conn)
		there.Close()
	}()
	_, _ = io.Copy(conn, there)
}

// stop cuts all connections, and refuses new ones.
func (r *relay) stop() {
	r.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = true
	for _, conn := range r.conns {
		conn.Close()
	}
}

// through returns a database's URL that leads through a relay.
func through(t *testing.T, url string) (*relay, string) {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(config.ConnConfig.Host, fmt.Sprint(config.ConnConfig.Port))
	r := newRelay(t, address)
	replaced := strings.Replace(url, address, r.Addr().String(), 1)
	if replaced == url {
		t.Fatalf("the database's URL does not name %s", address)
	}
	return r, replaced
}

// A trouble is a walhook in a bad state, and the alerts that have to fire for it and no
// others. each is called while they are waited for.
type trouble struct {
	name  string
	fires []string
	make  func(t *testing.T, w *world)
	db    func(t *testing.T) *pgtest.DB // nil: on the shared server
	each  func(w *world)
}

var troubles = []trouble{
	{name: "customers", make: deadCustomers},
	{name: "down", fires: []string{"WalhookDown", "WalhookNoneActive"}, make: func(t *testing.T, w *world) {
		w.run()
		if err := w.stop(); err != nil {
			t.Error(err)
		}
	}},
	{name: "away", fires: []string{"WalhookDatabaseAway", "WalhookNoneActive", "WalhookStreamTrouble"}, make: func(t *testing.T, w *world) {
		r, url := through(t, w.db.URL)
		w.fails = true // it cannot record its end
		w.run("WALHOOK_DATABASE_URL=" + url)
		w.settled()
		r.stop()
	}},
	{name: "cut", fires: []string{"WalhookNoneActive", "WalhookOverdue", "WalhookSlotInactive", "WalhookStreamTrouble"}, make: func(t *testing.T, w *world) {
		rcv := newReceiver(t, always(200))
		w.endpoint(rcv.URL)
		r, url := through(t, w.db.URL)
		w.run("WALHOOK_REPLICATION_URL=" + url)
		w.settled()
		w.insert("payment.succeeded")
		w.eventually("it is delivered", `SELECT count(*) = 1 FROM webhook_deliveries WHERE status = 'success'`)
		r.stop()
		w.eventually("nobody has the slot", `SELECT NOT active FROM pg_replication_slots WHERE slot_name = $1`, w.db.Slot)
		w.exec(`UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now() - interval '1 hour', created_at = now() - interval '1 hour'`)
	}},
	{name: "proxy", fires: []string{"WalhookOwnFault"}, make: func(t *testing.T, w *world) {
		rcv := newReceiver(t, always(200))
		w.endpoint(rcv.URL)
		w.run("WALHOOK_PROXY_URL=http://127.0.0.1:1")
		w.settled()
		w.insert("payment.succeeded")
	}},
	{name: "days", fires: []string{"WalhookPartitionsRunOut"}, make: func(_ *testing.T, w *world) {
		w.run()
		w.settled()
	}, each: func(w *world) { // the first upkeep may make the day again
		w.exec(`DROP TABLE IF EXISTS webhook_deliveries_p` + time.Now().UTC().Add(3*24*time.Hour).Format("20060102"))
	}},
	{name: "full", fires: []string{"WalhookReconcilesForLong", "WalhookSlotRunsOut"}, make: oldTransaction, db: smallServer},
}

// settled waits until what may have been committed before the slot is looked for, and walhook
// knows it: one that loses its database before would have to compare.
func (w *world) settled() {
	w.t.Helper()
	w.eventually("the comparison is done", `SELECT reconcile_from IS NULL FROM webhook_state WHERE slot = $1`, w.db.Slot)
	address, _ := strings.CutPrefix(w.env[0], "WALHOOK_ADMIN_ADDR=")
	pgtest.Eventually(w.t, patience, "walhook knows it", func() bool {
		r, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
		if err != nil {
			w.t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		return err == nil && strings.Contains(string(text), "\nwalhook_reconcile_pending 0\n")
	})
}

// deadCustomers has endpoints that fail in all ways until their breakers open and their
// deliveries are exhausted, and one that is gone.
func deadCustomers(t *testing.T, w *world) {
	broken, gone := newReceiver(t, always(500)), newReceiver(t, always(410))
	w.endpoint(broken.URL)
	w.endpoint(gone.URL)
	w.endpoint("http://127.0.0.1:1/") // where nobody listens, nor will a receiver of another test
	w.run()
	w.settled()
	for range 10 {
		w.insert("payment.succeeded")
	}
	w.eventually("two breakers are open", `SELECT count(breaker_opened_at) = 2 FROM webhook_endpoint_failures`)
	w.eventually("one endpoint is disabled", `SELECT count(*) = 1 FROM webhook_endpoints WHERE NOT enabled`)
	w.exec(`UPDATE webhook_deliveries SET next_attempt_at = now() - interval '1 hour', created_at = now() - interval '1 hour' WHERE status IN ('pending', 'retrying')`)
}

// oldTransaction has a transaction open that a comparison waits for, and for which the slot
// keeps three quarters of what it may.
func oldTransaction(t *testing.T, w *world) {
	w.run()
	w.settled()
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	tx, err := w.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `INSERT INTO webhook_event_types (name, category) VALUES ('a.b', 'a')`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(t.Context()) })
	w.exec(`UPDATE webhook_state SET reconcile_from = now() - interval '1 hour'`)
	for range 3 * slotKeepMB / 4 {
		w.exec(`SELECT pg_logical_emit_message(false, 'test', repeat('x', 1 << 20))`)
	}
	w.run()
}

const slotKeepMB = 128 // eight segments

// smallServer is a server of its own, whose slots may keep little: a transaction that is open
// on the shared one would hold up other tests.
func smallServer(t *testing.T) *pgtest.DB {
	t.Helper()
	server := pgtest.Server(t, postgres.Options{Settings: map[string]string{"max_slot_wal_keep_size": fmt.Sprintf("%dMB", slotKeepMB)}})
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return &pgtest.DB{URL: server.URL(), Slot: "walhook", Pool: pool}
}

// Every alert fires for a real walhook in the state that it is about, and none for one whose
// customers' endpoints are dead. The rules are those that are shipped, without the wait.
func TestAlertsFire(t *testing.T) {
	t.Parallel()
	program := tool(t, "prometheus")
	want, jobs := map[string][]string{}, ""
	var fired []string
	worlds := map[string]*world{}
	for _, x := range troubles {
		if x.db == nil {
			x.db = func(t *testing.T) *pgtest.DB { return pgtest.New(t) }
		}
		port, err := process.ForWalhook.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		w := makeWorld(t, x.db(t))
		w.env = slices.Insert(w.env, 0, fmt.Sprintf("WALHOOK_ADMIN_ADDR=127.0.0.1:%d", port))
		x.make(t, w)
		worlds[x.name] = w
		want["walhook-"+x.name] = x.fires
		fired = append(fired, x.fires...)
		jobs += fmt.Sprintf("  - {job_name: walhook-%s, static_configs: [{targets: ['127.0.0.1:%d']}]}\n", x.name, port)
	}
	slices.Sort(fired)
	if all := alertNames(t); !slices.Equal(slices.Compact(fired), all) {
		t.Fatalf("this test has states for %v, want %v", slices.Compact(fired), all)
	}
	alerts := startPrometheus(t, program, jobs)
	var got map[string][]string
	defer func() {
		if t.Failed() {
			t.Logf("got  %v\nwant %v", got, want)
		}
	}()
	pgtest.Eventually(t, patience, "all alerts fire, and no others", func() bool {
		for _, x := range troubles {
			if x.each != nil {
				x.each(worlds[x.name])
			}
		}
		got = alerts()
		if calm := got["walhook-customers"]; len(calm) > 0 {
			t.Errorf("for dead endpoints of customers fire %v", calm)
		}
		return maps.EqualFunc(got, want, slices.Equal) || t.Failed()
	})
}

// startPrometheus starts one with the rules that are shipped, and returns what fires, by job.
func startPrometheus(t *testing.T, program, jobs string) (alerts func() map[string][]string) {
	t.Helper()
	folder := t.TempDir()
	rules := regexp.MustCompile(`for: \w+`).ReplaceAllString(readFile(t, "deploy/prometheus/alerts.yml"), "for: 2s")
	config := "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [alerts.yml]\nscrape_configs:\n" + jobs
	for name, text := range map[string]string{"alerts.yml": rules, "prometheus.yml": config} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	port, err := process.ForWalhook.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	cmd := exec.CommandContext(t.Context(), program, "--config.file="+filepath.Join(folder, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(folder, "data"), "--web.listen-address="+address, "--log.level=warn")
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return func() map[string][]string {
		firing := map[string][]string{}
		for _, job := range regexp.MustCompile(`job_name: ([\w-]+)`).FindAllStringSubmatch(jobs, -1) {
			firing[job[1]] = nil
		}
		for _, a := range readAlerts(t, "http://"+address+"/api/v1/alerts") {
			if job := a.Labels["job"]; a.State == "firing" && !slices.Contains(firing[job], a.Labels["alertname"]) {
				firing[job] = append(firing[job], a.Labels["alertname"])
				slices.Sort(firing[job])
			}
		}
		return firing
	}
}

type prometheusAlert struct {
	State  string
	Labels map[string]string
}

// readAlerts returns nothing while Prometheus starts.
func readAlerts(t *testing.T, url string) []prometheusAlert {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var answer struct {
		Data struct{ Alerts []prometheusAlert }
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil
	}
	return answer.Data.Alerts
}
