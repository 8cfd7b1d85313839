package faults

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// readOnly makes every new transaction read-only, but the application's.
func readOnly(t *testing.T, s Setup) {
	refused(t, s, []string{`ALTER SYSTEM SET default_transaction_read_only = on`, `SELECT pg_reload_conf()`},
		[]string{`ALTER SYSTEM RESET default_transaction_read_only`, `SELECT pg_reload_conf()`})
}

// diskFull answers every write to the deliveries as a full disk does.
func diskFull(t *testing.T, s Setup) {
	refused(t, s, []string{`
CREATE FUNCTION faults_disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
END $$;
CREATE TRIGGER faults_disk_full BEFORE INSERT OR UPDATE ON webhook_deliveries FOR EACH STATEMENT EXECUTE FUNCTION faults_disk_full()`},
		[]string{`DROP TRIGGER faults_disk_full ON webhook_deliveries`})
}

// revoked takes walhook's right to insert.
func revoked(t *testing.T, s Setup) {
	s.Role = true
	refused(t, s, []string{`REVOKE INSERT, UPDATE ON webhook_deliveries FROM ` + roleName},
		[]string{`GRANT INSERT, UPDATE ON webhook_deliveries TO ` + roleName})
}

// refused keeps walhook from recording anything. What it may send meanwhile is
// what it can hold.
func refused(t *testing.T, s Setup, refuse, permit []string) {
	const before, recoversAtMost = 3 * time.Second, 10 * time.Second
	const enough = 400 // events per second, so that W is less than what is owed meanwhile
	refusedFor := either(15*time.Second, 10*time.Second)
	x := newTrial(t, s)
	x.writable(t)
	x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: max(*rate, enough)})
	defer stop()
	<-time.After(before)
	x.monitor.pause(true) // it must not wait for a lock
	for _, sql := range refuse {
		x.exec(sql)
	}
	from, since := x.journal.count(), time.Now()
	x.monitor.pause(false)
	<-time.After(refusedFor)
	sent := x.journal.count() - from
	x.expect(sent > 0, "nothing was sent: the load is too small")
	const underWay = time.Second
	written := x.written(since.Add(underWay))
	x.expect(written == 0, "%d rows were written while that was refused", written)
	x.expect(sent <= maxInFlight+unrecorded, "%d requests were sent while nothing could be recorded", sent)
	for _, sql := range permit {
		x.exec(sql)
	}
	began := time.Now()
	end := insertLSN(t.Context(), x.pool)
	x.eventually(time.Minute, "walhook records again", func() bool { return x.written(began) > 0 })
	records := time.Since(began)
	x.expect(records <= recoversAtMost, "recorded again after %s", records)
	x.eventually(time.Minute, "what was committed meanwhile is confirmed", func() bool { return x.slot().Confirmed >= end })
	caughtUp := time.Since(began)
	stop()
	x.finish(time.Minute, fmt.Sprintf("sent=%d of W=%d recovered=%s caught up=%s", sent, maxInFlight+unrecorded,
		records.Round(time.Millisecond), caughtUp.Round(time.Millisecond)))
}

// writable makes a pool for the application and the oracle that may always write.
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

// written is how many rows of deliveries were written after a time.
func (x *Trial) written(after time.Time) (n int) {
	x.Helper()
	if err := x.pool.QueryRow(x.Context(), `SELECT coalesce(sum(rows), 0) FROM faults_writes WHERE at >= $1`, after).Scan(&n); err != nil {
		x.Fatal(err)
	}
	return n
}
