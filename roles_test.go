package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
)

// newWorldWithRoles has a server of its own, which `walhook init --roles` has prepared, and
// a walhook that is walhook_run.
func newWorldWithRoles(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	server := pgtest.Server(t, postgres.Options{Settings: map[string]string{"wal_level": "logical"}})
	db := &pgtest.DB{URL: server.URL(), Slot: "walhook"}
	pool, err := pgxpool.New(t.Context(), db.URL+withSchema)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	db.Pool = pool
	w := &world{t: t, db: db, log: t.Output(), env: []string{"WALHOOK_ADMIN_ADDR=", "WALHOOK_SCHEMA=webhooks",
		"WALHOOK_ALLOW_HTTP=true", "WALHOOK_ALLOW_NETS=127.0.0.0/8", "WALHOOK_TIMEOUT=3s", "WALHOOK_RETRY_SCHEDULE=200ms,200ms"}}
	for range 2 {
		var said bytes.Buffer
		cfg, err := config.Load(append([]string{"WALHOOK_DATABASE_URL=" + db.URL}, w.env...))
		if err != nil {
			t.Fatal(err)
		}
		if err := initialize(t.Context(), cfg, initOptions{roles: true}, &said, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(said.String(), "walhook_run") {
			t.Errorf("init says %q", said.String())
		}
	}
	w.exec(`ALTER ROLE walhook_run PASSWORD 'walhook_run'`)
	w.env = append(w.env, "WALHOOK_DATABASE_URL="+asRole(db.URL, "walhook_run"))
	return w
}

const withSchema = "&search_path=webhooks,pg_temp"

// as is what a role does.
func (w *world) as(role, sql string, args ...any) {
	w.t.Helper()
	tx, err := w.db.Pool.Begin(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(w.t.Context())) }()
	if _, err := tx.Exec(w.t.Context(), `SET LOCAL ROLE `+role); err != nil {
		w.t.Fatal(err)
	}
	if _, err := tx.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %s: %v", role, sql, err)
	}
	if err := tx.Commit(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// walhook_run delivers, disables, exhausts, seals, and keeps up the partitions, whether or
// not it may apply the schema: there is nothing to apply.
func TestWalhookRunWithExactGrants(t *testing.T) {
	for _, auto := range []string{"false", "true"} {
		t.Run("WALHOOK_AUTO_INIT="+auto, func(t *testing.T) {
			w := newWorldWithRoles(t)
			healthy, broken, gone := newReceiver(t, always(200)), newReceiver(t, always(500)), newReceiver(t, always(410))
			w.as("walhook_backend", `SELECT webhook_create_endpoint('org_1', $1, '{payment.*,webhook.*}')`, healthy.URL)
			w.as("walhook_backend", `INSERT INTO webhook_endpoints (organization_id, url, event_types, headers) VALUES ('org_1', $1, '{payment.failed}', '{"X-Key": "k"}')`, broken.URL)
			w.as("walhook_backend", `INSERT INTO webhook_endpoints (organization_id, url, event_types) VALUES ('org_1', $1, '{payment.refunded}')`, gone.URL)
			tomorrow := time.Now().UTC().AddDate(0, 0, 1).Format("20060102")
			for _, table := range []string{"webhook_outbox_p", "webhook_deliveries_p"} {
				w.exec(`DROP TABLE ` + table + tomorrow)
			}
			w.run("WALHOOK_AUTO_INIT="+auto, "WALHOOK_SECRET_KEY="+key(1))
			insert := func(eventType string) {
				w.as("walhook_app", `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', $1, '{}') RETURNING id`, eventType)
			}
			for _, eventType := range []string{"payment.succeeded", "payment.failed", "payment.refunded"} {
				insert(eventType)
			}
			ended := func(what, condition string) {
				w.eventually(what, `SELECT count(*) > 0 FROM webhook_deliveries d JOIN webhook_endpoints e ON e.id = d.endpoint_id WHERE `+condition)
			}
			ended("the fault-free path", `d.event_type = 'payment.succeeded' AND d.status = 'success'`)
			ended("an endpoint that answers 410 is disabled", `d.event_type = 'payment.refunded' AND d.status = 'failed' AND NOT e.enabled AND e.disabled_reason = 'answered 410 Gone'`)
			ended("its organization is told", `d.event_type = 'webhook.endpoint.disabled' AND d.status = 'success'`)
			ended("retries end", `d.event_type = 'payment.failed' AND d.status = 'failed' AND d.attempts = 3`)
			ended("an exhausted delivery is told", `d.event_type = 'webhook.delivery.exhausted' AND d.status = 'success'`)
			w.eventually("secrets are sealed", `SELECT bool_and(starts_with(secret, 'sealed:')) FROM webhook_secrets`)
			w.eventually("the partitions of tomorrow are there again", `SELECT count(*) = 2 FROM pg_class WHERE relname LIKE '%_p`+tomorrow+`' AND relkind = 'r' AND pg_get_userbyid(relowner) = 'walhook_owner'`)

			w.as("walhook_ops", `SELECT webhook_replay(id) FROM webhook_deliveries WHERE event_type = 'payment.succeeded'`)
			w.eventually("a replay", `SELECT count(*) = 1 FROM webhook_deliveries WHERE event_type = 'payment.succeeded' AND status = 'success' AND attempts = 2`)
		})
	}
}

// init says what the files warn of.
func TestInitSaysWhoOwnedTheTables(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t, postgres.Options{Settings: map[string]string{"wal_level": "logical"}})
	w := &world{t: t, db: &pgtest.DB{URL: server.URL(), Slot: "walhook"}}
	pool, err := pgxpool.New(t.Context(), w.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	w.db.Pool = pool
	w.exec(`CREATE ROLE former LOGIN REPLICATION PASSWORD 'former'`)
	w.exec(`DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO former', current_database()); END $$`)
	var said bytes.Buffer
	for _, url := range []string{asRole(w.db.URL, "former"), w.db.URL} {
		cfg, err := config.Load([]string{"WALHOOK_DATABASE_URL=" + url, "WALHOOK_SCHEMA=webhooks"})
		if err != nil {
			t.Fatal(err)
		}
		if err := initialize(t.Context(), cfg, initOptions{roles: url == w.db.URL}, io.Discard, slog.New(slog.NewTextHandler(&said, nil))); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(said.String(), "REVOKE walhook_owner FROM former") {
		t.Errorf("init says %s", said.String())
	}
}

// What stands in the way of the roles ends init with what mends it.
func TestInitRolesOfAStranger(t *testing.T) {
	w, _ := newWorldWithRole(t)
	cfg, err := config.Load(w.env)
	if err != nil {
		t.Fatal(err)
	}
	if err := initialize(t.Context(), cfg, initOptions{roles: true}, io.Discard, slog.New(slog.DiscardHandler)); exitCode(err) != exitNotPrepared || !strings.Contains(err.Error(), "CREATEROLE") {
		t.Errorf("exit %d, %v", exitCode(err), err)
	}
}
