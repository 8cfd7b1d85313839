package faults

import (
	"fmt"
	"strings"
	"sync"
	"text/tabwriter"
)

// A Report is the result and the figures of one run of a scenario.
type Report struct {
	Number   string // of the fault, in the table of scenarios
	Name     string
	Postgres string // the version
	Mode     string
	Result   string // "pass", "skip" or "FAIL"
	figures  []string
}

// add adds figures. On a nil Report it does nothing.
func (r *Report) add(format string, args ...any) {
	if r != nil {
		r.figures = append(r.figures, fmt.Sprintf(format, args...))
	}
}

// on notes the server by its server_version: "17.6 (Debian ...)".
func (r *Report) on(version string) {
	if r != nil {
		r.Postgres, _, _ = strings.Cut(version, " ")
	}
}

// String is the report's line.
func (r *Report) String() string {
	return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s", r.Number, r.Name, r.Postgres, r.Mode, r.Result, strings.Join(r.figures, "; "))
}

// reports holds the reports of all scenarios that have ended.
var reports struct {
	mu  sync.Mutex
	all []*Report
}

// keep prints a report's line and keeps it for the table.
func (r *Report) keep() {
	reports.mu.Lock()
	defer reports.mu.Unlock()
	reports.all = append(reports.all, r)
	fmt.Println("fault " + strings.ReplaceAll(r.String(), "\t", " "))
}

// table returns a line for each report; "": there is none.
func table() string {
	reports.mu.Lock()
	defer reports.mu.Unlock()
	if len(reports.all) == 0 {
		return ""
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "fault\tscenario\tPostgreSQL\tmode\tresult\tfigures")
	for _, r := range reports.all {
		fmt.Fprintln(w, r)
	}
	_ = w.Flush() // to a strings.Builder
	return b.String()
}
