package status_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/status"
	"github.com/walhook/walhook/internal/store"
)

func exec(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func take(t *testing.T, db *pgtest.DB) *status.Status {
	t.Helper()
	s, err := status.Take(t.Context(), store.New(db.Pool, db.Slot, 0), "v1", db.Slot)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What has ever run, or not, has every key.
func TestKeys(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	want := []string{
		"endpoints", "environment", "failing", "failing_more", "lag_bytes", "overdue_seconds", "partitions_ahead", "pending", "retrying", "role", "safe_wal_bytes",
		"schema_version", "slot", "slot_exists", "stopped", "stray_rows", "version", "waiting_estimated", "wal_status",
	}
	check := func(says string) {
		t.Helper()
		text, err := json.Marshal(take(t, db))
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]json.RawMessage
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		if keys := slices.Sorted(maps.Keys(got)); !slices.Equal(keys, want) {
			t.Errorf("keys %q", keys)
		}
		if !regexp.MustCompile(says).Match(text) {
			t.Errorf("want %s in %s", says, text)
		}
	}
	check(`^{"role":"down","version":"v1","schema_version":\d+,"environment":"","slot":"` + db.Slot + `","slot_exists":false,"wal_status":"","lag_bytes":null,"safe_wal_bytes":null,` +
		`"pending":0,"retrying":0,"waiting_estimated":false,"overdue_seconds":0,"endpoints":{"ok":0,"failing":0,"open":0,"paused":0,"disabled":0},"failing":\[\],"failing_more":0,"stopped":\[\],` +
		`"partitions_ahead":14,"stray_rows":0}$`)

	exec(t, db.Pool, `INSERT INTO webhook_state (slot, environment) VALUES ($1, 'production')`, db.Slot)
	exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
	exec(t, db.Pool, `INSERT INTO webhook_endpoints (organization_id, url) VALUES ('org_1', 'https://example.com/?token=hunter2')`)
	var id uuid.UUID
	if err := db.Pool.QueryRow(t.Context(), `SELECT id FROM webhook_endpoints`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES ($1, now() - interval '1 hour')`, id)
	exec(t, db.Pool, `INSERT INTO webhook_endpoints (organization_id, url, paused_at) VALUES ('org_2', 'https://example.com', now())`)
	exec(t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, next_attempt_at, error, created_at)
		SELECT webhook_delivery_id(webhook_uuidv7(), gen_random_uuid()), webhook_uuidv7(), $1, 'org_1', 'payment.failed', 'retrying', 1, now() - interval '2 minutes', 'answered 503', now() - interval '1 hour'
		FROM generate_series(1, 3)`, id)
	check(`"environment":"production".*"slot_exists":true,"wal_status":"reserved","lag_bytes":\d+,"safe_wal_bytes":null,"pending":0,"retrying":3,"waiting_estimated":false,"overdue_seconds":1[2-9]\d\..*` +
		`"endpoints":{"ok":0,"failing":1,"open":0,"paused":1,"disabled":0},"failing":\[{"endpoint":"` + id.String() + `","organization":"org_1","all_organizations":false,"url":"https://example.com","state":"failing","since":"20[^"]*Z","error":"answered 503","waiting":3,"waiting_more":false}\],"failing_more":0,` +
		`"stopped":\[{"endpoint":"[^"]*","organization":"org_2","all_organizations":false,"url":"https://example.com","state":"paused","since":"20[^"]*Z","error":"","waiting":0,"waiting_more":false}\]`)
}

// Where more fail than are listed, it says how many.
func TestTheListIsBounded(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db.Pool, `INSERT INTO webhook_endpoints (organization_id, url) SELECT 'org_' || n, 'https://example.com' FROM generate_series(1, 5000) AS n`)
	exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures SELECT id, now() - random() * interval '1 day', CASE WHEN random() < 0.5 THEN now() END FROM webhook_endpoints`)
	s := take(t, db)
	if len(s.Failing) != 20 || s.FailingMore != 4980 || s.Failing[0].State != "open" || s.Failing[0].Since.After(s.Failing[1].Since) {
		t.Errorf("%d, and %d more: %+v", len(s.Failing), s.FailingMore, s.Failing[:2])
	}
	screen := s.Screen(time.Now(), false)
	if !strings.Contains(screen, "and 4,993 more: ") {
		t.Errorf("the screen says\n%s", screen)
	}
	fits(t, screen)
}

// Parts that cannot be read take no others with them.
func TestAPartThatIsLocked(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), `LOCK TABLE webhook_deliveries IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	s, err := status.Take(t.Context(), store.New(db.Pool, db.Slot, 0), "v1", db.Slot)
	if err == nil || s.Pending != nil || s.Endpoints == nil || s.SchemaVersion == nil {
		t.Errorf("%+v, %v", s, err)
	}
	screen := s.Screen(time.Now(), false)
	if !strings.Contains(screen, "waiting    unknown\n") || !strings.Contains(screen, "endpoints  0 ok") {
		t.Errorf("the screen says\n%s", screen)
	}
	fits(t, screen)
}

// fits fails where a screen is too large for a terminal, or could move its cursor.
func fits(t *testing.T, screen string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(screen, "\n"), "\n")
	if len(lines) > 23 { // and the prompt
		t.Errorf("%d lines:\n%s", len(lines), screen)
	}
	for _, line := range lines {
		if n := len([]rune(line)); n > 80 {
			t.Errorf("%d characters: %q", n, line)
		}
	}
	if bad := regexp.MustCompile(`[^\P{C}\n]`).FindString(screen); bad != "" {
		t.Errorf("%q is on the screen:\n%q", bad, screen)
	}
}

