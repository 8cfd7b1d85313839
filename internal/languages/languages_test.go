package languages

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A language that is missing skips its test, and fails it where all are required.
func TestMissing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		setting, want string
		fails         bool
	}{
		{"", "--- SKIP: TestOfOneThatIsNotThere", false},
		{required, "--- FAIL: TestOfOneThatIsNotThere", true},
	} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.run=^TestOfOneThatIsNotThere$")
		cmd.Env = append(os.Environ(), "PATH=/nowhere", variable+"="+c.setting)
		out, err := cmd.CombinedOutput()
		if exit, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed || (exit != nil) != c.fails {
			t.Errorf("with %q it ends with %v", c.setting, err)
		}
		if !strings.Contains(string(out), c.want) || !strings.Contains(string(out), "there is no ruby on the PATH: examples/install installs it") {
			t.Errorf("with %q it says %s, want %q and why", c.setting, out, c.want)
		}
	}
}

// TestOfOneThatIsNotThere is run by the test above, with a PATH of its own.
func TestOfOneThatIsNotThere(t *testing.T) {
	if os.Getenv("PATH") != "/nowhere" {
		t.SkipNow()
	}
	Program(t, "ruby")
}
