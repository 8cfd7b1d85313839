//go:build sabotage

package sabotage

import (
	"os"
	"syscall"
)

var (
	chosen = os.Getenv(Variable)
	armed  = os.Getenv(Armed)
)

// On says whether a rule is broken.
func On(s Switch) bool { return chosen == string(s) }

// Reach kills the process where the point is the chosen one.
func Reach(p Point) {
	if chosen == Kill(p) && isArmed() {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until the signal is there
	}
}

// Turn never returns where the loop is the chosen one.
func Turn(loop string) {
	if chosen == Wedge(loop) && isArmed() {
		select {}
	}
}

func isArmed() bool {
	if armed == "" {
		return true
	}
	_, err := os.Stat(armed)
	return err == nil
}
