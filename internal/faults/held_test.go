package faults

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

// moved is in the log if somebody else has moved the slot.
const moved = "the replication slot is beyond everything that is known to be recorded"

// advanceSlot moves the slot to the end of the WAL. remakeSlot drops and recreates it, as
// our own messages advise. Both work while nobody streams.
const (
	advanceSlot = `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`
	remakeSlot  = `SELECT pg_create_logical_replication_slot($1, 'pgoutput') FROM (SELECT pg_drop_replication_slot($1)) dropped`
)

// advancedSlot and remadeSlot move the slot under load: at the moment in which walhook
// loses its connection, and while walhook is stopped.
func advancedSlot(t *testing.T, s Setup) { movedSlot(t, s, advanceSlot) }
func remadeSlot(t *testing.T, s Setup)   { movedSlot(t, s, remakeSlot) }

func movedSlot(t *testing.T, s Setup, move string) {
	const before, atMost, without = 3 * time.Second, 30 * time.Second, time.Second
	s.Env = append(s.Env, "WALHOOK_AUTO_INIT=false") // or walhook itself might recreate the slot first
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	<-time.After(before)

	x.monitor.pause(true) // the slot is beyond what has rows
	over := x.crash(nil)  // a cut
	x.eventually(20*time.Second, "the slot is moved between two sessions", func() bool {
		_, err := x.pool.Exec(t.Context(), `SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots WHERE slot_name = $1`, slotName)
		if err == nil {
			_, err = x.pool.Exec(t.Context(), move, slotName)
		}
		return err == nil
	})
	over()
	running := x.resynchronised(time.Now(), atMost)
	said := p.logged(moved) + p.logged("slot "+slotName+" does not exist") // walhook may connect between drop and create
	x.expect(said == 1, "the log says %d times that the slot was moved", said)
	<-time.After(before)

	x.monitor.pause(true)
	took, err := p.stop(timeout + exitMargin)
	x.expect(err == nil, "%v after %s", err, took)
	<-time.After(without)
	x.exec(move, slotName)
	<-time.After(without)
	p = x.start()
	x.ready()
	stopped := x.resynchronised(time.Now(), atMost)
	x.expect(p.logged(moved) == 1, "after a start the log says %d times that the slot was moved", p.logged(moved))
	<-time.After(before)
	stop()
	x.finish(time.Minute, fmt.Sprintf("resync=%s, %s", running.Round(time.Millisecond), stopped.Round(time.Millisecond)))
}

// replayed is the number of deliveries that are replayed while a former holder stands by.
const replayed = 2000

// cutHolder cuts the replication connection of the active one of two for a while.
func cutHolder(t *testing.T, s Setup) {
	const cutFor = 4 * time.Second
	line := &Line{t: t}
	formerHolder(t, s, line, func(x *Trial, _, standby *Process) {
		began := time.Now()
		line.proxy.Stop()
		x.holds(standby, 20*time.Second)
		<-time.After(cutFor - time.Since(began))
		if err := line.proxy.Start(); err != nil {
			t.Fatal(err)
		}
	})
}

// frozenHolder freezes the active one.
func frozenHolder(t *testing.T, s Setup) {
	const frozenFor, atMost = 10 * time.Second, 20 * time.Second
	formerHolder(t, s, &Line{t: t}, func(x *Trial, former, standby *Process) {
		thaw := time.After(frozenFor)
		if err := former.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		x.holds(standby, atMost)
		<-thaw
		if err := former.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	})
}

// replicationThrough returns the setting that sends a process's replication connection
// through a line.
func (x *Trial) replicationThrough(line *Line, name string) string {
	x.Helper()
	cc := x.pool.Config().ConnConfig
	direct := net.JoinHostPort(cc.Host, strconv.Itoa(int(cc.Port)))
	through, err := line.connect(direct)
	if err != nil {
		x.Fatal(err)
	}
	return "WALHOOK_REPLICATION_URL=" + strings.Replace(x.walhookURL(name), direct, through, 1)
}

