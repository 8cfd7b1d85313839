//go:build race

package schedule

// thousands is how many lanes the largest tests have. The race detector makes each step some ten times as long, so they are large
// without it: see `make test`.
const thousands = 200
