package senders

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/languages"
	"github.com/walhook/walhook/internal/postgres/pgtest"
)

// A sender is a file of this folder, and how to run it: command finds what it needs, or ends the test.
type sender struct {
	name, file string
	command    func(t *testing.T) []string // in front of organization and amount
}

var senders = []sender{
	{"psql", "sender.sql", func(t *testing.T) []string {
		return []string{languages.Program(t, "psql"), "-X", "-q", "-f", "sender.sql"}
	}},
	{"Go pgx", "pgx/sender.go", func(t *testing.T) []string { return built(t, "./pgx") }},
	{"Go database sql", "databasesql/sender.go", func(t *testing.T) []string { return built(t, "./databasesql") }},
	{"Node pg", "sender.mjs", func(t *testing.T) []string {
		node, folder := languages.Node(t, ".", "sender.mjs")
		return []string{node, filepath.Join(folder, "sender.mjs")}
	}},
	{"Python psycopg", "sender_psycopg.py", func(t *testing.T) []string {
		return []string{languages.Python(t, "psycopg"), "sender_psycopg.py"}
	}},
	{"Python SQLAlchemy", "sender_sqlalchemy.py", func(t *testing.T) []string {
		return []string{languages.Python(t, "sqlalchemy", "psycopg2"), "sender_sqlalchemy.py"}
	}},
	{"Python Django", "sender_django.py", func(t *testing.T) []string {
		return []string{languages.Python(t, "django", "psycopg2"), "sender_django.py"}
	}},
	{"Ruby pg", "sender.rb", func(t *testing.T) []string {
		return []string{languages.With(t, "ruby", "-e", `require "pg"`), "sender.rb"}
	}},
	{"PHP PDO", "sender.php", func(t *testing.T) []string {
		return []string{languages.With(t, "php", "-r", `new ReflectionExtension("pdo_pgsql");`), "sender.php"}
	}},
	{"Java JDBC", "Sender.java", func(t *testing.T) []string {
		java, classPath := languages.JDBC(t)
		return []string{java, "-cp", classPath, "Sender.java"}
	}},
}

func built(t *testing.T, folder string) []string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "sender")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, folder).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return []string{program}
}

// Each sender's payment and event are committed together, or rolled back together, whoever says no: the application
// after both statements, walhook's trigger, or PostgreSQL at the COMMIT.
func TestSenders(t *testing.T) {
	t.Parallel()
	app := newApplication(t)
	for i, s := range senders {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			run := app.program(s.command(t))
			organization := fmt.Sprintf("org_%d", i)
			tooLong := organization + strings.Repeat("x", 512) // walhook takes 512 bytes
			app.exec(t, `INSERT INTO accounts VALUES ($1, 10000), ($2, 10000)`, organization, tooLong)

			if out, err := run(t, organization, "4200"); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			app.want(t, organization, 5800, `4200`, `payment.succeeded {"amount": 4200, "currency": "EUR"} right`)
			for _, c := range []struct{ who, organization, amount, said string }{
				{"the application", organization, "5801", ""},
				{"walhook's trigger", tooLong, "4200", "webhook_outbox.organization_id is null, empty or longer than 512 bytes"},
				{"a constraint at the COMMIT", organization, "666", "the bank refuses 666"},
			} {
				if out, err := run(t, c.organization, c.amount); err == nil || !strings.Contains(out, c.said) {
					t.Errorf("%s says no, and the sender says %q (%v), want an error with %q", c.who, out, err, c.said)
				}
				app.want(t, organization, 5800, `4200`, `payment.succeeded {"amount": 4200, "currency": "EUR"} right`)
				app.want(t, tooLong, 10000, ``, ``)
			}
		})
	}
}

// No sender is left out.
func TestEachFileIsASender(t *testing.T) {
	t.Parallel()
	var named []string
	for _, s := range senders {
		named = append(named, s.file)
	}
	for _, pattern := range []string{"*", "*/*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if regexp.MustCompile(`(?i)sender[^/]*\.\w+$`).MatchString(file) && !strings.HasSuffix(file, "_test.go") && !slices.Contains(named, file) {
				t.Errorf("no test runs %s", file)
			}
		}
	}
}

// An application has its own tables and its own role, in a database where walhook has a schema of its own.
type application struct {
	db  *pgtest.DB
	env []string
}

