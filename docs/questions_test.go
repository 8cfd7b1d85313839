package docs

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Each of the twenty questions has one query, which walhook_ops may run, and which finds
// something in an installation that has it all: failing and disabled endpoints, deliveries in
// every state, a day past retention.
func TestTheTwentyQuestions(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	i.exec(t, `INSERT INTO webhook_endpoints (organization_id, url) VALUES ('org_2', 'https://example.org/')`)
	i.exec(t, `UPDATE webhook_endpoints SET enabled = false, disabled_reason = 'moved' WHERE organization_id = 'org_2'`)
	i.exec(t, `INSERT INTO webhook_endpoint_failures VALUES ($1, now() - interval '1 hour', now())`, endpoint)
	i.exec(t, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, 'org_1', 'payment.failed', '{}')`, delivery)
	i.exec(t, `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.failed', '{}')`)
	for n, status := range []string{"success", "failed", "retrying", "pending"} {
		i.exec(t, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, next_attempt_at, error_class, error, status_code, duration_ms, response, completed_at)
			SELECT e, e, $1, 'org_1', 'payment.failed', $2, 1, now(), CASE WHEN $2 <> 'success' THEN 'http_5xx' END, 'answered 500', 500, $3, 'no', now() FROM webhook_uuidv7() AS e`, endpoint, status, 10*n)
	}
	i.exec(t, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, next_attempt_at, duration_ms, status_code)
		VALUES ($1, $1, $2, 'org_1', 'payment.failed', 'retrying', 1, now(), 12, 503)`, delivery, endpoint)
	i.exec(t, `INSERT INTO webhook_state (slot, progress) VALUES ('walhook', jsonb_build_object('reconciling', jsonb_build_object('at', now(), 'percent', 40)))`)

	page := read(t, "docs/questions.md")
	sections := regexp.MustCompile(`(?m)^## `).Split(page, -1)[1:]
	if len(sections) != 20 {
		t.Errorf("%d questions, want 20", len(sections))
	}
	for n, section := range sections {
		question, _, _ := strings.Cut(section, "\n")
		if !strings.HasPrefix(question, fmt.Sprintf("%d. ", n+1)) || !strings.Contains(question, "?") {
			t.Errorf("question %d is %q", n+1, question)
		}
		queries := regexp.MustCompile("(?s)```sql\n(.*?);\n```").FindAllStringSubmatch(section, -1)
		if len(queries) != 1 {
			t.Errorf("%s: %d queries, want 1", question, len(queries))
			continue
		}
		i.as(t, "walhook_ops", func(tx pgx.Tx) {
			tag, err := tx.Exec(t.Context(), queries[0][1])
			if err != nil || tag.RowsAffected() == 0 {
				t.Errorf("%s: %d rows, %v", question, tag.RowsAffected(), err)
			}
		})
	}
}

// Whatever an operator has to do has a section of its own with SQL, which TestSQLOfThePages
// runs.
func TestEveryTaskOfAnOperatorHasSQL(t *testing.T) {
	t.Parallel()
	for section, page := range map[string]string{
		"Slot lag": "operations", "A lost slot": "operations", "What is failing": "operations", "Replay": "operations", "Erasing a customer": "operations", "Rotation": "operations",
		"What takes long": "operations", "Pausing": "endpoints", "Beyond the recovery window": "operations",
		"Upgrade": "upgrades", "Failover": "upgrades", "Restore": "upgrades", "Moves": "upgrades", "Uninstall": "upgrades",
	} {
		text := read(t, "docs/"+page+".md")
		_, after, found := strings.Cut(text, "# "+section+"\n")
		after = regexp.MustCompile(`(?m)^##+ `).Split(after, 2)[0]
		if !found || !strings.Contains(after, "```sql\n") {
			t.Errorf("docs/%s.md has no section %q with SQL", page, section)
		}
	}
}

// What an operator types at night, walhook_ops may.
func TestWhatIsTypedAtNight(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	page := read(t, "docs/operations.md")
	for _, section := range []string{"Slot lag", "A lost slot", "What is failing", "Replay"} {
		_, after, _ := strings.Cut(page, "# "+section+"\n")
		after = regexp.MustCompile(`(?m)^##+ `).Split(after, 2)[0]
		for _, block := range regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(after, -1) {
			for statement := range statementsOf(block[1]) {
				i.as(t, "walhook_ops", func(tx pgx.Tx) {
					if _, err := tx.Exec(t.Context(), i.ours(statement)); err != nil {
						t.Errorf("%s: %s: %v", section, statement, err)
					}
				})
			}
		}
	}
}

// Each page is read in one sitting.
func TestPagesForOperatorsAreShort(t *testing.T) {
	t.Parallel()
	const most = 620 // lines
	for _, page := range []string{"docs/operations.md", "docs/endpoints.md", "docs/status.md", "docs/upgrades.md", "docs/questions.md", "docs/settings-page.md", "docs/managed.md"} {
		if n := strings.Count(read(t, page), "\n"); n > most {
			t.Errorf("%s has %d lines, want %d at most", page, n, most)
		}
	}
}
