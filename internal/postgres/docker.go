// The docker command runs a container where a program other than a test needs one. A client library would bring dozens of
// modules into the release binary.

package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// commanded is a container of the docker command.
type commanded struct {
	id   string
	port int
}

// runDocker is a RunContainer. A container that is made although the command was cut short ends with its lease.
func runDocker(ctx context.Context, tag, script string) (Container, error) {
	id, err := output(ctx, "docker", "run", "--detach", "--rm", "--user", "postgres", "--publish", "127.0.0.1::5432",
		"--shm-size", "256m", "--entrypoint", "sh", "postgres:"+tag, "-c", script)
	if err != nil {
		return nil, err
	}
	c := &commanded{id: id}
	published, err := output(ctx, "docker", "port", id, "5432/tcp")
	if err == nil {
		c.port, err = portOf(published)
	}
	if err != nil {
		return nil, errors.Join(err, c.Remove())
	}
	return c, nil
}

// portOf reads 127.0.0.1:32768.
func portOf(published string) (int, error) {
	_, port, err := net.SplitHostPort(published)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(port)
}

func (c *commanded) Port() int { return c.port }

func (c *commanded) Shell(script string) error {
	_, err := output(context.Background(), "docker", "exec", c.id, "sh", "-c", script)
	return err
}

func (c *commanded) Remove() error {
	_, err := output(context.Background(), "docker", "rm", "--force", c.id)
	if err != nil && (strings.Contains(err.Error(), "No such container") || strings.Contains(err.Error(), "already in progress")) {
		return nil
	}
	return err
}

// output is what a program prints, without the blanks around it. It runs far from our package.json, .npmrc and .env.
func output(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = os.TempDir()
	printed, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", fmt.Errorf("%s %s: %w: %s%s", program, args[0], err, exit.Stderr, printed)
	}
	return strings.TrimSpace(string(printed)), err
}
