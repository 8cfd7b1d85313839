//go:build !race

package schedule

const thousands = 2000
