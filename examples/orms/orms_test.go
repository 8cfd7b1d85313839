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
	node, folder := languages.Node(t, ".", "schema.mjs", "drizzle.config.mjs", "drizzle.public.config.mjs", "prisma.mjs", "schema.prisma", "prisma.public.config.mjs")
	return tools{node, folder}
}

func (o tools) drizzle(t *testing.T, db *pgtest.DB, command, config string) (string, error) {
	t.Helper()
	return o.run(t, db, "node_modules/drizzle-kit/bin.cjs", command, "--config", config)
}

func (o tools) prisma(t *testing.T, db *pgtest.DB, command, config string) (string, error) {
	t.Helper()
	return o.run(t, db, "prisma.mjs", command, "schema.prisma", config)
}

func (o tools) run(t *testing.T, db *pgtest.DB, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), o.node, args...)
	cmd.Dir = o.folder
	cmd.Env = append(os.Environ(), "DATABASE_URL="+db.URL)
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

// What each tool says when it has nothing to do with walhook. A command of two words is Prisma's.
var alone = []struct{ schema, command, config, want string }{
	{"webhooks", "push", "drizzle.config.mjs", "No changes detected"},
	{"webhooks", "pull", "drizzle.config.mjs", "account"},
	{"public", "push", "drizzle.public.config.mjs", "No changes detected"},
	{"public", "pull", "drizzle.public.config.mjs", "account"},
	{"webhooks", "db push", "", `"executedSteps":0,"unexecutable":[],"warnings":[]`},
	{"webhooks", "db pull", "", "model account"},
	{"webhooks", "migrate diff", "", "empty migration"},
	{"webhooks", "migrate dev", "", `"appliedMigrationNames":["1"],"action":{"tag":"createMigration"}`},
	{"webhooks", "migrate reset", "", "done"},
	{"public", "db push", "./prisma.public.config.mjs", `"executedSteps":0,"unexecutable":[],"warnings":[]`},
	{"public", "migrate diff", "./prisma.public.config.mjs", "empty migration"},
	{"public", "migrate dev", "./prisma.public.config.mjs", `"appliedMigrationNames":["1"],"action":{"tag":"createMigration"}`},
}

func TestMigrationToolsLeaveWalhookAlone(t *testing.T) {
	t.Parallel()
	o := newTools(t)
	for _, c := range alone {
		t.Run(c.command+" in "+c.schema, func(t *testing.T) {
			db := withWalhook(t, c.schema)
			before := objects(t, db)
			run := o.prisma
			switch c.command {
			case "push":
				run = o.drizzle
			case "pull":
				run = o.pull
			}
			said, err := run(t, db, c.command, c.config)
			if err != nil || !strings.Contains(said, c.want) || strings.Contains(said, "webhook_") {
				t.Errorf("it says %q (%v), want %q, and nothing of walhook", said, err, c.want)
			}
			if after := objects(t, db); after != before {
				t.Errorf("walhook's objects are %s, want %s", after, before)
			}
		})
	}
	t.Run("the tables of examples/nextjs", o.knowsReceived)
	t.Run("in public, without the settings", o.wouldDrop)
}

// pull returns the schema that drizzle-kit pull writes.
func (o tools) pull(t *testing.T, db *pgtest.DB, command, config string) (string, error) {
	t.Helper()
	if said, err := o.drizzle(t, db, command, config); err != nil {
		return said, err
	}
	text, err := os.ReadFile(filepath.Join(o.folder, "out", "schema.ts"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text), os.RemoveAll(filepath.Join(o.folder, "out"))
}

// A table that is made by hand, and has no model, is drift: that of the receiver in examples/nextjs has one.
func (o tools) knowsReceived(t *testing.T) {
	const nextjs = "../nextjs"
	received, err := os.ReadFile(filepath.Join(nextjs, "lib/webhooks/received.sql"))
	if err != nil {
		t.Fatal(err)
	}
	models, err := filepath.Abs(filepath.Join(nextjs, "prisma/schema.prisma"))
	if err != nil {
		t.Fatal(err)
	}
	db := pgtest.Empty(t)
	script(t, db, `CREATE TABLE "Member" (id serial PRIMARY KEY, "organizationId" text NOT NULL, email text NOT NULL);`+string(received))
	if said, err := o.run(t, db, "prisma.mjs", "migrate diff", models); err != nil || !strings.Contains(said, "empty migration") {
		t.Errorf("prisma migrate diff says %q (%v), want an empty migration", said, err)
	}
}

// The checks can fail: the tools would drop what is in public and not in their schemas.
func (o tools) wouldDrop(t *testing.T) {
	db := withWalhook(t, "public")
	if said, _ := o.drizzle(t, db, "push", "drizzle.config.mjs"); !strings.Contains(said, "about to delete") || !strings.Contains(said, "webhook_event_types") {
		t.Errorf("drizzle-kit push says %q, want that it would delete webhook_event_types", said)
	}
	for command, want := range map[string]string{
		"migrate diff": `DROP TABLE \"webhook_outbox\"`,
		"migrate dev":  `"tag":"reset","reason":"Drift detected`,
		"db push":      "about to drop the `webhook_event_types` table",
	} {
		if said, err := o.prisma(t, db, command, ""); err != nil || !strings.Contains(said, want) {
			t.Errorf("prisma %s says %q (%v), want %s", command, said, err, want)
		}
	}
	if said, err := o.prisma(t, db, "migrate reset", "./prisma.public.config.mjs"); err != nil {
		t.Errorf("prisma migrate reset says %q (%v)", said, err)
	}
	if left := objects(t, db); !strings.HasPrefix(left, "0 ") {
		t.Errorf("prisma migrate reset leaves %s of walhook: docs/orms.md says that it drops all of it, whatever the settings", left)
	}
}
