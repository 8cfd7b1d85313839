package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/walhook/walhook/internal/process"
)

// series are the metrics of a scrape: by name, the values that each label has.
type series map[string]map[string][]string

var (
	sampleLine = regexp.MustCompile(`(?m)^(walhook_\w+)(?:\{(.*)\})? \S+$`)
	labelPair  = regexp.MustCompile(`(\w+)="([^"]*)"`)
	selector   = regexp.MustCompile(`(walhook_\w+)(?:\{([^}]*)\})?`)
	matcher    = regexp.MustCompile(`(\w+)(=~|!~|!=|=)"([^"]*)"`)
	grouping   = regexp.MustCompile(`by \(([^)]*)\)`)
)

func parseSeries(text string) series {
	found := series{}
	for _, m := range sampleLine.FindAllStringSubmatch(text, -1) {
		labels := found[m[1]]
		if labels == nil {
			labels = map[string][]string{}
			found[m[1]] = labels
		}
		for _, l := range labelPair.FindAllStringSubmatch(m[2], -1) {
			labels[l[1]] = append(labels[l[1]], l[2])
		}
	}
	return found
}

// ofTheScrape are labels that Prometheus adds.
var ofTheScrape = []string{"job", "instance"}

// problems says what a query asks for that no walhook has.
func (s series) problems(query string) (problems []string) {
	names := selector.FindAllStringSubmatch(query, -1)
	if len(names) == 0 && !strings.Contains(query, "up{") {
		return []string{"it names no metric"}
	}
	grouped := map[string]bool{}
	for _, m := range names {
		labels, exists := s[m[1]]
		if !exists {
			problems = append(problems, "there is no "+m[1])
			continue
		}
		for name := range labels {
			grouped[name] = true
		}
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(ofTheScrape, l[1]) && !matchesAny(labels[l[1]], l[3]) {
				problems = append(problems, fmt.Sprintf("%s has no %s %q", m[1], l[1], l[3]))
			}
		}
	}
	for _, m := range grouping.FindAllStringSubmatch(query, -1) {
		for name := range strings.SplitSeq(m[1], ", ") {
			if !slices.Contains(ofTheScrape, name) && !grouped[name] {
				problems = append(problems, "no metric of it has the label "+name)
			}
		}
	}
	return problems
}

func matchesAny(values []string, pattern string) bool {
	for alternative := range strings.SplitSeq(pattern, "|") {
		if !slices.Contains(values, alternative) {
			return false
		}
	}
	return true
}

// queries are those that are shipped, by where they are.
func queries(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)- alert: (\w+)\n +expr: (.*)$`).FindAllStringSubmatch(readFile(t, "deploy/prometheus/alerts.yml"), -1) {
		found["alert "+m[1]] = m[2]
	}
	if len(found) != len(alertNames(t)) {
		t.Errorf("alerts.yml has %d rules with an expr in one line, want %d", len(found), len(alertNames(t)))
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(readFile(t, "deploy/grafana/walhook.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		for i, target := range p.Targets {
			found[fmt.Sprintf("panel %s, query %d", p.Title, i+1)] = target.Expr
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %s has no query", p.Title)
		}
	}
	return found
}

// What alerts and dashboard ask for is what a walhook exports: names, labels, and their values.
func TestQueriesNameMetrics(t *testing.T) {
	w := newWorld(t)
	rcv := newReceiver(t, always(200))
	w.endpoint(rcv.URL)
	port, err := process.ForWalhook.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	w.run(fmt.Sprintf("WALHOOK_ADMIN_ADDR=127.0.0.1:%d", port))
	w.insert("payment.succeeded")
	w.eventually("it is delivered", `SELECT count(*) = 1 FROM webhook_deliveries WHERE status = 'success'`)
	status, metrics := get(w, fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
	if status != http.StatusOK {
		t.Fatalf("GET /metrics: %d", status)
	}
	exported := parseSeries(metrics)
	shipped := queries(t)
	for _, where := range slices.Sorted(maps.Keys(shipped)) {
		for _, problem := range exported.problems(shipped[where]) {
			t.Errorf("%s: %s: %s", where, problem, shipped[where])
		}
	}
	for query, want := range map[string]int{
		`sum(rate(walhook_event_total[5m]))`:                 1,
		`walhook_endpoints{state="broken"}`:                  1,
		`walhook_endpoints{states="ok"}`:                     1,
		`max by (kind) (walhook_endpoints)`:                  1,
		`sum by (le, job) (walhook_attempts_total{job="x"})`: 1,
		`vector(1)`: 1,
		`walhook_commit_to_attempt_seconds_bucket{job="$job"}`: 0,
	} {
		if got := exported.problems(query); len(got) != want {
			t.Errorf("%s: found %v, want %d problems", query, got, want)
		}
	}
}