func TestScreen(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	well := status.Status{
		Role: "active", Version: "v1.2.3", SchemaVersion: new(8), Environment: "production", Slot: "walhook", SlotExists: true, WALStatus: "reserved",
		LagBytes: new(int64(3 << 20)), SafeWALBytes: new(int64(9 << 30)), Pending: new(int64(0)), Retrying: new(int64(12)), OverdueSeconds: new(0.0),
		Endpoints: &status.Endpoints{OK: 4}, PartitionsAhead: new(14), StrayRows: new(int64(0)),
	}
	want := `walhook    active, environment production, version v1.2.3, at 12:00:00
slot       walhook keeps 3.0 MiB of WAL; 9.0 GiB more are safe
waiting    0 pending, 12 retrying; nothing is overdue
endpoints  4 ok, 0 failing, 0 open, 0 paused, 0 disabled
tables     schema version 8, partitions for 14 days ahead
`
	if got := well.Screen(now, false); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	burning := well
	burning.Role, burning.WALStatus, burning.SafeWALBytes = "down", "extended", new(int64(5<<20))
	burning.Environment, burning.Slot = strings.Repeat("\x1b[2J", 40), strings.Repeat("s", 63)
	burning.Pending, burning.Retrying, burning.WaitingEstimated, burning.OverdueSeconds = new(int64(123_456_789_012)), new(int64(123_456_789_012)), true, new(987654.3)
	burning.Endpoints = &status.Endpoints{OK: 1_234_567, Failing: 1_234_567, Open: 1_234_567, Paused: 1_234_567, Disabled: 1_234_567}
	burning.PartitionsAhead, burning.StrayRows, burning.FailingMore = new(0), new(int64(2000)), 2_469_114
	for n := range 20 {
		burning.Failing = append(burning.Failing, status.Failing{
			Endpoint: uuid.NewString(), Organization: strings.Repeat("\u202eorg", 50), URL: "https://" + strings.Repeat("x", 200), State: []string{"open", "failing"}[n%2],
			Since: now.Add(-time.Duration(n*n) * time.Hour), Error: strings.Repeat("\x1b]0;x\a", 50), Waiting: 2000, WaitingMore: true,
		})
	}
	screen := burning.Screen(now, false)
	fits(t, screen)
	for _, want := range []string{"down: no walhook is connected to the slot", "about 123,456,789,012 pending", "2,000 stray rows", "and 2,469,127 more"} {
		if !strings.Contains(screen, want) {
			t.Errorf("want %q in\n%s", want, screen)
		}
	}
	colored := burning.Screen(now, true)
	if plain := regexp.MustCompile("\x1b\\[\\d+m").ReplaceAllString(colored, ""); plain != screen || plain == colored {
		t.Errorf("coloured, it says something else:\n%s", colored)
	}

	for says, change := range map[string]func(*status.Status){
		"slot       walhook does not exist: ":                       func(s *status.Status) { s.SlotExists, s.LagBytes, s.SafeWALBytes = false, nil, nil },
		"slot       walhook, lost: ":                                func(s *status.Status) { s.WALStatus, s.SafeWALBytes = "lost", nil },
		"of WAL; max_slot_wal_keep_size sets no limit\n":            func(s *status.Status) { s.SafeWALBytes = nil },
		"of WAL; lost after 512.0 KiB more\n":                       func(s *status.Status) { s.SafeWALBytes = new(int64(512 << 10)) },
		"retrying; due for 5s\n":                                    func(s *status.Status) { s.OverdueSeconds = new(5.4) },
		"retrying; overdue by 1h01m\n":                              func(s *status.Status) { s.OverdueSeconds = new(3661.0) },
		"walhook    down: no walhook is connected to the slot, env": func(s *status.Status) { s.Role = "down" },
		"slot       unknown\n":                                      func(s *status.Status) { s.Role, s.SlotExists, s.LagBytes, s.SafeWALBytes = "unknown", false, nil, nil },
		"disabled               0  44444444-4444-4444-8444-444444444444  org_1\n        https://example.com  answered 410 Gone\n": func(s *status.Status) {
			s.Stopped = []status.Failing{{Endpoint: "44444444-4444-4444-8444-444444444444", Organization: "org_1", URL: "https://example.com", State: "disabled", Error: "answered 410 Gone"}}
		},
		"\n        https://ops.example.com  for operators: answered 503\n": func(s *status.Status) {
			s.Failing = []status.Failing{{Endpoint: "44444444-4444-4444-8444-444444444444", Organization: "ops", ForAll: true, URL: "https://ops.example.com", State: "open", Error: "answered 503"}}
		},
		"\ndisabled               0  44444444-4444-4444-8444-444444444444  ops\n": func(s *status.Status) { // whatever fails beside it
			s.Failing = burning.Failing
			s.Stopped = []status.Failing{{Endpoint: "44444444-4444-4444-8444-444444444444", Organization: "ops", ForAll: true, URL: "https://ops.example.com", State: "disabled"}}
		},
	} {
		s := well
		change(&s)
		screen := s.Screen(now, false)
		fits(t, screen)
		if !strings.Contains(screen, says) {
			t.Errorf("want %q in\n%s", says, screen)
		}
	}
	for seconds, want := range map[float64]string{0: "0s", 59.9: "59s", 60: "1m00s", 3599: "59m59s", 3600: "1h00m", 47 * 3600: "47h00m", 48 * 3600: "2d00h"} {
		s := well
		s.Failing = []status.Failing{{Since: now.Add(-time.Duration(seconds * float64(time.Second)))}}
		if screen := s.Screen(now, false); !strings.Contains(screen, fmt.Sprintf(" %s ", want)) {
			t.Errorf("%f: want %s in\n%s", seconds, want, screen)
		}
	}
}
