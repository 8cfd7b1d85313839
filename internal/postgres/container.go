// A container is used as a small machine: its main process only waits, and initdb and pg_ctl run inside it. So the server
// can be stopped, killed and started again on the same data. The container ends when its lease does, soon after we are
// killed.

package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A Container runs the image postgres. It is removed when its main process ends.
type Container interface {
	// Port is where the container's port 5432 is published, on 127.0.0.1 only.
	Port() int
	// Shell runs a script as the user postgres. The error has what it printed.
	Shell(script string) error
	// Remove ends and removes it. Removing again does nothing.
	Remove() error
}

// RunContainer starts a container of postgres:tag, whose main process is a script of the user postgres.
type RunContainer func(ctx context.Context, tag, script string) (Container, error)

const leaseEvery = 20 * time.Second

// lease is the container's main process: it ends, and the container with it, about a minute after the last renewal.
const (
	lease      = `touch /tmp/lease; while [ -n "$(find /tmp/lease -mmin -1)" ]; do sleep 5; done`
	renewLease = `touch /tmp/lease`
)

const containerData = "/tmp/walhook/data"

// contained is the machine in a container.
type contained struct {
	Container
	running  atomic.Bool
	endLease func() // stops renewing, and waits for the renewal under way
}

// start runs a server in a container.
func (run RunContainer) start(ctx context.Context, o Options) (machine, string, error) {
	c, err := run(ctx, cmp.Or(o.Version, strconv.Itoa(newestVersion)), lease)
	if err != nil {
		return nil, "", err
	}
	m := &contained{Container: c}
	m.endLease = m.keepLease()
	if err := m.create(ctx, o); err != nil {
		return nil, "", errors.Join(err, m.remove())
	}
	return m, serverURL(c.Port()), nil
}

func (c *contained) keepLease() (end func()) {
	ended := make(chan struct{})
	var renewing sync.WaitGroup
	renewing.Go(func() {
		every := time.NewTicker(leaseEvery)
		defer every.Stop()
		for {
			select {
			case <-ended:
				return
			case <-every.C:
				_ = c.Shell(renewLease) // when it fails the server is gone, and its users hear of it
			}
		}
	})
	return sync.OnceFunc(func() {
		close(ended)
		renewing.Wait()
	})
}

func (c *contained) create(ctx context.Context, o Options) error {
	settings := o.settings()
	settings["listen_addresses"] = "*" // of the container; it is published on 127.0.0.1 only
	settings["unix_socket_directories"] = ""
	script := "initdb --pgdata " + containerData + " --no-sync --no-instructions --auth trust --username postgres" +
		" --encoding UTF8 --locale C" +
		" && echo 'host all,replication all all trust' >> " + containerData + "/pg_hba.conf" +
		" && cat >> " + containerData + "/postgresql.conf <<'END OF SETTINGS'\n" + configuration(settings) + "END OF SETTINGS\n"
	if err := c.Shell(script); err != nil {
		return fmt.Errorf("initdb in a container: %w", err)
	}
	return c.boot(ctx)
}

func (c *contained) boot(ctx context.Context) error {
	if c.running.Load() {
		return ErrRunning
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	seconds := 600
	if deadline, ok := ctx.Deadline(); ok {
		seconds = int(time.Until(deadline).Seconds()) + 1
	}
	start := "pg_ctl start --wait --silent --timeout %d --pgdata " + containerData + " --log /tmp/walhook/log || { cat /tmp/walhook/log; exit 1; }"
	if err := c.Shell(fmt.Sprintf(start, seconds)); err != nil {
		return fmt.Errorf("start postgres in a container: %w", err)
	}
	c.running.Store(true)
	return nil
}

func (c *contained) pid() int { return 0 }

func (c *contained) halt(mode string) error {
	if !c.running.Load() {
		return ErrNotRunning
	}
	script := fmt.Sprintf("pg_ctl stop --wait --silent --timeout %d --pgdata %s --mode %s", int(stopWithin.Seconds()), containerData, mode)
	if mode == "kill" {
		// Every process of the user postgres but the shell itself and the container's main process.
		script = "kill -9 -1"
	}
	if err := c.Shell(script); err != nil {
		return fmt.Errorf("stop PostgreSQL in a container: %w", err)
	}
	c.running.Store(false)
	return nil
}

func (c *contained) remove() error {
	c.endLease()
	return c.Remove()
}
