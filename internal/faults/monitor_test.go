package faults

import (
	"testing"
	"time"
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
	x.exec(`DELETE FROM webhook_deliveries WHERE id = (SELECT id FROM webhook_deliveries LIMIT 1)`)
	x.monitor.forget()
	x.monitor.look(t.Context())
	if len(x.monitor.problems) != 1 {
		t.Errorf("a row was deleted, and the monitor found %q", x.monitor.problems)
	}
}
