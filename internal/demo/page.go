package demo

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/oracle"
	"github.com/walhook/walhook/internal/terminal"
)

// A page is the output. Write errors are ignored: whoever closed the pipe has seen
// enough.
type page struct {
	out   io.Writer
	paint terminal.Paint
	begun time.Time
}

func (p *page) line(format string, args ...any) { fmt.Fprintf(p.out, format+"\n", args...) }

func (p *page) heading(text, aside string) {
	p.line("\n%s  %s", p.paint.Text(terminal.Bold, text), p.paint.Text(terminal.Dim, aside))
}

// said prints a line with the time since the beginning.
func (p *page) said(format string, args ...any) {
	p.line("%s  %s", p.paint.Text(terminal.Dim, fmt.Sprintf("%6.1fs", time.Since(p.begun).Seconds())), fmt.Sprintf(format, args...))
}

// name pads a receiver's name to the width of the longest.
func (p *page) name(receiver string) string {
	return p.paint.Text(terminal.Cyan, fmt.Sprintf("%-7s", receiver))
}

func (p *page) title() {
	p.line("%s  %s", p.paint.Text(terminal.Bold, "walhook demo"), p.paint.Text(terminal.Dim, "a throwaway PostgreSQL, walhook and three receivers, all on this machine"))
	p.said("starting PostgreSQL (if it has to be downloaded first, this takes a minute)")
}

func (p *page) receivers(roles []role, url string) {
	p.heading("The receivers", "and who subscribes to what there: SELECT * FROM webhook_create_endpoint(…)")
	for _, role := range roles {
		p.line("  %s %s  %s", p.name(role.name), url+"/"+role.name, role.does)
		var who []string
		for _, s := range subscriptions {
			if s.receiver == role.name {
				who = append(who, s.organization+": "+strings.Join(s.types, " "))
			}
		}
		p.line("          %s", p.paint.Text(terminal.Dim, strings.Join(who, "  ·  ")))
	}
}

func (p *page) transaction(t transaction, stored, owed int, followed bool) {
	end, c := "COMMIT", terminal.Green
	if t.rollBack {
		end, c = "ROLLBACK", terminal.Yellow
	}
	became := fmt.Sprintf("%d in the outbox, owed %d deliveries", stored, owed)
	if followed {
		became += "  ◀ follow this one"
	}
	p.said("%-7s %-33s %s  %s", t.organization, fmt.Sprintf("%d × %s", len(t.names()), strings.Join(t.types, ", ")),
		p.paint.Text(c, fmt.Sprintf("%-8s", end)), became)
}

var statusColors = map[string]terminal.Color{"pending": terminal.Yellow, "retrying": terminal.Yellow, "success": terminal.Green, "failed": terminal.Red, "cancelled": terminal.Red}

func (p *page) change(c change, dueIn float64, who string, followed bool) {
	status := c.Status
	if status == "retrying" {
		status += fmt.Sprintf(" in %.1fs", max(dueIn, 0))
	}
	if followed {
		who = p.paint.Text(terminal.Bold, who+" ◀")
	}
	p.said("%s attempt %d  %-31s  %s  %s", p.name(c.Receiver), max(c.Attempts, 1), c.Outcome,
		p.paint.Text(statusColors[c.Status], fmt.Sprintf("%-16s", status)), who)
}

// verdict prints whether a promise was kept.
func (p *page) verdict(promise *promise, v *oracle.Verdict, err error) {
	if err != nil {
		p.line("  %s %s", p.paint.Text(terminal.Red, "✗"), err)
		return
	}
	p.line("  %s %s %s", p.paint.Text(terminal.Green, "✓"), promise.says, p.paint.Text(terminal.Dim, fmt.Sprintf("(%d %s)", promise.judged(v), promise.unit)))
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
		p.line("    %s", p.paint.Text(terminal.Cyan, sql))
	}
	p.line("  curl -s http://%s/metrics | grep ^walhook_", admin)
	p.line(`  curl -s http://%s/api/test-webhook -d '{"event":"payment.succeeded","organizationId":"%s"}'`, admin, acme)
}

// log shows the end of walhook's log after a failure.
func (p *page) log(end string) {
	if end == "" {
		return
	}
	p.heading("The end of walhook's log", "walhook demo --verbose shows all of it")
	for line := range strings.Lines(end) {
		p.line("  %s", p.paint.Text(terminal.Dim, strings.TrimSuffix(line, "\n")))
	}
}
