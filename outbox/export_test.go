package outbox

import (
	"slices"
	"time"
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

// Samples is how many are kept.
func (s *Store) Samples() int {
	s.open.mu.Lock()
	defer s.open.mu.Unlock()
	return len(s.open.samples)
}

// Made is all that a schema.sql makes, as its text is read.
func Made(schema string) []string {
	m := readManifest(schema)
	return slices.Concat(m.tables, m.views, m.functions, m.indexes, m.triggers, m.eventTypes)
}
