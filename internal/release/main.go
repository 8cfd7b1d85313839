// Command release makes what a release has, in a folder:
//
//	walhook-linux-amd64 …   static binaries
//	….cdx.json              a software bill of materials for each, in CycloneDX, with licences
//	walhook.md              docs/commands.md: what `walhook --help` says
//	LICENSE                 walhook's own: whoever passes a binary on has to pass it on too
//	THIRD_PARTY_NOTICES     the licences of everything that is in the binaries
//	SHA256SUMS              of all of them, for `sha256sum -c`
//
// The same commit, version and Go give the same bytes, in any folder and at any time.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// sbomTool is run, and is no part of go.mod.
const sbomTool = "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0"

func main() {
	log.SetFlags(0)
	r := release{}
	flag.StringVar(&r.folder, "o", "dist", "folder, which is emptied first")
	flag.StringVar(&r.version, "version", "dev", "what `walhook version` says")
	flag.StringVar(&r.cache, "cache", "", "build cache of the binaries; empty: the usual one")
	flag.Parse()
	if err := r.make(context.Background()); err != nil {
		log.Fatal("release: ", err)
	}
}

// targets are operating systems with architectures.
var targets = []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64"}

// A release is made from the module in the working directory.
type release struct{ folder, version, cache string }

func (r *release) make(ctx context.Context) error {
	if err := errors.Join(os.RemoveAll(r.folder), os.MkdirAll(r.folder, 0o755)); err != nil {
		return err
	}
	contents, err := standard(ctx, r.version)
	if err != nil {
		return err
	}
	for _, target := range targets {
		if err := r.target(ctx, target, contents); err != nil {
			return err
		}
	}
	if err := r.notices(contents); err != nil {
		return err
	}
	for name, file := range map[string]string{"walhook.md": "docs/commands.md", "LICENSE": "LICENSE"} {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := r.write(name, content); err != nil {
			return err
		}
	}
	return r.sums()
}

// target makes what there is for each target, and adds the modules of the binary to contents.
func (r *release) target(ctx context.Context, target string, contents modules) error {
	system, architecture, _ := strings.Cut(target, "/")
	env, name := []string{"CGO_ENABLED=0", "GOOS=" + system, "GOARCH=" + architecture}, "walhook-"+system+"-"+architecture
	if r.cache != "" {
		env = append(env, "GOCACHE="+r.cache)
	}
	// A machine's GOFLAGS may leave the commit out.
	if _, err := output(ctx, env, "go", "build", "-buildvcs=true", "-trimpath", "-ldflags", "-s -w -X main.version="+r.version, "-o", filepath.Join(r.folder, name), "."); err != nil {
		return err
	}
	if err := committed(filepath.Join(r.folder, name)); err != nil { // an archive of the source may do for a trial
		fmt.Fprintln(os.Stderr, "warning: do not publish this:", err)
	}
	if err := contents.add(ctx, env); err != nil {
		return err
	}
	return r.sbom(ctx, name, contents)
}

// committed holds that a binary names the commit that it is made of, and nothing else. Without a folder .git, as in an archive of the
// source or in a worktree of git, go build leaves the commit out, and says nothing.
func committed(binary string) error {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return err
	}
	set := map[string]string{}
	for _, s := range info.Settings {
		set[s.Key] = s.Value
	}
	switch {
	case set["vcs.revision"] == "":
		return fmt.Errorf("%s names no commit: make releases in a clone", binary)
	case set["vcs.modified"] != "false":
		return fmt.Errorf("%s has changes that are not committed", binary)
	}
	return nil
}

// sbom describes a binary by what the linker has written into it, and adds the licences. The time
// of this run, and the hashes of the tool's own binary, would make each run's bytes others.
func (r *release) sbom(ctx context.Context, name string, contents modules) error {
	said, err := output(ctx, nil, "go", "run", sbomTool, "bin", "-json", "-std", "-noserial", "-version", r.version, filepath.Join(r.folder, name))
	if err != nil {
		return err
	}
	var bom struct {
		Schema       string           `json:"$schema"`
		Format       string           `json:"bomFormat"`
		Spec         string           `json:"specVersion"`
		Version      int              `json:"version"`
		Metadata     map[string]any   `json:"metadata"`
		Components   []map[string]any `json:"components"`
		Dependencies any              `json:"dependencies"`
		Compositions any              `json:"compositions"`
	}
	decoder := json.NewDecoder(bytes.NewReader(said))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&bom); err != nil {
		return fmt.Errorf("read the SBOM of %s: %w", name, err)
	}
	delete(bom.Metadata, "timestamp")
	delete(bom.Metadata, "tools")
	main, ok := bom.Metadata["component"].(map[string]any)
	if !ok {
		return fmt.Errorf("the SBOM of %s does not name it", name)
	}
	for _, component := range append(bom.Components, main) {
		of := fmt.Sprint(component["name"], " ", component["version"])
		m, known := contents[of]
		if !known {
			return fmt.Errorf("the SBOM of %s names %s, and `go list` does not", name, of)
		}
		if component["licenses"], err = m.spdx(); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(bom, "", "  ")
	if err != nil {
		return err
	}
	return r.write(name+".cdx.json", append(text, '\n'))
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
