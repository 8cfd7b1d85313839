package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"debug/macho"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/xeipuuv/gojsonschema"
)

// The release in the folder WALHOOK_TEST_RELEASE, which `make release-check` makes, is complete, and true of itself.
func TestTheRelease(t *testing.T) {
	t.Parallel()
	folder := os.Getenv("WALHOOK_TEST_RELEASE")
	if folder == "" {
		t.Skip("WALHOOK_TEST_RELEASE names no release: make release-check makes one")
	}
	schema := cycloneDX(t)
	files := []string{"LICENSE", "THIRD_PARTY_NOTICES", "walhook.md"}
	linked := map[string]bool{}
	for _, target := range targets {
		name := "walhook-" + strings.ReplaceAll(target, "/", "-")
		files = append(files, name, name+".cdx.json")
		binary := filepath.Join(folder, name)
		info, err := buildinfo.ReadFile(binary)
		if err != nil {
			t.Fatal(err)
		}
		mustStandAlone(t, binary)
		mustBeBuilt(t, binary, target, info)
		contents := []string{"std " + info.GoVersion}
		for _, m := range info.Deps {
			contents = append(contents, m.Path+" "+m.Version)
		}
		for _, m := range contents {
			linked[m] = true
		}
		mustDescribe(t, schema, binary, contents)
	}

	told := map[string]bool{}
	for section := range strings.SplitSeq(string(content(t, folder, "THIRD_PARTY_NOTICES")), strings.Repeat("=", 80)+"\n") {
		title, text, _ := strings.Cut(section, "\n")
		name, file, _ := strings.Cut(title, ": ")
		if _, err := identify(text); isLicence(file) && err == nil {
			told[name] = true
		}
	}
	same(t, "THIRD_PARTY_NOTICES", sorted(told), sorted(linked))

	for name, file := range map[string]string{"walhook.md": "docs/commands.md", "LICENSE": "LICENSE"} {
		if !bytes.Equal(content(t, folder, name), content(t, "../..", file)) {
			t.Errorf("%s is not %s", name, file)
		}
	}

	var sums []string
	for _, name := range slices.Sorted(slices.Values(files)) {
		sums = append(sums, fmt.Sprintf("%x  %s", sha256.Sum256(content(t, folder, name)), name))
	}
	same(t, "SHA256SUMS", strings.Split(strings.TrimSpace(string(content(t, folder, "SHA256SUMS"))), "\n"), sums)
}

// A release is made of a commit, and of all that is in it.
func TestCommitted(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = folder
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v: %s", name, args, err, said)
		}
	}
	is := func(want string) {
		t.Helper()
		run("go", "build", "-buildvcs=true", "-o", "program", ".")
		if err := committed(filepath.Join(folder, "program")); fmt.Sprint(err) != want && (want == "<nil>" || !strings.Contains(fmt.Sprint(err), want)) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	write("go.mod", "module program\n")
	write("main.go", "package main\n\nfunc main() {}\n")
	write(".gitignore", "program\n")
	is("names no commit")
	run("git", "init", "-q")
	run("git", "add", "-A")
	run("git", "-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "-q", "-m", "all")
	is("<nil>")
	write("main.go", "package main\n\nfunc main() { println() }\n")
	is("changes that are not committed")
}

func content(t *testing.T, path ...string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func sorted(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s has\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// mustStandAlone allows the libraries of macOS itself, which has no other door to its kernel.
func mustStandAlone(t *testing.T, binary string) {
	t.Helper()
	if linux, err := elf.Open(binary); err == nil {
		defer linux.Close()
		if slices.ContainsFunc(linux.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC }) {
			t.Errorf("%s is linked dynamically", binary)
		}
		return
	}
	darwin, err := macho.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer darwin.Close()
	libraries, err := darwin.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range libraries {
		if !strings.HasPrefix(l, "/usr/lib/") && !strings.HasPrefix(l, "/System/Library/Frameworks/") {
			t.Errorf("%s needs %s", binary, l)
		}
	}
}

// mustBeBuilt holds that it is for its target, from a commit, with no name of this machine's folders.
func mustBeBuilt(t *testing.T, binary, target string, info *debug.BuildInfo) {
	t.Helper()
	set := map[string]string{}
	for _, s := range info.Settings {
		set[s.Key] = s.Value
	}
	if set["GOOS"]+"/"+set["GOARCH"] != target || set["CGO_ENABLED"] != "0" || set["vcs.revision"] == "" || set["vcs.modified"] != "false" {
		t.Errorf("%s is built with %v", binary, set)
	}
	modules, err := output(t.Context(), nil, "go", "env", "GOMODCACHE")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(content(t, binary), bytes.TrimSpace(modules)) {
		t.Errorf("%s names the folder %s", binary, modules)
	}
}

// cycloneDX returns the format's schema, which the module of its library has.
func cycloneDX(t *testing.T) *gojsonschema.Schema {
	t.Helper()
	said, err := output(t.Context(), nil, "go", "mod", "download", "-json", "github.com/CycloneDX/cyclonedx-go@v0.9.3")
	if err != nil {
		t.Fatal(err)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(said, &module); err != nil {
		t.Fatal(err)
	}
	file := func(name string) gojsonschema.JSONLoader {
		return gojsonschema.NewBytesLoader(content(t, module.Dir, "schema", name))
	}
	loader := gojsonschema.NewSchemaLoader()
	if err := loader.AddSchemas(file("spdx.schema.json"), file("jsf-0.82.schemax.json")); err != nil { // which the other refers to by URL
		t.Fatal(err)
	}
	schema, err := loader.Compile(file("bom-1.6.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// mustDescribe holds the SBOM of a binary against the format's schema, and against the binary.
func mustDescribe(t *testing.T, schema *gojsonschema.Schema, binary string, contents []string) {
	t.Helper()
	text := content(t, binary+".cdx.json")
	result, err := schema.Validate(gojsonschema.NewBytesLoader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range result.Errors() {
		t.Errorf("%s.cdx.json: %s", binary, e)
	}
	type component struct {
		Name, Version string
		Licenses      []struct{ License struct{ ID string } }
	}
	var bom struct {
		Metadata struct {
			Component  component
			Properties []struct{ Name, Value string }
		}
		Components []component
	}
	if err := json.Unmarshal(text, &bom); err != nil {
		t.Fatal(err)
	}
	hash := fmt.Sprintf("%x", sha256.Sum256(content(t, binary)))
	if !slices.Contains(bom.Metadata.Properties, struct{ Name, Value string }{"cdx:gomod:binary:hash:SHA-256", hash}) {
		t.Errorf("%s.cdx.json describes another binary", binary)
	}
	var named []string
	for _, c := range append(bom.Components, bom.Metadata.Component) {
		if len(c.Licenses) == 0 {
			t.Errorf("%s.cdx.json has no licence of %s", binary, c.Name)
		}
		named = append(named, c.Name+" "+c.Version)
	}
	slices.Sort(named)
	contents = append(contents, self+" "+bom.Metadata.Component.Version)
	slices.Sort(contents)
	same(t, binary+".cdx.json", named, contents)
	if strings.HasSuffix(binary, "-"+runtime.GOOS+"-"+runtime.GOARCH) {
		said, err := output(t.Context(), nil, binary, "version")
		if want := "walhook " + bom.Metadata.Component.Version + "\n"; err != nil || string(said) != want {
			t.Errorf("%s version: %q, %v, want %q", binary, said, err, want)
		}
	}
}
