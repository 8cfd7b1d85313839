// Package flock holds advisory locks on open files and folders. The kernel gives a lock back when its holder dies,
// however it dies, so a lock tells what a killed process left behind from what is still in use.
//
// A lock belongs to the open file: closing it releases the lock, and children do not inherit it.
package flock

import (
	"errors"
	"os"
	"syscall"
)

// ErrHeld says that somebody else holds the lock.
var ErrHeld = errors.New("the lock is held by somebody else")

// Exclusive waits until it is the only holder.
func Exclusive(file *os.File) error { return lock(file, syscall.LOCK_EX) }

// TryExclusive is Exclusive that answers ErrHeld instead of waiting.
func TryExclusive(file *os.File) error { return lock(file, syscall.LOCK_EX|syscall.LOCK_NB) }

// Shared waits until nobody holds the lock exclusively.
func Shared(file *os.File) error { return lock(file, syscall.LOCK_SH) }

// Release gives the lock back and keeps the file open.
func Release(file *os.File) error { return lock(file, syscall.LOCK_UN) }

func lock(file *os.File, how int) error {
	for {
		err := syscall.Flock(int(file.Fd()), how)
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EWOULDBLOCK):
			return ErrHeld
		case err != nil:
			return &os.PathError{Op: "lock", Path: file.Name(), Err: err}
		default:
			return nil
		}
	}
}

// Current says whether the file is still the one that its path names. Who locked a file that the last holder removed
// meanwhile shares the lock with nobody.
func Current(file *os.File) bool {
	mine, err := file.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(file.Name())
	return err == nil && os.SameFile(mine, named)
}
