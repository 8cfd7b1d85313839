package outbox

import (
	"regexp"
	"slices"
)

// A manifest names what schema.sql makes, by the file's own words: nothing of the
// application's that happens to be called webhook_… is in it.
type manifest struct {
	tables, views, functions, indexes, triggers []string
	eventTypes                                  []string // walhook's own
}

var (
	madeBySchema = regexp.MustCompile(`(?m)^ *CREATE (?:OR REPLACE )?(TABLE|VIEW|FUNCTION|INDEX|TRIGGER)(?: IF NOT EXISTS)? (webhook_\w+)`)
	ownTypeRow   = regexp.MustCompile(`(?m)^ *\('(webhook\.[a-z_.]+)', +'` + OwnCategory + `'`)
)

// readManifest reads the text of schema.sql. Without one it is what this code
// cannot do without.
func readManifest(schema string) manifest {
	m := manifest{tables: slices.Clone(requiredTables), triggers: []string{"webhook_outbox_before_insert"}}
	kinds := map[string]*[]string{"TABLE": &m.tables, "VIEW": &m.views, "FUNCTION": &m.functions, "INDEX": &m.indexes, "TRIGGER": &m.triggers}
	for _, made := range madeBySchema.FindAllStringSubmatch(schema, -1) {
		if names := kinds[made[1]]; !slices.Contains(*names, made[2]) {
			*names = append(*names, made[2])
		}
	}
	for _, row := range ownTypeRow.FindAllStringSubmatch(schema, -1) {
		m.eventTypes = append(m.eventTypes, row[1])
	}
	return m
}
