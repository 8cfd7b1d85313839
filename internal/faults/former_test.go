package faults

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/store"
)

// upgradeFrom upgrades under load as docs/upgrades.md says, from the last walhook whose
// schema had a version: the present one is started as a standby, which upgrades the schema
// beside the running former one, and then the former one is stopped. Afterwards the same way
// back, and forward again.
func upgradeFrom(version int) func(*testing.T, Setup) {
	const gapAtMost = 5 * time.Second // a takeover may take three
	return func(t *testing.T, s Setup) {
		apart := either(5*time.Second, 2*time.Second)
		present, former := s.Binary, formerWalhook(t, version)
		s.Binary = former
		x := newTrial(t, s)
		old := x.start()
		x.holds(old, 20*time.Second)
		stop := x.driveOn(Load{Rate: *rate})
		defer stop()
		<-time.After(apart)

		x.setup.Binary = present
		began := time.Now()
		next := x.start()
		x.isReady(next)
		x.expectVersion(store.SchemaVersion)
		upgraded := time.Since(began)
		x.works(old, apart)
		x.replace(old, next)
		x.works(next, apart)

		x.leavesNewer(former, version)
		x.setup.Binary = former
		old = x.start()
		x.isReady(old)
		x.replace(next, old)
		x.works(old, apart)
		x.expectVersion(store.SchemaVersion)

		x.setup.Binary = present
		next = x.start()
		x.isReady(next)
		x.replace(old, next)
		x.works(next, apart)
		stop()
		gap := longestGap(x)
		x.expect(gap <= gapAtMost, "nothing was sent for %s", gap)
		x.finish(time.Minute, fmt.Sprintf("upgraded=%s gap=%s", upgraded.Round(time.Millisecond), gap.Round(time.Millisecond)))
	}
}

func TestEveryFormerVersionIsUpgraded(t *testing.T) {
	t.Parallel()
	for version := 1; version < store.SchemaVersion; version++ {
		name := fmt.Sprintf("UpgradeFrom%d", version)
		if !slices.ContainsFunc(scenarios, func(s Scenario) bool { return s.name == name }) {
			t.Errorf("there is no scenario %s", name)
		}
	}
}

func (x *Trial) expectVersion(want int) {
	x.Helper()
	got := x.count(`SELECT webhook_schema_version()`)
	x.expect(got == want, "the schema has version %d, want %d", got, want)
}

// isReady waits until a process is ready. A standby is, once it waits for the slot. On a busy machine the upgrade may need a
// few tries, because it waits for no transaction that takes long.
func (x *Trial) isReady(p *Process) {
	x.Helper()
	x.eventually(time.Minute, p.Name+" is ready", func() bool {
		status, _ := p.ready(x.Context())
		return status == http.StatusOK
	})
}

// replace stops the process that holds the slot beside one that stands by.
func (x *Trial) replace(holder, standby *Process) {
	x.Helper()
	_, err := holder.stop(timeout + exitMargin)
	x.expect(err == nil, "%v", err)
	x.holds(standby, 5*time.Second)
}

// works expects that a process sends and records for a while, under load.
func (x *Trial) works(p *Process, during time.Duration) {
	x.Helper()
	from, written := x.journal.Count(), x.writtenBy(p)
	<-time.After(during)
	sent := 0
	for _, r := range x.journal.Since(from) {
		if r.Agent == p.Name {
			sent++
		}
	}
	recorded := x.writtenBy(p) - written
	x.expect(p.Running() && sent > 0 && recorded > 0, "%s runs: %t; in %s it has sent %d requests and recorded %d rows", p.Name, p.Running(), during, sent, recorded)
}

// leavesNewer expects that walhook init of a former version leaves the newer schema as it is. From version 5 on it says so.
func (x *Trial) leavesNewer(former string, version int) {
	x.Helper()
	const says = 5
	cmd := exec.CommandContext(x.Context(), former, "init")
	cmd.Env = x.env("init")
	output, err := cmd.CombinedOutput()
	x.expect(err == nil && (version < says || strings.Contains(string(output), "newer walhook")), "walhook init of version %d: %v: %s", version, err, output)
	x.expectVersion(store.SchemaVersion)
}

// errNoHistory means that this checkout does not have the commits of former versions.
var errNoHistory = errors.New("the commits before this schema version are not here: a shallow clone, or no repository")

// formerWalhook builds the last walhook whose schema.sql had a version, once.
func formerWalhook(t *testing.T, version int) string {
	t.Helper()
	formers.mu.Lock()
	defer formers.mu.Unlock()
	path := filepath.Join(folder, fmt.Sprintf("walhook-of-version-%d", version))
	if formers.built[version] {
		return path
	}
	switch err := buildFormer(t, version, path); {
	case errors.Is(err, errNoHistory):
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	formers.built[version] = true
	return path
}

var formers = struct {
	mu    sync.Mutex
	built map[int]bool
}{built: map[int]bool{}}

// buildFormer builds the parent of the commit that raised schema.sql to the next version.
func buildFormer(t *testing.T, version int, path string) error {
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Dir = "../.."
		output, err := cmd.Output()
		return string(bytes.TrimSpace(output)), err
	}
	log, err := git("log", "--reverse", "--format=%H", fmt.Sprintf("-S    RETURN %d;", version+1), "--", "schema.sql")
	raised, _, _ := strings.Cut(log, "\n")
	if err != nil || raised == "" {
		return errNoHistory
	}
	if _, err := git("rev-parse", "--verify", raised+"^"); err != nil {
		return errNoHistory
	}
	sources := t.TempDir()
	archive := filepath.Join(sources, "walhook.tar")
	if _, err := git("archive", "--output="+archive, raised+"^"); err != nil {
		return fmt.Errorf("read the commit before %s: %w", raised, err)
	}
	if output, err := exec.CommandContext(t.Context(), "tar", "-xf", archive, "-C", sources).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack the commit before %s: %w: %s", raised, err, output)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", path, ".") // the same in every folder, so that it is compiled once
	build.Dir, build.Env = sources, append(os.Environ(), "GOWORK=off")
	if output, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the commit before %s: %w: %s", raised, err, output)
	}
	return nil
}
