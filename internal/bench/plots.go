//go:build linux

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"html"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// figures are what a report has printed, so that plots can be drawn again without measuring.
type figures struct {
	Machine string  `json:"machine"` // what about says: versions, CPUs, load
	Date    string  `json:"date"`
	Tables  []table `json:"tables"`
}

// A table is what a title and its rows say.
type table struct {
	Title string   `json:"title"`
	Rows  []figure `json:"rows"`
}

// A figure is one row, in every round.
type figure struct {
	Name   string    `json:"name"`
	Rounds []float64 `json:"rounds"`
}

// A plot is a chart of bars: a group for each table, or for each row of one table.
type plot struct {
	file, title, unit string
	table             string // how the titles of its tables begin
	series            []series
	groups            []series // of a single table, each a row; nil: the tables are the groups, and each has the series
}

// A series is a row of a table, and what the plot calls it.
type series struct{ row, name string }

var plots = []plot{
	{file: "throughput.svg", title: "Draining a backlog", unit: "deliveries per second", table: "workloads: ", series: []series{
		{"walhook, /s from its start, confirmed", "walhook"}, {"bare client, /s", "net/http, sending alone"}, {"lean client, /s", "lean client, sending alone"}}},
	{file: "cpu.svg", title: "CPU time of a delivery", unit: "µs of one core, by owner", table: "workloads: ", series: []series{
		{"CPU of walhook, µs per delivery", "walhook"}, {"  PostgreSQL for walhook, µs", "PostgreSQL, for walhook"}, {"  bare client, µs", "net/http, sending alone"}}},
	{file: "latency.svg", title: "From COMMIT to the receiver", unit: "milliseconds", table: "latency: ", groups: []series{
		{"p50, ms", "half within"}, {"p90, ms", "90 % within"}, {"p99, ms", "99 % within"}}},
}

// figuresFile is beside the plots.
const figuresFile = "figures.json"

// writePlots writes the figures, and draws those plots that they have tables for.
func writePlots(folder string, f figures) error {
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, figuresFile), append(text, '\n'), 0o644); err != nil {
		return err
	}
	return drawPlots(folder, f)
}

// redraw draws the plots from a folder's figures.
func redraw(folder string) error {
	text, err := os.ReadFile(filepath.Join(folder, figuresFile))
	if err != nil {
		return err
	}
	var f figures
	if err := json.Unmarshal(text, &f); err != nil {
		return fmt.Errorf("read %s: %w", filepath.Join(folder, figuresFile), err)
	}
	return drawPlots(folder, f)
}

