package main

import (
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestImportsGoOneWay holds the directions in which the packages may know each
// other: main knows all, siblings never know each other, and what an application
// imports knows nobody. Whoever sends or decides knows neither the statements nor the
// driver of the database. What breaks walhook on purpose comes into test builds alone, by
// an overlay.
func TestImportsGoOneWay(t *testing.T) {
	t.Parallel()
	const module = "github.com/walhook/walhook"
	allowed := map[string][]string{
		"outbox":             {},
		"sign":               {},
		"cdc":                {"outbox", "internal/webhook", "internal/store"},
		"deliver":            {"deliver/schedule", "deliver/send", "outbox", "internal/webhook", "internal/store"},
		"deliver/schedule":   {"deliver/send", "outbox", "internal/webhook"},
		"deliver/send":       {"outbox", "sign", "internal/webhook"},
		"internal/config":    {},
		"internal/demo":      {"outbox", "internal/oracle", "internal/postgres", "internal/process", "internal/terminal", "internal/webhook"},
		"internal/listen":    {"sign", "internal/terminal"},
		"internal/oracle":    {"outbox", "sign", "internal/webhook"},
		"internal/admin":     {"outbox", "internal/webhook", "internal/store", "internal/terminal", "deliver/schedule", "cdc"},
		"internal/postgres":  {"internal/postgres/flock", "internal/process"},
		"internal/process":   {},
		"internal/failpoint": {},
		"internal/status":    {"internal/store", "internal/terminal"},
		"internal/store":     {"outbox", "internal/webhook"},
		"internal/terminal":  {"internal/webhook"},
		"internal/webhook":   {"outbox"},

		"internal/postgres/container": {},
		"internal/failpoint/overlay":  {"internal/failpoint"},
		"internal/store/storetest":    {"outbox", "internal/webhook", "internal/store"},
	}
	// By the first part of the path. Values of pglogrepl (an LSN) are data.
	never := map[string][]string{
		"internal/webhook": {"github.com/jackc/pgx", "context", "net", "os"},
		"deliver/schedule": {"github.com/jackc/pgx", "context", "net", "os"},
		"deliver/send":     {"github.com/jackc/pgx"},
	}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		name := strings.TrimPrefix(fields[0], module+"/")
		may, held := allowed[name]
		if !held {
			if slices.Contains(fields[1:], module+"/internal/failpoint") {
				t.Errorf("%s imports internal/failpoint: an overlay puts the calls in, so that a release has none", name)
			}
			continue
		}
		seen++
		for _, path := range fields[1:] {
			if other, ours := strings.CutPrefix(path, module+"/"); ours && !slices.Contains(may, other) {
				t.Errorf("%s imports %s", name, other)
			}
			for _, first := range never[name] {
				if path == first || strings.HasPrefix(path, first+"/") {
					t.Errorf("%s imports %s", name, path)
				}
			}
		}
	}
	if seen != len(allowed) {
		t.Errorf("%d of %d packages found: this test no longer looks at all of them", seen, len(allowed))
	}
}

// TestModulesInTheBinary holds the list of third-party modules in the release
// binary: what operators have to trust, and to update for each of its
// vulnerabilities.
func TestModulesInTheBinary(t *testing.T) {
	t.Parallel()
	allowed := []string{
		"code.dny.dev/ssrf",
		"github.com/beorn7/perks",
		"github.com/cespare/xxhash/v2",
		"github.com/google/uuid",
		"github.com/jackc/pgio",
		"github.com/jackc/pglogrepl",
		"github.com/jackc/pgpassfile",
		"github.com/jackc/pgservicefile",
		"github.com/jackc/pgx/v5",
		"github.com/jackc/puddle/v2",
		"github.com/munnerz/goautoneg",
		"github.com/prometheus/client_golang",
		"github.com/prometheus/client_model",
		"github.com/prometheus/common",
		"github.com/prometheus/procfs",
		"github.com/sethvargo/go-envconfig",
		"golang.org/x/net",
		"golang.org/x/sync",
		"golang.org/x/sys",
		"golang.org/x/text",
		"golang.org/x/time",
		"google.golang.org/protobuf",
	}
	docker := regexp.MustCompile(`docker|moby|containerd|opencontainers|logrus`)
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	found := strings.Fields(string(out))
	slices.Sort(found)
	found = slices.Compact(found)
	for _, module := range found {
		switch {
		case docker.MatchString(module):
			t.Errorf("the release binary has %s: Docker's client is for tests (internal/postgres/container); find what imports it with `go mod why -m %s`", module, module)
		case !slices.Contains(allowed, module):
			t.Errorf("the release binary has a new module, %s: import what needs it from tests only, or, where walhook is worth one more module to trust, add it to this list", module)
		}
	}
	for _, module := range allowed {
		if !slices.Contains(found, module) {
			t.Errorf("the release binary no longer has %s: take it out of this list", module)
		}
	}
}
