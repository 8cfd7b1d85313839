// A postmaster dies with us, and can be killed together with its children.

package postgres

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/walhook/walhook/internal/process"
)

type postmaster struct{ *process.Process }

// signal sends it and waits for the end. PostgreSQL ends only after all its children.
func (p postmaster) signal(sig syscall.Signal, within time.Duration) error {
	if err := p.Signal(sig); err != nil {
		return err
	}
	select {
	case <-p.Exited:
		return nil
	case <-time.After(within):
		return fmt.Errorf("PostgreSQL still runs %s after %s", within, sig)
	}
}

// kill ends the postmaster and its children. Each child is in a process group of its own, so they are killed one by
// one. The postmaster is halted first, or it would see them die and start new ones.
func (p postmaster) kill() error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	err := killChildren(p.PID)
	if errKill := p.Signal(syscall.SIGKILL); errKill != nil {
		return errors.Join(errKill, err)
	}
	<-p.Exited
	return err
}

func killChildren(parent int) error {
	for {
		ids, err := children(parent)
		if err != nil {
			return fmt.Errorf("list the postmaster's children: %w", err)
		}
		if len(ids) == 0 {
			return nil
		}
		for _, id := range ids {
			if err := syscall.Kill(id, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill a child of the postmaster: %w", err)
			}
		}
		time.Sleep(time.Millisecond) // nobody tells when the child of another process has ended
	}
}

// removeSharedMemory removes the few bytes of System V shared memory that a killed server leaves until it is restarted.
// postmaster.pid holds the process id in its first line, key and id of the shared memory in its seventh; a clean stop
// removes both.
func removeSharedMemory(data string) {
	content, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	lines := strings.Split(string(content), "\n")
	if err != nil || len(lines) < 7 {
		return
	}
	var pid, key, id int
	if _, err := fmt.Sscan(lines[0]+" "+lines[6], &pid, &key, &id); err != nil {
		return
	}
	var segment unix.SysvShmDesc
	if _, err := unix.SysvShmCtl(id, unix.IPC_STAT, &segment); err != nil || int(segment.Cpid) != pid || segment.Nattch != 0 {
		return // gone, or somebody else's by now
	}
	_, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil)
}