func newApplication(t *testing.T) *application {
	t.Helper()
	db := pgtest.Empty(t)
	role := db.Slot + "_app"
	app := &application{db: db}
	app.exec(t, `CREATE SCHEMA webhooks`)
	app.exec(t, `ALTER DATABASE `+db.Slot+` SET search_path = "$user", public, webhooks`)
	app.exec(t, `CREATE ROLE `+role+` LOGIN PASSWORD 'a password of the application'`)
	t.Cleanup(func() {
		app.exec(t, `DROP OWNED BY `+role)
		app.exec(t, `DROP ROLE `+role)
	})

	schema, tables := read(t, "../../schema.sql"), read(t, "tables.sql")
	app.script(t, "webhooks", schema)
	app.script(t, "public", tables)
	grants := regexp.MustCompile(`(?m)^--   (GRANT .*) TO app;$`).FindAllStringSubmatch(tables, -1)
	if len(grants) != 3 {
		t.Fatalf("tables.sql names %d grants", len(grants))
	}
	app.script(t, "webhooks, public", `GRANT USAGE ON SCHEMA webhooks TO `+role)
	for _, g := range grants {
		app.script(t, "webhooks, public", g[1]+" TO "+role)
	}
	// Only the COMMIT finds out.
	app.script(t, "public", `
		CREATE FUNCTION bank() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF NEW.amount = 666 THEN RAISE 'the bank refuses 666'; END IF;
			RETURN NULL;
		END $$;
		CREATE CONSTRAINT TRIGGER bank AFTER INSERT ON payments DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION bank();`)

	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	app.env = append(os.Environ(),
		"PGHOST="+u.Hostname(), "PGPORT="+u.Port(), "PGDATABASE="+db.Slot, "PGUSER="+role, "PGPASSWORD=a password of the application",
		"JDBC_DATABASE_URL=jdbc:postgresql://"+u.Host+"/"+db.Slot+"?user="+role+"&password=a%20password%20of%20the%20application")
	return app
}

// program returns how to run a sender as the application's role.
func (app *application) program(command []string) func(t *testing.T, organization, amount string) (string, error) {
	return func(t *testing.T, organization, amount string) (string, error) {
		t.Helper()
		args := append(slices.Clone(command[1:]), organization, amount)
		if filepath.Base(command[0]) == "psql" {
			args = append(slices.Clone(command[1:]), "-v", "organization="+organization, "-v", "amount="+amount)
		}
		cmd := exec.CommandContext(t.Context(), command[0], args...)
		cmd.Env = app.env
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

// want compares what is committed of an organization: its balance, its payments, and its events. Of an event's payload,
// the payment's id has to be right.
func (app *application) want(t *testing.T, organization string, balance int64, payments, events string) {
	t.Helper()
	const committed = `
SELECT balance,
       (SELECT coalesce(string_agg(p.amount::text, ' '), '') FROM payments AS p WHERE p.organization_id = a.organization_id),
       (SELECT coalesce(string_agg(e.event_type || ' ' || (e.payload - 'paymentId')::text ||
                   CASE WHEN e.payload -> 'paymentId' = to_jsonb(p.id) THEN ' right' ELSE ' wrong' END, ' '), '')
        FROM webhooks.webhook_outbox AS e LEFT JOIN payments AS p ON p.organization_id = e.organization_id
        WHERE e.organization_id = a.organization_id)
FROM accounts AS a WHERE organization_id = $1`
	var gotBalance int64
	var gotPayments, gotEvents string
	if err := app.db.Pool.QueryRow(t.Context(), committed, organization).Scan(&gotBalance, &gotPayments, &gotEvents); err != nil {
		t.Fatal(err)
	}
	if gotBalance != balance || gotPayments != payments || gotEvents != events {
		t.Errorf("committed are %d, payments %q, events %q; want %d, %q, %q", gotBalance, gotPayments, gotEvents, balance, payments, events)
	}
}

func (app *application) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := app.db.Pool.Exec(context.WithoutCancel(t.Context()), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// script executes statements in a session of their own, as psql would.
func (app *application) script(t *testing.T, searchPath, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), app.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.PgConn().Exec(t.Context(), "SET search_path = "+searchPath+";"+sql).ReadAll(); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
