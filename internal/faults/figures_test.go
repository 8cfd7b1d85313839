package faults

import (
	"os"
	"strings"
	"testing"
)

const figuresPage = "../../docs/faults.md"

// named returns the scenarios as reports.
func named() []Report {
	all := make([]Report, len(scenarios))
	for i, s := range scenarios {
		all[i] = Report{Number: s.number, Name: s.name}
	}
	return all
}

// The page is as the suite writes it: it has a row for each scenario, and nobody has
// edited it.
func TestPageOfFigures(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(figuresPage)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := parseFigures(string(page))
	if err != nil {
		t.Fatal(err)
	}
	have, want := strings.Split(string(page), "\n"), strings.Split(renderFigures(named(), rows), "\n")
	for i := range max(len(have), len(want)) {
		if i >= len(have) || i >= len(want) || have[i] != want[i] {
			t.Fatalf("docs/faults.md is not what `make faults RUN=…` writes, from line %d on: %q, want %q", i+1, line(have, i), line(want, i))
		}
	}
}

// line returns the i-th line; "" beyond the end.
func line(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return ""
}

// Every scenario is in the table of faults.
func TestGuaranteesNameTheScenarios(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/guarantees.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scenarios {
		if !strings.Contains(string(page), "`"+s.name+"`") {
			t.Errorf("docs/guarantees.md does not say which fault `%s` is", s.name)
		}
	}
}

func TestARunReplacesWhatItMeasured(t *testing.T) {
	t.Parallel()
	rows, err := parseFigures(figuresHead +
		"| 1 | A | 15.2 | park=500ms | before | pass | old |\n" +
		"| 1 | A | 15.2 | park=0s | before | pass | kept |\n" +
		"| 1 | A | 17.5 | park=500ms | before | pass | kept |\n" +
		"| 2 | B |  |  | not yet |  |  |\n" +
		"| 4 | Gone | 15.2 | park=0s | before | pass | gone |\n")
	if err != nil {
		t.Fatal(err)
	}
	reports := []*Report{
		{"1", "A", "15.18", "park=500ms", "FAIL", []string{"a|b", "c"}},
		{"1", "A", "17.6", "park=500ms", "skip", []string{"nothing"}},
		{"2", "B", "15.18", "park=0s", "pass", nil},
	}
	got := renderFigures([]Report{{Number: "1", Name: "A"}, {Number: "2", Name: "B"}, {Name: "C"}}, mergeFigures(rows, reports, "now"))
	want := figuresHead +
		"| 1 | A | 15.18 | park=500ms | now | FAIL | a/b; c |\n" +
		"| 1 | A | 15.2 | park=0s | before | pass | kept |\n" +
		"| 1 | A | 17.5 | park=500ms | before | pass | kept |\n" +
		"| 2 | B | 15.18 | park=0s | now | pass |  |\n" +
		"|  | C |  |  | not yet |  |  |\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
