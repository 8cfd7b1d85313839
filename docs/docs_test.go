// Package docs holds the pages for users and maintainers, and the tests that keep them true.
package docs

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
)

// pages are those that people read, in the order in which they read them.
var pages = []string{
	"README.md", "docs/sending.md", "examples/nextjs/README.md", "docs/from-fabrk.md", "docs/orms.md", "docs/configuration.md", "docs/operations.md", "docs/deploying.md", "docs/commands.md", "docs/endpoints.md", "docs/page.md", "docs/status.md", "docs/upgrades.md", "docs/settings-page.md", "docs/questions.md", "docs/managed.md",
	"docs/guarantees.md", "docs/faults.md",
	"docs/design.md", "docs/performance.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md",
}

// read returns a file of the repository.
func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// blocks returns a page's code blocks of a language. They may be indented, in a list.
func blocks(t *testing.T, page, language string) []string {
	t.Helper()
	var found []string
	for _, m := range regexp.MustCompile("(?ms)^ *```"+language+"\n(.*?)^ *```$").FindAllStringSubmatch(read(t, page), -1) {
		found = append(found, m[1])
	}
	return found
}

// An installation is a database that has walhook in the schema where the README leads, with
// its roles. They belong to the server: they get names of the test's own, and are rolled back
// with the rest.
type installation struct {
	db   *pgtest.DB
	tx   pgx.Tx
	ours func(statement string) string // with the names of this database and these roles
}

// The ids that the pages use.
const (
	endpoint = "44444444-4444-4444-8444-444444444444"
	delivery = "01999999-9999-7999-8999-999999999999"
)

func newInstallation(t *testing.T) installation {
	t.Helper()
	db := pgtest.Empty(t)
	role := regexp.MustCompile(`\bwalhook_(owner|run|app|backend|ops|tenant)\b`)
	application := regexp.MustCompile(`\b(ROLE|TO|FROM) (walhook|app)\b`)
	ours := func(statement string) string {
		statement = strings.ReplaceAll(statement, "DATABASE app", "DATABASE "+pgx.Identifier{db.Slot}.Sanitize())
		statement = application.ReplaceAllString(statement, fmt.Sprintf(`$1 %s_own_$2`, db.Slot))
		return role.ReplaceAllString(statement, fmt.Sprintf(`%s_$1`, db.Slot))
	}
	installAsREADME(t, db, ours)
	conn, err := pgx.Connect(t.Context(), db.URL) // the database's search_path is in force in new connections
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	applyRoles(t, tx, ours)
	i := installation{db, tx, ours}
	i.exec(t, `INSERT INTO webhook_endpoints (id, organization_id, url) VALUES ('`+endpoint+`', 'org_1', 'https://example.com/')`)
	return i
}

