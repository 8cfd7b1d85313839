package docs

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// anchors are what the headings of a page can be linked by, as GitHub makes them.
func anchors(t *testing.T, page string) map[string]bool {
	t.Helper()
	made := map[string]bool{}
	fenced := regexp.MustCompile("(?ms)^ *```.*?^ *```$").ReplaceAllString(read(t, page), "")
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(fenced, -1) {
		made[anchor(m[1])] = true
	}
	return made
}

// anchor is the one of a heading.
func anchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, heading)
}

func TestLinksResolve(t *testing.T) {
	t.Parallel()
	links := 0
	for _, page := range pages {
		for _, m := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(read(t, page), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			links++
			file, section, _ := strings.Cut(m[1], "#")
			target := page
			if file != "" {
				target = path.Join(path.Dir(page), file)
			}
			if _, err := os.Stat(filepath.Join("..", target)); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
			} else if section != "" && !anchors(t, target)[section] {
				t.Errorf("%s links to %s: %s has no such heading", page, m[1], target)
			}
		}
	}
	if links < 20 {
		t.Errorf("only %d links were found", links)
	}
}

// What a log line, an error or a comment names as a page is there, and so is the section.
func TestPagesThatCodeNames(t *testing.T) {
	t.Parallel()
	named := 0
	each(t, func(name string) {
		if slices.Contains([]string{".go", ".sql", ".yml"}, path.Ext(name)) || name == "Makefile" {
			text := strings.ReplaceAll(read(t, name), `\"`, `"`)
			for _, m := range regexp.MustCompile(`\b(docs/\w+\.md|README\.md|CONTRIBUTING\.md)(?:, "([^"]+)")?`).FindAllStringSubmatch(text, -1) {
				named++
				if !slices.Contains(pages, m[1]) {
					t.Errorf("%s names %s, which is no page", name, m[1])
				} else if m[2] != "" && !anchors(t, m[1])[anchor(m[2])] {
					t.Errorf("%s names a section %q of %s, which is not there", name, m[2], m[1])
				}
			}
		}
	})
	if named < 5 {
		t.Errorf("only %d pages are named", named)
	}
}

func TestMakeTargetsExist(t *testing.T) {
	t.Parallel()
	makefile, named := "\n"+read(t, "Makefile"), 0
	for _, page := range pages {
		for _, m := range regexp.MustCompile("(?m)(?:^|`| && )make ([a-z][a-z-]*)").FindAllStringSubmatch(read(t, page), -1) {
			named++
			if !strings.Contains(makefile, "\n"+m[1]+":") {
				t.Errorf("%s names make %s, which is no target", page, m[1])
			}
		}
	}
	if named < 10 {
		t.Errorf("only %d targets are named", named)
	}
}

func TestAllPagesAreLookedAt(t *testing.T) {
	t.Parallel()
	each(t, func(name string) {
		if path.Ext(name) == ".md" && !slices.Contains(pages, name) {
			t.Errorf("%s is not in the list of pages", name)
		}
	})
}

// each calls f with every file of the repository.
func each(t *testing.T, f func(name string)) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(".."), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && (name == ".git" || name == "bin") {
			return fs.SkipDir
		}
		if err == nil && !d.IsDir() {
			f(name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The README is to be read in one sitting.
func TestREADMEIsShort(t *testing.T) {
	t.Parallel()
	const most = 180 // lines
	if n := strings.Count(read(t, "README.md"), "\n"); n > most {
		t.Errorf("README.md has %d lines, want %d at most", n, most)
	}
}

// The code that the README shows is that of a receiver, which a test runs.
func TestREADMEShowsAReceiver(t *testing.T) {
	t.Parallel()
	shown := blocks(t, "README.md", "js")
	if len(shown) != 1 {
		t.Fatalf("README.md has %d blocks of JavaScript, want 1", len(shown))
	}
	if !strings.Contains(read(t, "examples/receivers/receiver.mjs"), shown[0]) {
		t.Error("README.md shows other code than examples/receivers/receiver.mjs has")
	}
}
