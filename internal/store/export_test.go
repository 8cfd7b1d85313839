package store

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pglogrepl"
)

// ApplyFor bounds how long applying schema.sql is tried.
func (s *Store) ApplyFor(d time.Duration) { s.applyFor = d }

// Age makes what was seen of open transactions older, as if the time had passed:
// it cannot be waited for.
func (s *Store) Age(by time.Duration) {
	s.open.mu.Lock()
	defer s.open.mu.Unlock()
	for i := range s.open.samples {
		s.open.samples[i].at = s.open.samples[i].at.Add(-by)
	}
	for i := range s.open.bounds {
		s.open.bounds[i].since = s.open.bounds[i].since.Add(-by)
	}
}

// Renumber makes the ids that were seen greater, as if the cluster had been restored
// to when they were smaller.
func (s *Store) Renumber(by uint64) {
	s.open.mu.Lock()
	defer s.open.mu.Unlock()
	for i := range s.open.samples {
		s.open.samples[i].xid += by
	}
}

// Restored makes what the looks at old days have noted greater, as if the cluster had been
// restored to when transactions had smaller ids, or to when its WAL was shorter. It says
// whether that is noted.
func (p *Partitions) Restored(ids uint64, wal pglogrepl.LSN) bool {
	if p.past == nil || p.past.lsn == "" {
		return false
	}
	xid, xidErr := strconv.ParseUint(p.past.xid, 10, 64)
	lsn, lsnErr := pglogrepl.ParseLSN(p.past.lsn)
	p.past.xid, p.past.lsn = strconv.FormatUint(xid+ids, 10), (lsn + wal).String()
	if wal == 0 { // the look at it was still to come
		p.past.lsn = ""
	}
	return xidErr == nil && lsnErr == nil
}

// Samples is how many are kept.
func (s *Store) Samples() int {
	s.open.mu.Lock()
	defer s.open.mu.Unlock()
	return len(s.open.samples)
}

// Beside is what is missing or off of what delivering does not need.
func (s *Store) Beside(ctx context.Context) (whats []string, err error) {
	found, err := s.extras(ctx, s.made)
	for _, f := range found {
		whats = append(whats, f.what)
	}
	return whats, err
}

// Made is all that a schema.sql makes, as its text is read.
func Made(schema string) []string {
	m := readManifest(schema)
	return slices.Concat(m.tables, m.views, m.functions, m.indexes, m.triggers, m.eventTypes)
}

// SiteOfEndpoint is how a statement says what webhook_url_host(e.url) returns.
const SiteOfEndpoint = siteOfEndpoint
