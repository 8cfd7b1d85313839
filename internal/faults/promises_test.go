package faults

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
)

// lease has the next walhook leave alone what the one before it may still be
// sending: a row that was parked while its attempt ran is not due before that
// attempt is over, whatever has become of the process.
func lease(t *testing.T, s Setup) {
	if s.ParkAfter == 0 {
		t.Skip("everything is parked before its first attempt, and not while one runs")
	}
	const events = 5
	x := newTrial(t, s)
	x.receiver.failShare = 0
	active := x.start()
	x.streams(active)
	standby := x.start()
	x.standingBy(standby)
	release := x.receiver.hang(0)
	for range events {
		x.insertOnce(1)
	}
	x.eventually(10*time.Second, "every delivery is under way, and parked", func() bool {
		var rows int
		err := x.pool.QueryRow(t.Context(), `SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'`).Scan(&rows)
		return err == nil && rows == events && x.journal.count() == events
	})
	if err := active.kill(); err != nil {
		t.Fatal(err)
	}
	x.crashes++
	release()
	x.holds(standby, 10*time.Second)
	x.drain(time.Minute)
	soonest := x.soonestAgain()
	x.expect(soonest >= timeout, "a delivery was sent again %s after an attempt that may take %s began", soonest, timeout)
	x.finish(time.Minute, fmt.Sprintf("again=%s", soonest.Round(time.Millisecond)))
}

// soonestAgain is the shortest time between two requests of one delivery.
func (x *Trial) soonestAgain() time.Duration {
	soonest := time.Hour
	last := map[uuid.UUID]time.Time{}
	_, requests := x.journal.copy()
	for _, r := range requests {
		if before, again := last[r.Delivery]; again {
			soonest = min(soonest, r.At.Sub(before))
		}
		last[r.Delivery] = r.At
	}
	return soonest
}

// unechoedOutcome has a standby that must have everything first fall behind: the
// stream waits for it, and so does the echo of what is recorded meanwhile. Until
// then nothing may be confirmed by it, or a failover loses it.
func unechoedOutcome(t *testing.T, s Setup) {
	const standby, watched = "behind", 6 * time.Second
	x := newTrial(t, s)
	var version int
	if err := x.pool.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version < 170000 {
		t.Skip("synchronized_standby_slots came with PostgreSQL 17")
	}
	x.receiver.failShare = 0
	x.streams(x.start())
	x.exec(`SELECT pg_create_physical_replication_slot($1, true)`, standby)
	tx, err := x.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), `LOCK TABLE webhook_deliveries`); err != nil { // nothing is recorded yet
		t.Fatal(err)
	}
	x.monitor.pause(true)
	x.insertOnce(1)
	committed := insertLSN(t.Context(), x.pool)
	x.eventually(10*time.Second, "walhook has received the event", func() bool {
		var received bool
		err := x.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid
			WHERE s.slot_name = $1 AND r.write_lsn >= $2::text::pg_lsn)`, slotName, committed.String()).Scan(&received)
		return err == nil && received
	})
	x.set("synchronized_standby_slots", standby)
	<-time.After(time.Second) // the walsender reads the setting, and sends what it has
	stood := x.slot().Confirmed
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	x.monitor.pause(false)
	x.eventually(10*time.Second, "the delivery is recorded", func() bool { return x.allHaveRows(x.journal.committed()) })
	<-time.After(watched) // longer than walhook is silent
	moved := x.slot().Confirmed
	x.expect(moved == stood, "the slot was confirmed from %s to %s, and the standby has not got what was recorded", stood, moved)
	x.set("synchronized_standby_slots", "")
	x.finish(time.Minute, fmt.Sprintf("stood=%s", stood))
}
