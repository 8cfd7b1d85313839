// Package orms shows that the migration tools of ORMs leave walhook's tables alone: see docs/orms.md.
package orms

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/languages"
	"github.com/walhook/walhook/internal/postgres/pgtest"
)

// tools are the commands of ORMs: each runs on a database, and returns what it prints.
type tools struct{ node, folder string }

func newTools(t *testing.T) tools {
	t.Helper()
	node, folder := languages.Node(t, ".", "schema.mjs", "drizzle.config.mjs", "drizzle.public.config.mjs", "schema.prisma", "prisma.config.mjs")
	return tools{node, folder}
}

func (o tools) drizzle(t *testing.T, db *pgtest.DB, command, config string) (string, error) {
	t.Helper()
	return o.run(t, db, "drizzle-kit/bin.cjs", command, "--config", config)
}

func (o tools) prisma(t *testing.T, db *pgtest.DB, args ...string) (string, error) {
	t.Helper()
	return o.run(t, db, "prisma/build/index.js", args...)
}

func (o tools) run(t *testing.T, db *pgtest.DB, program string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), o.node, append([]string{filepath.Join(o.folder, "node_modules", program)}, args...)...)
	cmd.Dir = o.folder
	// Prisma looks for native engines before it reads which engine is configured. Any file keeps it from downloading them.
	cmd.Env = append(os.Environ(), "DATABASE_URL="+db.URL, "CHECKPOINT_DISABLE=1", "PRISMA_QUERY_ENGINE_LIBRARY="+o.node, "PRISMA_SCHEMA_ENGINE_BINARY="+o.node)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// withWalhook is a database with walhook in a schema, and an application's table in public.
func withWalhook(t *testing.T, schema string) *pgtest.DB {
	t.Helper()
	db := pgtest.Empty(t)
	script(t, db, `CREATE SCHEMA IF NOT EXISTS `+schema)
	text, err := os.ReadFile("../../schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	script(t, db, `SET search_path = `+schema+`;`+string(text))
	script(t, db, `CREATE TABLE public.account (id serial PRIMARY KEY, name text NOT NULL)`)
	return db
}

func script(t *testing.T, db *pgtest.DB, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatal(err)
	}
}

// objects counts what is walhook's: relations, columns, indexes, constraints, triggers, functions, and what is published.
func objects(t *testing.T, db *pgtest.DB) string {
	t.Helper()
	const count = `
WITH r AS (SELECT oid FROM pg_class WHERE relname LIKE 'webhook\_%' AND relnamespace::regnamespace::text IN ('public', 'webhooks'))
SELECT concat_ws(' ',
    (SELECT count(*) FROM r), (SELECT count(*) FROM pg_attribute WHERE attrelid IN (SELECT oid FROM r) AND NOT attisdropped),
    (SELECT count(*) FROM pg_index WHERE indrelid IN (SELECT oid FROM r)), (SELECT count(*) FROM pg_constraint WHERE conrelid IN (SELECT oid FROM r)),
    (SELECT count(*) FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM r)), (SELECT count(*) FROM pg_proc WHERE proname LIKE 'webhook\_%'),
    (SELECT count(*) FROM pg_publication_rel WHERE prrelid IN (SELECT oid FROM r)))`
	var counts string
	if err := db.Pool.QueryRow(t.Context(), count).Scan(&counts); err != nil {
		t.Fatal(err)
	}
	return counts
}

func TestMigrationToolsLeaveWalhookAlone(t *testing.T) {
	t.Parallel()
	o := newTools(t)
	for _, c := range []struct {
		name, schema string
		run          func(t *testing.T, db *pgtest.DB) (string, error)
		want         string // what it says when it has nothing to do
	}{
		{"drizzle-kit push, a schema of its own", "webhooks", func(t *testing.T, db *pgtest.DB) (string, error) {
			return o.drizzle(t, db, "push", "drizzle.config.mjs")
		}, "No changes detected"},
		{"drizzle-kit push, public", "public", func(t *testing.T, db *pgtest.DB) (string, error) {
			return o.drizzle(t, db, "push", "drizzle.public.config.mjs")
		}, "No changes detected"},
		{"drizzle-kit pull, a schema of its own", "webhooks", func(t *testing.T, db *pgtest.DB) (string, error) {
			return o.pull(t, db, "drizzle.config.mjs")
		}, "account"},
		{"drizzle-kit pull, public", "public", func(t *testing.T, db *pgtest.DB) (string, error) {
			return o.pull(t, db, "drizzle.public.config.mjs")
		}, "account"},
		{"prisma db push, a schema of its own", "webhooks", func(t *testing.T, db *pgtest.DB) (string, error) {
			return o.prisma(t, db, "db", "push", "--skip-generate")
		}, "already in sync"},
		{"prisma db pull, a schema of its own", "webhooks", func(t *testing.T, db *pgtest.DB) (string, error) {
			return o.prisma(t, db, "db", "pull", "--print")
		}, "model account"},
	} {
		t.Run(c.name, func(t *testing.T) {
			db := withWalhook(t, c.schema)
			if strings.HasPrefix(c.name, "prisma") {
				prismaReads(t, db)
			}
			before := objects(t, db)
			said, err := c.run(t, db)
			if err != nil || !strings.Contains(said, c.want) || strings.Contains(said, "webhook_") {
				t.Errorf("it says %q (%v), want %q, and nothing of walhook", said, err, c.want)
			}
			if after := objects(t, db); after != before {
				t.Errorf("walhook's objects are %s, want %s", after, before)
			}
		})
	}
	t.Run("without the settings", o.wouldDrop)
}

// pull returns the schema that drizzle-kit pull writes.
func (o tools) pull(t *testing.T, db *pgtest.DB, config string) (string, error) {
	t.Helper()
	if said, err := o.drizzle(t, db, "pull", config); err != nil {
		return said, err
	}
	text, err := os.ReadFile(filepath.Join(o.folder, "out", "schema.ts"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text), os.RemoveAll(filepath.Join(o.folder, "out"))
}

// prismaReads skips the test on a server whose catalogue Prisma's WebAssembly cannot read.
func prismaReads(t *testing.T, db *pgtest.DB) {
	t.Helper()
	var version int
	if err := db.Pool.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::int / 10000`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version >= 18 {
		t.Skipf("Prisma's schema engine of 6.19, as WebAssembly, fails on the catalogue of PostgreSQL %d", version)
	}
}

// The checks can fail: the tools would drop what is in public and not in their schemas.
func (o tools) wouldDrop(t *testing.T) {
	db := withWalhook(t, "public")
	if said, _ := o.drizzle(t, db, "push", "drizzle.config.mjs"); !strings.Contains(said, "about to delete") || !strings.Contains(said, "webhook_event_types") {
		t.Errorf("drizzle-kit push says %q, want that it would delete webhook_event_types", said)
	}
	db = withWalhook(t, "webhooks")
	prismaReads(t, db)
	script(t, db, `CREATE TABLE public.webhook_stranger (id int PRIMARY KEY); INSERT INTO public.webhook_stranger VALUES (1)`)
	if said, err := o.prisma(t, db, "db", "push", "--skip-generate"); err == nil || !strings.Contains(said, "drop the `webhook_stranger` table") {
		t.Errorf("prisma db push says %q (%v), want that it would drop webhook_stranger", said, err)
	}
}
