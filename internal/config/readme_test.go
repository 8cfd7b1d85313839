package config

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The README's table and the code say the same.
func TestREADMETable(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	want.WriteString("| variable | default | meaning |\n|---|---|---|\n")
	for _, v := range Variables {
		shown := v.Shown
		if shown == "" {
			shown = "`" + v.Default + "`"
		}
		fmt.Fprintf(&want, "| `%s` | %s | %s |\n", v.Name, shown, v.Meaning)
	}
	if !strings.Contains(string(text), "\n"+want.String()+"\n") {
		t.Errorf("README.md lacks this table, as it is here:\n\n%s", want.String())
	}
}
