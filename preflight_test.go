package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/testkit"
)

func load(t *testing.T, env ...string) *config.Config {
	t.Helper()
	cfg, err := config.Load(append(env, "WALHOOK_ADMIN_ADDR="))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// What can never work ends before anything is made: nothing is left that would belong
// to the wrong role. run, init and doctor say the same.
func TestAFirstRunThatCannotGoOnMakesNothing(t *testing.T) {
	t.Parallel()
	replica := pgtest.Server(t, postgres.Options{Settings: map[string]string{"wal_level": "replica"}})
	mute := pgtest.Server(t, postgres.Options{Settings: map[string]string{"wal_level": "logical", "max_wal_senders": "0"}})
	full := pgtest.Server(t, postgres.Options{Settings: map[string]string{"max_replication_slots": "1"}})
	for what, c := range map[string]struct {
		server      string // "": the shared one
		prepare     []string
		want, type_ string
		code        int
	}{
		"wal_level":                  {replica.URL(), nil, "wal_level is replica", "ALTER SYSTEM SET wal_level", exitNotPrepared},
		"max_wal_senders":            {mute.URL(), nil, "max_wal_senders is 0", "ALTER SYSTEM SET max_wal_senders", exitNotPrepared},
		"no slot is left":            {full.URL(), []string{`SELECT pg_create_physical_replication_slot('theirs')`}, "max_replication_slots = 1 are used", "raise max_replication_slots", exitNotPrepared},
		"the role may not replicate": {"", []string{`ALTER ROLE "<role>" NOREPLICATION`}, "may not replicate", `ALTER ROLE <role> REPLICATION`, exitNotPrepared},
		"nor create in the schema":   {"", []string{`REVOKE CREATE ON SCHEMA public FROM PUBLIC, "<role>"`}, "may not create in schema", `set WALHOOK_SCHEMA to the schema that walhook's tables are or will be in, or GRANT CREATE, USAGE ON SCHEMA public TO <role>`, exitNotPrepared},
		"nor in the database":        {"", []string{`REVOKE CREATE ON DATABASE "<db>" FROM "<role>"`}, "walhook does not exist", `GRANT CREATE ON DATABASE <db> TO <role>`, exitNotPrepared},
		"another's publication":      {"", []string{`CREATE TABLE orders (id int PRIMARY KEY)`, `CREATE PUBLICATION walhook FOR TABLE orders`}, "includes orders", "WALHOOK_SCHEMA", exitNotPrepared},
		"another's slot":             {"", []string{`SELECT pg_create_logical_replication_slot('<db>', 'test_decoding')`}, "test_decoding", "WALHOOK_SLOT", exitNotPrepared},
		"another encoding":           {"", []string{`latin1`}, "not UTF8 but LATIN1", "ENCODING 'UTF8'", exitNotPrepared},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			db := pgtest.Empty(t)
			role := strings.Replace(db.Slot, "test", "role", 1)
			url, pool := db.URL, db.Pool
			if c.server != "" {
				var err error
				if pool, err = pgxpool.New(t.Context(), c.server); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(pool.Close)
				url = c.server
			} else {
				do(t, pool, `CREATE ROLE `+role+` LOGIN REPLICATION PASSWORD '`+role+`'`)
				do(t, pool, `GRANT CREATE ON DATABASE "`+db.Slot+`" TO `+role)
				do(t, pool, `GRANT CREATE, USAGE ON SCHEMA public TO `+role)
				t.Cleanup(func() {
					_, _ = pool.Exec(context.Background(), `DROP OWNED BY `+role)
					_, _ = pool.Exec(context.Background(), `DROP ROLE `+role)
				})
				url = strings.Replace(url, "postgres@", role+":"+role+"@", 1)
			}
			names := strings.NewReplacer("<role>", role, "<db>", db.Slot)
			for _, sql := range c.prepare {
				if sql == "latin1" {
					do(t, pool, `CREATE DATABASE "`+db.Slot+`_l" ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0`)
					t.Cleanup(func() { _, _ = pool.Exec(context.Background(), `DROP DATABASE "`+db.Slot+`_l" WITH (FORCE)`) })
					url = strings.Replace(url, "/"+db.Slot, "/"+db.Slot+"_l", 1)
					continue
				}
				do(t, pool, names.Replace(sql))
			}
			cfg := load(t, "WALHOOK_DATABASE_URL="+url, "WALHOOK_SLOT="+db.Slot)
			var told bytes.Buffer
			log := slog.New(slog.DiscardHandler)
			for name, err := range map[string]error{
				"run":    run(t.Context(), cfg, log),
				"init":   initialize(t.Context(), cfg, initOptions{}, io.Discard, log),
				"doctor": doctor(t.Context(), cfg, &told),
			} {
				if exitCode(err) != c.code || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), names.Replace(c.type_)) {
					t.Errorf("%s: exit code %d, %v; want %d, %q and %q", name, exitCode(err), err, c.code, c.want, names.Replace(c.type_))
				}
			}
			if !strings.Contains(told.String(), "FAIL  ") {
				t.Errorf("doctor told\n%s", told.String())
			}
			var left int
			if err := pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_class WHERE relname LIKE 'webhook%')
				+ (SELECT count(*) FROM pg_publication WHERE pubname = 'walhook' AND NOT EXISTS (SELECT FROM pg_class WHERE relname = 'orders'))`).Scan(&left); err != nil || left != 0 {
				t.Errorf("%d things are left, %v", left, err)
			}
		})
	}
}

// An application's own tables may have walhook's names. run, init and doctor say the same, and
// make nothing beside them.
func TestWhatHasOurNames(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		new         func(testing.TB) *pgtest.DB
		prepare, it string
	}{
		"a table":               {pgtest.Empty, `CREATE TABLE webhook_endpoints (id int)`, "webhook_endpoints"},
		"an outbox":             {pgtest.Empty, `CREATE TABLE webhook_outbox (id int)`, "webhook_outbox"},
		"a partitioned one":     {pgtest.Empty, `CREATE TABLE webhook_outbox (id uuid) PARTITION BY RANGE (id)`, "webhook_outbox"},
		"a view":                {pgtest.Empty, `CREATE VIEW webhook_status AS SELECT 1 AS a`, "webhook_status"},
		"a column that is gone": {pgtest.New, `ALTER TABLE webhook_outbox RENAME COLUMN payload TO body`, "webhook_outbox"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			db := c.new(t)
			do(t, db.Pool, c.prepare)
			const count = `SELECT count(*) FROM pg_class WHERE relname LIKE 'webhook%'`
			var before, after int
			if err := db.Pool.QueryRow(t.Context(), count).Scan(&before); err != nil {
				t.Fatal(err)
			}
			cfg, log := load(t, "WALHOOK_DATABASE_URL="+db.URL, "WALHOOK_SLOT="+db.Slot), slog.New(slog.DiscardHandler)
			for name, err := range map[string]error{
				"run":    run(t.Context(), cfg, log),
				"init":   initialize(t.Context(), cfg, initOptions{}, io.Discard, log),
				"doctor": doctor(t.Context(), cfg, io.Discard),
			} {
				if want := "tables: " + c.it + " in schema public is not walhook's"; exitCode(err) != exitNotPrepared || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: exit code %d, %v; want %q", name, exitCode(err), err, want)
				}
			}
			if err := db.Pool.QueryRow(t.Context(), count).Scan(&after); err != nil || after != before {
				t.Errorf("%d things of walhook's names, before %d, %v", after, before, err)
			}
		})
	}
}

func do(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestDoctor(t *testing.T) {
	w := newWorld(t)
	cfg := load(t, w.env...)
	tell := func() (string, error) {
		var told bytes.Buffer
		err := doctor(t.Context(), cfg, &told)
		return told.String(), err
	}
	if told, err := tell(); err != nil || strings.Contains(told, "FAIL") || !strings.Contains(told, "max_slot_wal_keep_size") {
		t.Errorf("before the first run: %v\n%s", err, told)
	}
	w.run()
	if told, err := tell(); err != nil || !strings.Contains(told, "is in use by pid") {
		t.Errorf("beside a walhook: %v\n%s", err, told)
	}
	if n := query[int](w, `SELECT count(*) FROM webhook_state`); n != 1 {
		t.Errorf("%d rows of webhook_state: it has changed something", n)
	}
	cfg.AutoInit = false
	w.exec(`ALTER TABLE webhook_outbox DISABLE TRIGGER webhook_outbox_before_insert`)
	if told, err := tell(); exitCode(err) != exitNotPrepared || !strings.Contains(told, "FAIL  tables") {
		t.Errorf("with a trigger that is off: exit code %d, %v\n%s", exitCode(err), err, told)
	}
	cfg = load(t, "WALHOOK_DATABASE_URL=postgres://127.0.0.1:1/x")
	if told, err := tell(); exitCode(err) != exitFailure || !strings.Contains(told, "FAIL  connection") {
		t.Errorf("without a database: exit code %d, %v\n%s", exitCode(err), err, told)
	}
}

// The stream of another walhook's database would carry its events, and none of this one's.
func TestAReplicationURLOfAnotherDatabaseEndsAtTheStart(t *testing.T) {
	w := newWorld(t)
	other := makeWorld(t, pgtest.New(t))
	cfg := load(t, append([]string{"WALHOOK_REPLICATION_URL=" + other.db.URL}, w.env...)...)
	log := slog.New(slog.DiscardHandler)
	within, cancel := context.WithTimeout(t.Context(), 20*time.Second) // one that goes on would stream for ever
	defer cancel()
	for name, err := range map[string]error{
		"run":    run(within, cfg, log),
		"init":   initialize(t.Context(), cfg, initOptions{}, io.Discard, log),
		"doctor": doctor(t.Context(), cfg, io.Discard),
	} {
		want := fmt.Sprintf("WALHOOK_REPLICATION_URL leads to database %q, and WALHOOK_DATABASE_URL to %q", other.db.Slot, w.db.Slot)
		if exitCode(err) != exitConfig || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s: exit code %d, %v; want %q", name, exitCode(err), err, want)
		}
	}
	if n := query[int](w, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, w.db.Slot); n != 0 {
		t.Error("a slot was made in the other database")
	}
}

// A second slot on the same tables would send everything twice, and it is not even made.
func TestASecondSlotEndsAtTheStart(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.eventually("the first has claimed its slot", `SELECT epoch > 0 FROM webhook_state`)
	other := w.db.Slot + "_2"
	cfg := load(t, append([]string{"WALHOOK_SLOT=" + other}, w.env...)...)
	if err := run(t.Context(), cfg, slog.New(slog.DiscardHandler)); exitCode(err) != exitHeldBack || !strings.Contains(err.Error(), w.db.Slot) {
		t.Errorf("exit code %d, %v; want %d and the other slot's name", exitCode(err), err, exitHeldBack)
	}
	if n := query[int](w, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, other); n != 0 {
		t.Error("its slot was made, and keeps WAL")
	}
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	var told bytes.Buffer
	if err := doctor(t.Context(), cfg, &told); err != nil || !strings.Contains(told.String(), "SELECT pg_drop_replication_slot('"+w.db.Slot+"')") {
		t.Errorf("beside a slot that nobody uses: %v\n%s", err, told.String())
	}
}

func TestAMixedOwnershipSaysTheWayOut(t *testing.T) {
	w := newWorld(t)
	role := strings.Replace(w.db.Slot, "test", "role", 1)
	w.exec(`CREATE ROLE ` + role)
	t.Cleanup(func() {
		_, _ = w.db.Pool.Exec(context.Background(), `REASSIGN OWNED BY `+role+` TO CURRENT_USER`)
		_, _ = w.db.Pool.Exec(context.Background(), `DROP ROLE `+role)
	})
	w.exec(`ALTER TABLE webhook_secrets OWNER TO ` + role)
	cfg := load(t, w.env...)
	var told bytes.Buffer
	if err := doctor(t.Context(), cfg, &told); err != nil || !strings.Contains(told.String(), "warn  owner") {
		t.Errorf("with nothing to be applied: %v\n%s", err, told.String())
	}
	w.exec(`DROP FUNCTION webhook_drop_day(date)`) // which delivering needs
	err := run(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if exitCode(err) != exitNotPrepared {
		t.Fatalf("exit code %d, %v", exitCode(err), err)
	}
	_, fix, _ := strings.Cut(err.Error(), "as a superuser: ")
	fix, _, _ = strings.Cut(fix, "; then run walhook")
	w.exec(fix)
	if err := initialize(t.Context(), cfg, initOptions{}, io.Discard, slog.New(slog.DiscardHandler)); err != nil {
		t.Errorf("after %s: %v", fix, err)
	}
}

func TestUninstallTablesAsks(t *testing.T) {
	w := newWorld(t)
	if err := mayAsk(newFlags("uninstall"), true, false, io.Discard); exitCode(err) != exitConfig || !strings.Contains(err.Error(), "--yes") {
		t.Errorf("without a terminal: exit code %d, %v", exitCode(err), err)
	}
	st := store.New(w.db.Pool, w.db.Slot, 0)
	for answer, good := range map[string]bool{w.db.Slot + "\n": true, "yes\n": false, "\n": false, "": false} {
		var asked bytes.Buffer
		if err := confirm(t.Context(), st, strings.NewReader(answer), &asked); (err == nil) != good || !strings.Contains(asked.String(), w.db.Slot) {
			t.Errorf("%q: %v after %q", answer, err, asked.String())
		}
	}
	cfg := load(t, w.env...)
	if err := initialize(t.Context(), cfg, initOptions{}, io.Discard, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if err := takeBack(t.Context(), cfg, true, true, io.Discard); err != nil {
		t.Fatal(err)
	}
	if n := query[int](w, `SELECT (SELECT count(*) FROM pg_class WHERE relname LIKE 'webhook%') + (SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1)`, w.db.Slot); n != 0 {
		t.Errorf("%d things are left", n)
	}
}

// After a failover, or while others are restarted, slots are in use that soon are not: a
// walhook that has been here waits, and says so; init and doctor say what is wrong.
func TestRunWaitsForAFreeSlot(t *testing.T) {
	t.Parallel()
	full := pgtest.Server(t, postgres.Options{Settings: map[string]string{"max_replication_slots": "1"}})
	pool, err := pgxpool.New(t.Context(), full.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	do(t, pool, schema)
	do(t, pool, `SELECT pg_create_physical_replication_slot('theirs')`)
	cfg := load(t, "WALHOOK_DATABASE_URL="+full.URL())
	log := slog.New(slog.DiscardHandler)
	if err := initialize(t.Context(), cfg, initOptions{}, io.Discard, log); exitCode(err) != exitNotPrepared {
		t.Errorf("init: exit code %d, %v", exitCode(err), err)
	}
	if err := doctor(t.Context(), cfg, io.Discard); exitCode(err) != exitNotPrepared {
		t.Errorf("doctor: exit code %d, %v", exitCode(err), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	var said testkit.Output
	go func() { ended <- run(ctx, cfg, slog.New(slog.NewTextHandler(&said, nil))) }()
	pgtest.Eventually(t, 20*time.Second, "it says that no slot is left", func() bool {
		return said.Lines("no replication slot is left") > 0 || len(ended) > 0
	})
	if len(ended) > 0 {
		t.Fatalf("run ended: %v", <-ended)
	}
	do(t, pool, `SELECT pg_drop_replication_slot('theirs')`)
	pgtest.Eventually(t, 20*time.Second, "the slot is made", func() bool {
		var active bool
		return pool.QueryRow(t.Context(), `SELECT active FROM pg_replication_slots WHERE slot_name = $1`, cfg.Slot).Scan(&active) == nil && active
	})
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
}

// A former version leaves the newer schema, works with it, and does not say that its own is there.
func TestInitBesideANewerSchema(t *testing.T) {
	w := newWorld(t)
	cfg := load(t, w.env...)
	w.exec(`CREATE OR REPLACE FUNCTION webhook_schema_version() RETURNS int LANGUAGE sql IMMUTABLE RETURN ` + strconv.Itoa(store.SchemaVersion+1))
	var said, logged bytes.Buffer
	if err := initialize(t.Context(), cfg, initOptions{}, &said, slog.New(slog.NewTextHandler(&logged, nil))); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("schema version %d, ", store.SchemaVersion+1); !strings.HasPrefix(said.String(), want) {
		t.Errorf("it says %q, want %q", said.String(), want)
	}
	if !strings.Contains(logged.String(), "newer walhook") {
		t.Errorf("it logs %s", logged.String())
	}
}
