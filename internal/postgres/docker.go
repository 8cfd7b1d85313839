// A container is used as a small machine: its main process only waits, and initdb and pg_ctl are run inside it. So the
// server can be stopped, killed and started again on the same data. It is removed when its lease runs out, which happens
// soon after we are killed.

package postgres

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ory/dockertest/v3"
	"github.com/ory/dockertest/v3/docker"
)

const (
	pingWithin = 2 * time.Second // bounds what a daemon that does not answer costs
	leaseEvery = 20 * time.Second
	// dockerAPI is the oldest API that Docker 29 speaks.
	dockerAPI = "1.44"
)

// lease is the container's main process: it ends, and the container with it, about a minute after the last renewal.
const (
	lease      = `touch /tmp/lease; while [ -n "$(find /tmp/lease -mmin -1)" ]; do sleep 5; done`
	renewLease = `touch /tmp/lease`
)

const containerData = "/tmp/walhook/data"

type container struct {
	resource *dockertest.Resource
	running  atomic.Bool
	endLease func() // stops renewing, and waits for the renewal under way
}

func startContainer(ctx context.Context, o Options) (machine, string, error) {
	pool, err := dockerPool(ctx)
	if err != nil {
		return nil, "", err
	}
	// Pulling an image cannot be cancelled; ctx is looked at again afterwards.
	resource, err := pool.RunWithOptions(&dockertest.RunOptions{
		Repository:   "postgres",
		Tag:          cmp.Or(o.Version, strconv.Itoa(newestVersion)),
		User:         "postgres",
		Entrypoint:   []string{"sh", "-c", lease},
		ExposedPorts: []string{"5432/tcp"},
		PortBindings: map[docker.Port][]docker.PortBinding{"5432/tcp": {{HostIP: "127.0.0.1"}}},
	}, func(host *docker.HostConfig) {
		host.AutoRemove = true
		host.PublishAllPorts = false
		host.ShmSize = 256 << 20
	})
	if err != nil {
		return nil, "", err
	}
	c := &container{resource: resource}
	c.endLease = c.keepLease()
	port, err := strconv.Atoi(resource.GetPort("5432/tcp"))
	if err == nil {
		err = c.create(ctx, o)
	}
	if err != nil {
		return nil, "", errors.Join(err, c.remove())
	}
	return c, serverURL(port), nil
}

// dockerPool answers with an error when no daemon answers: making a pool alone does not contact it. A daemon that does
// not know the API version refuses even the ping; older ones are then asked without a version.
func dockerPool(ctx context.Context) (*dockertest.Pool, error) {
	pool, err := dockertest.NewPool("")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, pingWithin)
	defer cancel()
	if pool.Client.TLSConfig == nil {
		client, err := docker.NewVersionedClient(pool.Client.Endpoint(), dockerAPI)
		if err == nil && client.PingWithContext(ctx) == nil {
			pool.Client = client
			return pool, nil
		}
	}
	return pool, pool.Client.PingWithContext(ctx)
}

func (c *container) keepLease() (end func()) {
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
				_ = c.shell(renewLease) // when it fails the server is gone, and its users hear of it
			}
		}
	})
	return sync.OnceFunc(func() {
		close(ended)
		renewing.Wait()
	})
}

// shell runs a script in the container, as its user postgres.
func (c *container) shell(script string) error {
	var output bytes.Buffer
	code, err := c.resource.Exec([]string{"sh", "-c", script}, dockertest.ExecOptions{StdOut: &output, StdErr: &output})
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("exit code %d: %s", code, bytes.TrimSpace(output.Bytes()))
	}
	return nil
}

func (c *container) create(ctx context.Context, o Options) error {
	settings := o.settings()
	settings["listen_addresses"] = "*" // of the container; it is published on 127.0.0.1 only
	settings["unix_socket_directories"] = ""
	script := "initdb --pgdata " + containerData + " --no-sync --no-instructions --auth trust --username postgres" +
		" --encoding UTF8 --locale C" +
		" && echo 'host all,replication all all trust' >> " + containerData + "/pg_hba.conf" +
		" && cat >> " + containerData + "/postgresql.conf <<'END OF SETTINGS'\n" + configuration(settings) + "END OF SETTINGS\n"
	if err := c.shell(script); err != nil {
		return fmt.Errorf("initdb in a container: %w", err)
	}
	return c.boot(ctx)
}

func (c *container) boot(ctx context.Context) error {
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
	if err := c.shell(fmt.Sprintf(start, seconds)); err != nil {
		return fmt.Errorf("start postgres in a container: %w", err)
	}
	c.running.Store(true)
	return nil
}

func (c *container) pid() int { return 0 }

func (c *container) halt(mode string) error {
	if !c.running.Load() {
		return ErrNotRunning
	}
	script := fmt.Sprintf("pg_ctl stop --wait --silent --timeout %d --pgdata %s --mode %s", int(stopWithin.Seconds()), containerData, mode)
	if mode == "kill" {
		// Every process of the user postgres but the shell itself and the container's main process.
		script = "kill -9 -1"
	}
	if err := c.shell(script); err != nil {
		return fmt.Errorf("stop PostgreSQL in a container: %w", err)
	}
	c.running.Store(false)
	return nil
}

func (c *container) remove() error {
	c.endLease()
	err := c.resource.Close()
	if gone := new(docker.NoSuchContainer); errors.As(err, &gone) || err != nil && strings.Contains(err.Error(), "already in progress") {
		return nil
	}
	return err
}
