package store

import (
	"regexp"
	"slices"
	"strings"

	"github.com/walhook/walhook/outbox"
)

// A manifest lists what schema.sql makes. It is read from the file itself, so objects of the
// application that happen to be named webhook_… are not in it.
type manifest struct {
	tables, views, functions, indexes, triggers []string
	indexed                                     []string // the table of each index
	constraints                                 []string // without keys
	eventTypes                                  []string // walhook's own
}

// convenienceFunctions are called by people only: neither walhook nor a trigger needs them.
var convenienceFunctions = []string{
	"webhook_create_endpoint", "webhook_replace_secret", "webhook_rotate_secret", "webhook_set_secret", "webhook_send_test", "webhook_replay",
	"webhook_replay_failed", "webhook_retry_now", "webhook_pause", "webhook_resume", "webhook_forget", "webhook_note_forgotten",
	"webhook_writers", "webhook_explain", "webhook_stats", "webhook_waiting",
	"webhook_ops_explain",
}

// firesAlways reports whether a trigger has to fire whatever session_replication_role is,
// because events are lost without it. The others guard rows or wake walhook.
func firesAlways(trigger string) bool {
	return strings.HasPrefix(trigger, "webhook_outbox_before_") || trigger == "webhook_event_types_restored"
}

// needed returns what delivering needs. The rest are the extras.
func (m manifest) needed() manifest {
	return manifest{
		tables:    m.tables,
		functions: slices.DeleteFunc(slices.Clone(m.functions), func(f string) bool { return slices.Contains(convenienceFunctions, f) }),
		triggers:  slices.DeleteFunc(slices.Clone(m.triggers), func(t string) bool { return !firesAlways(t) }),
	}
}

var (
	madeBySchema = regexp.MustCompile(`^ *CREATE (?:OR REPLACE )?(TABLE|VIEW|FUNCTION|INDEX|TRIGGER)(?: IF NOT EXISTS)? (webhook_\w+)(?: ON (webhook_\w+))?`)
	constrained  = regexp.MustCompile(`\bCONSTRAINT (webhook_\w+)`)
	ownTypeRow   = regexp.MustCompile(`^ *\('(webhook\.[a-z_.]+)', +'` + outbox.OwnCategory + `'`)
)

// readManifest parses the text of schema.sql. For "" it returns what this code needs at
// least.
func readManifest(schema string) manifest {
	m := manifest{tables: slices.Clone(requiredTables), triggers: []string{"webhook_outbox_before_insert"}}
	kinds := map[string]*[]string{"TABLE": &m.tables, "VIEW": &m.views, "FUNCTION": &m.functions, "INDEX": &m.indexes, "TRIGGER": &m.triggers}
	m.constraints = []string{"webhook_secrets_endpoint_id_fkey"} // PostgreSQL names it
	for line := range strings.Lines(schema) {
		m.read(line, kinds)
	}
	return m
}

// read adds what a line of schema.sql makes. An expression is slow, and every command reads the
// file as it starts: so most lines are not shown to any.
func (m *manifest) read(line string, kinds map[string]*[]string) {
	if strings.Contains(line, "CREATE ") {
		if made := madeBySchema.FindStringSubmatch(line); made != nil && !slices.Contains(*kinds[made[1]], made[2]) {
			*kinds[made[1]] = append(*kinds[made[1]], made[2])
			if made[1] == "INDEX" {
				m.indexed = append(m.indexed, made[3])
			}
		}
	}
	if strings.Contains(line, "CONSTRAINT ") {
		for _, c := range constrained.FindAllStringSubmatch(line, -1) {
			m.constraints = append(m.constraints, c[1])
		}
	}
	if strings.Contains(line, "'"+outbox.OwnCategory+"'") {
		if row := ownTypeRow.FindStringSubmatch(line); row != nil {
			m.eventTypes = append(m.eventTypes, row[1])
		}
	}
}
