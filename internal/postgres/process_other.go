//go:build unix && !linux

package postgres

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
)

// processAttributes give the process a session of its own. Outside Linux no signal follows our death; a postmaster ends
// by itself within a minute of RemoveStale taking its data directory.
func processAttributes(credential *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: credential, Setsid: true}
}

// children are the processes whose parent is pid, without zombies: a halted parent does not wait for them.
func children(pid int) ([]int, error) {
	table, err := exec.Command("ps", "-A", "-o", "pid=,ppid=,state=").Output()
	if err != nil {
		return nil, err
	}
	var found []int
	for line := range strings.Lines(string(table)) {
		var id, parent int
		var state string
		if _, err := fmt.Sscan(line, &id, &parent, &state); err != nil {
			return nil, fmt.Errorf("read the process table: %w", err)
		}
		if parent == pid && !strings.HasPrefix(state, "Z") {
			found = append(found, id)
		}
	}
	return found, nil
}
