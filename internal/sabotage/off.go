//go:build !sabotage

package sabotage

// On says whether a rule is broken: never.
func On(Switch) bool { return false }

// Reach kills nothing.
func Reach(Point) {}

// Turn stops nothing.
func Turn(string) {}