func drawPlots(folder string, f figures) error {
	for _, p := range plots {
		svg, err := p.draw(f)
		if err != nil {
			return err
		}
		if svg == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(folder, p.file), []byte(svg), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// A group is a label and its bars, in the order of the series.
type group struct {
	label string
	bars  []float64
}

// collect finds a plot's groups; none: its scenario was not run. what says under which load they were measured.
func (p plot) collect(f figures) (groups []group, what string, err error) {
	for _, t := range f.Tables {
		rest, ours := strings.CutPrefix(t.Title, p.table)
		if !ours {
			continue
		}
		if p.groups != nil {
			what = rest
			for _, s := range p.groups {
				value, err := t.median(s.row)
				if err != nil {
					return nil, "", err
				}
				groups = append(groups, group{s.name, []float64{value}})
			}
			continue
		}
		events, name, _ := strings.Cut(rest, " events, ")
		what = cmp.Or(what, events+" events, fewer where each takes longer")
		g := group{label: name}
		for _, s := range p.series {
			value, err := t.median(s.row)
			if err != nil {
				return nil, "", err
			}
			g.bars = append(g.bars, value)
		}
		groups = append(groups, g)
	}
	return groups, what, nil
}

func (t table) median(row string) (float64, error) {
	i := slices.IndexFunc(t.Rows, func(f figure) bool { return f.Name == row })
	if i < 0 {
		return 0, fmt.Errorf("the table %q has no row %q to plot", t.Title, row)
	}
	return median(t.Rows[i].Rounds), nil
}

// The coordinates, in pixels at the size at which a page shows a plot.
const (
	plotWidth  = 760
	plotLeft   = 220 // of the bars: the labels are left of it
	plotRight  = 680 // the longest bar ends here: its value stands right of it
	plotTop    = 92  // of the first group
	plotFoot   = 50  // below the last group: when and where it was measured
	barHeight  = 16
	barStep    = 19
	groupSpace = 14
)

// Colours that are told apart in grey too, and by most who do not see red and green alike. Text is the browser's own.
const plotStyle = `
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 17px; font-weight: 600 }
.note { font-size: 11px; fill: #59636e }
.paper { fill: #ffffff }
.axis { stroke: #d1d9e0 }
.s0 { fill: #0969da } .s1 { fill: #bf8700 } .s2 { fill: #8c959f }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .note { fill: #9198a1 }
  .paper { fill: #0d1117 }
  .axis { stroke: #3d444d }
  .s0 { fill: #4493f8 } .s1 { fill: #d29922 } .s2 { fill: #656c76 }
}
`

// draw returns the plot as SVG: the same figures give the same bytes. "": there are none.
func (p plot) draw(f figures) (string, error) {
	groups, what, err := p.collect(f)
	if err != nil || groups == nil {
		return "", err
	}
	most := 0.0
	height := plotTop
	for _, g := range groups {
		most = max(most, slices.Max(g.bars))
		height += len(g.bars)*barStep + groupSpace
	}
	if math.IsNaN(most) || most <= 0 {
		return "", fmt.Errorf("%s has nothing to show: %v", p.file, groups)
	}
	var b strings.Builder
	say := func(class string, x, y int, anchor, text string) {
		fmt.Fprintf(&b, `<text class="%s" x="%d" y="%d" text-anchor="%s">%s</text>`+"\n", class, x, y, anchor, html.EscapeString(text))
	}
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%[1]d" height="%[2]d" role="img" aria-label="%[3]s, %[4]s">`+"\n<style>%[5]s</style>\n",
		plotWidth, height+plotFoot, html.EscapeString(p.title), html.EscapeString(p.unit), plotStyle)
	fmt.Fprintf(&b, `<rect class="paper" width="%d" height="%d"/>`+"\n", plotWidth, height+plotFoot)
	say("title", 16, 28, "start", p.title+", "+p.unit)
	say("note", 16, 48, "start", what)
	x := 16
	for i, s := range p.series {
		fmt.Fprintf(&b, `<rect class="s%d" x="%d" y="61" width="12" height="12"/>`+"\n", i, x)
		say("", x+18, 72, "start", s.name)
		x += 44 + 7*len(s.name)
	}
	y := plotTop
	for _, g := range groups {
		say("", plotLeft-10, y+len(g.bars)*barStep/2+3, "end", g.label)
		for i, value := range g.bars {
			width := math.Round(value/most*(plotRight-plotLeft)*10) / 10
			fmt.Fprintf(&b, `<rect class="s%d" x="%d" y="%d" width="%.1f" height="%d"/>`+"\n", i, plotLeft, y, width, barHeight)
			say("", plotLeft+int(width)+6, y+13, "start", shown(value))
			y += barStep
		}
		y += groupSpace
	}
	fmt.Fprintf(&b, `<line class="axis" x1="%d" y1="%d" x2="%[1]d" y2="%[3]d"/>`+"\n", plotLeft, plotTop-6, y-groupSpace+4)
	server, machine, _ := strings.Cut(f.Machine, "; ")
	say("note", 16, height+16, "start", f.Date+", "+server)
	say("note", 16, height+34, "start", "everything on one machine: "+machine)
	b.WriteString("</svg>\n")
	return b.String(), nil
}

// shown is a value with about three digits.
func shown(value float64) string {
	switch {
	case value < 10:
		return fmt.Sprintf("%.2f", value)
	case value < 1000:
		return fmt.Sprintf("%.0f", value)
	}
	return fmt.Sprintf("%d,%03d", int(math.Round(value))/1000, int(math.Round(value))%1000)
}
