package cdc

import (
	"net/url"
	"strconv"
	"testing"
)

// failoverSlots says whether the server knows slots that go with a failover.
func (d *database) failoverSlots() bool {
	d.Helper()
	version, err := strconv.Atoi(d.value(`SELECT current_setting('server_version_num')`))
	if err != nil {
		d.Fatal(err)
	}
	return version >= failoverVersion
}

func (d *database) failover() string {
	d.Helper()
	return d.value(`SELECT to_jsonb(s)->>'failover' FROM pg_replication_slots s WHERE slot_name = $1`, d.slot)
}

func TestTheSlotGoesWithAFailover(t *testing.T) {
	t.Parallel()
	withoutFailover := func(t *testing.T) *database {
		d := newDatabase(t)
		if !d.failoverSlots() {
			t.Skip("failover slots came with PostgreSQL 17")
		}
		d.exec(`SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, d.slot)
		return d
	}
	t.Run("when it is made, by a role that may do no more than replicate", func(t *testing.T) {
		t.Parallel()
		d, _ := newServer(t, nil)
		if !d.failoverSlots() {
			t.Skip("failover slots came with PostgreSQL 17")
		}
		d.exec(`CREATE ROLE replicates LOGIN REPLICATION`)
		u, err := url.Parse(d.url)
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.User("replicates")
		config := d.config()
		config.Server = at(u.String())
		if _, err := Prepare(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		if got := d.failover(); got != "true" {
			t.Errorf("failover = %q", got)
		}
		d.exec(`SELECT pg_drop_replication_slot($1)`, d.slot)
		d.exec(`SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, d.slot)
		if _, err := Prepare(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		if got := d.failover(); got != "true" {
			t.Errorf("of one that was made before: failover = %q", got)
		}
	})
	t.Run("when it was made without, and keeps its place", func(t *testing.T) {
		t.Parallel()
		d := withoutFailover(t)
		d.insert(1)
		r := start(t, d.config())
		r.wantPayloads(number(1))
		if got := d.failover(); got != "true" {
			t.Errorf("failover = %q", got)
		}
		if session := r.streaming(1); session.SlotCreated {
			t.Error("the slot was made anew")
		}
	})
	t.Run("but for one that is not walhook's to make", func(t *testing.T) {
		t.Parallel()
		d := withoutFailover(t)
		config := d.config()
		config.CreateSlot = false
		r := start(t, config)
		r.streaming(1)
		if got := d.failover(); got != "false" {
			t.Errorf("failover = %q", got)
		}
	})
}

func TestAnOlderServerMakesAnOrdinarySlot(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	if d.failoverSlots() {
		t.Skip("this one knows failover slots")
	}
	r := start(t, d.config())
	r.streaming(1)
	r.eventually("the slot is in use", func() bool { return d.walsender() != "" })
}
