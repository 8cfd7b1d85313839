package sabotage

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestReleaseHoldsNothingOfIt builds walhook as it is released, and looks for the
// names; and with the tag, to see that this would find them.
func TestReleaseHoldsNothingOfIt(t *testing.T) {
	if testing.Short() {
		t.Skip("builds walhook twice")
	}
	names := []string{Variable, Kill(""), Wedge("")}
	for _, s := range Switches {
		names = append(names, string(s))
	}
	t.Run("in a release", func(t *testing.T) {
		for name, there := range inBinary(t, names) {
			if there {
				t.Errorf("the binary holds %q", name)
			}
		}
	})
	t.Run("but in a build with the tag", func(t *testing.T) {
		for name, there := range inBinary(t, names, "-tags", "sabotage") {
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
	args := append([]string{"build", "-o", path}, flags...)
	if output, err := exec.CommandContext(t.Context(), "go", append(args, "github.com/walhook/walhook")...).CombinedOutput(); err != nil {
		t.Fatalf("build walhook: %v: %s", err, output)
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
