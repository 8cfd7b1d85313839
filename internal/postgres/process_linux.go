package postgres

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// processAttributes give the process a session of its own, and an immediate shutdown (SIGQUIT) when we die.
func processAttributes(credential *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: credential, Setsid: true, Pdeathsig: syscall.SIGQUIT}
}

// children are the processes whose parent is pid, without zombies: a halted parent does not wait for them. They are read
// from /proc, because minimal images have no ps.
func children(pid int) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var found []int
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// 4711 (postgres) S 4700 …: the command can hold spaces and brackets itself.
		_, afterCommand, _ := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " ")
		var state string
		var parent int
		if _, err := fmt.Sscan(afterCommand, &state, &parent); err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		id, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return nil, err
		}
		if parent == pid && state != "Z" && state != "X" {
			found = append(found, id)
		}
	}
	return found, nil
}
