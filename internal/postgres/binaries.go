// Server binaries on this machine: where they are looked for, in which order, and which version they are.

package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// installation is a folder with initdb and postgres.
type installation struct {
	bin   string
	major int
}

// installFolders are where packages put server binaries outside PATH.
var installFolders = []string{
	"/usr/lib/postgresql/*/bin",
	"/usr/pgsql-*/bin",
	"/usr/local/pgsql/bin",
	"/usr/local/opt/postgresql*/bin",
	"/opt/homebrew/opt/postgresql*/bin",
}

// startInstalled tries the installations of the wanted version until one works.
func startInstalled(ctx context.Context, o Options) (machine, string, error) {
	found := installations(ctx)
	var tried []error
	for _, in := range found {
		if o.Version != "" && o.Version != strconv.Itoa(in.major) || in.major < oldestVersion {
			tried = append(tried, fmt.Errorf("%s has version %d", in.bin, in.major))
			continue
		}
		c, err := newCluster(ctx, in.bin, o)
		if err == nil {
			return c, c.url(), nil
		}
		tried = append(tried, fmt.Errorf("%s: %w", in.bin, err))
	}
	if len(tried) == 0 {
		return nil, "", fmt.Errorf("none in PATH nor in %q", installFolders)
	}
	return nil, "", errors.Join(tried...)
}

// installations are that of PATH, then the others, highest version first.
func installations(ctx context.Context) []installation {
	var found []installation
	add := func(bin string) {
		known := func(in installation) bool { return in.bin == bin }
		if major, err := majorVersion(ctx, bin); err == nil && !slices.ContainsFunc(found, known) {
			found = append(found, installation{bin, major})
		}
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			add(filepath.Dir(path))
		}
	}
	inPath := len(found)
	for _, pattern := range installFolders {
		folders, _ := filepath.Glob(pattern) // fails only for a malformed pattern
		for _, folder := range folders {
			add(folder)
		}
	}
	slices.SortStableFunc(found[inPath:], func(a, b installation) int { return cmp.Compare(b.major, a.major) })
	return found
}

var versionLine = regexp.MustCompile(`^postgres \(PostgreSQL\) (\d+)`)

// majorVersion reads it out of "postgres (PostgreSQL) 17.6 (Debian …)".
func majorVersion(ctx context.Context, bin string) (int, error) {
	line, err := exec.CommandContext(ctx, filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return 0, err
	}
	match := versionLine.FindSubmatch(line)
	if match == nil {
		return 0, fmt.Errorf("cannot read the version in %q", line)
	}
	return strconv.Atoi(string(match[1]))
}