func (i installation) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := i.tx.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// as runs f as a role, with settings of its own, and leaves nothing of it behind.
func (i installation) as(t *testing.T, role string, f func(tx pgx.Tx)) {
	t.Helper()
	inner, err := i.tx.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Rollback(t.Context())
	if _, err := inner.Exec(t.Context(), `SET LOCAL ROLE `+pgx.Identifier{i.ours(role)}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	f(inner)
}

// Every statement of the pages runs, and the roles can do with it what the pages say.
func TestSQLOfThePages(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	db, tx, ours := i.db, i.tx, i.ours
	ran := map[string]bool{} // one that stands on two pages, such as CREATE ROLE, can run only once
	for _, page := range pages {
		if page == "docs/settings-page.md" {
			continue // it deletes: see TestTheSettingsPageKeepsOrganizationsApart
		}
		for _, b := range blocks(t, page, "sql") {
			for statement := range statementsOf(b) {
				if statement = ours(statement); ran[statement] || statement == "BEGIN" || statement == "COMMIT" {
					continue
				}
				if _, err := tx.Exec(t.Context(), statement); err != nil {
					t.Fatalf("%s: %s: %v", page, statement, err)
				}
				ran[statement] = true
			}
		}
	}
	if len(ran) < 40 {
		t.Errorf("only %d statements were found", len(ran))
	}

	const (
		insert = `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.succeeded', '{}') RETURNING `
		secret = `SELECT webhook_set_secret('44444444-4444-4444-8444-444444444444', 'a secret of your own')`
	)
	for _, c := range []struct {
		role, statement string
		may             bool
	}{
		{"app", insert + "id", true},
		{"app", insert + "*", false},
		{"app", secret, false},
		{"backend", `SELECT * FROM webhook_create_endpoint('org_1', 'https://example.com/')`, true},
		{"backend", `UPDATE webhook_endpoints SET max_in_flight = 4 WHERE NOT all_organizations`, true},
		{"backend", `UPDATE webhook_endpoints SET max_in_flight = 4`, false}, // a page has made an operators' endpoint
		{"backend", `SELECT webhook_rotate_secret('44444444-4444-4444-8444-444444444444', '1 hour')`, true},
		{"backend", secret, true},
		{"backend", `SELECT webhook_send_test('44444444-4444-4444-8444-444444444444')`, true},
		{"backend", `SELECT * FROM webhook_secrets`, false},
		{"ops", `SELECT * FROM webhook_status`, true},
		{"ops", `SELECT * FROM webhook_stats('org_1')`, true},
		{"ops", `SELECT * FROM webhook_ops_explain((SELECT max(id::text)::uuid FROM webhook_outbox))`, true},
		{"ops", `SELECT webhook_replay((SELECT max(id::text)::uuid FROM webhook_deliveries))`, true},
		{"ops", `SELECT webhook_replay_failed('44444444-4444-4444-8444-444444444444', now() - interval '2 days')`, true},
		{"ops", `SELECT webhook_retry_now('44444444-4444-4444-8444-444444444444')`, true},
		{"ops", insert + "id", false},
		{"ops", `SELECT * FROM webhook_secrets`, false},
	} {
		if may, err := mayDo(t, tx, fmt.Sprintf("%s_%s", db.Slot, c.role), c.statement); may != c.may {
			t.Errorf("%s: %s: %v", c.role, c.statement, err)
		}
	}
	if _, err := tx.Exec(t.Context(), `GRANT INSERT, SELECT ON webhook_outbox TO `+pgx.Identifier{db.Slot + "_app"}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	if may, err := mayDo(t, tx, db.Slot+"_app", insert+"*"); !may {
		t.Errorf("app, granted SELECT: %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
}

// installAsREADME gives the database the search_path of the README, and applies the
// schema where its commands say.
func installAsREADME(t *testing.T, db *pgtest.DB, ours func(string) string) {
	t.Helper()
	text := read(t, "README.md")
	named := regexp.MustCompile(`WALHOOK_SCHEMA=(\w+)`).FindStringSubmatch(text)
	path := regexp.MustCompile(`ALTER DATABASE app SET search_path = [^;]+`).FindString(text)
	if named == nil || path == "" {
		t.Fatal("README.md names no schema, or no search_path")
	}
	if _, err := db.Pool.Exec(t.Context(), ours(path)); err != nil {
		t.Fatal(err)
	}
	config, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.RuntimeParams["search_path"] = named[1]
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	st := store.New(pool, db.Slot, 0)
	if err := st.CreateSchema(t.Context(), named[1]); err != nil {
		t.Fatal(err)
	}
	if err := st.Migrate(t.Context(), read(t, "schema.sql")); err != nil {
		t.Fatal(err)
	}
}

// applyRoles applies roles.sql in a transaction, where statements go on as before.
func applyRoles(t *testing.T, tx pgx.Tx, ours func(string) string) {
	t.Helper()
	file := regexp.MustCompile(`(?m)^(BEGIN|COMMIT)\b.*;$`).ReplaceAllString(ours(read(t, "roles.sql")), "")
	if _, err := tx.Exec(t.Context(), `SET LOCAL search_path = webhooks`); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Conn().PgConn().Exec(t.Context(), file).ReadAll(); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{`SET LOCAL ROLE NONE`, `SET LOCAL search_path = "$user", public, webhooks`} {
		if _, err := tx.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
}

// statementsOf returns the statements of a block, without comments.
func statementsOf(block string) iter.Seq[string] {
	block = regexp.MustCompile(`(?m)--.*$`).ReplaceAllString(block, "")
	return func(yield func(string) bool) {
		for statement := range strings.SplitSeq(block, ";\n") {
			if statement = strings.TrimSpace(statement); statement != "" && !yield(statement) {
				return
			}
		}
	}
}

// mayDo says whether a role may execute a statement, which leaves nothing behind. Any
// error but a missing right fails the test.
func mayDo(t *testing.T, tx pgx.Tx, role, statement string) (may bool, err error) {
	t.Helper()
	inner, err := tx.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Rollback(t.Context())
	if _, err := inner.Exec(t.Context(), `SET LOCAL ROLE `+pgx.Identifier{role}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	_, err = inner.Exec(t.Context(), statement)
	if pg, ok := errors.AsType[*pgconn.PgError](err); err != nil && (!ok || pg.Code != "42501") {
		t.Errorf("%s: %s: %v", role, statement, err)
	}
	return err == nil, err
}
