//go:build linux

package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// A report writes tables: figure, median of the rounds, aim, and every round. It keeps the figures for plots.
type report struct {
	out io.Writer
	*tabwriter.Writer
	figures figures
}

func newReport(out io.Writer) *report {
	return &report{out: out, Writer: tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
}

// progress goes to stderr: it is not part of the result.
func (r *report) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

// about describes the machine and the versions.
func (r *report) about(server string) {
	r.figures.Date = time.Now().UTC().Format(time.DateOnly)
	r.figures.Machine = fmt.Sprintf("%s; %d CPUs; %s", server, cpus(), loadBefore())
	fmt.Fprintln(r.out, r.figures.Machine)
}

// loadBefore says how much other work ran in the minutes before.
func loadBefore() string {
	text, _ := os.ReadFile("/proc/loadavg") // absent: not shown
	fields := strings.Fields(string(text))
	said := "load before " + strings.Join(fields[:min(3, len(fields))], " ")
	const quiet = 1 // a machine that does nothing else
	if len(fields) > 0 {
		if last, err := strconv.ParseFloat(fields[0], 64); err == nil && last > quiet {
			said += ": other work ran too"
		}
	}
	return said
}

func (r *report) title(format string, args ...any) {
	title := fmt.Sprintf(format, args...)
	r.figures.Tables = append(r.figures.Tables, table{Title: title})
	fmt.Fprintf(r.Writer, "\n%s\n\tmedian\taim\trounds\n", title)
}

// row prints one figure of every round.
func (r *report) row(name string, rounds []float64, format, aim string) {
	t := &r.figures.Tables[len(r.figures.Tables)-1]
	t.Rows = append(t.Rows, figure{name, rounds})
	texts := make([]string, len(rounds))
	for i, x := range rounds {
		texts[i] = fmt.Sprintf(format, x)
	}
	fmt.Fprintf(r.Writer, "%s\t"+format+"\t%s\t%s\n", name, median(rounds), aim, strings.Join(texts, " "))
}

func (r *report) flush() { _ = r.Flush() }

func each[T any](rounds []T, f func(T) float64) []float64 {
	all := make([]float64, len(rounds))
	for i, x := range rounds {
		all[i] = f(x)
	}
	return all
}

// ratios divides round by round: a disturbance of a round affects both.
func ratios(a, b []float64) []float64 {
	all := make([]float64, min(len(a), len(b)))
	for i := range all {
		all[i] = a[i] / b[i]
	}
	return all
}

func median(x []float64) float64 {
	if len(x) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(x))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// quantile is the nearest rank's, of sorted values.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[max(0, min(i, len(sorted)-1))]
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func mebi(bytes int64) float64 { return float64(bytes) / (1 << 20) }
