package store

import (
	"fmt"
	"strings"
)

// A CheckState is the result of a Check.
type CheckState string

// The states of a Check.
const (
	CheckOK   CheckState = "ok"
	CheckWarn CheckState = "warn" // walhook works, but an operator should know
	CheckFail CheckState = "FAIL" // walhook does not start
)

// A Check is one thing that walhook needs of the database: what was found, and what to type
// to fix it.
type Check struct {
	Name  string
	State CheckState
	Found string
	Fix   string
	Means error // of a failure: ErrNotPrepared or ErrHeldBack; nil: it may go away by itself

	cause error // of a FailedCheck
}

// Err returns a failure as an error, and nil for other states.
func (c Check) Err() error {
	switch {
	case c.State != CheckFail:
		return nil
	case c.cause != nil:
		return c.cause
	case c.Means == nil:
		return fmt.Errorf("%s: %s; %s", c.Name, c.Found, c.Fix)
	}
	return fmt.Errorf("%w: %s: %s; %s", c.Means, c.Name, c.Found, c.Fix)
}

// FirstFailure returns the error of the first check that failed.
func FirstFailure(checks []Check) error {
	for _, c := range checks {
		if err := c.Err(); err != nil {
			return err
		}
	}
	return nil
}

// An Intent says what the caller is going to do with the database.
type Intent struct {
	Apply       bool   // create what is missing of schema, publication and slot
	Schema      string // WALHOOK_SCHEMA, created if it is missing; "": the session's schema
	Environment string
	Adopt       bool // accept any environment that the database has stored
	Waits       bool // retry what may pass by itself, so that is no failure
}

// The facts are what Preflight reads. Names are quoted for use in a statement.
type facts struct {
	version                int // server_version_num
	versionText            string
	recovery               bool
	walLevel               string
	maxSenders             int // max_wal_senders
	slots, maxSlots        int
	walKept                string // max_slot_wal_keep_size
	user, database         string
	wanted, schema         string   // WALHOOK_SCHEMA, and the schema in use; schema "": it does not exist yet
	createDatabase         bool     // the user may create in the database
	createSchema           bool     // and in the schema
	incomplete             error    // of CheckSchema
	quick, slow            []string // missing extras, and missing indexes of large tables
	superuser              bool
	applyAs                string // the role as which a superuser applies the schema; "": its own
	installed              int    // schema version; 0: not installed
	made                   []madeObject
	taken                  string // what has a name of walhook's, and keeps the schema from being applied; "": nothing
	publication            publicationFacts
	slot                   slotFacts
	others                 []otherSlot
	environment            string
	creators, revokeCreate string // who else may create in the schema, and the statement that revokes that
}

// A madeObject is a table, view or function of walhook's, and its owner.
type madeObject struct {
	kind, name, owner string
	ours              bool // the user may replace it
}

type publicationFacts struct {
	exists, all, carries bool
	outbox, others       string
	owner                string
	ours                 bool // the user may change it
}

type slotFacts struct {
	exists           bool
	pid              int
	plugin, database string
	ours, lost       bool
}

// An otherSlot is a slot of another walhook, present or former, on the same tables.
type otherSlot struct {
	name string
	pid  int
	kept string // the amount of WAL that it keeps
}

func good(name, found string) Check { return Check{Name: name, State: CheckOK, Found: found} }

func warn(name, found, fix string, args ...any) Check {
	return Check{Name: name, State: CheckWarn, Found: found, Fix: fmt.Sprintf(fix, args...)}
}

func fail(means error, name, found, fix string, args ...any) Check {
	return Check{Name: name, State: CheckFail, Found: found, Fix: fmt.Sprintf(fix, args...), Means: means}
}

func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// assess judges the facts. A check comes before those that depend on it, so that the first
// failure is the cause.
func assess(f *facts, slot string, want Intent) []Check {
	return []Check{
		f.server(), f.decoding(), f.freeSlot(slot, want), f.tables(want), f.otherObjects(want), f.indexes(), f.ownership(want), f.published(want),
		f.ownSlot(slot, want), f.otherSlots(), f.environmentIs(want), f.keptWAL(), f.schemaCreators(),
	}
}

