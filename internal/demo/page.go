package demo

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/store"
)

// A page is what the newcomer reads. That it can be written is not our concern:
// who closed the pipe has seen enough.
type page struct {
	out   io.Writer
	color bool
	begun time.Time
}

// paint colours a text that has its width already.
func (p *page) paint(c color, text string) string {
	if !p.color || c == plain {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", c, text)
}

func (p *page) line(format string, args ...any) { fmt.Fprintf(p.out, format+"\n", args...) }

func (p *page) heading(text, aside string) {
	p.line("\n%s  %s", p.paint(bold, text), p.paint(dim, aside))
}

// clock is the time since the beginning, as the first column of a line.
func (p *page) clock() string {
	return p.paint(dim, fmt.Sprintf("%6.1fs", time.Since(p.begun).Seconds()))
}

// said is a line with its time.
func (p *page) said(format string, args ...any) {
	p.line("%s  %s", p.clock(), fmt.Sprintf(format, args...))
}

func (p *page) title() {
	p.line("%s  %s", p.paint(bold, "walhook demo"), p.paint(dim, "a throwaway PostgreSQL, walhook and three receivers, all on this machine"))
	p.said("starting PostgreSQL (where it has to be fetched first, that takes a minute)")
}

func (p *page) receivers(roles []role, receivers map[string]*receiver) {
	p.heading("The receivers", "and who subscribes to what there: SELECT * FROM webhook_create_endpoint(…)")
	for _, role := range roles {
		p.line("  %s %s  %s", p.paint(cyan, fmt.Sprintf("%-7s", role.name)), receivers[role.name].url, role.does)
		var who []string
		for _, s := range subscriptions {
			if s.receiver == role.name {
				who = append(who, s.organization+": "+strings.Join(s.types, " "))
			}
		}
		p.line("          %s", p.paint(dim, strings.Join(who, "  ·  ")))
	}
}

func (p *page) application() {
	p.heading("The application", "INSERT INTO webhook_outbox (organization_id, event_type, payload), in its own transactions")
}

func (p *page) transaction(t transaction, stored, owed int, followed bool) {
	end, c := "COMMIT", green
	if t.rollBack {
		end, c = "ROLLBACK", yellow
	}
	became := fmt.Sprintf("%d in the outbox, owed %d deliveries", stored, owed)
	if followed {
		became += "  ◀ follow this one"
	}
	p.said("%-7s %-33s %s  %s", t.organization, t.summary(), p.paint(c, fmt.Sprintf("%-8s", end)), became)
}

func (p *page) begin() {
	p.heading("What happens", "webhook_deliveries as it changes; ◀ is the event to follow")
}

var statusColors = map[string]color{
	string(store.Pending): yellow, string(store.Retrying): yellow, string(store.Success): green,
	string(store.Failed): red, string(store.Cancelled): red,
}

func (p *page) change(c change, dueIn float64, who string, followed bool) {
	attempt, status := fmt.Sprintf("attempt %d", max(c.attempts, 1)), c.status
	if c.status == string(store.Retrying) {
		status = fmt.Sprintf("%s in %.1fs", c.status, max(dueIn, 0))
	}
	if followed {
		who = p.paint(bold, who+" ◀")
	}
	p.said("%s %s  %-31s  %s  %s", p.paint(cyan, fmt.Sprintf("%-7s", c.receiver)), attempt, c.outcome,
		p.paint(statusColors[c.status], fmt.Sprintf("%-16s", status)), who)
}

// An explanation is a row of webhook_explain.
type explanation struct{ receiver, organization, reason string }

func (p *page) explained(event uuid.UUID, rows []explanation) {
	p.heading("The event that was followed", fmt.Sprintf("SELECT * FROM webhook_explain('%s')", event))
	for _, x := range rows {
		p.line("  %s of %-7s %s", p.paint(cyan, fmt.Sprintf("%-7s", x.receiver)), x.organization, x.reason)
	}
}

// A total is how many rows say the same.
type total struct {
	receiver, organization, status string
	attempts                       int
}

func (p *page) totals(e *evidence) {
	p.heading("The rows at the end", "SELECT … count(*) FROM webhook_deliveries GROUP BY …")
	count := map[total]int{}
	var order []total
	for _, d := range e.deliveries {
		t := total{"?", d.OrganizationID, d.Status, d.Attempts}
		if ep := e.endpoints[d.EndpointID]; ep != nil {
			t.receiver = ep.receiver
		}
		if count[t]++; count[t] == 1 {
			order = append(order, t)
		}
	}
	slices.SortFunc(order, func(a, b total) int {
		return cmp.Or(-cmp.Compare(a.receiver, b.receiver), cmp.Compare(a.organization, b.organization),
			cmp.Compare(a.status, b.status), cmp.Compare(a.attempts, b.attempts))
	})
	for _, t := range order {
		p.line("  %s of %-7s %2d × %s after %d", p.paint(cyan, fmt.Sprintf("%-7s", t.receiver)), t.organization, count[t],
			p.paint(statusColors[t.status], t.status), t.attempts)
	}
}

func (p *page) promises() {
	p.heading("What had to come true", "computed from what was committed, and who it was owed to")
}

func (p *page) verdict(v verdict) {
	if v.broken == nil {
		p.line("  %s %s %s", p.paint(green, "✓"), v.promise.says, p.paint(dim, fmt.Sprintf("(%d checks)", v.looked)))
		return
	}
	p.line("  %s %s", p.paint(red, "✗"), v.broken.Error())
}

func (p *page) lookAround(url, admin string, event uuid.UUID) {
	p.heading("Look around", "any psql will do")
	p.line("  psql '%s'", url)
	for _, sql := range []string{
		"SELECT event_type, status, attempts, status_code, error FROM webhook_deliveries ORDER BY id;",
		fmt.Sprintf("SELECT attempt, at, status_code, error_class, duration_ms FROM webhook_attempts WHERE event_id = '%s' ORDER BY at;", event),
		fmt.Sprintf("SELECT url, reason FROM webhook_explain('%s');", event),
		"UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now() WHERE status = 'failed';  -- replay",
	} {
		p.line("    %s", p.paint(cyan, sql))
	}
	p.line("  curl -s http://%s/metrics | grep ^walhook_", admin)
	p.line(`  curl -s http://%s/api/test-webhook -d '{"event":"payment.succeeded","organizationId":"%s"}'`, admin, acme)
}

func (p *page) goodbye() { p.line("\nTaking everything away.") }

func (p *page) stays() {
	p.line("\n%s", p.paint(bold, "Everything keeps running, and what you do shows here. Ctrl-C takes it all away."))
}

// log shows the end of walhook's log, when something went wrong.
func (p *page) log(lines []string) {
	if len(lines) == 0 || lines[0] == "" {
		return
	}
	p.heading("The end of walhook's log", "walhook demo --verbose shows all of it")
	for _, l := range lines {
		p.line("  %s", p.paint(dim, l))
	}
}
