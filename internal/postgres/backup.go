// A backup is a copy of a running server's data directory: what a standby begins with, and what a server can be set
// back to. There is no pg_basebackup in the npm packages; this does as much of its work as a throwaway server needs.

package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrNoBackup is the answer of a server whose data directory is out of reach: one in a container, or not ours at all.
var ErrNoBackup = errors.New("this PostgreSQL has no data directory that can be copied")

// A Backup is a copy of a server's data directory. It is removed with Close.
type Backup struct {
	from   *cluster
	folder *os.File
}

// Backup copies the running server. Its replication slots are left out, as pg_basebackup leaves them out, unless wanted:
// then it is what a snapshot of the disk is. The WAL since its beginning must not be removed meanwhile by a checkpoint.
func (s *Server) Backup(ctx context.Context, slots bool) (*Backup, error) {
	c, err := s.cluster()
	if err != nil {
		return nil, err
	}
	folder, err := newFolder()
	if err != nil {
		return nil, err
	}
	b := &Backup{from: c, folder: folder}
	if err := b.take(ctx, slots); err != nil {
		return nil, errors.Join(fmt.Errorf("back PostgreSQL up: %w", err), b.Close())
	}
	return b, nil
}

// Close removes the copy.
func (b *Backup) Close() error { return removeFolder(b.folder) }

// Standby starts a server on a copy of the backup that follows the one that the backup is of. It has the settings of
// that one, and more.
func (b *Backup) Standby(ctx context.Context, settings map[string]string) (*Server, error) {
	folder, err := newFolder()
	if err != nil {
		return nil, err
	}
	c := &cluster{folder: folder, bin: b.from.bin, credential: b.from.credential}
	if err := b.follow(ctx, c, settings); err != nil {
		return nil, errors.Join(fmt.Errorf("start a standby: %w", err), c.remove())
	}
	return &Server{url: c.url(), machine: c}, nil
}

// Restore sets a server that is stopped back to what it was at the backup; Restart then starts it. With a new timeline
// it recovers as from an archive, to a point in time; without, as from a snapshot of its disk.
func (s *Server) Restore(b *Backup, newTimeline bool) error {
	c, err := s.cluster()
	if err != nil {
		return err
	}
	if c.pid() != 0 {
		return ErrRunning
	}
	removeSharedMemory(c.data())
	if err := os.RemoveAll(c.data()); err != nil {
		return fmt.Errorf("restore PostgreSQL: %w", err)
	}
	err = copyTree(b.data(), c.data(), nil)
	if err == nil && newTimeline {
		err = c.configure(map[string]string{"restore_command": "false"}, "recovery.signal") // all WAL is in the copy
	}
	if err := c.own(err, c.data()); err != nil {
		return fmt.Errorf("restore PostgreSQL: %w", err)
	}
	return nil
}

func (s *Server) cluster() (*cluster, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c, ok := s.machine.(*cluster)
	if !ok {
		return nil, ErrNoBackup
	}
	return c, nil
}

func (b *Backup) data() string { return filepath.Join(b.folder.Name(), "data") }

// take copies everything but the WAL, and the WAL last: a server on the copy replays it to its end, which is behind
// everything that the rest of the copy may hold.
func (b *Backup) take(ctx context.Context, slots bool) error {
	conn, err := pgx.Connect(ctx, b.from.url())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	start, stop := `SELECT pg_backup_start('walhook', true)`, `SELECT labelfile FROM pg_backup_stop(false)`
	if conn.PgConn().ParameterStatus("server_version") < "15" {
		start, stop = `SELECT pg_start_backup('walhook', true, false)`, `SELECT labelfile FROM pg_stop_backup(false, false)`
	}
	if _, err := conn.Exec(ctx, start); err != nil {
		return err
	}
	leaveOut := map[string]bool{"pg_wal": true, "postmaster.pid": true, "postmaster.opts": true, "pg_dynshmem": true, "pg_replslot": !slots}
	if err := copyTree(b.from.data(), b.data(), leaveOut); err != nil {
		return err
	}
	var label string
	if err := conn.QueryRow(ctx, stop).Scan(&label); err != nil {
		return err
	}
	if err := copyTree(filepath.Join(b.from.data(), "pg_wal"), filepath.Join(b.data(), "pg_wal"), nil); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.data(), "backup_label"), []byte(label), 0o600)
}

// follow makes a cluster a standby on a copy of the backup.
func (b *Backup) follow(ctx context.Context, c *cluster, settings map[string]string) error {
	if err := copyTree(b.data(), c.data(), nil); err != nil {
		return err
	}
	all := map[string]string{"hot_standby": "on",
		"primary_conninfo": fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres sslmode=disable application_name=standby", b.from.port)}
	maps.Copy(all, settings)
	if err := c.own(c.configure(all, "standby.signal"), c.folder.Name()); err != nil {
		return err
	}
	return c.bootAnywhere(ctx)
}

// configure adds settings, and makes the file that says how to recover.
func (c *cluster) configure(settings map[string]string, signal string) error {
	conf, err := os.OpenFile(filepath.Join(c.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = conf.WriteString(configuration(settings))
	return errors.Join(err, conf.Close(), os.WriteFile(filepath.Join(c.data(), signal), nil, 0o600))
}

// Promote makes a standby a primary, and waits until it is one.
func (s *Server) Promote(ctx context.Context) error {
	const within = 60 * time.Second
	conn, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		return fmt.Errorf("promote PostgreSQL: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var promoted bool
	if err := conn.QueryRow(ctx, `SELECT pg_promote(true, $1)`, int(within.Seconds())).Scan(&promoted); err != nil {
		return fmt.Errorf("promote PostgreSQL: %w", err)
	}
	if !promoted {
		return fmt.Errorf("promote PostgreSQL: it is still a standby after %s", within)
	}
	return nil
}

// own gives a tree to the user that the server runs as, unless there was an error before.
func (c *cluster) own(err error, root string) error {
	if err != nil || c.credential == nil {
		return err
	}
	return filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(c.credential.Uid), int(c.credential.Gid))
	})
}

// copyTree copies a folder of a running server: what goes away meanwhile was not needed. Of what is left out, folders
// are made, and stay empty.
func copyTree(from, to string, leaveOut map[string]bool) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		name := strings.TrimPrefix(strings.TrimPrefix(path, from), "/")
		target := filepath.Join(to, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case entry.IsDir():
			if err := os.MkdirAll(target, 0o700); err != nil || !leaveOut[name] {
				return err
			}
			return fs.SkipDir
		case !entry.Type().IsRegular() || leaveOut[name]:
			return nil
		}
		if err := copyFile(path, target); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}
