package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var writeCommands = flag.Bool("commands.write", false, "write docs/commands.md, from what --help says")

const commandsPage = "docs/commands.md"

// The page of the commands says what --help says, and a release has it.
func TestTheCommandsPage(t *testing.T) {
	want := commandsAsMarkdown()
	if *writeCommands {
		if err := os.WriteFile(commandsPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(commandsPage)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what --help says: go test . -run '^%s$' -commands.write", commandsPage, t.Name())
	}
}

// commandsAsMarkdown makes a section of each command, and a list of its flags and arguments, which end with a colon.
func commandsAsMarkdown() string {
	var page strings.Builder
	fmt.Fprint(&page, "# Commands\n\nThis is what `walhook --help` says, and `walhook COMMAND --help` of one.\n")
	listing := false
	for line := range strings.Lines(usage) {
		command, isCommand := strings.CutPrefix(line, "  walhook ")
		if isCommand {
			name, says, _ := strings.Cut(command, " ")
			fmt.Fprintf(&page, "\n## walhook %s\n\n", name)
			line, listing = says, false
		} else if !strings.HasPrefix(line, "   ") {
			continue
		}
		line = strings.TrimSpace(line)
		syntax, says, isItem := strings.Cut(line, ": ")
		if !isItem {
			fmt.Fprintf(&page, "%s.\n", strings.ToUpper(line[:1])+line[1:])
			continue
		}
		if !listing && !isCommand {
			fmt.Fprintln(&page)
		}
		listing = true
		fmt.Fprintf(&page, "- `%s`: %s\n", syntax, says)
	}
	return page.String() + "\nSettings and exit codes are in docs/configuration.md.\n"
}

// Every flag is told of, and what is told of is a flag.
func TestFlagsAreToldOf(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	commands := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		command := regexp.MustCompile(`flags := newFlags\("(\w+)"\)`).FindSubmatch(text)
		if command == nil || strings.HasSuffix(file, "_test.go") {
			continue
		}
		commands++
		got := found(`(?m)^ +--(\w+)`, help(string(command[1])))
		if want := found(`flags\.[A-Z]\w+\((?:&[\w.]+, )?"(\w+)"`, string(text)); !slices.Equal(got, want) {
			t.Errorf("the help of %s has the flags %q, and the command %q", command[1], got, want)
		}
	}
	if commands < 6 {
		t.Errorf("only %d commands with flags were found", commands)
	}
}

// found returns what the group of an expression matches, in order.
func found(expression, text string) (all []string) {
	for _, m := range regexp.MustCompile(expression).FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	slices.Sort(all)
	return all
}
