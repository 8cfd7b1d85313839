package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestImportsGoOneWay holds the directions in which the packages may know each
// other: main knows all, siblings never know each other, and the domain knows
// nobody. Any of them may be broken on purpose, in test builds.
func TestImportsGoOneWay(t *testing.T) {
	t.Parallel()
	const module = "github.com/walhook/walhook"
	allowed := map[string][]string{
		"outbox":            {"internal/sabotage"},
		"sign":              {},
		"cdc":               {"outbox", "internal/sabotage"},
		"deliver":           {"outbox", "sign", "internal/sabotage"},
		"internal/config":   {},
		"internal/demo":     {"outbox", "sign", "internal/postgres"},
		"internal/admin":    {"outbox", "deliver", "cdc"},
		"internal/postgres": {"internal/postgres/flock"},
		"internal/sabotage": {},
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
			continue
		}
		seen++
		for _, path := range fields[1:] {
			if other, ours := strings.CutPrefix(path, module+"/"); ours && !slices.Contains(may, other) {
				t.Errorf("%s imports %s", name, other)
			}
		}
	}
	if seen != len(allowed) {
		t.Errorf("%d of %d packages found: this test no longer looks at all of them", seen, len(allowed))
	}
}
