// Package container runs PostgreSQL's image in Docker for tests, by dockertest. No program imports it: dockertest comes
// with dozens of modules.
package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ory/dockertest/v3"
	"github.com/ory/dockertest/v3/docker"
)

const (
	pingWithin = 2 * time.Second // bounds what a daemon that does not answer costs
	// dockerAPI is the oldest API that Docker 29 speaks.
	dockerAPI = "1.44"
)

// A Container is a postgres.Container.
type Container struct {
	resource *dockertest.Resource
	port     int
}

// Run starts a container of postgres:tag, whose main process is a script of the user postgres. Pulling the image cannot
// be cancelled.
func Run(ctx context.Context, tag, script string) (*Container, error) {
	pool, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	resource, err := pool.RunWithOptions(&dockertest.RunOptions{
		Repository:   "postgres",
		Tag:          tag,
		User:         "postgres",
		Entrypoint:   []string{"sh", "-c", script},
		ExposedPorts: []string{"5432/tcp"},
		PortBindings: map[docker.Port][]docker.PortBinding{"5432/tcp": {{HostIP: "127.0.0.1"}}},
	}, func(host *docker.HostConfig) {
		host.AutoRemove = true
		host.PublishAllPorts = false
		host.ShmSize = 256 << 20
	})
	if err != nil {
		return nil, err
	}
	c := &Container{resource: resource}
	if c.port, err = strconv.Atoi(resource.GetPort("5432/tcp")); err != nil {
		return nil, errors.Join(err, c.Remove())
	}
	return c, nil
}

// Ping says why Docker cannot be used.
func Ping(ctx context.Context) error {
	_, err := connect(ctx)
	return err
}

// connect answers with an error when no daemon answers: making a pool alone does not contact it. A daemon that does
// not know the API version refuses even the ping; older ones are then asked without a version.
func connect(ctx context.Context) (*dockertest.Pool, error) {
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

// Port is where the container's port 5432 is published, on 127.0.0.1.
func (c *Container) Port() int { return c.port }

// Shell runs a script in the container, as its user postgres.
func (c *Container) Shell(script string) error {
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

// Remove ends the container, and removes it.
func (c *Container) Remove() error {
	err := c.resource.Close()
	if gone := new(docker.NoSuchContainer); errors.As(err, &gone) || err != nil && strings.Contains(err.Error(), "already in progress") {
		return nil
	}
	return err
}
