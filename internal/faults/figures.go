package faults

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// This file writes docs/faults.md: a row for each scenario, major version of PostgreSQL
// and mode. A run replaces the rows that it measured and leaves the others, so that one
// scenario can be measured by itself.

const figuresHead = `# Figures of the fault suite

"make faults" writes this page; do not edit it by hand. A run replaces the rows that it measured: of a scenario, a major
version of PostgreSQL, and a mode, which is the value of WALHOOK_PARK_AFTER. [The faults](guarantees.md#the-faults)
describes each scenario and what must hold.

PostgreSQL, walhook, the receivers and the driver share the cores; the rate is events per second. A duplicate is a request
that was not necessary; in CutHolder and FrozenHolder 2,000 replayed deliveries count as duplicates. One crash may repeat
3,072 deliveries (WALHOOK_MAX_IN_FLIGHT + 2,048). MiB are the most memory that a walhook had.

| # | scenario | PostgreSQL | mode | measured | result | figures |
|---|---|---|---|---|---|---|
`

// A figure is a row of the page.
type figure struct {
	number, scenario, postgres, mode, measured, result, figures string
}

// never marks the row of a scenario that has not been measured.
const never = "not yet"

func (f figure) String() string {
	return "| " + strings.Join([]string{f.number, f.scenario, f.postgres, f.mode, f.measured, f.result, f.figures}, " | ") + " |\n"
}

// major returns PostgreSQL's major version.
func (f figure) major() int {
	text, _, _ := strings.Cut(f.postgres, ".")
	version, _ := strconv.Atoi(text) // 0: none
	return version
}

// sameRun reports whether one figure replaces the other.
func (f figure) sameRun(g figure) bool {
	return f.scenario == g.scenario && f.mode == g.mode && f.major() == g.major()
}

// parseFigures returns the rows of a page.
func parseFigures(page string) ([]figure, error) {
	_, rows, found := strings.Cut(page, "|---|---|---|---|---|---|---|\n")
	if !found {
		return nil, fmt.Errorf("the page has no table of figures")
	}
	var all []figure
	for row := range strings.Lines(rows) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(row), "|"), "|")
		if len(cells) != 7 {
			return nil, fmt.Errorf("a row has %d cells, want 7: %s", len(cells), row)
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		all = append(all, figure{cells[0], cells[1], cells[2], cells[3], cells[4], cells[5], cells[6]})
	}
	return all, nil
}

// renderFigures returns the page: rows in the order of scenarios, versions and modes, and
// a row for each scenario that was not measured. Rows of removed scenarios are removed.
func renderFigures(scenarios []Report, rows []figure) string {
	var b strings.Builder
	b.WriteString(figuresHead)
	for _, s := range scenarios {
		var its []figure
		for _, f := range rows {
			if f.scenario == s.Name && f.measured != never {
				f.number = s.Number
				its = append(its, f)
			}
		}
		if its == nil {
			its = []figure{{number: s.Number, scenario: s.Name, measured: never}}
		}
		slices.SortFunc(its, func(a, b figure) int {
			return cmp.Or(cmp.Compare(a.major(), b.major()), cmp.Compare(b.mode, a.mode))
		})
		for _, f := range its {
			b.WriteString(f.String())
		}
	}
	return b.String()
}

// mergeFigures replaces the rows that reports measured. Skipped scenarios measured
// nothing.
func mergeFigures(rows []figure, reports []*Report, measured string) []figure {
	for _, r := range reports {
		if r.Result == "skip" {
			continue
		}
		f := figure{r.Number, r.Name, r.Postgres, r.Mode, measured, r.Result, strings.ReplaceAll(strings.Join(r.figures, "; "), "|", "/")}
		rows = append(slices.DeleteFunc(rows, f.sameRun), f)
	}
	return rows
}

// writeFigures puts this run's figures into the page.
func writeFigures(path string, scenarios []Report, measured string) error {
	reports.mu.Lock()
	defer reports.mu.Unlock()
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	rows, err := parseFigures(string(page))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	page = []byte(renderFigures(scenarios, mergeFigures(rows, reports.all, measured)))
	return os.WriteFile(path, page, 0o644)
}
