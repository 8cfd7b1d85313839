package docs

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// rows runs a statement as walhook_backend with an organization, and returns how many rows it
// has returned or changed.
func (i installation) rows(t *testing.T, organization, statement string) (n int64) {
	t.Helper()
	i.as(t, "walhook_backend", func(tx pgx.Tx) {
		if _, err := tx.Exec(t.Context(), `SELECT set_config('walhook.organization', $1, true)`, organization); err != nil {
			t.Fatal(err)
		}
		tag, err := tx.Exec(t.Context(), statement)
		if err != nil {
			t.Fatalf("with the organization %q: %s: %v", organization, statement, err)
		}
		n = tag.RowsAffected()
	})
	return n
}

// The ten queries do what they say to the organization's own rows, with the rights that the
// page names, and nothing to those of others.
func TestTheSettingsPageKeepsOrganizationsApart(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	i.exec(t, `INSERT INTO webhook_endpoints (organization_id, url) VALUES ('org_2', 'https://example.org/')`)
	for _, own := range []struct{ id, event, endpoint, organization string }{
		{delivery, delivery, endpoint, "org_1"}, // of last year
		{"now", "now", endpoint, "org_1"},
		{"now", "now", "another", "org_2"},
	} {
		i.exec(t, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, error_class, error, status_code, duration_ms, response)
			SELECT CASE $1 WHEN 'now' THEN webhook_uuidv7() ELSE $1::text::uuid END, CASE $2 WHEN 'now' THEN webhook_uuidv7() ELSE $2::text::uuid END, e.id, $4, 'payment.failed', 'failed', 1,
			       'http_4xx', 'answered 404', 404, 12, 'no'
			FROM webhook_endpoints AS e WHERE e.organization_id = $4 AND ($3 = 'another' OR e.id::text = $3)`, own.id, own.event, own.endpoint, own.organization)
	}
	seen := 0
	for _, block := range blocks(t, "docs/settings-page.md", "sql") {
		for statement := range statementsOf(block) {
			if statement = i.ours(statement); statement == "BEGIN" || statement == "COMMIT" || strings.HasPrefix(statement, "SET LOCAL") {
				continue
			}
			seen++
			if n := i.rows(t, "org_1", statement); n == 0 {
				t.Errorf("org_1: no row: %s", statement)
			}
			named := strings.Contains(statement, endpoint) || strings.Contains(statement, delivery)
			for _, other := range []string{"org_2", ""} {
				if !named {
					continue // it is about that organization
				}
				if n := i.rows(t, other, statement); n != 0 {
					t.Errorf("as organization %q: %d rows of org_1: %s", other, n, statement)
				}
			}
		}
	}
	if seen < 11 {
		t.Errorf("only %d statements were found", seen)
	}
	for _, statement := range []string{
		`SELECT FROM webhook_tenant_endpoints WHERE organization_id <> 'org_2'`,
		`SELECT FROM webhook_tenant_deliveries WHERE organization_id <> 'org_2'`,
		`SELECT FROM webhook_tenant_attempts WHERE delivery_id = '` + delivery + `'`,
		`UPDATE webhook_tenant_endpoints SET enabled = false WHERE organization_id <> 'org_2'`,
		`UPDATE webhook_tenant_deliveries SET status = 'cancelled' WHERE organization_id <> 'org_2'`,
		`DELETE FROM webhook_tenant_endpoints WHERE organization_id <> 'org_2'`,
	} {
		if n := i.rows(t, "org_2", statement); n != 0 {
			t.Errorf("org_2 reaches %d rows of others: %s", n, statement)
		}
	}
	for _, statement := range []string{
		`SELECT FROM webhook_deliveries`, `SELECT headers FROM webhook_endpoints`, `SELECT FROM webhook_secrets`,
		`UPDATE webhook_tenant_endpoints SET organization_id = 'org_2'`, `UPDATE webhook_tenant_deliveries SET attempts = 0`,
	} {
		if may, err := mayDo(t, i.tx, i.ours("walhook_backend"), statement); may {
			t.Errorf("walhook_backend may %s: %v", statement, err)
		}
	}
}
