// One server for all test processes of a user on this machine. Whoever comes first starts a keeper, a process that owns
// the server and ends it when no test process is left. Nothing stays behind, whoever is killed and when, because every
// claim is a file lock, and the kernel takes the locks of the dead back.
//
// The folder walhook-pgtest-<uid>-<version> in the temp dir holds
//
//	start    locked while somebody joins, starts the keeper, or ends the server
//	users    locked (shared) by every test process for as long as it lives
//	keeper   the keeper's process id, locked by it for as long as it lives; the starter hands it over locked, so there is no moment
//	         in which a second keeper could be started
//	server   the server's URL, there from when it is ready
//	log      what the keeper had to say
//
// A test process joins under the start lock: it locks users, and starts a keeper if none holds its lock. The keeper
// waits until it can lock users alone, lingers for the next package, and then, under the start lock, looks again and
// ends: so a newcomer either is seen, or finds no keeper and starts one. The start lock goes last, before the folder;
// who waited for it sees that the file is no longer the one of that name, and joins anew. If the keeper is killed, its
// server dies with it (see package postgres), and the next to join finds the keeper's lock free.

package pgtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/flock"
)

// linger bridges the moments in which `go test ./...` builds the next package.
const linger = 2 * time.Second

// keeperVariable makes this test binary a keeper of the folder it names.
const keeperVariable = "WALHOOK_PGTEST_KEEPER"

