package faults

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/walhook/walhook/internal/oracle"
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

// A row that becomes visible a moment after the check counts if its commit was in the WAL
// before, and not if its transaction had only begun.
func TestMonitorWaitsForWhatIsCommitted(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a PostgreSQL")
	}
	s := setup(t, 0)
	s.Local = true
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	if err := x.driver.copy(t.Context(), x.driver.newEvents(1), false); err != nil {
		t.Fatal(err)
	}
	x.drain(20 * time.Second)
	if err := p.kill(); err != nil { // it would lock the row
		t.Fatal(err)
	}
	x.exec(`CREATE TABLE kept AS SELECT * FROM webhook_deliveries`)
	x.exec(`ALTER TABLE kept DROP COLUMN faults_inserted`) // the last column: a reinserted row gets a new one
	for what, inWAL := range map[string]bool{"committed, and waits for a standby": true, "inserted": false} {
		x.eventually(time.Minute, "the monitor looks before the row is visible", func() bool { return x.lookWhileItAppears(what, inWAL) })
	}
}

// lookWhileItAppears makes the monitor look at a row that is not visible yet, and reports
// whether it looked in time.
func (x *Trial) lookWhileItAppears(what string, inWAL bool) (inTime bool) {
	x.Helper()
	var tx pgx.Tx
	appears := make(chan error, 1)
	begin := func() {
		x.exec(`DELETE FROM webhook_deliveries`)
		var err error
		if tx, err = x.pool.Begin(x.Context()); err != nil {
			x.Fatal(err)
		}
		if _, err := tx.Exec(x.Context(), `SET LOCAL synchronous_commit = on`); err != nil {
			x.Fatal(err)
		}
		if _, err := tx.Exec(x.Context(), `INSERT INTO webhook_deliveries SELECT * FROM kept`); err != nil {
			x.Fatal(err)
		}
	}
	commit := func() { appears <- tx.Commit(context.WithoutCancel(x.Context())) }
	begin()
	x.synchronousStandby("nobody")
	if inWAL {
		go commit()
		x.eventually(time.Minute, "the commit waits", func() bool {
			select {
			case err := <-appears: // the checkpointer, which makes commits wait, has not read the setting yet
				if err != nil {
					x.Fatal(err)
				}
				begin()
				go commit()
			default:
			}
			var waits bool
			err := x.pool.QueryRow(x.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')`).Scan(&waits)
			return err == nil && waits
		})
	}
	x.monitor.mu.Lock()
	clear(x.monitor.seen)
	x.monitor.problems, x.monitor.unseen = nil, 0
	var later sync.WaitGroup
	later.Go(func() {
		time.Sleep(visibleWithin / 4)
		x.synchronousStandby("")
		if !inWAL {
			commit()
		}
	})
	x.monitor.mu.Unlock()
	x.monitor.look(x.Context())
	err := <-appears
	later.Wait()
	if err != nil {
		x.Fatal(err)
	}
	x.monitor.mu.Lock()
	defer x.monitor.mu.Unlock()
	if x.monitor.unseen == 0 {
		return false
	}
	if inWAL != (len(x.monitor.problems) == 0) {
		x.Errorf("a row that was %s: the monitor found %q, after %s", what, x.monitor.problems, x.monitor.unseen)
	}
	return true
}

func TestMonitorMustHaveLooked(t *testing.T) {
	t.Parallel()
	const events, looks = 10, 20
	looked := func(n int) map[uuid.UUID]bool {
		seen := map[uuid.UUID]bool{}
		for range n {
			seen[uuid.New()] = true
		}
		return seen
	}
	for what, c := range map[string]struct {
		m       *Monitor
		tallied int
		good    bool
	}{
		"all looks, at all events":   {&Monitor{looks: looks, watched: looks * lookEvery, events: looked(events)}, 0, true},
		"half the looks":             {&Monitor{looks: looks / 2, watched: looks * lookEvery, events: looked(events)}, 0, true},
		"a quarter of the looks":     {&Monitor{looks: looks / 4, watched: looks * lookEvery, events: looked(events)}, 0, false},
		"no look, and no time":       {&Monitor{events: looked(events)}, 0, false},
		"looks at few of the events": {&Monitor{looks: looks, watched: looks * lookEvery, events: looked(events/2 - 1)}, 0, false},
		"looks at no tallied event":  {&Monitor{looks: looks, watched: looks * lookEvery, events: looked(events)}, 1, false},
		"looks at tallied events":    {&Monitor{looks: looks, watched: looks * lookEvery, events: looked(events), sampled: 1}, 1, true},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			x := &Trial{TB: t, journal: &oracle.Journal{}, tallied: c.tallied}
			for range events {
				x.journal.Open([]*oracle.Event{{ID: uuid.New(), Fate: oracle.Committed, Bound: 1}})
			}
			c.m.trial = x
			c.m.judge()
			if c.good != (len(x.faults) == 0) {
				t.Errorf("found %q", x.faults)
			}
		})
	}
}
