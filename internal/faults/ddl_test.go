package faults

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/walhook/walhook/internal/oracle"
)

// columns adds, renames and drops a column of the application's own in the outbox, and
// detaches and attaches today's partitions, under load: nothing is lost, and walhook stays
// ready.
func columns(t *testing.T, s Setup) {
	const apart = 2 * time.Second
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	for _, sql := range []string{
		`ALTER TABLE webhook_outbox ADD COLUMN faults_note text NOT NULL DEFAULT 'none'`,
		`ALTER TABLE webhook_outbox RENAME COLUMN faults_note TO faults_remark`,
		`ALTER TABLE webhook_outbox DROP COLUMN faults_remark`,
		`ALTER TABLE webhook_deliveries ADD COLUMN faults_note text`,
		`ALTER TABLE webhook_deliveries DROP COLUMN faults_note`,
	} {
		<-time.After(apart)
		x.exec(sql)
	}
	for _, table := range []string{"webhook_outbox", "webhook_deliveries"} {
		<-time.After(apart)
		x.monitor.pause(true) // it would wait for the lock
		x.reattach(table)
		x.monitor.pause(false)
	}
	<-time.After(apart)
	x.sameSender()
	status, says := p.ready(t.Context())
	x.expect(status == http.StatusOK, "readyz says %d: %s", status, says)
	stop()
	x.finish(time.Minute)
}

const selectToday = `
SELECT c.oid::regclass::text, pg_get_expr(c.relpartbound, c.oid) FROM pg_class c
WHERE c.oid = (SELECT tableoid FROM %s ORDER BY id DESC LIMIT 1)`

// reattach detaches today's partition of a table and attaches it again.
func (x *Trial) reattach(table string) {
	x.Helper()
	err := pgx.BeginFunc(x.Context(), x.pool, func(tx pgx.Tx) error {
		var partition, bound string
		if err := tx.QueryRow(x.Context(), fmt.Sprintf(selectToday, table)).Scan(&partition, &bound); err != nil {
			return err
		}
		for _, sql := range []string{"DETACH PARTITION " + partition, "ATTACH PARTITION " + partition + " " + bound} {
			if _, err := tx.Exec(x.Context(), "ALTER TABLE "+table+" "+sql); err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
		return nil
	})
	if err != nil {
		x.Fatal(err)
	}
}

// renamedColumn renames a column that walhook needs. The application's transactions fail
// meanwhile.
func renamedColumn(t *testing.T, s Setup) {
	blinded(t, s, `ALTER TABLE webhook_outbox RENAME COLUMN created_at TO made_at`, `ALTER TABLE webhook_outbox RENAME COLUMN made_at TO created_at`)
}

// rewritten deletes and reinserts the whole outbox: the stream brings old events again,
// and none is sent again.
func rewritten(t *testing.T, s Setup) {
	const before = 3 * time.Second
	x := newTrial(t, s)
	x.driver.age = 2 * time.Minute // younger events are not looked up when they are streamed
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	<-time.After(before)
	x.exec(`VACUUM FULL webhook_outbox`)
	<-time.After(before)
	var rewrote int64
	err := pgx.BeginFunc(t.Context(), x.pool, func(tx pgx.Tx) error {
		for _, sql := range []string{
			`LOCK TABLE webhook_outbox IN EXCLUSIVE MODE`,
			`CREATE TEMPORARY TABLE kept ON COMMIT DROP AS SELECT * FROM webhook_outbox`,
			`DELETE FROM webhook_outbox`,
			`INSERT INTO webhook_outbox SELECT * FROM kept`,
		} {
			tag, err := tx.Exec(t.Context(), sql)
			if err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
			rewrote = tag.RowsAffected()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(before)
	x.sameSender()
	x.expect(rewrote > 0 && p.Running(), "rewrote %d events; %v", rewrote, p.Err)
	stop()
	x.finish(time.Minute, fmt.Sprintf("rewritten=%d", rewrote))
}

// truncated truncates the outbox while deliveries wait. These are cancelled; later events
// are delivered.
func truncated(t *testing.T, s Setup) {
	const before = 4 * time.Second
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	release := x.receiver.hang(0, 1)
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	<-time.After(before)
	x.exec(`TRUNCATE webhook_outbox`)
	release()
	<-time.After(before)
	stop()
	x.load.Wait()
	undone := x.goneWith(oracle.Committed)
	x.sameSender()
	x.expect(undone > 0 && p.Running(), "%d events were truncated; %v", undone, p.Err)
	x.drain(time.Minute)
	var cancelled, open int
	if err := x.pool.QueryRow(t.Context(), `
		SELECT count(*) FILTER (WHERE status = 'cancelled'), count(*) FILTER (WHERE status IN ('pending', 'retrying'))
		FROM webhook_deliveries`).Scan(&cancelled, &open); err != nil {
		t.Fatal(err)
	}
	x.expect(cancelled > 0 && open == 0, "%d deliveries were cancelled, and %d are open", cancelled, open)
	x.finish(time.Minute, fmt.Sprintf("truncated=%d cancelled=%d", undone, cancelled))
}
