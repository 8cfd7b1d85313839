// Package process starts programs that die with us, finds ports for them, and reads what they use.
package process

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
)

// A Process is one that this process started.
type Process struct {
	PID    int
	Exited <-chan struct{} // closed when it has ended and was waited for
	Err    error           // how it ended; to be read after Exited

	process *os.Process
}

// Start starts a command on a thread that lives as long as the process does: the kernel binds the signal at the parent's
// death (Pdeathsig of cmd.SysProcAttr) to the thread that forked, and Go ends and makes threads as it likes.
func Start(cmd *exec.Cmd) (*Process, error) {
	exited := make(chan struct{})
	p := &Process{Exited: exited}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.PID, p.process = cmd.Process.Pid, cmd.Process
		started <- nil
		p.Err = cmd.Wait()
		close(exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// Running reports whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.Exited:
		return false
	default:
		return true
	}
}

// Signal does nothing where the process has ended: its id may be another's by now.
func (p *Process) Signal(s os.Signal) error {
	if err := p.process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to process %d: %w", s, p.PID, err)
	}
	return nil
}

// A Range is ports below those that the kernel gives to outgoing connections: a server that is stopped keeps its port
// from everybody's connections, and a client's attempt cannot end in a connection to itself.
type Range struct{ lowest, count int }

// The ranges are apart, so that nobody else gets the port of a PostgreSQL that is stopped.
var (
	ForPostgres = Range{20000, 12000}
	ForWalhook  = Range{10000, 10000}
)

// FreePort finds a port on 127.0.0.1.
func (r Range) FreePort() (int, error) {
	const attempts = 100
	var err error
	for range attempts {
		port := r.lowest + rand.N(r.count)
		var listener net.Listener
		if listener, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, listener.Close()
		}
	}
	return 0, fmt.Errorf("find a free port: %w", err)
}
