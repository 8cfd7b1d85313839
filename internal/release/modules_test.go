package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func files(t *testing.T, folder string, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What has no licence may not be passed on: a release says so, and ends.
func TestNotices(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	m := &module{folder: folder, packages: map[string]bool{folder: true, filepath.Join(folder, "a", "b"): true}}
	files(t, folder, "main.go", "LICENSES", "licensed.go", "NOTICE", "a/b/b.go", "c/LICENSE")
	if found, err := m.notices(); err == nil || !strings.Contains(err.Error(), "no licence in "+folder) {
		t.Fatalf("got %v, %v", found, err)
	}
	files(t, folder, "License.md", "PATENTS", "a/COPYING")
	found, err := m.notices()
	if want := []string{"License.md", "NOTICE", "PATENTS", "a/COPYING"}; err != nil || !slices.Equal(found, want) {
		t.Errorf("got %v, %v, want %v", found, err, want)
	}
}

func TestSPDX(t *testing.T) {
	t.Parallel()
	all, err := standard(t.Context(), "v1")
	if err != nil {
		t.Fatal(err)
	}
	all[self+" v1"].folder = "../.."
	for name, m := range all {
		want := "BSD-3-Clause"
		if strings.HasPrefix(name, self) {
			want = "Apache-2.0"
		}
		if got, err := m.spdx(); err != nil || fmt.Sprint(got) != "[map[license:map[id:"+want+"]]]" {
			t.Errorf("%s: got %v, %v, want %s", name, got, err, want)
		}
	}
	if got, err := identify("GNU GENERAL PUBLIC LICENSE Version 3"); err == nil {
		t.Errorf("a licence that nobody has read is %q", got)
	}
}