// formerHolder takes the slot from the active one of two, replays two thousand deliveries
// while that one stands by, and kills the other.
func formerHolder(t *testing.T, s Setup, line *Line, lose func(x *Trial, former, standby *Process)) {
	const takeover = 5 * time.Second
	x := newTrial(t, s)
	x.watchWrites()
	former := x.start(x.replicationThrough(line, "walhook-1"))
	x.ready()
	standby := x.start()
	x.standingBy(standby)
	if err := x.driver.copy(t.Context(), x.driver.newEvents(replayed), false); err != nil {
		t.Fatal(err)
	}
	x.drain(time.Minute)

	lose(x, former, standby)
	x.eventually(20*time.Second, former.Name+" stands by, or has ended", func() bool {
		var n int
		err := x.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND backend_type = 'walsender'`, former.Name).Scan(&n)
		return !former.Running() || err == nil && n > 0
	})
	wrote, from := x.writtenBy(former), x.journal.Count()
	x.replay(replayed)
	x.drain(time.Minute)
	again, byFormer := x.sentAgain(from, former)
	x.expect(again == 0 && byFormer == 0, "%d of the replayed deliveries were sent twice, %d requests are the former holder's", again, byFormer)
	x.expect(x.writtenBy(former) == wrote, "the former holder wrote %d rows", x.writtenBy(former)-wrote)

	began, survived := time.Now(), former.Running()
	if err := standby.kill(); err != nil {
		t.Fatal(err)
	}
	if !survived {
		former = x.start()
	}
	x.holds(former, takeover)
	took := time.Since(began)
	if err := x.driver.copy(t.Context(), x.driver.newEvents(mostRows), false); err != nil {
		t.Fatal(err)
	}
	x.finish(time.Minute, fmt.Sprintf("survived=%t takeover=%s", survived, took.Round(time.Millisecond)))
}

// replay replays deliveries.
func (x *Trial) replay(n int) {
	x.Helper()
	defer x.crash(nil)()
	x.exec(`UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now()
		WHERE id IN (SELECT id FROM webhook_deliveries WHERE status = 'success' ORDER BY id LIMIT $1)`, n)
}

// sentAgain counts the deliveries with more than one 2xx from the n-th request on, and a
// process's requests.
func (x *Trial) sentAgain(from int, p *Process) (twice, by int) {
	good := map[uuid.UUID]int{}
	for _, r := range x.journal.Since(from) {
		if r.Agent == p.Name {
			by++
		}
		if r.Status/100 == 2 {
			if good[r.Delivery]++; good[r.Delivery] == 2 {
				twice++
			}
		}
	}
	return twice, by
}

// hugeMessage has a role without rights write huge logical messages into the WAL, with
// walhook's own prefix and with another.
func hugeMessage(t *testing.T, s Setup) {
	const bytes, mayGrow, lateAtMost = 400 << 20, 64 << 20, 10 * time.Second
	x := newTrial(t, s)
	x.exec(`CREATE ROLE stranger LOGIN; CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.webhook_outbox (LIKE webhook_outbox INCLUDING ALL);
		ALTER PUBLICATION walhook ADD TABLE elsewhere.webhook_outbox`)
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: 20})
	defer stop()
	<-time.After(2 * time.Second)
	idle := x.resident(p)
	most, looking := idle, time.NewTicker(20*time.Millisecond)
	defer looking.Stop()
	slowest := time.Duration(0)
	for _, sql := range []string{
		`SET ROLE stranger; SELECT pg_logical_emit_message(true, 'walhook', repeat('x', %d)); RESET ROLE`,
		`SET ROLE stranger; SELECT pg_logical_emit_message(false, 'others', repeat('x', %d)); RESET ROLE`,
		`INSERT INTO elsewhere.webhook_outbox (organization_id, event_type, endpoint_ids, payload) VALUES ('org_1', 'payment.succeeded', '{}', to_jsonb(repeat('x', least(%d, 200 << 20))))`,
	} {
		written := make(chan error, 1)
		go func() {
			_, err := x.pool.Exec(t.Context(), fmt.Sprintf(sql, bytes), pgx.QueryExecModeSimpleProtocol)
			written <- err
		}()
		var end pglogrepl.LSN
		var ended time.Time
		for passed := false; !passed; {
			select {
			case err := <-written:
				if err != nil {
					t.Fatal(err)
				}
				end, ended = insertLSN(t.Context(), x.pool), time.Now()
			case <-looking.C:
				most = max(most, x.resident(p))
				if end != 0 && x.slot().Confirmed >= end {
					passed = true
				}
			case <-time.After(time.Minute):
				t.Fatal("nothing happens")
			}
		}
		slowest = max(slowest, time.Since(ended))
	}
	stop()
	x.expect(most-idle < mayGrow, "its memory grew by %d MiB", (most-idle)>>20)
	x.expect(slowest <= lateAtMost, "the slot passed a message %s after its commit", slowest)
	x.exec(`ALTER PUBLICATION walhook DROP TABLE elsewhere.webhook_outbox`)
	x.finish(time.Minute, fmt.Sprintf("memory=%d to %dMiB slowest=%s", idle>>20, most>>20, slowest.Round(time.Millisecond)))
}
