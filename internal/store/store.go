// Package store has all SQL of the sidecar.
package store

import (
	"crypto/rand"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrNotPrepared marks an error that an operator has to fix in the database (wal_level,
// a privilege, a missing table). Its text says how.
var ErrNotPrepared = errors.New("database not prepared")

// A Store runs walhook's statements. Nearly every exported method is one statement or one
// transaction. None holds a lock while it waits for anything but PostgreSQL.
type Store struct {
	pool         *pgxpool.Pool
	slot         string
	disableAfter time.Duration
	sealer       *Sealer // nil: signing secrets and headers are stored as text
	open         openSince
	made         manifest      // the objects that schema.sql makes
	applyFor     time.Duration // how long applying schema.sql is retried
	nonce        string        // part of each echo

	overdueSearch overdueSearch
}

// New returns a Store on a pool. The slot's name is the key of its row in webhook_state.
// An endpoint with nothing but failures for disableAfter is disabled; 0: never.
func New(pool *pgxpool.Pool, slot string, disableAfter time.Duration) *Store {
	return &Store{pool: pool, slot: slot, disableAfter: disableAfter, made: readManifest(""), applyFor: applyFor, nonce: rand.Text()}
}

// Sealing makes the Store seal signing secrets and headers at rest. Call it before the Store
// is used.
func (s *Store) Sealing(sealer *Sealer) { s.sealer = sealer }

// Seals reports whether the Store has a key to seal with.
func (s *Store) Seals() bool { return s.sealer != nil }