const oldestServer = 14_00_00

func (f *facts) server() Check {
	switch {
	case f.version < oldestServer:
		return fail(ErrNotPrepared, "server", "PostgreSQL "+f.versionText, "walhook needs PostgreSQL 14 or newer")
	case f.recovery:
		return fail(nil, "server", "a standby (pg_is_in_recovery)", "connect to the primary, or add target_session_attrs=read-write to a list of hosts")
	}
	return good("server", "PostgreSQL "+f.versionText)
}

func (f *facts) decoding() Check {
	if f.walLevel != "logical" {
		return fail(ErrNotPrepared, "wal_level", "wal_level is "+f.walLevel, "ALTER SYSTEM SET wal_level = 'logical', then restart PostgreSQL "+
			"(on managed services a parameter such as rds.logical_replication)")
	}
	if f.maxSenders == 0 {
		return fail(ErrNotPrepared, "max_wal_senders", "max_wal_senders is 0", "ALTER SYSTEM SET max_wal_senders = 10, then restart PostgreSQL")
	}
	return good("wal_level", f.walLevel)
}

// freeSlot is only a warning for a walhook that waits, on an installed database: after a
// failover, or while others restart, slots are in use that will soon be free.
func (f *facts) freeSlot(slot string, want Intent) Check {
	found := fmt.Sprintf("%d of max_replication_slots = %d are used", f.slots, f.maxSlots)
	if want.Apply && !f.slot.exists && f.slots >= f.maxSlots {
		const fix = "drop an unused one (SELECT slot_name, active FROM pg_replication_slots), or raise max_replication_slots and restart PostgreSQL"
		found += ", and slot " + slot + " is not one of them"
		if want.Waits && f.installed > 0 && f.maxSlots > 0 {
			return warn("replication slots", found+"; walhook creates it when a slot is free", fix)
		}
		return fail(ErrNotPrepared, "replication slots", found, fix)
	}
	return good("replication slots", found)
}

func (f *facts) tables(want Intent) Check {
	const name = "tables"
	in := "in schema " + f.schema
	switch {
	case f.incomplete == nil:
		return good(name, fmt.Sprintf("version %d %s", f.installed, in))
	case !want.Apply:
		return fail(ErrNotPrepared, name, strings.TrimPrefix(f.incomplete.Error(), ErrNotPrepared.Error()+": "), "WALHOOK_AUTO_INIT is false, so walhook does not apply the schema itself")
	case f.schema == "" && want.Schema == "":
		return fail(ErrNotPrepared, name, "the search_path names no existing schema", "set WALHOOK_SCHEMA")
	case f.schema == "" && !f.createDatabase:
		return fail(ErrNotPrepared, name, "schema "+f.wanted+" does not exist, and "+f.user+" may not create it",
			"CREATE SCHEMA %s AUTHORIZATION %s", f.wanted, f.user)
	case f.schema == "":
		return good(name, "none yet; walhook will create schema "+f.wanted+" for them")
	case !f.createSchema && want.Schema == "":
		return fail(ErrNotPrepared, name, f.user+" may not create "+in,
			"set WALHOOK_SCHEMA to the schema that walhook's tables are or will be in, or GRANT CREATE, USAGE ON SCHEMA %s TO %s", f.schema, f.user)
	case !f.createSchema:
		return fail(ErrNotPrepared, name, f.user+" may not create "+in, "GRANT CREATE, USAGE ON SCHEMA %s TO %s", f.schema, f.user)
	case f.taken != "":
		return fail(ErrNotPrepared, name, f.taken+" "+in+" is not walhook's, or has lost columns",
			"rename it (ALTER TABLE %s RENAME TO another_name), or give walhook a schema of its own with WALHOOK_SCHEMA", f.taken)
	case f.installed == 0:
		return good(name, "none yet; walhook will create them "+in)
	}
	return good(name, fmt.Sprintf("version %d %s; walhook will repair it or upgrade it to version %d (%s)", f.installed, in, SchemaVersion,
		strings.TrimPrefix(f.incomplete.Error(), ErrNotPrepared.Error()+": ")))
}

