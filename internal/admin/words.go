package admin

import (
	"fmt"
	"html/template"
	"strings"
	"time"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/terminal"
)

// A level is how well something is. It chooses the colour, and a word for who sees none.
type level string

const (
	well    level = "well"
	unsure  level = "look" // somebody should look, there is time
	trouble level = "trouble"
)

// worse returns the worse of two levels.
func worse(a, b level) level {
	if a == trouble || b == trouble {
		return trouble
	}
	if a == unsure || b == unsure {
		return unsure
	}
	return well
}

// A verdict is a part of the state in words.
type verdict struct {
	Level level
	Name  string
	Short string // a word or a figure
	Words string // what it means, and what to do
}

// overdueLong is when the alert WalhookOverdue fires, and overdueSome is worth a look.
const (
	overdueSome = 15 * time.Second
	overdueLong = 2 * time.Minute
)

// slotRunsOut is the share of the WAL that the slot may keep at which the alert
// WalhookSlotRunsOut fires.
const slotRunsOut = 0.3

// aboutStream says what this process does.
func aboutStream(stream cdc.Status) verdict {
	v := verdict{Name: "This process"}
	switch {
	case stream.Err != "":
		v.Level, v.Short, v.Words = trouble, "In trouble", stream.Err
	case stream.Role == cdc.Streaming:
		v.Level, v.Short, v.Words = well, "Delivering", "It is connected to the replication slot."
	case stream.Role == cdc.Standby:
		v.Level, v.Short, v.Words = well, "Standing by", "Another walhook delivers. This one takes over when that one is gone."
	default:
		v.Level, v.Short, v.Words = unsure, "Connecting", "It is not connected to the replication slot yet."
	}
	return v
}

// aboutSlot says whether PostgreSQL keeps what is still to be delivered.
func aboutSlot(s *store.SlotOverview) verdict {
	v := verdict{Name: "Replication slot", Level: trouble}
	switch {
	case s == nil:
		v.Level, v.Short, v.Words = unsure, "Unknown", "The database did not answer in time."
	case !s.Exists:
		v.Short, v.Words = "Missing", "There is no slot, so nothing new is delivered. walhook makes it when it starts, unless WALHOOK_AUTO_INIT is false: then walhook init does."
	case s.WALStatus == "lost":
		v.Short, v.Words = "Lost", "PostgreSQL has removed WAL that the slot needed. walhook finds the events in the outbox: see “A lost slot” in docs/operations.md."
	case !s.Active:
		v.Short, v.Words = "Not in use", "No walhook is connected, and PostgreSQL keeps WAL for it: "+humanBytes(s.LagBytes)+" so far."
	case s.SafeBytes != nil && float64(*s.SafeBytes) < slotRunsOut*float64(*s.SafeBytes+s.LagBytes):
		v.Short = humanBytes(s.LagBytes) + " kept"
		v.Words = "Only " + humanBytes(*s.SafeBytes) + " more, and PostgreSQL gives the slot up. A transaction that is open for long may hold it: see “Slot lag” in docs/operations.md."
	case s.SafeBytes == nil:
		v.Level, v.Short, v.Words = well, humanBytes(s.LagBytes)+" kept", "All is well, but max_slot_wal_keep_size sets no bound: while walhook is away, WAL may fill the disk."
	default:
		v.Level, v.Short, v.Words = well, humanBytes(s.LagBytes)+" kept", "All is well. "+humanBytes(*s.SafeBytes)+" more may be kept."
	}
	return v
}

// aboutWaiting says whether what could be sent is sent in time.
func aboutWaiting(o store.Overview) verdict {
	v := verdict{Name: "Waiting deliveries", Level: unsure, Short: "Unknown", Words: "The database did not answer in time."}
	if o.Waiting == nil || o.Overdue == nil {
		return v
	}
	v.Short = terminal.Number(o.Waiting.Pending + o.Waiting.Retrying)
	kinds := fmt.Sprintf("%s for a first attempt or a replay, %s to be tried again.", terminal.Number(o.Waiting.Pending), terminal.Number(o.Waiting.Retrying))
	switch late := *o.Overdue; {
	case late >= overdueLong:
		v.Level, v.Words = trouble, "The first that could be sent has been due for "+short(late)+": walhook does not keep up. "+kinds
	case late >= overdueSome:
		v.Words = "The first that could be sent has been due for " + short(late) + ". " + kinds
	default:
		v.Level, v.Words = well, "Nothing is late. "+kinds
	}
	return v
}

