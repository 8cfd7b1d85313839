// A process is a postmaster that this process started: it dies with us, and can be killed together with its children.

package postgres

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

type process struct {
	pid    int
	exited chan struct{} // closed when the process has ended and was waited for
}

// startProcess starts the command on a thread that lives as long as the process does: the kernel's signal at the
// parent's death (Pdeathsig) is bound to the thread that forked, and Go ends and makes threads as it likes.
func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		_ = cmd.Wait() // how a server ended stands in its log
		close(p.exited)
	}()
	return p, <-started
}

func (p *process) hasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// signal sends it and waits for the end. PostgreSQL ends only after all its children.
func (p *process) signal(sig syscall.Signal, within time.Duration) error {
	if err := syscall.Kill(p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to the postmaster: %w", sig, err)
	}
	select {
	case <-p.exited:
		return nil
	case <-time.After(within):
		return fmt.Errorf("PostgreSQL still runs %s after %s", within, sig)
	}
}

// kill ends the postmaster and its children. Each child is in a process group of its own, so they are killed one by
// one. The postmaster is halted first, or it would see them die and start new ones.
func (p *process) kill() error {
	if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("halt the postmaster: %w", err)
	}
	err := killChildren(p.pid)
	if errKill := syscall.Kill(p.pid, syscall.SIGKILL); errKill != nil && !errors.Is(errKill, syscall.ESRCH) {
		return fmt.Errorf("kill the postmaster: %w", errors.Join(errKill, err))
	}
	<-p.exited
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
