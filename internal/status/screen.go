package status

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/walhook/walhook/internal/terminal"
)

const (
	width = 80 // characters of a line
	shown = 7  // endpoints, two lines each: with the rest they make 22 lines
)

// What is worth a colour.
const (
	overdueLong = time.Minute // deliveries that could be sent are picked up within a second
	fewDays     = 7           // partitions ahead; 14 in normal life
	littleWAL   = 1 << 30     // bytes until the slot may be lost
)

// Screen returns lines of at most 80 characters that fit on a terminal of 24.
func (s *Status) Screen(now time.Time, paint terminal.Paint) string {
	p := &screen{paint: paint}
	s.head(p, now)
	p.row("slot", s.slotRow())
	p.row("waiting", s.waitingRow())
	p.row("endpoints", s.endpointsRow())
	p.row("tables", s.tablesRow())
	s.troubledRows(p, now)
	return p.String()
}

// A screen is lines, cut before they are coloured.
type screen struct {
	strings.Builder
	paint terminal.Paint
}

// Words are a text and its colour.
type words struct {
	text  string
	color terminal.Color
}

func plain(format string, args ...any) words {
	return words{fmt.Sprintf(format, args...), terminal.Plain}
}

func alarm(format string, args ...any) words {
	return words{fmt.Sprintf(format, args...), terminal.Red}
}

func (p *screen) line(parts ...words) {
	room := width
	for _, part := range parts {
		if room <= 0 {
			break
		}
		text := terminal.Cut(part.text, room)
		room -= len([]rune(text))
		p.WriteString(p.paint.Text(part.color, text))
	}
	p.WriteString("\n")
}

func (p *screen) row(name string, parts []words) {
	p.line(append([]words{{fmt.Sprintf("%-11s", name), terminal.Dim}}, parts...)...)
}

func (s *Status) head(p *screen, now time.Time) {
	role := words{s.Role, terminal.Green}
	switch s.Role {
	case down:
		role = alarm("%s: no walhook is connected to the slot", s.Role)
	case unknown:
		role.color = terminal.Yellow
	}
	environment := ""
	if s.Environment != "" {
		environment = ", environment " + terminal.Printable(s.Environment)
	}
	p.line(words{"walhook    ", terminal.Bold}, role, plain("%s, version %s, at %s", environment, s.Version, now.Format("15:04:05")))
}

func (s *Status) slotRow() []words {
	name := terminal.Printable(s.Slot)
	switch {
	case s.Role == unknown:
		return notRead
	case !s.SlotExists:
		return []words{alarm("%s does not exist: `walhook run` creates it", name)}
	case s.WALStatus == "lost" || s.WALStatus == "unreserved":
		return []words{plain("%s, ", name), alarm("%s: walhook makes a lost slot again", s.WALStatus)}
	}
	row := []words{plain("%s keeps %s of WAL; ", name, bytes(*s.LagBytes))}
	switch safe := s.SafeWALBytes; {
	case safe == nil:
		return append(row, words{"max_slot_wal_keep_size sets no limit", terminal.Yellow})
	case *safe < littleWAL:
		return append(row, alarm("lost after %s more", bytes(*safe)))
	default:
		return append(row, plain("%s more are safe", bytes(*safe)))
	}
}

var notRead = []words{{unknown, terminal.Yellow}}

func (s *Status) waitingRow() []words {
	if s.Pending == nil || s.Retrying == nil {
		return notRead
	}
	about := ""
	if s.WaitingEstimated {
		about = "about "
	}
	row := []words{plain("%s%s pending, %s%s retrying; ", about, terminal.Number(*s.Pending), about, terminal.Number(*s.Retrying))}
	switch overdue := s.OverdueSeconds; {
	case overdue == nil:
		return append(row, words{"overdue: unknown", terminal.Yellow})
	case *overdue == 0:
		return append(row, plain("nothing is overdue"))
	case *overdue < overdueLong.Seconds():
		return append(row, plain("due for %s", ago(*overdue)))
	default:
		return append(row, alarm("overdue by %s", ago(*overdue)))
	}
}

