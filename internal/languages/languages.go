// Package languages finds what the tests of the examples run: interpreters, compilers and drivers. Where one is missing
// the test is skipped and says so; with WALHOOK_TEST_LANGUAGES=required, as in CI, it fails: no check may vanish unseen.
package languages

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	variable = "WALHOOK_TEST_LANGUAGES"
	required = "required"
)

// missing ends the test.
func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	reason := fmt.Sprintf(format, args...) + ": examples/install installs it on Debian"
	if os.Getenv(variable) == required {
		t.Fatalf("%s (%s=%s)", reason, variable, required)
	}
	t.Skip(reason)
}

// Program returns the path of a program on the PATH.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, "there is no %s on the PATH", name)
	}
	return path
}

// With returns the path of an interpreter for which a check, such as an import of all modules that a script needs,
// ends well.
func With(t testing.TB, program string, check ...string) string {
	t.Helper()
	path := Program(t, program)
	if out, err := exec.CommandContext(t.Context(), path, check...).CombinedOutput(); err != nil {
		missing(t, "%s %s: %v: %s", path, strings.Join(check, " "), err, out)
	}
	return path
}

// Python returns an interpreter that has the modules. The distribution's packages are its own interpreter's, which may
// not be the first on the PATH.
func Python(t testing.TB, modules ...string) string {
	t.Helper()
	check := "import sys"
	if len(modules) > 0 {
		check += ", " + strings.Join(modules, ", ")
	}
	var problem string
	for _, name := range []string{"python3", "/usr/bin/python3"} {
		path, err := exec.LookPath(name)
		if err != nil {
			problem = err.Error()
			continue
		}
		out, err := exec.CommandContext(t.Context(), path, "-c", check).CombinedOutput()
		if err == nil {
			return path
		}
		problem = string(out)
	}
	missing(t, "no python3 here can %s: %s", check, problem)
	return ""
}

// JDBC returns java, which can run a source file, and the class path of PostgreSQL's driver.
func JDBC(t testing.TB) (java, classPath string) {
	t.Helper()
	java = Program(t, "java")
	Program(t, "javac") // a runtime alone does not run source files
	classPath = "/usr/share/java/postgresql.jar"
	if _, err := os.Stat(classPath); err != nil {
		missing(t, "there is no JDBC driver: %v", err)
	}
	return java, classPath
}

// Node returns node, and a folder that has copies of the files, and beside them what a package.json and its lock in
// the folder of packages ask for.
func Node(t testing.TB, packages string, files ...string) (node, folder string) {
	t.Helper()
	node, npm := Program(t, "node"), Program(t, "npm")
	folder = t.TempDir()
	for _, file := range append(files, filepath.Join(packages, "package.json"), filepath.Join(packages, "package-lock.json")) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, filepath.Base(file)), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	npmInstall(t, npm, packages, folder)
	return node, folder
}

// NodeProject returns node, and a copy of a folder that has a package.json and its lock, with what these ask for.
func NodeProject(t testing.TB, project string) (node, folder string) {
	t.Helper()
	node, npm := Program(t, "node"), Program(t, "npm")
	folder = filepath.Join(t.TempDir(), "project")
	if err := os.CopyFS(folder, os.DirFS(project)); err != nil {
		t.Fatal(err)
	}
	for _, made := range []string{"node_modules", "generated", ".next"} { // by whoever tries the project where it is
		if err := os.RemoveAll(filepath.Join(folder, made)); err != nil {
			t.Fatal(err)
		}
	}
	npmInstall(t, npm, project, folder)
	return node, folder
}

func npmInstall(t testing.TB, npm, packages, folder string) {
	t.Helper()
	install := exec.CommandContext(t.Context(), npm, "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund")
	install.Dir = folder
	if out, err := install.CombinedOutput(); err != nil {
		missing(t, "npm ci of %s: %v: %s", packages, err, out)
	}
}
