//go:build linux

package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The plots of the documentation are drawn from the figures beside them: whoever changes how, draws them again.
func TestCommittedPlotsAreThoseOfTheirFigures(t *testing.T) {
	t.Parallel()
	const committed = "../../docs/plots"
	text, err := os.ReadFile(filepath.Join(committed, figuresFile))
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, figuresFile), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := redraw(folder); err != nil {
		t.Fatal(err)
	}
	for _, p := range plots {
		want, err := os.ReadFile(filepath.Join(folder, p.file))
		if err != nil {
			t.Errorf("the figures are not enough for %s: %v", p.file, err)
			continue
		}
		got, err := os.ReadFile(filepath.Join(committed, p.file))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("docs/plots/%s is not of its figures (%v): go run ./internal/bench -redraw docs/plots", p.file, err)
		}
		checkSVG(t, p.file, string(want))
	}
}

// checkSVG expects well-formed XML that loads nothing and is readable on light and on dark.
func checkSVG(t *testing.T, name, svg string) {
	t.Helper()
	decoder := xml.NewDecoder(strings.NewReader(svg))
	for {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for _, never := range []string{"@import", "@font-face", "url(", "href", "<script", "NaN"} {
		if strings.Contains(svg, never) {
			t.Errorf("%s has %s", name, never)
		}
	}
	if !strings.Contains(svg, "prefers-color-scheme: dark") {
		t.Errorf("%s has no colours for the dark", name)
	}
}

func TestPlot(t *testing.T) {
	t.Parallel()
	f := figures{Machine: "PostgreSQL 18 <fsync on>; 2 CPUs", Date: "2026-11-28", Tables: []table{
		{"latency: 200 events/s", []figure{{"p50, ms", []float64{0.5}}, {"p90, ms", []float64{1}}, {"p99, ms", []float64{4, 2, 3}}}}}}
	latency := plots[2]
	svg, err := latency.draw(f)
	if err != nil {
		t.Fatal(err)
	}
	checkSVG(t, latency.file, svg)
	for _, want := range []string{"milliseconds", "200 events/s", "2026-11-28, PostgreSQL 18 &lt;fsync on&gt;", "everything on one machine: 2 CPUs", ">0.50<", ">3.00<", `width="460.0"`} {
		if !strings.Contains(svg, want) {
			t.Errorf("the plot does not say %s:\n%s", want, svg)
		}
	}
	if svg, err := plots[0].draw(f); svg != "" || err != nil {
		t.Errorf("a plot without its tables: %q, %v", svg, err)
	}
	f.Tables[0].Rows = f.Tables[0].Rows[:2]
	if _, err := latency.draw(f); err == nil || !strings.Contains(err.Error(), "p99") {
		t.Errorf("a table without a row: %v", err)
	}
}
