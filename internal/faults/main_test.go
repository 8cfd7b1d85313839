package faults

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/failpoint"
	"github.com/walhook/walhook/internal/process"
)

// The flags of the suite. WALHOOK_FAULTS=1 is -faults for `go test ./...`, where
// other packages do not know the flag.
var (
	faults   = flag.Bool("faults", os.Getenv("WALHOOK_FAULTS") != "", "run every scenario in full")
	quick    = flag.Bool("faults.quick", false, "run the quick scenarios, for a shorter time and at a fifth of the rate")
	duration = flag.Duration("faults.duration", 0, "how long the load runs, where it is not the scenario's own time")
	rate     = flag.Float64("faults.rate", 500, "events per second")
	many     = flag.Int("faults.many", 1_000_000, "how many events a backlog or a huge transaction has")
	seed     = flag.Uint64("faults.seed", 0, "when kills come: 0 is at random")
	broken   = flag.String("faults.failpoint", "", "a switch of internal/failpoint: the rule that walhook breaks, so that a scenario goes red")
	page     = flag.String("faults.write", "", "the page to put the figures into; only of scenarios in full, of a walhook that is whole")
	binary   = flag.String("faults.binary", "", "the walhook to be tested; empty: it is built")
)

// folder holds the binary, which all tests share.
var folder string

func TestMain(m *testing.M) {
	flag.Parse()
	if *quick {
		*rate /= slower
	}
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	if folder, err = os.MkdirTemp("", "walhook-faults-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(folder)
	if *page != "" && (*quick || *broken != "") {
		return 1, errors.New("-faults.write goes with -faults alone: these are not the figures of the page")
	}
	code = m.Run()
	fmt.Print(table())
	if *page == "" {
		return code, nil
	}
	measured := fmt.Sprintf("%s, %d cores, %.0f/s", time.Now().Format(time.DateOnly), runtime.NumCPU(), *rate)
	return code, writeFigures(*page, named(), measured)
}

// build builds walhook once.
var build = sync.OnceValues(func() (string, error) {
	if *binary != "" {
		return filepath.Abs(*binary)
	}
	if *broken != "" {
		return buildBreakable()
	}
	return goBuild("walhook")
})

// buildBreakable builds, once, a walhook that internal/failpoint can break.
var buildBreakable = sync.OnceValues(func() (string, error) {
	overlay := filepath.Join(folder, "overlay")
	if output, err := exec.Command("go", "run", "github.com/walhook/walhook/internal/failpoint/overlay", overlay).CombinedOutput(); err != nil {
		return "", fmt.Errorf("make walhook breakable: %w: %s", err, output)
	}
	return goBuild("walhook-breakable", "-overlay", filepath.Join(overlay, "overlay.json"))
})

func goBuild(name string, flags ...string) (string, error) {
	path := filepath.Join(folder, name)
	return path, process.Build(context.Background(), path, flags...)
}

// breakable builds a walhook that can be broken.
func breakable(t *testing.T) string {
	t.Helper()
	path, err := buildBreakable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// breaking is the environment of a walhook that breaks one more rule.
func breaking(how string) string {
	return failpoint.Variable + "=" + strings.Trim(*broken+","+how, ",")
}

// setup returns a scenario's setup.
func setup(t *testing.T, park time.Duration) Setup {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	s := Setup{Binary: path, ParkAfter: park, Broken: *broken != "", Report: &Report{}}
	if *broken != "" {
		s.Env = []string{failpoint.Variable + "=" + *broken}
	}
	return s
}

// lasting is the duration of a scenario's load.
func lasting(usual time.Duration) time.Duration {
	if *duration > 0 {
		return *duration
	}
	return either(usual, usual/quickly)
}

// With -faults.quick the load is quickly times shorter, and the rate slower times lower.
const quickly, slower = 3, 5

// either returns the value for a full run, or for -faults.quick.
func either[T any](full, shorter T) T {
	if *quick {
		return shorter
	}
	return full
}
