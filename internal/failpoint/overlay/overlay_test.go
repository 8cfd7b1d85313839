package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/walhook/walhook/internal/failpoint"
	"github.com/walhook/walhook/internal/process"
)

// TestPatchesApply also holds that no switch and no point is without its call.
func TestPatchesApply(t *testing.T) {
	t.Parallel()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	files, err := patched(root, patches())
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for file, text := range files {
		if !strings.Contains(text, "; import \"github.com/walhook/walhook/internal/failpoint\"\n") {
			t.Errorf("%s does not import it", file)
		}
		all.WriteString(text)
	}
	for _, s := range failpoint.Switches {
		if !strings.Contains(all.String(), on(s)) {
			t.Errorf("nothing asks for the switch %s", s)
		}
	}
	for _, p := range failpoint.Points {
		if !strings.Contains(all.String(), reach(p)) {
			t.Errorf("nothing reaches the point %s", p)
		}
	}
}

func TestPatchWithoutItsTextIsAnError(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "a.go"), []byte("package a\n\nvar x, y, y2 = 1, 2, 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ file, old, says string }{
		{"a.go", "x", ""},
		{"a.go", "y", `a.go has "y" 2 times`},
		{"a.go", "z", `a.go has "z" 0 times`},
		{"b.go", "x", "no such file"},
	} {
		_, err := patched(root, []patch{{c.file, c.old, "$ + 1"}})
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q in %s: got error %v, want %q", c.old, c.file, err, c.says)
		}
	}
}

// TestReleaseHoldsNothingOfIt builds walhook as it is released, and looks for the
// names; and with the overlay, to see that this would find them, and that the copies
// compile.
func TestReleaseHoldsNothingOfIt(t *testing.T) {
	if testing.Short() {
		t.Skip("builds walhook twice")
	}
	names := []string{failpoint.Variable, failpoint.Kill(""), failpoint.Wedge("")}
	for _, s := range failpoint.Switches {
		names = append(names, string(s))
	}
	t.Run("in a release", func(t *testing.T) {
		for name, there := range inBinary(t, names) {
			if there {
				t.Errorf("the binary holds %q", name)
			}
		}
	})
	t.Run("but in a build with the overlay", func(t *testing.T) {
		folder := t.TempDir()
		if err := write(folder); err != nil {
			t.Fatal(err)
		}
		for name, there := range inBinary(t, names, "-overlay", filepath.Join(folder, "overlay.json")) {
			if !there {
				t.Errorf("the binary does not hold %q: this test looks for the wrong thing", name)
			}
		}
	})
}

// inBinary builds walhook, and says which texts are in it.
func inBinary(t *testing.T, texts []string, flags ...string) map[string]bool {
	t.Helper()
	path := filepath.Join(t.TempDir(), "walhook")
	if err := process.Build(t.Context(), path, flags...); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, text := range texts {
		found[text] = bytes.Contains(content, []byte(text))
	}
	return found
}
