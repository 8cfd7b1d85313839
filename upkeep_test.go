package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
)

func TestAStreamThatStandsStillEndsTheProcess(t *testing.T) {
	t.Parallel()
	wedged := errors.New("the stream has made no progress for 8s")
	for name, looks := range map[string][]error{
		"after two looks":                          {nil, wedged, wedged},
		"and not after one, which a thaw explains": {wedged, nil, wedged, nil, wedged, wedged},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				n := 0
				err := watch(t.Context(), func() error { n++; return looks[n-1] })
				if !errors.Is(err, wedged) || n != len(looks) {
					t.Errorf("it ended with %v after %d looks, want %d", err, n, len(looks))
				}
			})
		})
	}
}

func TestADayThatCannotBeDroppedIsSaidOnce(t *testing.T) {
	w := newWorld(t)
	var log bytes.Buffer
	st := store.New(w.db.Pool, w.db.Slot, 0)
	k := partitionKeeper{store: st, partitions: store.NewPartitions(st, 7*24*time.Hour), log: slog.New(slog.NewTextHandler(&log, nil)), said: map[string]string{}}
	w.exec(`INSERT INTO webhook_state (slot) VALUES ($1)`, w.db.Slot)
	until := func(said string) {
		t.Helper()
		pgtest.Eventually(t, patience, "the log says "+said, func() bool {
			w.exec(`UPDATE webhook_state SET durable_lsn = pg_current_wal_insert_lsn()`)
			k.round(t.Context())
			return strings.Contains(log.String(), said)
		})
	}
	for i, age := range []int{12, 10} { // with the second, there was another round
		day := query[string](w, `SELECT to_char((now() AT TIME ZONE 'UTC')::date - $1::int, 'YYYYMMDD')`, age)
		w.exec(`SELECT webhook_add_partition(p, to_date($1, 'YYYYMMDD')) FROM unnest('{webhook_outbox,webhook_deliveries}'::text[]) p`, day)
		if i == 0 {
			w.exec(`CREATE VIEW report AS SELECT id FROM webhook_deliveries_p` + day)
			until("view report depends on")
			continue
		}
		until("dropped=[" + query[string](w, `SELECT to_char(to_date($1, 'YYYYMMDD'), 'YYYY-MM-DD')`, day))
	}
	if n := strings.Count(log.String(), "view report depends on"); n != 1 {
		t.Errorf("said %d times, want once:\n%s", n, &log)
	}
	log.Reset()
	w.exec(`DROP TABLE webhook_outbox_p` + query[string](w, `SELECT to_char((now() AT TIME ZONE 'UTC')::date + 4, 'YYYYMMDD')`))
	k.ahead(t.Context(), nil)
	k.ahead(t.Context(), nil)
	if n := strings.Count(log.String(), "partitions exist for few days"); n != 1 || !strings.Contains(log.String(), "days=3") {
		t.Errorf("few days ahead were said %d times:\n%s", n, &log)
	}
}
