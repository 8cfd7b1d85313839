// A folder in the temp dir is locked by the process that made it, for as long as that lives. Who can lock a folder
// has therefore found what a killed process left, and removes it.

package postgres

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/walhook/walhook/internal/postgres/flock"
)

const folderPrefix = "walhook-postgres-"

// tempDir is os.TempDir without symbolic links (macOS has one in it).
func tempDir() (string, error) { return filepath.EvalSymlinks(os.TempDir()) }

// newFolder makes a folder and locks it. Another process can take it for a stale one in between; then it makes another.
func newFolder() (*os.File, error) {
	temp, err := tempDir()
	if err != nil {
		return nil, err
	}
	for {
		path, err := os.MkdirTemp(temp, folderPrefix)
		if err != nil {
			return nil, err
		}
		folder, err := lockFolder(path)
		if errors.Is(err, flock.ErrHeld) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return folder, err
	}
}

// lockFolder answers fs.ErrNotExist also for a folder that is removed while it looks.
func lockFolder(path string) (*os.File, error) {
	folder, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := flock.TryExclusive(folder); err != nil {
		folder.Close()
		return nil, err
	}
	if !flock.Current(folder) {
		folder.Close()
		return nil, fs.ErrNotExist
	}
	return folder, nil
}

// removeFolder removes the folder while it is locked, then unlocks it.
func removeFolder(folder *os.File) error {
	defer folder.Close()
	return os.RemoveAll(folder.Name())
}

// RemoveStale removes the servers of processes that were killed; Start does so too. Their postmaster has had its signal
// already (on Linux), or ends within a minute of losing its data directory. What is another user's, or is written to
// while it is removed, stays for a later call.
func RemoveStale() {
	temp, err := tempDir()
	if err != nil {
		return
	}
	paths, _ := filepath.Glob(filepath.Join(temp, folderPrefix+"*")) // fails only for a malformed pattern
	for _, path := range paths {
		if folder, err := lockFolder(path); err == nil {
			removeSharedMemory(filepath.Join(path, "data"))
			_ = removeFolder(folder)
		}
	}
}
