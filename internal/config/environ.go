package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
)

const (
	prefix     = "WALHOOK_"
	fileSuffix = "_FILE"

	// maxSecretFile bounds what is read of a file that should hold one line, so
	// that a wrong path (a device, a log) says so instead of filling memory.
	maxSecretFile = 64 << 10
)

// testPrefixes begin the names that only tests read: a walhook that they start
// inherits them.
var testPrefixes = []string{"WALHOOK_TEST_", "WALHOOK_PGTEST_", "WALHOOK_FAULTS"}

// An Environ is an environment in the form of os.Environ: "KEY=value". Of
// several values of a key the first counts.
type Environ []string

// Lookup returns the value of a key, and whether it is there.
func (e Environ) Lookup(key string) (string, bool) {
	for _, entry := range e {
		if name, value, ok := strings.Cut(entry, "="); ok && name == key {
			return value, true
		}
	}
	return "", false
}

// set returns the value of a key, and whether there is one to speak of. An empty
// value is what templates leave of a variable that they do not know: it counts
// as none.
func (e Environ) set(key string) (string, bool) {
	value, _ := e.Lookup(key)
	return value, value != ""
}

// given returns the value of a variable as the environment or a file has it.
func (l *loader) given(v Variable) (string, bool) {
	value, found := l.env.Lookup(v.Name)
	found = found && (value != "" || v.Empty)
	if !v.Secret {
		return value, found
	}
	path, inFile := l.env.set(v.Name + fileSuffix)
	switch {
	case !inFile:
		return value, found
	case found:
		l.wrong(v.Name+fileSuffix, "given beside %s: one of the two has to go", v.Name)
		return value, true
	}
	value, err := readSecret(path)
	if err != nil {
		l.wrong(v.Name+fileSuffix, "%s", err)
		return "", false
	}
	return value, true
}

// lookup is what envconfig asks.
func (l *loader) lookup(name string) (string, bool) {
	v, _ := variable(name)
	if value, found := l.given(v); found {
		return value, true
	}
	return lookupDefault(name)
}

func lookupDefault(name string) (string, bool) {
	v, _ := variable(name)
	return v.Default, v.Default != ""
}

// readSecret returns a file's content without the newline at its end.
func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("the file cannot be read: %w", withoutPath(err))
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("the file cannot be read: %w", withoutPath(err))
	case len(text) > maxSecretFile:
		return "", fmt.Errorf("the file is larger than %d KiB", maxSecretFile>>10)
	}
	secret := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	if secret == "" {
		return "", errors.New("the file is empty")
	}
	return secret, nil
}

// withoutPath returns what the operating system said: the path is the value,
// which is shown beside it.
func withoutPath(err error) error {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return path.Err
	}
	return err
}

// serviceLink matches the names that Kubernetes and Docker put into every
// container for a service that is called walhook or walhook-something. Nobody
// wrote them, and a typo does not look like them but for _PORT, which they fill
// with a URL.
var (
	serviceLink = regexp.MustCompile(`^WALHOOK_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)
	servicePort = regexp.MustCompile(`^(tcp|udp|sctp)://`)
)

func isServiceLink(name, value string) bool {
	return serviceLink.MatchString(name) || strings.HasSuffix(name, "_PORT") && servicePort.MatchString(value)
}

// unknown notes the names that begin like ours and are not: a typo must not
// silently leave a default in force. Their values are not shown: one may have
// been meant as a secret.
func (l *loader) unknown() {
	for _, entry := range l.env {
		name, value, _ := strings.Cut(entry, "=")
		forTests := slices.ContainsFunc(testPrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
		if !strings.HasPrefix(name, prefix) || forTests || isServiceLink(name, value) {
			continue
		}
		v, known := variable(name)
		if file, ok := strings.CutSuffix(name, fileSuffix); ok && !known {
			v, known = variable(file)
			if known && !v.Secret {
				l.problems = append(l.problems, Problem{Variable: name, Value: value, Wrong: fmt.Sprintf("only a secret can be in a file; set %s", v.Name)})
				continue
			}
		}
		if !known {
			l.problems = append(l.problems, Problem{Variable: name, Wrong: "there is no such variable; the closest is " + closest(name)})
		}
	}
}

// closest returns the variable whose name takes the fewest edits to become.
func closest(name string) string {
	best, edits := "", -1
	for _, v := range Variables {
		if n := distance(name, v.Name); edits < 0 || n < edits {
			best, edits = v.Name, n
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substituted := diagonal
			if a[i] != b[j] {
				substituted++
			}
			diagonal = row[j+1]
			row[j+1] = min(substituted, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
