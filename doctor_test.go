package main

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
)

// A patient is a database of its own server, that doctor looks at as a role without rights
// that it does not need. Slots of other tests would be seen on a shared one.
type patient struct {
	t    *testing.T
	pool *pgxpool.Pool // a superuser's
	env  []string
}

func newPatient(t *testing.T) *patient {
	t.Helper()
	t.Parallel()
	server := pgtest.Server(t, postgres.Options{})
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	p := &patient{t: t, pool: pool, env: []string{
		"WALHOOK_DATABASE_URL=" + strings.Replace(server.URL(), "postgres@", "walhook:walhook@", 1), "WALHOOK_SCHEMA=webhooks"}}
	p.do(`CREATE ROLE walhook LOGIN REPLICATION PASSWORD 'walhook'`)
	p.do(`GRANT CREATE ON DATABASE postgres TO walhook`)
	p.do(`ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'`)
	p.do(`SELECT pg_reload_conf()`)
	p.prepare()
	return p
}

func (p *patient) prepare() {
	p.t.Helper()
	if err := initialize(p.t.Context(), load(p.t, p.env...), initOptions{}, io.Discard, slog.New(slog.DiscardHandler)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *patient) do(sql string) { p.t.Helper(); do(p.t, p.pool, sql) }

// told returns what doctor says of one check, and what it says to type.
func (p *patient) told(check string, env ...string) (state, found, fix string) {
	p.t.Helper()
	var out bytes.Buffer
	if err := doctor(p.t.Context(), load(p.t, append(env, p.env...)...), &out); err != nil {
		p.t.Fatalf("%v\n%s", err, out.String())
	}
	line := regexp.MustCompile(`(?m)^(ok|warn|FAIL) +` + regexp.QuoteMeta(check) + `  +(.*)\n(?: +-> (.*))?`).FindStringSubmatch(out.String())
	if line == nil {
		p.t.Fatalf("no line %q in\n%s", check, out.String())
	}
	return line[1], line[2], line[3]
}

// Each thing that somebody can do to walhook's tables is told, what doctor says to type mends
// it, and then it is well again.
func TestDoctorMends(t *testing.T) {
	p := newPatient(t)
	var well bytes.Buffer
	if err := doctor(t.Context(), load(t, p.env...), &well); err != nil || strings.Count(well.String(), "warn  ") > strings.Count(well.String(), "warn  minor version") {
		t.Errorf("before anybody did anything: %v\n%s", err, well.String())
	}
	for _, c := range []struct {
		check, harm, found string
	}{
		{"grants", `GRANT SELECT ON webhooks.webhook_deliveries TO PUBLIC`, "PUBLIC may SELECT webhooks.webhook_deliveries"},
		{"grants", `CREATE ROLE reader; GRANT SELECT ON webhooks.webhook_secrets TO reader`, "reader may read the signing secrets"},
		{"rights on the schema", `CREATE ROLE maker; GRANT CREATE ON SCHEMA webhooks TO maker`, "maker may also create"},
		{"row security", `ALTER TABLE webhooks.webhook_endpoints ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY`, "webhooks.webhook_endpoints has FORCE row level security"},
		{"objects of others", `CREATE INDEX "by type" ON webhooks.webhook_outbox (event_type)`, `index "by type" on webhooks.webhook_outbox`},
		{"objects of others", `CREATE INDEX ON webhooks.webhook_deliveries_default (event_type)`, `on webhooks.webhook_deliveries_default`},
		{"objects of others", `CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
			CREATE TRIGGER theirs BEFORE INSERT ON webhooks.webhook_deliveries FOR EACH ROW EXECUTE FUNCTION theirs()`, `trigger theirs on webhooks.webhook_deliveries`},
		{"objects of others", `CREATE RULE quiet AS ON DELETE TO webhooks.webhook_endpoints DO INSTEAD NOTHING`, `rule quiet on webhooks.webhook_endpoints`},
		{"objects of others", `CREATE POLICY mine ON webhooks.webhook_outbox USING (true)`, `policy mine on webhooks.webhook_outbox`},
		{"objects of others", `ALTER TABLE webhooks.webhook_outbox ADD CONSTRAINT small CHECK (event_type <> 'x') NOT VALID`, `constraint small on webhooks.webhook_outbox`},
		{"objects of others", `CREATE TABLE theirs (endpoint uuid REFERENCES webhooks.webhook_endpoints)`, `theirs refers to webhooks.webhook_endpoints`},
		{"objects of others", `CREATE TABLE more () INHERITS (webhooks.webhook_endpoints)`, `more inherits from webhooks.webhook_endpoints`},
		{"objects of others", `CREATE TABLE old PARTITION OF webhooks.webhook_outbox FOR VALUES FROM ('00000000-0000-7000-8000-000000000000') TO ('00000000-0001-7000-8000-000000000000')`, `partition public.old of webhooks.webhook_outbox`},
		{"objects of others", `ALTER TABLE webhooks.webhook_deliveries_default SET UNLOGGED`, "table webhooks.webhook_deliveries_default is UNLOGGED"},
		{"objects of others", `ALTER TABLE webhooks.webhook_outbox DETACH PARTITION webhooks.webhook_outbox_default`, "webhook_outbox_default is no partition of webhooks.webhook_outbox: INSERTs"},
		{"other publications", `CREATE PUBLICATION cdc FOR TABLE webhooks.webhook_secrets, webhooks.webhook_endpoints`, "publication cdc also publishes webhooks.webhook_endpoints, webhooks.webhook_secrets, signing secrets included"},
		{"unused slots", `SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')`, "cdc is unused and keeps"},
		{"other slots", `SELECT pg_create_logical_replication_slot('former', 'pgoutput'); INSERT INTO webhooks.webhook_state (slot) VALUES ('former')`, "former is unused and keeps"},
		{"partitions ahead", `DO $do$ DECLARE day text; BEGIN FOR day IN SELECT to_char(now() AT TIME ZONE 'UTC' + n * interval '1 day', 'YYYYMMDD') FROM generate_series(3, 14) AS n
			LOOP EXECUTE 'DROP TABLE webhooks.webhook_outbox_p' || day || ', webhooks.webhook_deliveries_p' || day; END LOOP; END $do$`, "2 days"},
		{"objects of others", `DO $do$ BEGIN EXECUTE 'ALTER TABLE webhooks.webhook_deliveries DETACH PARTITION webhooks.webhook_deliveries_p' || to_char(now() AT TIME ZONE 'UTC' + interval '13 days', 'YYYYMMDD'); END $do$`,
			"is no partition of webhooks.webhook_deliveries: that day"},
	} {
		p.do(c.harm)
		state, found, fix := p.told(c.check)
		if state != "warn" || !strings.Contains(found, c.found) {
			t.Errorf("%s, after %s: %s %s, want %q", c.check, c.harm, state, found, c.found)
			continue
		}
		fix, _, _ = strings.Cut(fix, "; walhook run") // words behind the SQL
		fix, _, _ = strings.Cut(fix, ", or give walhook a schema")
		p.do(`SET search_path = webhooks; ` + fix + `; RESET search_path`)
		if state, found, again := p.told(c.check); state != "ok" {
			t.Errorf("%s, after %s: %s %s -> %s", c.check, fix, state, found, again)
		}
	}
	p.do(`CREATE PUBLICATION everything FOR ALL TABLES`)
	if state, found, fix := p.told("other publications"); state != "warn" || !strings.Contains(found, "all of walhook's tables, signing secrets included") || !strings.Contains(fix, "DROP PUBLICATION everything") {
		t.Errorf("FOR ALL TABLES: %s %s -> %s", state, found, fix)
	}
	p.do(`DROP PUBLICATION everything`)
	if p.number(`SELECT current_setting('server_version_num')::int`) >= 150000 {
		p.do(`CREATE PUBLICATION spaces FOR TABLES IN SCHEMA webhooks`)
		_, found, fix := p.told("other publications")
		p.do(fix)
		if state, left, _ := p.told("other publications"); state != "ok" {
			t.Errorf("%s, after %s: %s %s", found, fix, state, left)
		}
	}
}

// An organization is told of from nine tenths of WALHOOK_MAX_ENDPOINTS on.
func TestDoctorOfManyEndpoints(t *testing.T) {
	p := newPatient(t)
	p.do(`UPDATE webhooks.webhook_state SET max_endpoints = 20`)
	add := func(n int) {
		p.do(fmt.Sprintf(`INSERT INTO webhooks.webhook_endpoints (organization_id, url) SELECT E'org\x1b', 'https://example.com' FROM generate_series(1, %d)`, n))
	}
	add(17)
	if state, found, _ := p.told("endpoints"); state != "ok" {
		t.Errorf("17 of 20: %s %s", state, found)
	}
	add(1)
	if state, found, fix := p.told("endpoints"); state != "warn" || !strings.Contains(found, `"org\x1b" has 18 of 20`) || !strings.Contains(fix, "a larger WALHOOK_MAX_ENDPOINTS") {
		t.Errorf("18 of 20: %s %s -> %s", state, found, fix)
	}
	p.do(`UPDATE webhooks.webhook_state SET max_endpoints = 1`)
	p.do(`INSERT INTO webhooks.webhook_endpoints (organization_id, url) SELECT 'org_' || n, 'https://example.com' FROM generate_series(1, 12) AS n`)
	if state, found, _ := p.told("endpoints"); state != "warn" || !strings.Contains(found, `has 18 of 1,`) || !strings.Contains(found, "and 3 more") {
		t.Errorf("18 of 1: %s %s", state, found)
	}
}

func (p *patient) number(sql string) (n int) {
	p.t.Helper()
	if err := p.pool.QueryRow(p.t.Context(), sql).Scan(&n); err != nil {
		p.t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// Triggers that must fire always: run enables them again; without the right to, it says how.
func TestDoctorOfTriggers(t *testing.T) {
	p := newPatient(t)
	for _, harm := range []string{
		`ALTER TABLE webhooks.webhook_outbox DISABLE TRIGGER webhook_outbox_before_insert`,
		`ALTER TABLE webhooks.webhook_outbox ENABLE TRIGGER webhook_outbox_before_insert`,
		`ALTER TABLE webhooks.webhook_outbox_default DISABLE TRIGGER webhook_outbox_before_insert`,
	} {
		p.do(harm)
		if state, found, _ := p.told("tables"); state != "ok" || !strings.Contains(found, "walhook will repair it") {
			t.Errorf("%s: %s %s", harm, state, found)
		}
		cfg := load(t, append([]string{"WALHOOK_AUTO_INIT=false"}, p.env...)...)
		var out bytes.Buffer
		err := doctor(t.Context(), cfg, &out)
		fix := regexp.MustCompile(`ALTER TABLE [a-z_.]+ ENABLE ALWAYS TRIGGER \w+`).FindString(out.String())
		if exitCode(err) != exitNotPrepared || fix == "" {
			t.Fatalf("%s: %v\n%s", harm, err, out.String())
		}
		p.do(`SET search_path = webhooks; ` + fix + `; RESET search_path`)
		if state, found, _ := p.told("tables", "WALHOOK_AUTO_INIT=false"); state != "ok" {
			t.Errorf("%s, after %s: %s %s", harm, fix, state, found)
		}
	}
}

func TestDoctorOfSecrets(t *testing.T) {
	p := newPatient(t)
	key := func() string {
		b := make([]byte, 32)
		_, _ = rand.Read(b)
		return base64.StdEncoding.EncodeToString(b)
	}
	first, second := "WALHOOK_SECRET_KEY="+key(), "WALHOOK_SECRET_KEY="+key()
	id := func(key string) string {
		_, found, _ := p.told("sealing", key)
		return regexp.MustCompile(`[0-9a-f]{8}`).FindString(found)
	}
	firstID := id(first)
	p.do(`SET search_path = webhooks; SELECT webhook_create_endpoint('org_1', 'https://example.com/'); RESET search_path`)
	if state, found, fix := p.told("sealing"); state != "warn" || !strings.Contains(found, "1 signing secrets are not sealed") || !strings.Contains(fix, "openssl rand -base64 32") {
		t.Errorf("without a key: %s %s -> %s", state, found, fix)
	}
	if state, _, fix := p.told("sealing", first); state != "warn" || !strings.Contains(fix, "walhook secret reseal") {
		t.Errorf("with a key, before it has sealed: %s -> %s", state, fix)
	}
	reseal := func(env ...string) {
		db, err := openDatabase(t.Context(), load(t, append(env, p.env...)...))
		if err != nil {
			t.Fatal(err)
		}
		defer db.close()
		if err := resealNow(t.Context(), db.store, false, io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	reseal(first)
	if state, found, _ := p.told("sealing", first); state != "ok" || !strings.Contains(found, firstID) {
		t.Errorf("sealed: %s %s, want the key %s", state, found, firstID)
	}
	old := strings.Replace(first, "WALHOOK_SECRET_KEY", "WALHOOK_SECRET_KEY_OLD", 1)
	if state, found, fix := p.told("sealing", second, old); state != "warn" || !strings.Contains(found, "1 with the key "+firstID) || !strings.Contains(fix, "walhook secret reseal") {
		t.Errorf("with another key: %s %s -> %s", state, found, fix)
	}
	reseal(second, old)
	if state, found, _ := p.told("sealing", second); state != "ok" || strings.Contains(found, firstID) {
		t.Errorf("sealed anew: %s %s", state, found)
	}
}

// What ORMs would take for theirs, and who walhook is.
func TestDoctorOfTheSchemaAndTheRole(t *testing.T) {
	p := newPatient(t)
	if state, found, _ := p.told("roles"); state != "ok" || !strings.Contains(found, "walhook is no superuser") {
		t.Errorf("as walhook: %s %s", state, found)
	}
	if state, found, _ := p.told("schema"); state != "ok" {
		t.Errorf("alone in its schema: %s %s", state, found)
	}
	p.do(`CREATE TABLE webhooks.schema_migrations (version text)`)
	if state, found, fix := p.told("schema"); state != "warn" || !strings.Contains(found, "schema_migrations") || !strings.Contains(fix, "WALHOOK_SCHEMA") {
		t.Errorf("beside an ORM's table: %s %s -> %s", state, found, fix)
	}
	p.do(`DROP TABLE webhooks.schema_migrations`)
	if state, found, _ := p.told("schema"); state != "ok" {
		t.Errorf("alone again: %s %s", state, found)
	}
	if state, found, _ := p.told("clock"); state != "ok" {
		t.Errorf("one machine's clock: %s %s", state, found)
	}
	if state, found, _ := p.told("encryption"); state != "ok" {
		t.Errorf("on one machine: %s %s", state, found)
	}
	super := strings.Replace(p.env[0], "walhook:walhook@", "postgres@", 1)
	if state, found, fix := p.told("roles", super); state != "warn" || !strings.Contains(found, "postgres is a superuser") || !strings.Contains(fix, "init --roles") {
		t.Errorf("as a superuser: %s %s -> %s", state, found, fix)
	}
	if err := initialize(t.Context(), load(t, super, p.env[1]), initOptions{roles: true}, io.Discard, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	p.do(`ALTER ROLE walhook_run PASSWORD 'change-me'`)
	least := strings.Replace(p.env[0], "walhook:walhook@", "walhook_run:change-me@", 1)
	var out bytes.Buffer
	if err := doctor(t.Context(), load(t, least, p.env[1]), &out); err != nil || strings.Contains(out.String(), "could not look") {
		t.Errorf("as walhook_run: %v\n%s", err, out.String())
	}
	if state, found, _ := p.told("roles", least); state != "ok" {
		t.Errorf("as walhook_run: %s %s", state, found)
	}
}

// Nothing connects: what a connection string says is enough.
func TestDoctorOfEncryption(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgres://u@127.0.0.1/db":                                "ok stays on this machine",
		"postgres:///db?host=/var/run/postgresql":                  "ok stays on this machine",
		"postgres://u@localhost/db?sslmode=disable":                "ok stays on this machine",
		"postgres://u@db.example.com/db":                           "warn db.example.com as plaintext",
		"postgres://u@db.example.com/db?sslmode=disable":           "warn db.example.com as plaintext",
		"postgres://u@127.0.0.1,10.0.0.2/db?sslmode=disable":       "warn 10.0.0.2 as plaintext",
		"postgres://u@db.example.com/db?sslmode=require":           "ok certificate is not checked",
		"postgres://u@db.example.com/db?sslmode=verify-full":       "ok certificate is checked",
		"host=db.example.com user=u dbname=db sslmode=verify-full": "ok certificate is checked",
	} {
		c := encryption(load(t, "WALHOOK_DATABASE_URL="+url))[0]
		state, found, _ := strings.Cut(want, " ")
		if string(c.State) != state || !strings.Contains(c.Found, found) || state == "warn" && !strings.Contains(c.Fix, "sslmode=verify-full") {
			t.Errorf("%s: %s %s -> %s; want %s", url, c.State, c.Found, c.Fix, want)
		}
	}
	both := encryption(load(t, "WALHOOK_DATABASE_URL=postgres://u@127.0.0.1/db", "WALHOOK_REPLICATION_URL=postgres://u@db.example.com/db"))
	if len(both) != 2 || !strings.Contains(both[1].Found, "WALHOOK_REPLICATION_URL") {
		t.Errorf("two connection strings: %v", both)
	}
}
