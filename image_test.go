package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// The image is built from what .dockerignore leaves: that has to be all that the binary needs.
func TestTheImageHasWhatTheBinaryNeeds(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(".dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	var roots, never []string
	for i, line := range strings.Fields(string(text)) {
		root, kept := strings.CutPrefix(line, "!")
		name, anywhere := strings.CutPrefix(line, "**/")
		switch {
		case i == 0 && line == "*":
		case kept && !strings.Contains(root, "/"):
			roots = append(roots, root)
		case anywhere:
			never = append(never, name)
		default:
			t.Fatalf(".dockerignore: this test knows *, !name and **/name, and not %q", line)
		}
	}
	matches := func(patterns []string, name string) bool {
		for _, p := range patterns {
			if ok, _ := path.Match(p, name); ok {
				return true
			}
		}
		return false
	}
	left := t.TempDir()
	copied := 0
	err = fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		first, _, _ := strings.Cut(name, "/")
		switch {
		case err != nil || name == ".":
			return err
		case !matches(roots, first) || matches(never, d.Name()):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			return os.Mkdir(filepath.Join(left, name), 0o755)
		}
		copied++
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(left, name), content, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", ".")
	list.Dir = left
	if output, err := list.CombinedOutput(); err != nil || copied == 0 {
		t.Errorf("go list of the %d files that .dockerignore leaves: %v: %s", copied, err, output)
	}
}
