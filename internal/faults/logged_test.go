package faults

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// fromElsewhere is what PostgreSQL and package slog write into walhook's log, and the name of
// the slot.
var fromElsewhere = []string{"password authentication failed", " does not exist", "level=WARN", "level=ERROR", slotName}

// A scenario that waits for a line of the log runs only now and then. Whoever changes the line
// hears of it here.
func TestScenariosWaitForLinesThatExist(t *testing.T) {
	t.Parallel()
	said := strings.Join(fromElsewhere, "\n")
	for _, pattern := range []string{"../../*.go", "../../cdc/*.go", "../../deliver/*.go", "../store/*.go"} {
		for _, file := range sources(t, pattern) {
			said += "\n" + strings.Join(texts(file, nil), "\n")
		}
	}
	files, named := sources(t, "*_test.go"), map[string]string{}
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Values) == len(spec.Names) {
				for i, name := range spec.Names {
					if all := texts(spec.Values[i], nil); len(all) == 1 {
						named[name.Name] = all[0]
					}
				}
			}
			return true
		})
	}
	waited := 0
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if method, ok := call.Fun.(*ast.SelectorExpr); ok && method.Sel.Name == "logged" {
				for _, text := range texts(call.Args[0], named) {
					waited++
					if !strings.Contains(said, text) {
						t.Errorf("a scenario waits for %q, which nothing logs", text)
					}
				}
			}
			return true
		})
	}
	if waited < 20 {
		t.Errorf("only %d texts were found", waited)
	}
}

// sources parses the files of a pattern; of tests only those that it names.
func sources(t *testing.T, pattern string) (files []*ast.File) {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") != strings.HasSuffix(pattern, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

// texts returns the strings in a node, also those that it has by name.
func texts(n ast.Node, named map[string]string) (found []string) {
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BasicLit:
			if text, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
				found = append(found, text)
			}
		case *ast.Ident:
			if text, ok := named[n.Name]; ok {
				found = append(found, text)
			}
		}
		return true
	})
	return found
}