// otherObjects reports missing objects that delivering does not need.
func (f *facts) otherObjects(want Intent) Check {
	const name = "other objects"
	found := strings.Join(f.quick, ", ")
	switch {
	case f.incomplete != nil: // see tables
		return good(name, "checked once the tables exist")
	case len(f.quick) == 0:
		return good(name, "all views, functions and triggers exist")
	case want.Apply && f.foreignObject() == "":
		return good(name, found+"; walhook will repair this")
	}
	return warn(name, found, "run `walhook init` with a role that owns the tables")
}

// indexes reports missing indexes of large tables. A start does not build those.
func (f *facts) indexes() Check {
	const name = "indexes"
	if len(f.slow) == 0 {
		return good(name, "no large table lacks an index")
	}
	return warn(name, strings.Join(f.slow, ", ")+", a large table: queries that need the index are slow",
		"run `walhook init` at a quiet hour: building the index blocks all writes to that table, so walhook records nothing meanwhile "+
			"(CREATE INDEX CONCURRENTLY does not work on a partitioned table)")
}

// foreignObject names an object that the user may not replace.
func (f *facts) foreignObject() (named string) {
	for _, m := range f.made {
		if !m.ours && m.owner != f.applyAs {
			named = m.name + " belongs to " + m.owner
		}
	}
	return named
}

// ownership checks the owners of the tables. Whoever applies the schema must be allowed to
// replace all of it; running alone needs no more than the grants in docs/operations.md.
func (f *facts) ownership(want Intent) Check {
	const name = "owner"
	if len(f.made) == 0 {
		return good(name, "the tables will belong to "+f.user)
	}
	owner := f.made[0].owner
	for _, m := range f.made {
		if m.name == f.publication.outbox {
			owner = m.owner
		}
	}
	var mixed, hand []string
	stranger := f.foreignObject()
	for _, m := range f.made {
		if m.owner != owner {
			mixed = append(mixed, fmt.Sprintf("ALTER %s %s OWNER TO %s", m.kind, m.name, owner))
		}
		if !m.ours {
			hand = append(hand, fmt.Sprintf("ALTER %s %s OWNER TO %s", m.kind, m.name, f.user))
		}
	}
	applies := want.Apply && f.incomplete != nil
	switch {
	case len(mixed) > 0 && applies && stranger != "":
		return fail(ErrNotPrepared, name, "the tables belong to several roles, and "+stranger, "as a superuser: %s; then run walhook as that role", strings.Join(mixed, "; "))
	case len(mixed) > 0:
		return warn(name, "the tables belong to several roles", "as a superuser: %s", strings.Join(mixed, "; "))
	case applies && stranger != "" && f.superuser: // a GRANT would change nothing for a superuser
		return fail(ErrNotPrepared, name, stranger+", but "+f.user+" would own what is created now",
			"run `walhook init` once as %s, or, where these tables are walhook's own: %s", owner, strings.Join(hand, "; "))
	case applies && stranger != "":
		return fail(ErrNotPrepared, name, stranger+", but "+f.user+" would own what is created now",
			"run `walhook init` once as %s, or: GRANT %s TO %s", owner, owner, f.user)
	}
	if f.applyAs != "" {
		return good(name, owner+" (walhook creates missing objects as that role)")
	}
	return good(name, owner)
}