func (s *Status) endpointsRow() []words {
	e := s.Endpoints
	if e == nil {
		return notRead
	}
	row := []words{plain("%s ok", terminal.Number(e.OK))}
	for _, part := range []struct {
		n     int64
		state string
		color terminal.Color
	}{
		{e.Failing, "failing", terminal.Yellow}, {e.Open, "open", terminal.Red}, {e.Paused, "paused", terminal.Yellow}, {e.Disabled, "disabled", terminal.Plain},
	} {
		if part.n == 0 {
			part.color = terminal.Plain
		}
		row = append(row, plain(", "), words{terminal.Number(part.n) + " " + part.state, part.color})
	}
	return row
}

func (s *Status) tablesRow() []words {
	var row []words
	if s.SchemaVersion != nil {
		row = append(row, plain("schema version %d", *s.SchemaVersion))
	}
	if s.PartitionsAhead != nil {
		ahead := plain(", partitions for %d days ahead", *s.PartitionsAhead)
		if *s.PartitionsAhead < fewDays {
			ahead.color = terminal.Red
		}
		row = append(row, ahead)
	}
	if s.StrayRows != nil && *s.StrayRows > 0 {
		row = append(row, alarm(", %s stray rows", terminal.Number(*s.StrayRows)))
	}
	if row == nil {
		return notRead
	}
	return row
}

func (s *Status) troubledRows(p *screen, now time.Time) {
	var troubled []Failing
	for _, forAll := range []bool{true, false} { // nobody else tells of an operators' endpoint
		for _, f := range slices.Concat(s.Failing, s.Stopped) {
			if f.ForAll == forAll {
				troubled = append(troubled, f)
			}
		}
	}
	if len(troubled) == 0 {
		return
	}
	p.line()
	p.line(words{fmt.Sprintf("%-8s%7s %8s  %-36s  %s", "trouble", "for", "waiting", "endpoint", "organization"), terminal.Dim})
	for _, f := range troubled[:min(shown, len(troubled))] {
		color := terminal.Yellow
		switch f.State {
		case "open":
			color = terminal.Red
		case "disabled":
			color = terminal.Plain
		}
		waiting := terminal.Number(int64(f.Waiting))
		if f.WaitingMore {
			waiting += "+"
		}
		since := ""
		if !f.Since.IsZero() {
			since = ago(now.Sub(f.Since).Seconds())
		}
		p.line(words{fmt.Sprintf("%-8s", f.State), color},
			plain("%7s %8s  %-36s  %s", since, waiting, f.Endpoint, terminal.Printable(f.Organization)))
		whose := ""
		if f.ForAll {
			whose = "for operators: "
		}
		p.line(plain("        %s  %s%s", f.URL, whose, terminal.Printable(f.Error)))
	}
	more := s.FailingMore
	for _, f := range troubled[min(shown, len(troubled)):] {
		if f.State == "open" || f.State == "failing" {
			more++
		}
	}
	if more > 0 {
		p.line(plain("and %s more: SELECT * FROM webhook_endpoint_failures ORDER BY 2", terminal.Number(more)))
	}
}

// ago writes seconds in the two units that people would choose.
func ago(seconds float64) string {
	d := time.Duration(max(seconds, 0) * float64(time.Second))
	switch {
	case d < time.Minute:
		return strconv.Itoa(int(d.Seconds())) + "s"
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
	}
}

// bytes writes a number of bytes in the unit that people would choose.
func bytes(n int64) string {
	unit, value := "KiB", float64(max(n, 0))/1024
	for _, larger := range []string{"MiB", "GiB", "TiB"} {
		if value < 1024 {
			break
		}
		unit, value = larger, value/1024
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}
