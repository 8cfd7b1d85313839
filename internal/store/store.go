// Package store is the sidecar's only speaker of SQL, and has the words that the
// sidecar's packages share: Endpoint, Record, Attempt, Session.
//
// Every exported method of the Store is one statement or one transaction.
package store

import (
	"crypto/rand"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrNotPrepared marks an error that an operator has to mend in the database
// (wal_level, a privilege, a missing table). Its text says how.
var ErrNotPrepared = errors.New("database not prepared")

// A Store runs walhook's statements. Every exported method is one statement or
// one transaction; none holds a lock while it waits for anything but PostgreSQL.
type Store struct {
	pool         *pgxpool.Pool
	slot         string
	disableAfter time.Duration
	sealer       *Sealer // nil: signing secrets are stored as they are
	open         openSince
	made         manifest      // what is to be there
	applyFor     time.Duration // how long applying schema.sql is tried
	nonce        string        // part of each echo
}

// New returns a Store on a pool. The slot's name is the key of its state
// row. An endpoint with nothing but failures for disableAfter is disabled; 0: never.
func New(pool *pgxpool.Pool, slot string, disableAfter time.Duration) *Store {
	return &Store{pool: pool, slot: slot, disableAfter: disableAfter, made: readManifest(""), applyFor: applyFor, nonce: rand.Text()}
}

// Sealing makes the Store keep signing secrets sealed at rest. It is called
// before the Store is used.
func (s *Store) Sealing(sealer *Sealer) { s.sealer = sealer }
