// Overlay makes a walhook that package failpoint can break:
//
//	go run ./internal/failpoint/overlay bin/overlay
//	go build -overlay bin/overlay/overlay.json .
//
// It copies the files that patches names into a folder, with the calls in them, and
// lists the copies in overlay.json there. Code that moved away from its patch is an
// error: no call is ever left out silently.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: overlay folder")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// write writes the copies and their list into a folder.
func write(folder string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	files, err := patched(root, patches())
	if err != nil {
		return err
	}
	if folder, err = filepath.Abs(folder); err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	replace := map[string]string{}
	for file, text := range files {
		// Without .go at its end, or ./... would take the folder for a package.
		with := filepath.Join(folder, strings.ReplaceAll(file, "/", "_")+".patched")
		if err := os.WriteFile(with, []byte(text), 0o600); err != nil {
			return err
		}
		replace[filepath.Join(root, file)] = with
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "overlay.json"), list, 0o600)
}

// patched applies patches, and returns the files' new texts, or an error for each
// patch whose text is not there once.
func patched(root string, patches []patch) (map[string]string, error) {
	files := map[string]string{}
	var problems []error
	for _, p := range patches {
		text, read := files[p.file]
		if !read {
			content, err := os.ReadFile(filepath.Join(root, p.file))
			if err != nil {
				problems = append(problems, err)
				continue
			}
			text = importing(string(content))
		}
		if n := strings.Count(text, p.old); n != 1 {
			problems = append(problems, fmt.Errorf("%s has %q %d times, not once: change the patch in internal/failpoint/overlay/patches.go that makes %q of it", p.file, p.old, n, p.with))
		}
		files[p.file] = strings.Replace(text, p.old, strings.ReplaceAll(p.with, "$", p.old), 1)
	}
	return files, errors.Join(problems...)
}

// importing adds the import behind the package clause, on its line, so that all
// others keep their numbers.
func importing(text string) string {
	const clause = "\npackage "
	before, after, _ := strings.Cut("\n"+text, clause)
	name, rest, _ := strings.Cut(after, "\n")
	return strings.TrimPrefix(before+clause+name, "\n") + `; import "github.com/walhook/walhook/internal/failpoint"` + "\n" + rest
}

// moduleRoot is the folder of go.mod, in or above the working directory.
func moduleRoot() (string, error) {
	folder, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(folder, "go.mod")); err == nil {
			return folder, nil
		}
		up := filepath.Dir(folder)
		if up == folder {
			return "", errors.New("no go.mod in or above the working directory")
		}
		folder = up
	}
}