// The keeper is this same binary, run again: the only program that is surely there, on every platform. It must not run
// tests, so it never gets as far as main.
func init() {
	if path := os.Getenv(keeperVariable); path != "" {
		if err := keep(folder(path)); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// sharedURL answers with the same server throughout the process.
func sharedURL(ctx context.Context) (string, error) {
	joined.Lock()
	defer joined.Unlock()
	if joined.url != "" {
		return joined.url, nil
	}
	server, err := findServer(ctx)
	if err != nil {
		return "", err
	}
	if _, err := url.Parse(server); err != nil {
		return "", errors.New("WALHOOK_TEST_DATABASE_URL is not a URL") // without the error, which quotes the password
	}
	joined.url = server
	return server, nil
}

// joined holds what this process keeps until its end: the lock on users is released by the kernel.
var joined struct {
	sync.Mutex
	url   string
	users *os.File
}

func findServer(ctx context.Context) (string, error) {
	if given := os.Getenv("WALHOOK_TEST_DATABASE_URL"); given != "" {
		return given, nil
	}
	f, err := newFolder()
	if err != nil {
		return "", err
	}
	server, users, err := f.join(ctx)
	if err != nil {
		return "", fmt.Errorf("join the shared PostgreSQL server: %w", err)
	}
	joined.users = users
	return server, nil
}

// folder is where the processes meet.
type folder string

func newFolder() (folder, error) {
	temp, err := filepath.EvalSymlinks(os.TempDir())
	if err != nil {
		return "", err
	}
	return folder(filepath.Join(temp, fmt.Sprintf("walhook-pgtest-%d-%s", os.Getuid(), cmp.Or(wantedVersion(), "any")))), nil
}

func (f folder) path(name string) string { return filepath.Join(string(f), name) }

func (f folder) open(name string) (*os.File, error) {
	return os.OpenFile(f.path(name), os.O_CREATE|os.O_RDWR, 0o600)
}

// join answers with the server's URL, and with the lock that keeps the server.
func (f folder) join(ctx context.Context) (server string, users *os.File, err error) {
	start, err := f.enter()
	if err != nil {
		return "", nil, err
	}
	defer start.Close()
	if users, err = f.open("users"); err != nil {
		return "", nil, err
	}
	if err = flock.Shared(users); err == nil {
		server, err = f.serverOf(ctx)
	}
	if err != nil {
		return "", nil, errors.Join(err, f.abandon(users))
	}
	return server, users, nil
}

// abandon ends our use of a server that did not come, and removes the folder if that was its last. The start lock is
// held.
func (f folder) abandon(users *os.File) error {
	defer users.Close()
	if f.kept() || flock.TryExclusive(users) != nil {
		return nil
	}
	return f.remove()
}

// enter makes the folder if need be and locks start, the one that is in the folder.
func (f folder) enter() (*os.File, error) {
	for {
		if err := os.Mkdir(string(f), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		if err := f.mustBeOurs(); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		start, err := f.open("start")
		if errors.Is(err, fs.ErrNotExist) {
			continue // a keeper has just removed the folder
		}
		if err != nil {
			return nil, err
		}
		if err := flock.Exclusive(start); err != nil {
			return nil, errors.Join(err, start.Close())
		}
		if flock.Current(start) {
			return start, nil
		}
		start.Close()
	}
}

// mustBeOurs refuses a folder that another user has put under this name.
func (f folder) mustBeOurs() error {
	info, err := os.Lstat(string(f))
	if err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || int(owner.Uid) != os.Getuid() {
		return fmt.Errorf("%s is not a folder of ours: remove it, or set TMPDIR", f)
	}
	return nil
}

// serverOf waits for the keeper's server, and starts a keeper if there is none. The start lock is held.
func (f folder) serverOf(ctx context.Context) (string, error) {
	keeper, err := f.open("keeper")
	if err != nil {
		return "", err
	}
	defer keeper.Close()
	switch err := flock.TryExclusive(keeper); {
	case err == nil:
		if err := f.startKeeper(keeper); err != nil {
			return "", err
		}
		keeper.Close() // it is the keeper's now
	case !errors.Is(err, flock.ErrHeld):
		return "", err
	}
	return f.awaitServer(ctx)
}

// startKeeper starts a keeper in a session of its own, so that it outlives us and Ctrl-C does not reach it. Its output
// must not be ours: `go test` waits until that is closed.
func (f folder) startKeeper(locked *os.File) error {
	if err := locked.Truncate(0); err != nil {
		return err
	}
	if err := os.Remove(f.path("server")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.Create(f.path("log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(binary)
	cmd.Env = append(os.Environ(), keeperVariable+"="+string(f))
	cmd.Dir = string(f)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{locked} // becomes file descriptor keeperFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a keeper: %w", err)
	}
	return cmd.Process.Release()
}

// awaitServer waits until the server is there or its keeper is not.
func (f folder) awaitServer(ctx context.Context) (string, error) {
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		server, err := os.ReadFile(f.path("server"))
		if err == nil {
			return string(server), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if !f.kept() {
			said, _ := os.ReadFile(f.path("log"))
			return "", fmt.Errorf("its keeper ended: %s", said)
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-look.C:
		}
	}
}

// kept says whether there is a keeper. The start lock is held.
func (f folder) kept() bool {
	keeper, err := f.open("keeper")
	if err != nil {
		return false
	}
	defer keeper.Close()
	return errors.Is(flock.TryExclusive(keeper), flock.ErrHeld)
}

// keeperFD is the first of ExtraFiles.
const keeperFD = 3

// keep is the keeper's whole life.
func keep(f folder) (err error) {
	syscall.CloseOnExec(keeperFD) // or the server would hold the keeper's lock too
	lock := os.NewFile(keeperFD, f.path("keeper"))
	defer func() {
		if err != nil {
			fmt.Fprintln(os.Stderr, err) // into the folder's log, which is read when the lock is free
		}
		lock.Close()
	}()
	fmt.Fprintln(lock, os.Getpid()) // for people
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	server, err := Start(ctx, postgres.Options{Version: wantedVersion()})
	if err != nil {
		return err
	}
	if err := f.publish(server.URL()); err != nil {
		return errors.Join(err, server.Close())
	}
	start, err := f.untilUnused(lock)
	if err != nil {
		return errors.Join(err, server.Close())
	}
	defer start.Close()
	err = server.Close()
	postgres.RemoveStale()
	if !flock.Current(lock) {
		return err // somebody removed the folder under us, and another keeper may be in a new one
	}
	return errors.Join(err, f.remove())
}

// publish writes the URL at once, not in pieces.
func (f folder) publish(url string) error {
	if err := os.WriteFile(f.path("server.new"), []byte(url), 0o600); err != nil {
		return err
	}
	return os.Rename(f.path("server.new"), f.path("server"))
}

// untilUnused waits until nobody uses the server, and returns with the start lock held, so that nobody begins to.
func (f folder) untilUnused(lock *os.File) (start *os.File, err error) {
	users, err := f.open("users")
	if err != nil {
		return nil, err
	}
	defer users.Close()
	for {
		if err := flock.Exclusive(users); err != nil {
			return nil, err
		}
		if err := flock.Release(users); err != nil {
			return nil, err
		}
		time.Sleep(linger)
		if start, err = f.open("start"); err != nil {
			return nil, err
		}
		if err := flock.Exclusive(start); err != nil {
			return nil, errors.Join(err, start.Close())
		}
		if err := flock.TryExclusive(users); err == nil {
			return start, nil
		}
		start.Close()
	}
}

// remove takes file by file, start last: all of a folder at once could take what a newcomer has just made there.
func (f folder) remove() error {
	for _, name := range []string{"server", "server.new", "log", "users", "keeper", "start"} {
		if err := os.Remove(f.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	err := os.Remove(string(f))
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, fs.ErrNotExist) {
		return nil // a newcomer is there already
	}
	return err
}
