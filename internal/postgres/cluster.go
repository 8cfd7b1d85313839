// A cluster is a server made by initdb and run from binaries on this machine. It does not outlive this process, and
// Ctrl-C in the terminal does not reach it.

package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/walhook/walhook/internal/process"
)

// cluster lives in one folder: data/ and log.
type cluster struct {
	folder     *os.File
	bin        string
	port       int
	credential *syscall.Credential // nil: as ourselves
	postmaster *postmaster         // nil before the first boot
}

// stopWithin bounds how long a stop may take. A fast stop waits for walsenders until their clients have taken all WAL.
const stopWithin = 30 * time.Second

// newCluster makes a data directory and boots the server on it. Nothing is left when it fails.
func newCluster(ctx context.Context, bin string, o Options) (*cluster, error) {
	credential, err := serverCredential()
	if err != nil {
		return nil, err
	}
	folder, err := newFolder()
	if err != nil {
		return nil, err
	}
	c := &cluster{folder: folder, bin: bin, credential: credential}
	if err := c.create(ctx, o); err != nil {
		return nil, errors.Join(err, c.remove())
	}
	return c, nil
}

func (c *cluster) create(ctx context.Context, o Options) error {
	if err := c.initdb(ctx, o); err != nil {
		return err
	}
	return c.bootAnywhere(ctx)
}

// bootAnywhere boots on a free port. Another process can take it before PostgreSQL does; three in a row have another
// cause.
func (c *cluster) bootAnywhere(ctx context.Context) error {
	var err error
	for range 3 {
		if c.port, err = process.ForPostgres.FreePort(); err != nil {
			return err
		}
		if err = c.boot(ctx); err == nil || ctx.Err() != nil {
			break
		}
	}
	return err
}

// serverCredential is for root, whom initdb and postgres refuse: the user postgres, else nobody.
func serverCredential() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		account, err = user.Lookup("nobody")
	}
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL does not run as root: %w", err)
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

func (c *cluster) data() string { return filepath.Join(c.folder.Name(), "data") }
func (c *cluster) log() string  { return filepath.Join(c.folder.Name(), "log") }

func (c *cluster) url() string { return serverURL(c.port) }

func serverURL(port int) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", port)
}

// command runs one of PostgreSQL's programs, which must not be steered by our own environment or working directory.
func (c *cluster) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, program), args...)
	cmd.Dir = c.folder.Name()
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "PG") && !strings.HasPrefix(variable, "LC_") && !strings.HasPrefix(variable, "LANG") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	cmd.Env = append(cmd.Env, "LC_ALL=C")
	cmd.SysProcAttr = processAttributes(c.credential)
	return cmd
}

func (c *cluster) initdb(ctx context.Context, o Options) error {
	if c.credential != nil {
		if err := os.Chown(c.folder.Name(), int(c.credential.Uid), int(c.credential.Gid)); err != nil {
			return err
		}
	}
	cmd := c.command(ctx, "initdb", "--pgdata", c.data(), "--no-sync", "--no-instructions",
		"--auth", "trust", "--username", "postgres", "--encoding", "UTF8", "--locale", "C")
	runtime.LockOSThread() // as process.Start does
	output, err := cmd.CombinedOutput()
	runtime.UnlockOSThread()
	if err != nil {
		return fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(output))
	}
	conf, err := os.OpenFile(filepath.Join(c.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer conf.Close()
	_, err = conf.WriteString(configuration(o.settings()))
	return err
}

// boot starts the postmaster and waits until it says in its pid file that it accepts connections. Not by connecting:
// that could reach somebody else's server on the same port.
func (c *cluster) boot(ctx context.Context) error {
	if c.pid() != 0 {
		return ErrRunning
	}
	log, err := os.OpenFile(c.log(), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	start, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd := c.command(context.WithoutCancel(ctx), "postgres", "-D", c.data(), "-p", strconv.Itoa(c.port),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=")
	cmd.Stdout, cmd.Stderr = log, log
	started, err := process.Start(cmd)
	if err != nil {
		return err
	}
	c.postmaster = &postmaster{started}
	if err := c.awaitReady(ctx); err != nil {
		said, _ := io.ReadAll(io.NewSectionReader(log, start, 64<<10))
		return fmt.Errorf("start postgres: %w: %s", err, bytes.TrimSpace(said))
	}
	return nil
}

func (c *cluster) awaitReady(ctx context.Context) error {
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), c.postmaster.kill())
		case <-c.postmaster.Exited:
			return errors.New("it ended at once")
		case <-look.C:
			if c.ready() {
				return nil
			}
		}
	}
}

// ready reads postmaster.pid: its first line is the process id, its eighth the status.
func (c *cluster) ready() bool {
	content, err := os.ReadFile(filepath.Join(c.data(), "postmaster.pid"))
	lines := strings.Split(string(content), "\n")
	return err == nil && len(lines) > 7 &&
		lines[0] == strconv.Itoa(c.postmaster.PID) && strings.TrimSpace(lines[7]) == "ready"
}

func (c *cluster) pid() int {
	if c.postmaster == nil || !c.postmaster.Running() {
		return 0
	}
	return c.postmaster.PID
}

func (c *cluster) halt(mode string) error {
	if c.pid() == 0 {
		return ErrNotRunning
	}
	switch mode {
	case "smart":
		return c.postmaster.signal(syscall.SIGTERM, stopWithin)
	case "fast":
		return c.postmaster.signal(syscall.SIGINT, stopWithin)
	case "immediate":
		return c.postmaster.signal(syscall.SIGQUIT, stopWithin)
	default:
		return c.postmaster.kill()
	}
}

func (c *cluster) remove() error {
	if err := c.halt("immediate"); err != nil && !errors.Is(err, ErrNotRunning) {
		if err := c.halt("kill"); err != nil {
			return err
		}
	}
	removeSharedMemory(c.data())
	return removeFolder(c.folder)
}
