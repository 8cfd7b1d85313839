package config

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// docs/configuration.md and the code list the same variables.
func TestPageListsTheVariables(t *testing.T) {
	t.Parallel()
	page := read(t, "../../docs/configuration.md")
	if want := table(); !strings.Contains(page, "\n"+want+"\n") {
		t.Errorf("docs/configuration.md lacks this table, as it is here:\n\n%s", want)
	}
	if n := strings.Count(page, "\n| `WALHOOK_"); n != len(Variables) {
		t.Errorf("docs/configuration.md has %d rows for variables, want %d", n, len(Variables))
	}
}

// It lists those that can be in a file, too.
func TestPageListsTheSecrets(t *testing.T) {
	t.Parallel()
	_, section, _ := strings.Cut(read(t, "../../docs/configuration.md"), "## Secrets in files\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, v := range Variables {
		if listed := strings.Contains(section, "`"+v.Name+"`"); listed != v.Secret {
			t.Errorf("docs/configuration.md lists %s as one that can be in a file: %t, want %t", v.Name, listed, v.Secret)
		}
	}
}

// The README shows a choice of them, in the same words.
func TestREADMEShowsVariables(t *testing.T) {
	t.Parallel()
	shown, all := 0, table()
	for line := range strings.Lines(read(t, "../../README.md")) {
		if !strings.HasPrefix(line, "| `WALHOOK_") {
			continue
		}
		shown++
		if !strings.Contains(all, "\n"+line) {
			t.Errorf("README.md has a row that is not in docs/configuration.md: %s", line)
		}
	}
	if shown == 0 {
		t.Error("README.md shows no variable")
	}
}

// table is what Variables says, in Markdown.
func table() string {
	var b strings.Builder
	b.WriteString("| variable | default | meaning |\n|---|---|---|\n")
	for _, v := range Variables {
		shown := v.Shown
		if shown == "" {
			shown = "`" + v.Default + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", v.Name, shown, v.Meaning)
	}
	return b.String()
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