func (f *facts) published(want Intent) Check {
	const name = "publication"
	p := f.publication
	switch {
	case !p.exists && !want.Apply:
		return fail(ErrNotPrepared, name, Publication+" does not exist", "run `walhook init` with a role that owns the tables")
	case !p.exists && !f.createDatabase:
		return fail(ErrNotPrepared, name, Publication+" does not exist, and "+f.user+" may not create it",
			"GRANT CREATE ON DATABASE %s TO %s", f.database, f.user)
	case !p.exists:
		return good(name, "walhook will create publication "+Publication)
	case p.all:
		return warn(name, Publication+" is FOR ALL TABLES: walhook has to read and skip the inserts of every application",
			"DROP PUBLICATION %s; then run `walhook init`", Publication)
	case !p.carries && p.others != "":
		return fail(ErrNotPrepared, name, fmt.Sprintf("%s includes %s and not walhook's outbox: it is not walhook's", Publication, p.others),
			"a database can have only one publication of that name, so only one walhook: if that publication is the one you mean, set WALHOOK_SCHEMA to its schema; "+
				"otherwise ALTER PUBLICATION %s RENAME TO something_else", Publication)
	case !p.carries && !p.ours:
		return fail(ErrNotPrepared, name, fmt.Sprintf("%s does not include webhook_outbox, and belongs to %s", Publication, p.owner),
			"ALTER PUBLICATION %s OWNER TO %s", Publication, f.user)
	case p.others != "":
		return warn(name, fmt.Sprintf("%s also includes %s: walhook has to read and skip the inserts there", Publication, p.others), "ALTER PUBLICATION %s DROP TABLE %s", Publication, p.others)
	}
	return good(name, Publication)
}

func (f *facts) ownSlot(slot string, want Intent) Check {
	const name = "slot"
	s := f.slot
	switch {
	case !s.exists && !want.Apply:
		return fail(ErrNotPrepared, name, slot+" does not exist", "run `walhook init`, or SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", literal(slot))
	case !s.exists:
		return good(name, "walhook will create slot "+slot)
	case !s.ours:
		return fail(ErrNotPrepared, name, fmt.Sprintf("%s is not a pgoutput slot of this database (plugin %s, database %q)", slot, s.plugin, s.database),
			"set WALHOOK_SLOT to another name: slot names are unique per server, not per database")
	case s.lost:
		return warn(name, "PostgreSQL has invalidated "+slot, "none needed: walhook recreates it and finds missed events in the outbox; consider a larger max_slot_wal_keep_size")
	case s.pid != 0:
		return good(name, fmt.Sprintf("%s is in use by pid %d; another walhook stands by for it", slot, s.pid))
	}
	return good(name, slot)
}

func (f *facts) otherSlots() Check {
	const name = "other slots"
	var idle, drop []string
	for _, o := range f.others {
		if o.pid != 0 {
			return fail(ErrHeldBack, name, fmt.Sprintf("another walhook delivers from these tables through slot %s (pid %d), so everything would be sent twice", o.name, o.pid),
				"stop that one, or set WALHOOK_SLOT=%s to stand by for it", o.name)
		}
		idle = append(idle, fmt.Sprintf("%s is unused and keeps %s of WAL", o.name, o.kept))
		drop = append(drop, fmt.Sprintf("SELECT pg_drop_replication_slot(%s)", literal(o.name)))
	}
	if len(idle) > 0 {
		return warn(name, strings.Join(idle, "; "), "%s", strings.Join(drop, "; "))
	}
	return good(name, "none")
}

func (f *facts) environmentIs(want Intent) Check {
	const name = "environment"
	if f.environment != "" && f.environment != want.Environment && !want.Adopt {
		return fail(ErrHeldBack, name, fmt.Sprintf("this database belongs to the environment %q, but WALHOOK_ENVIRONMENT is %q", f.environment, want.Environment),
			"to use it here all the same, run `walhook init --adopt`")
	}
	if want.Environment == "" {
		return good(name, "none (a copy of this database would deliver too: see WALHOOK_ENVIRONMENT)")
	}
	return good(name, want.Environment)
}

func (f *facts) keptWAL() Check {
	const name = "max_slot_wal_keep_size"
	if f.walKept == "-1" {
		return warn(name, "unlimited: while walhook is down, its slot keeps WAL until the disk is full", "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB' (well below the free disk space), then SELECT pg_reload_conf()")
	}
	return good(name, f.walKept)
}

func (f *facts) schemaCreators() Check {
	const name = "rights on the schema"
	if f.creators != "" {
		return warn(name, f.creators+" may also create objects in walhook's schema", "%s, or give walhook a schema of its own with WALHOOK_SCHEMA", f.revokeCreate)
	}
	return good(name, "nobody else may create objects there")
}

// FailedCheck returns the check for an error that was found elsewhere.
func FailedCheck(name string, err error) Check {
	return Check{Name: name, State: CheckFail, Found: err.Error(), cause: err}
}
