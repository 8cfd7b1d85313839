// What is in the binaries, and under which licences.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// modules are those whose packages are in the binaries, by name and version.
type modules map[string]*module

// A module is at a folder. A package of it may be somebody else's work, with a licence beside it.
type module struct {
	folder   string
	packages map[string]bool // their folders
}

// standard returns walhook itself, and Go's standard library.
func standard(ctx context.Context, version string) (modules, error) {
	said, err := output(ctx, nil, "go", "env", "GOVERSION", "GOROOT")
	if err != nil {
		return nil, err
	}
	goVersion, root, _ := strings.Cut(strings.TrimSpace(string(said)), "\n")
	return modules{
		self + " " + version: {folder: "."},
		"std " + goVersion:   {folder: root},
	}, nil
}

const self = "github.com/walhook/walhook"

// add adds those of the binary for one target.
func (all modules) add(ctx context.Context, env []string) error {
	said, err := output(ctx, env, "go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}\t{{.Dir}}\t{{$.Dir}}{{end}}{{end}}", ".")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(said)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if len(f) != 3 {
			continue // the standard library's, or our own
		}
		if all[f[0]] == nil {
			all[f[0]] = &module{folder: f[1], packages: map[string]bool{}}
		}
		all[f[0]].packages[f[2]] = true
	}
	return nil
}

// notices collects the licences of all of them but our own.
func (r *release) notices(all modules) error {
	var text bytes.Buffer
	fmt.Fprint(&text, "walhook's binaries contain the following software. \"std\" is Go's standard library.\n")
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if strings.HasPrefix(name, self+" ") {
			continue
		}
		files, err := all[name].notices()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, file := range files {
			content, err := os.ReadFile(filepath.Join(all[name].folder, file))
			if err != nil {
				return err
			}
			fmt.Fprintf(&text, "\n%s\n%s: %s\n\n%s\n", strings.Repeat("=", 80), name, file, bytes.TrimSpace(content))
		}
	}
	return r.write("THIRD_PARTY_NOTICES", text.Bytes())
}

// notices returns the files that have to be passed on: of the module's folder, and of all between it and its packages. A module
// without any is an error: nobody may pass it on.
func (m *module) notices() ([]string, error) {
	folders := map[string]bool{m.folder: true}
	for folder := range m.packages {
		for ; folder != m.folder; folder = filepath.Dir(folder) {
			folders[folder] = true
		}
	}
	var found []string
	for folder := range folders {
		entries, err := os.ReadDir(folder)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Type().IsRegular() && (isLicence(e.Name()) || hasName(e.Name(), "NOTICE", "PATENTS")) {
				file, err := filepath.Rel(m.folder, filepath.Join(folder, e.Name()))
				if err != nil {
					return nil, err
				}
				found = append(found, file)
			}
		}
	}
	if !slices.ContainsFunc(found, isLicence) {
		return nil, fmt.Errorf("no licence in %s", m.folder)
	}
	slices.Sort(found)
	return found, nil
}

func isLicence(file string) bool {
	return hasName(filepath.Base(file), "LICENSE", "LICENCE", "COPYING", "LICENSE-MIT", "LICENSE-APACHE")
}

// hasName compares without the extension.
func hasName(file string, names ...string) bool {
	name, _, _ := strings.Cut(strings.ToUpper(file), ".")
	return slices.Contains(names, name)
}

// spdx returns what an SBOM has as the licences.
func (m *module) spdx() ([]any, error) {
	files, err := m.notices()
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, file := range slices.DeleteFunc(files, func(file string) bool { return !isLicence(file) }) {
		text, err := os.ReadFile(filepath.Join(m.folder, file))
		if err != nil {
			return nil, err
		}
		id, err := identify(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(m.folder, file), err)
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var licences []any
	for _, id := range slices.Compact(ids) {
		licences = append(licences, map[string]any{"license": map[string]any{"id": id}})
	}
	return licences, nil
}

// identify returns the SPDX identifier of a licence, by words that no other of them has. A licence that we did not have yet
// is an error: somebody has to read it first.
func identify(text string) (string, error) {
	text = strings.Join(strings.Fields(strings.ReplaceAll(text, "//", " ")), " ") // some are comments of Go
	for _, l := range []struct{ id, words string }{
		{"Apache-2.0", "Apache License Version 2.0, January 2004"},
		{"BSD-3-Clause", "may be used to endorse or promote products derived from this software without specific prior written permission"},
		{"MIT", "to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell"},
	} {
		if strings.Contains(text, l.words) {
			return l.id, nil
		}
	}
	return "", errors.New("a licence that is not known yet: read it, and add its words to identify in internal/release")
}