// aboutEndpoints counts endpoints. Those of customers that fail are no trouble of walhook's.
func aboutEndpoints(e *store.EndpointsOverview) verdict {
	if e == nil {
		return verdict{Name: "Endpoints", Level: unsure, Short: "Unknown", Words: "The database did not answer in time."}
	}
	v := verdict{Name: "Endpoints", Level: well, Short: "All are well", Words: terminal.Number(e.OK) + " get what they are owed."}
	if *e == (store.EndpointsOverview{}) {
		v.Short, v.Words = "None yet", "Nobody is owed anything: “Endpoints” in docs/sending.md has how to make one."
	}
	if failing := e.Failing + e.Open; failing > 0 {
		v.Level, v.Short = unsure, number(failing, "fails", "fail")
		v.Words = number(e.OK, "is well.", "are well.")
		if e.Open > 0 {
			v.Words += " " + number(e.Open, "has an open breaker", "have open breakers") + ", after failures in a row: one probe at a time."
		}
	}
	if e.Paused > 0 {
		v.Words += " " + number(e.Paused, "is paused.", "are paused.")
	}
	if e.Disabled > 0 {
		v.Words += " " + number(e.Disabled, "is disabled.", "are disabled.")
	}
	return v
}

// headline sums up.
func headline(problem string, verdicts []verdict) verdict {
	h := verdict{Level: well, Short: "All is well"}
	if problem != "" {
		h.Level, h.Short = trouble, "The database is in trouble"
	}
	for _, v := range verdicts {
		if worse(h.Level, v.Level) != h.Level {
			h.Level, h.Short = v.Level, v.Name+": "+strings.ToLower(v.Short[:1])+v.Short[1:]
		}
	}
	return h
}

// because says in a line why an endpoint is in trouble.
func because(e *store.EndpointView) string {
	var why string
	switch {
	case !e.Enabled:
		why = "disabled"
		if e.DisabledReason != "" {
			why += ": " + e.DisabledReason
		}
	case e.PausedAt != nil:
		why = "paused: what is owed to it waits"
	case e.Last != nil:
		why = outcome(e.Last.StatusCode, e.Last.Class, e.Last.Error)
	case e.FailingSince != nil:
		why = "its last attempt failed"
	}
	return why
}

// outcome says what came of an attempt.
func outcome(status int, class, text string) string {
	switch {
	case status != 0 && class == "":
		return fmt.Sprintf("answered %d", status)
	case status != 0:
		return fmt.Sprintf("answered %d (%s)", status, class)
	case text != "" && class != "":
		return class + ": " + text
	}
	return class + text
}

// standing is a word for how an endpoint stands.
func standing(e *store.EndpointView) verdict {
	switch {
	case !e.Enabled:
		return verdict{Level: "off", Short: "disabled"}
	case e.PausedAt != nil:
		return verdict{Level: "off", Short: "paused"}
	case e.BreakerOpenedAt != nil:
		return verdict{Level: trouble, Short: "breaker open"}
	case e.FailingSince != nil:
		return verdict{Level: unsure, Short: "failing"}
	}
	return verdict{Level: well, Short: "well"}
}

// since is when an endpoint's trouble began.
func since(e *store.EndpointView) *time.Time {
	if !e.Enabled {
		return e.DisabledAt
	}
	if e.PausedAt != nil {
		return e.PausedAt
	}
	return e.FailingSince
}

// number is a count and the word that goes with it.
func number(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return terminal.Number(n) + " " + many
}

// short prints a duration in its largest units.
func short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%.2g ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second && d%time.Second != 0:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	}
	return fmt.Sprintf("%.0f days", d.Hours()/24)
}

// past reports whether a time is over.
func past(at *time.Time) bool { return time.Since(*at) >= 0 }

// when prints a time beside how long ago it was, or how soon it will be.
func when(at any) template.HTML {
	var t time.Time
	switch v := at.(type) {
	case time.Time:
		t = v
	case *time.Time:
		if v != nil {
			t = *v
		}
	}
	if t.IsZero() {
		return "–"
	}
	exact := t.UTC().Format("2006-01-02 15:04:05") + " UTC"
	said := short(time.Since(t).Truncate(time.Second)) + " ago"
	switch ago := time.Since(t); {
	case ago < 0:
		said = "in " + short((-ago).Truncate(time.Second))
	case ago < time.Second:
		said = "now"
	}
	return template.HTML(`<time datetime="` + t.UTC().Format(time.RFC3339) + `" title="` + exact + `">` + said + `</time>`)
}

// oneLine shows a stranger's text so that nothing in it moves the cursor or turns the direction.
func oneLine(text string) string { return terminal.Printable(text) }

// manyLines keeps line breaks and tabs.
func manyLines(text string) string {
	var b strings.Builder
	for i, line := range strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n") {
		if i > 0 {
			b.WriteByte('\n')
		}
		for j, cell := range strings.Split(line, "\t") {
			if j > 0 {
				b.WriteByte('\t')
			}
			b.WriteString(terminal.Printable(cell))
		}
	}
	return b.String()
}

// humanBytes prints a number of bytes in the unit that people would choose.
func humanBytes(n int64) string {
	unit, value := "B", float64(n)
	for _, larger := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < 1024 {
			break
		}
		unit, value = larger, value/1024
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}
