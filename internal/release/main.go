// Command release makes what a release has, in a folder:
//
//	walhook-linux-amd64 …   static binaries
//	….cdx.json              a software bill of materials for each, in CycloneDX
//	walhook.md              what `walhook --help` and that of each command say
//	THIRD_PARTY_NOTICES     the licences of everything that is in the binaries
//	SHA256SUMS              of all of them, for `sha256sum -c`
//
// The same commit, version and Go give the same bytes, in any folder and at any time.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// sbomTool is run, and is no part of go.mod.
const sbomTool = "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0"

func main() {
	log.SetFlags(0)
	r := release{}
	flag.StringVar(&r.folder, "o", "dist", "folder, which is emptied first")
	flag.StringVar(&r.version, "version", "dev", "what `walhook version` says")
	targets := flag.String("targets", "linux/amd64,linux/arm64,darwin/amd64,darwin/arm64", "operating systems and architectures")
	flag.Parse()
	r.targets = strings.Split(*targets, ",")
	if err := r.make(context.Background()); err != nil {
		log.Fatal("release: ", err)
	}
}

// A release is made from the module in the working directory.
type release struct {
	folder, version string
	targets         []string // GOOS/GOARCH
}

func (r *release) make(ctx context.Context) error {
	if err := errors.Join(os.RemoveAll(r.folder), os.MkdirAll(r.folder, 0o755)); err != nil {
		return err
	}
	modules := map[module]bool{}
	for _, target := range r.targets {
		env, name, err := r.target(target)
		if err != nil {
			return err
		}
		if err := r.binary(ctx, env, name); err != nil {
			return err
		}
		if err := r.sbom(ctx, name); err != nil {
			return err
		}
		if err := addModules(ctx, env, modules); err != nil {
			return err
		}
	}
	if err := r.notices(ctx, modules); err != nil {
		return err
	}
	if err := r.help(ctx); err != nil {
		return err
	}
	return r.sums()
}

// target returns the environment that builds for a target, and the binary's name.
func (r *release) target(target string) (env []string, name string, err error) {
	system, architecture, ok := strings.Cut(target, "/")
	if !ok {
		return nil, "", fmt.Errorf("%q is no target: want GOOS/GOARCH, such as linux/amd64", target)
	}
	return []string{"CGO_ENABLED=0", "GOOS=" + system, "GOARCH=" + architecture}, "walhook-" + system + "-" + architecture, nil
}

// binary builds one.
func (r *release) binary(ctx context.Context, env []string, name string) error {
	_, err := output(ctx, env, "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+r.version, "-o", filepath.Join(r.folder, name), ".")
	return err
}

// sbom describes a binary by what the linker has written into it. The time of this run, and
// the hashes of the tool's own binary, would make each run's bytes others.
func (r *release) sbom(ctx context.Context, name string) error {
	said, err := output(ctx, nil, "go", "run", sbomTool, "bin", "-json", "-std", "-noserial", "-version", r.version, filepath.Join(r.folder, name))
	if err != nil {
		return err
	}
	var bom map[string]any
	if err := json.Unmarshal(said, &bom); err != nil {
		return fmt.Errorf("read the SBOM of %s: %w", name, err)
	}
	metadata, ok := bom["metadata"].(map[string]any)
	if !ok {
		return fmt.Errorf("the SBOM of %s has no metadata", name)
	}
	delete(metadata, "timestamp")
	delete(metadata, "tools")
	text, err := json.MarshalIndent(bom, "", "  ")
	if err != nil {
		return err
	}
	return r.write(name+".cdx.json", append(text, '\n'))
}

// A module is one whose packages are in a binary.
type module struct{ path, version, folder string }

func addModules(ctx context.Context, env []string, modules map[module]bool) error {
	said, err := output(ctx, env, "go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}", ".")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(said)) {
		if f := strings.Fields(line); len(f) == 3 {
			modules[module{f[0], f[1], f[2]}] = true
		}
	}
	return nil
}

// notices collects the licences of Go and of all modules. One without is an error: nobody may
// pass it on.
func (r *release) notices(ctx context.Context, modules map[module]bool) error {
	said, err := output(ctx, nil, "go", "env", "GOROOT", "GOVERSION")
	if err != nil {
		return err
	}
	root, version, _ := strings.Cut(strings.TrimSpace(string(said)), "\n")
	all := []module{{"Go and its standard library", version, root}}
	for m := range modules {
		all = append(all, m)
	}
	slices.SortFunc(all[1:], func(a, b module) int { return strings.Compare(a.path+" "+a.version, b.path+" "+b.version) })
	var text bytes.Buffer
	fmt.Fprint(&text, "walhook's binaries contain the following software.\n")
	for _, m := range all {
		licences, err := m.licences()
		if err != nil {
			return err
		}
		for _, name := range licences {
			content, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&text, "\n%s\n%s %s: %s\n\n%s\n", strings.Repeat("=", 80), m.path, m.version, filepath.Base(name), bytes.TrimSpace(content))
		}
	}
	return r.write("THIRD_PARTY_NOTICES", text.Bytes())
}

// licences returns the files at a module's top that have to be passed on.
func (m module) licences() ([]string, error) {
	entries, err := os.ReadDir(m.folder)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		name, _, _ := strings.Cut(strings.ToUpper(e.Name()), ".")
		if e.Type().IsRegular() && slices.Contains([]string{"LICENSE", "LICENCE", "COPYING", "NOTICE", "LICENSE-MIT", "LICENSE-APACHE"}, name) {
			found = append(found, filepath.Join(m.folder, e.Name()))
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s %s has no licence in %s", m.path, m.version, m.folder)
	}
	return found, nil
}

// help has each command say its usage.
func (r *release) help(ctx context.Context) error {
	usage, err := output(ctx, nil, "go", "run", ".", "help")
	if err != nil {
		return err
	}
	return r.write("walhook.md", fmt.Appendf(nil, "# walhook %s\n\n```\n%s```\n", r.version, usage))
}

// sums writes the checksums of all files.
func (r *release) sums() error {
	entries, err := os.ReadDir(r.folder) // sorted
	if err != nil {
		return err
	}
	var text bytes.Buffer
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(r.folder, e.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%x  %s\n", sha256.Sum256(content), e.Name())
	}
	return r.write("SHA256SUMS", text.Bytes())
}

func (r *release) write(name string, content []byte) error {
	return os.WriteFile(filepath.Join(r.folder, name), content, 0o644)
}

// output runs a command, and returns what it prints; if it fails, what it says is wrong.
func output(ctx context.Context, env []string, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	said, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, exit.Stderr)
	}
	return said, err
}
