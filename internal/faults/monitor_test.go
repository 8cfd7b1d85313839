package faults

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
)

func TestMonitorSeesAMissingRow(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a PostgreSQL")
	}
	x := newTrial(t, setup(t, 0))
	x.start()
	x.ready()
	if err := x.driver.copy(t.Context(), x.driver.newEvents(10), false); err != nil {
		t.Fatal(err)
	}
	x.drain(20 * time.Second)
	x.monitor.forget()
	x.monitor.look(t.Context())
	if x.monitor.looks == 0 || len(x.monitor.seen) != 10 || len(x.monitor.problems) > 0 {
		t.Errorf("%d looks at %d events found %q, want nothing wrong", x.monitor.looks, len(x.monitor.seen), x.monitor.problems)
	}
	var id uuid.UUID
	if err := x.pool.QueryRow(t.Context(), `DELETE FROM webhook_deliveries WHERE id = (SELECT id FROM webhook_deliveries LIMIT 1) RETURNING id`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	x.monitor.forget()
	x.monitor.look(t.Context())
	if len(x.monitor.problems) != 1 {
		t.Errorf("a row was deleted, and the monitor found %q", x.monitor.problems)
	}
}

// A row that becomes visible a moment after the look is an excuse where its
// transaction had begun before, and none where it began later.
func TestMonitorWaitsForWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a PostgreSQL")
	}
	x := newTrial(t, setup(t, 0))
	p := x.start()
	x.ready()
	if err := x.driver.copy(t.Context(), x.driver.newEvents(1), false); err != nil {
		t.Fatal(err)
	}
	x.drain(20 * time.Second)
	if err := p.kill(); err != nil { // it would hold the row
		t.Fatal(err)
	}
	for what, begun := range map[string]bool{"begun before": true, "begun later": false} {
		x.monitor.forget()
		x.monitor.problems = nil
		x.exec(`CREATE TABLE kept AS SELECT * FROM webhook_deliveries`)
		x.exec(`DELETE FROM webhook_deliveries`)
		tx, err := x.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if begun {
			if _, err := tx.Exec(t.Context(), `SELECT pg_current_xact_id()`); err != nil {
				t.Fatal(err)
			}
		}
		written := make(chan error)
		go func() {
			<-time.After(visibleWithin / 4)
			_, err := tx.Exec(t.Context(), `INSERT INTO webhook_deliveries SELECT * FROM kept`)
			written <- errors.Join(err, tx.Commit(t.Context()))
		}()
		x.monitor.look(t.Context())
		if err := <-written; err != nil {
			t.Fatal(err)
		}
		if begun != (len(x.monitor.problems) == 0) {
			t.Errorf("%s: the monitor found %q", what, x.monitor.problems)
		}
		x.exec(`DROP TABLE kept`)
	}
}
