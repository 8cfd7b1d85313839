package store

import (
	"fmt"
	"strings"
)

// This file knows faults of PostgreSQL that concern walhook, by minor version. It has only
// what PostgreSQL's own release notes say.

// A serverFault is in the minor versions of a major one from since until fixed.
type serverFault struct {
	since, fixed map[int]int // by major version; no since: from .0 on
	what         string
	notes        string // the release notes that tell of it
}

var serverFaults = []serverFault{{
	fixed: map[int]int{14: 15, 15: 10, 16: 6, 17: 2},
	what:  "a slot can go back to WAL that is removed already, and is then lost",
	notes: "https://www.postgresql.org/docs/release/17.2/",
}, {
	fixed: map[int]int{14: 18, 15: 13, 16: 9, 17: 5},
	what:  "a stream can miss changes after DDL, such as ALTER PUBLICATION, beside open transactions",
	notes: "https://www.postgresql.org/docs/release/17.5/",
}, {
	since: map[int]int{14: 18, 15: 13, 16: 9, 17: 5},
	fixed: map[int]int{14: 19, 15: 14, 16: 10, 17: 6},
	what:  "decoding beside DDL can run out of memory, so that the stream ends again and again",
	notes: "https://www.postgresql.org/docs/release/17.6/",
}, {
	fixed: map[int]int{14: 19, 15: 14, 16: 10, 17: 6},
	what:  "a checkpoint can remove WAL too soon while a slot advances, so that a crashed server does not start",
	notes: "https://www.postgresql.org/docs/release/17.6/",
}, {
	fixed: map[int]int{18: 4},
	what:  "a shutdown can wait for ever for a logical walsender",
	notes: "https://www.postgresql.org/docs/release/18.4/",
}}

// newestMinors are of 2026-08-13. Later ones are newer than this walhook, and fine.
var newestMinors = map[int]int{14: 24, 15: 19, 16: 15, 17: 11, 18: 6}

// minorVersion judges a server_version_num.
func minorVersion(version int) Check {
	const name = "minor version"
	major, minor := version/10000, version%10000
	var faults, notes []string
	for _, f := range serverFaults {
		if fixed, known := f.fixed[major]; known && minor < fixed && minor >= f.since[major] {
			faults = append(faults, f.what)
			notes = append(notes, f.notes)
		}
	}
	newest, known := newestMinors[major]
	found := fmt.Sprintf("%d.%d", major, minor)
	switch {
	case len(faults) > 0:
		return warn(name, found+" has faults that are mended since: "+strings.Join(faults, "; "), "install %d.%d or newer, and restart PostgreSQL (%s)", major, newest, notes[len(notes)-1])
	case known && minor < newest:
		return warn(name, fmt.Sprintf("%s; %d.%d is out", found, major, newest), "install %d.%d or newer, and restart PostgreSQL (https://www.postgresql.org/support/versioning/)", major, newest)
	case !known:
		return good(name, found+"; this walhook knows no faults of that major version")
	}
	return good(name, found)
}
