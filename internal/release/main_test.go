package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Whatever has no licence at its top may not be passed on: a release says so, and ends.
func TestLicences(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	for _, name := range []string{"main.go", "LICENSES", "licensed.go"} {
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := module{"example.com/module", "v1.2.3", folder}
	if found, err := m.licences(); err == nil || !strings.Contains(err.Error(), "example.com/module v1.2.3 has no licence") {
		t.Fatalf("got %v, %v", found, err)
	}
	want := []string{"COPYING", "License.md", "NOTICE"}
	for _, name := range want {
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	found, err := m.licences()
	for i := range found {
		found[i] = filepath.Base(found[i])
	}
	if err != nil || !slices.Equal(found, want) {
		t.Errorf("got %v, %v, want %v", found, err, want)
	}
}

func TestTargets(t *testing.T) {
	t.Parallel()
	env, name, err := new(release).target("darwin/arm64")
	if err != nil || name != "walhook-darwin-arm64" || !slices.Equal(env, []string{"CGO_ENABLED=0", "GOOS=darwin", "GOARCH=arm64"}) {
		t.Errorf("got %v, %q, %v", env, name, err)
	}
	if _, _, err := new(release).target("linux"); err == nil {
		t.Error("linux alone is a target")
	}
}
