package faults

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// exits waits until a process ends by itself, and returns its exit code.
func (x *Trial) exits(p *Process) (code int) {
	x.Helper()
	select {
	case <-p.Exited:
	case <-time.After(x.patient(30 * time.Second)):
		x.Fatalf("%s still runs", p.Name)
	}
	if ended, ok := errors.AsType[*exec.ExitError](p.Err); ok {
		return ended.ExitCode()
	}
	return 0
}

// secondSlot starts a walhook with another slot on the same tables: both at the same
// moment, and later beside one that delivers.
func secondSlot(t *testing.T, s Setup) {
	const heldBack = 4
	other := "WALHOOK_SLOT=" + slotName + "_2"
	x := newTrial(t, s)
	first, second := x.start(), x.start(other)
	x.eventually(30*time.Second, "one of two that start together is held back", func() bool { return !first.Running() || !second.Running() })
	loser, winner := second, first
	if !first.Running() {
		loser, winner = first, second
	}
	code := x.exits(loser)
	x.expect(code == heldBack, "it ended with exit code %d, not %d", code, heldBack)
	x.expect(winner.Running(), "both have ended")
	if winner == second { // the trial watches the other slot
		if _, err := winner.stop(timeout + exitMargin); err != nil {
			t.Fatal(err)
		}
		x.start()
	}
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	<-time.After(3 * time.Second)
	late := x.start(other)
	code = x.exits(late)
	x.expect(code == heldBack, "the later one ended with exit code %d, not %d", code, heldBack)
	x.expect(late.logged(slotName) > 0, "its log does not name the slot in use")
	<-time.After(3 * time.Second)
	stop()
	x.finish(time.Minute)
}

// secondInstallation expects that a second installation is refused, and that a foreign
// table of the outbox's name is ignored even if it is in our publication.
func secondInstallation(t *testing.T, s Setup) {
	const notPrepared = 3
	x := newTrial(t, s)
	x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	again := exec.CommandContext(t.Context(), s.Binary, "init")
	again.Env = append(x.env("second"), "WALHOOK_SCHEMA=second", "WALHOOK_SLOT=second")
	output, err := again.CombinedOutput()
	ended, _ := errors.AsType[*exec.ExitError](err)
	x.expect(ended != nil && ended.ExitCode() == notPrepared && strings.Contains(string(output), "WALHOOK_SCHEMA"), "a second installation: %v, %s", err, output)
	x.exec(`CREATE SCHEMA IF NOT EXISTS second`)
	x.exec(`CREATE TABLE second.webhook_outbox (LIKE webhook_outbox)`)
	x.exec(`ALTER PUBLICATION walhook ADD TABLE second.webhook_outbox`)
	for range 20 {
		x.exec(`INSERT INTO second.webhook_outbox SELECT webhook_uuidv7(), organization_id, event_type, payload, now(), endpoint_ids, shard FROM webhook_outbox LIMIT 10`)
		<-time.After(200 * time.Millisecond)
	}
	var slots, tables int
	if err := x.pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'second'),
		(SELECT count(*) FROM pg_class WHERE relnamespace = 'second'::regnamespace AND relkind IN ('r', 'p'))`).Scan(&slots, &tables); err != nil {
		t.Fatal(err)
	}
	x.expect(slots == 0 && tables == 1, "the second installation has made %d slots and %d tables", slots, tables-1)
	stop()
	x.finish(time.Minute)
}
