package faults

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// invisibleCommit makes the application's commits wait for a synchronous standby that does
// not exist. Their commit records are in the WAL, so the stream brings the events, but no
// other session sees the rows until the wait is over. Every commit does the same for
// microseconds, and for longer on a busy machine.
func invisibleCommit(t *testing.T, s Setup) {
	const unseenFor = 4 * time.Second
	const failing = 0.5 // so that retries, too, come before the row is visible
	s.Local = true
	x := newTrial(t, s)
	x.receiver.failShare = failing
	x.start()
	x.ready()
	application, err := pgxpool.New(t.Context(), x.server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(application.Close)
	x.driver.pool = application
	done := x.drive(Load{Rate: 20, Duration: 2*time.Second + unseenFor})
	<-time.After(time.Second)
	x.synchronousStandby("nobody")
	<-time.After(unseenFor)
	x.synchronousStandby("")
	<-done
	x.finish(2*time.Minute, fmt.Sprintf("unseen=%s", unseenFor))
}

// synchronousStandby switches the wait for a standby on or off.
func (x *Trial) synchronousStandby(name string) {
	x.Helper()
	x.exec(fmt.Sprintf(`ALTER SYSTEM SET synchronous_standby_names = '%s'`, name))
	x.exec(`SELECT pg_reload_conf()`)
	x.eventually(10*time.Second, "the setting is in force", func() bool {
		var now string
		err := x.pool.QueryRow(context.WithoutCancel(x.Context()), `SHOW synchronous_standby_names`).Scan(&now)
		return err == nil && now == name
	})
}
