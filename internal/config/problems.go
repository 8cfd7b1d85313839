package config

import (
	"fmt"
	"slices"
	"strings"
)

// A Problem is one variable that cannot be used as it is.
type Problem struct {
	Variable string
	Value    string // "" where there is none, or where it is a secret
	Wrong    string
	Example  string
}

// Problems is everything that is wrong with an environment.
type Problems []Problem

// Error has a line for each.
func (ps Problems) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d wrong in the environment:", len(ps))
	for _, p := range ps {
		b.WriteString("\n  " + p.Variable)
		if p.Value != "" {
			fmt.Fprintf(&b, "=%q", p.Value)
		}
		b.WriteString(": " + p.Wrong)
		if p.Example != "" {
			fmt.Fprintf(&b, " (for example: %s)", p.Example)
		}
	}
	return b.String()
}

// wrong notes what is wrong with a variable, or its file; only the first thing
// of each.
func (l *loader) wrong(name, format string, args ...any) {
	if l.isWrong(name) {
		return
	}
	p := Problem{Variable: name, Wrong: fmt.Sprintf(format, args...)}
	if v, ok := variable(name); !ok { // X_FILE: its value is a path
		p.Value, _ = l.env.Lookup(name)
	} else {
		p.Example = v.Example
		if !v.Secret {
			p.Value, _ = l.env.Lookup(name)
		}
	}
	l.problems = append(l.problems, p)
}

func (l *loader) isWrong(name string) bool {
	return slices.ContainsFunc(l.problems, func(p Problem) bool { return p.Variable == name || p.Variable == name+fileSuffix })
}
