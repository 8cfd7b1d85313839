// Package testkit is what tests of programs share: they read what is printed while it is printed, and run walhook itself.
package testkit

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/walhook/walhook/internal/process"
)

// An Output is what a program prints, or a log, which a test reads meanwhile.
type Output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write is io.Writer's.
func (o *Output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

// String returns all of it so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// Lines returns how many lines so far hold all of the texts.
func (o *Output) Lines(with ...string) (n int) {
	for line := range strings.Lines(o.String()) {
		if !slices.ContainsFunc(with, func(text string) bool { return !strings.Contains(line, text) }) {
			n++
		}
	}
	return n
}

// Start starts a program, which is interrupted, and waited for, when the test ends.
func Start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	running, err := process.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := running.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		<-running.Exited
	})
}

// Walhook builds walhook, and has it deliver from a slot to receivers on this machine, with warnings in the test's log, until
// the test ends. Of two values of a variable in env the last counts.
func Walhook(t *testing.T, databaseURL, slot string, env ...string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "walhook")
	if err := process.Build(t.Context(), program); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program, "run") // Start ends it
	cmd.Env = append(os.Environ(), "WALHOOK_DATABASE_URL="+databaseURL, "WALHOOK_SLOT="+slot, "WALHOOK_ADMIN_ADDR=",
		"WALHOOK_ALLOW_HTTP=true", "WALHOOK_ALLOW_NETS=127.0.0.0/8", "WALHOOK_LOG_LEVEL=warn")
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = t.Output()
	Start(t, cmd)
}
