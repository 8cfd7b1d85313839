package faults

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/walhook/walhook/internal/oracle"
)

// A Refusal keeps walhook from inserting rows of deliveries.
type Refusal struct {
	refuse, permit []string
	updates        bool // updates are refused too
}

// readOnly makes every new transaction read-only, except the application's.
func readOnly(t *testing.T, s Setup) {
	refused(t, s, Refusal{
		[]string{`ALTER SYSTEM SET default_transaction_read_only = on`, `SELECT pg_reload_conf()`},
		[]string{`ALTER SYSTEM RESET default_transaction_read_only`, `SELECT pg_reload_conf()`}, true,
	})
}

// diskFull answers every write to the deliveries as a full disk does.
func diskFull(t *testing.T, s Setup) {
	refused(t, s, Refusal{[]string{`
CREATE FUNCTION faults_disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
END $$;
CREATE TRIGGER faults_disk_full BEFORE INSERT OR UPDATE ON webhook_deliveries FOR EACH STATEMENT EXECUTE FUNCTION faults_disk_full()`},
		[]string{`DROP TRIGGER faults_disk_full ON webhook_deliveries`}, true,
	})
}

// revoked revokes walhook's right to write deliveries.
func revoked(t *testing.T, s Setup) {
	s.Role = true
	refused(t, s, Refusal{
		[]string{`REVOKE INSERT, UPDATE ON webhook_deliveries FROM ` + roleName},
		[]string{`GRANT INSERT, UPDATE ON webhook_deliveries TO ` + roleName}, true,
	})
}

// insertRevoked revokes the right to insert alone: deliveries that have a row are sent and
// recorded as usual.
func insertRevoked(t *testing.T, s Setup) {
	s.Role = true
	refused(t, s, Refusal{
		[]string{`REVOKE INSERT ON webhook_deliveries FROM ` + roleName},
		[]string{`GRANT INSERT ON webhook_deliveries TO ` + roleName}, false,
	})
}

// refused keeps walhook from inserting rows. Meanwhile it may send as many deliveries as it
// can hold, and must then stop.
func refused(t *testing.T, s Setup, r Refusal) {
	const before, recoversAtMost, stoppedFor = 3 * time.Second, 10 * time.Second, 3 * time.Second
	const enough = 400 // events per second, so that more than W deliveries are owed meanwhile
	const underWay = time.Second
	refusedFor := either(15*time.Second, 10*time.Second)
	x := newTrial(t, s)
	x.writable(t)
	x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: max(*rate, enough)})
	defer stop()
	<-time.After(before)
	x.monitor.pause(true) // or it would wait for a lock
	for _, sql := range r.refuse {
		x.exec(sql)
	}
	from, since, known := x.journal.Count(), time.Now().Add(underWay), len(x.journal.Committed())
	x.monitor.pause(false)
	<-time.After(underWay)
	rows := x.recorded()
	<-time.After(refusedFor - underWay)
	owed := len(x.monitor.owed(x.journal.Committed()[known:]))
	x.expect(owed > maxInFlight+unrecorded, "%d deliveries were owed meanwhile: the load is too small", owed)
	sent, late := r.counts(x.journal.Since(from), time.Now().Add(-stoppedFor))
	x.expect(sent <= maxInFlight+unrecorded, "%d attempts were made while nothing could be recorded", sent)
	x.expect(late == 0, "%d requests were sent in the last %s in which nothing could be recorded", late, stoppedFor)
	written := x.written(since)
	x.expect(!r.updates || written == 0, "%d rows were written while that was refused", written)
	made := x.recorded() - rows
	x.expect(made == 0, "%d rows were inserted while that was refused", made)
	for _, sql := range r.permit {
		x.exec(sql)
	}
	began := time.Now()
	end := insertLSN(t.Context(), x.pool)
	x.eventually(time.Minute, "walhook inserts rows again", func() bool { return x.recorded() > rows })
	records := time.Since(began)
	x.expect(records <= recoversAtMost, "recorded again after %s", records)
	x.eventually(time.Minute, "what was committed meanwhile is confirmed", func() bool { return x.slot().Confirmed >= end })
	caughtUp := time.Since(began)
	x.expect(caughtUp <= recoversAtMost, "caught up after %s", caughtUp)
	stop()
	x.finish(time.Minute, fmt.Sprintf("sent=%d of W=%d recovered=%s caught up=%s", sent, maxInFlight+unrecorded,
		records.Round(time.Millisecond), caughtUp.Round(time.Millisecond)))
}

// counts counts the attempts that the refusal should have stopped, and the requests that
// came late. If updates are possible, retries go on.
func (r *Refusal) counts(requests []oracle.Request, late time.Time) (n, came int) {
	type attempt struct {
		delivery uuid.UUID
		retry    int
	}
	attempts := map[attempt]bool{}
	for _, q := range requests {
		if q.Retry > 0 && !r.updates {
			continue
		}
		attempts[attempt{q.Delivery, q.Retry}] = true
		if q.At.After(late) {
			came++
		}
	}
	return len(attempts), came
}

// writable makes a pool that may always write, for the application and the trial.
func (x *Trial) writable(t *testing.T) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), x.url()+"&pool_max_conns=24&default_transaction_read_only=off")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	x.monitor.mu.Lock()
	defer x.monitor.mu.Unlock()
	x.pool, x.driver.pool = pool, pool
}

// written is the number of rows of deliveries that were written after a time.
func (x *Trial) written(after time.Time) (n int) {
	x.Helper()
	if err := x.pool.QueryRow(x.Context(), `SELECT coalesce(sum(rows), 0) FROM faults_writes WHERE at >= $1`, after).Scan(&n); err != nil {
		x.Fatal(err)
	}
	return n
}
