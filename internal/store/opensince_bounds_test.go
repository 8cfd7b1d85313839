package store

import (
	"testing"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/webhook"
)

func TestOpenSinceIsBounded(t *testing.T) {
	t.Parallel()
	const open = 10 // a transaction that does not end
	begin := time.Unix(1_000_000, 0)
	session := &webhook.Session{}
	o := &openSince{}
	o.begin(session)
	for i := range 10 * maxSamples {
		at := begin.Add(time.Duration(i) * sampleEvery)
		o.add(sample{xid: uint64(2 * i), at: at})
		o.accept(session, bound{lsn: pglogrepl.LSN(i + 1), since: at})
		if got := o.since(open + 1); i > open && got.After(begin.Add(open/2*sampleEvery)) {
			t.Fatalf("since %s after %d samples, but what is open began after the one of %s", got, i, begin.Add(open/2*sampleEvery))
		}
	}
	if len(o.samples) > maxSamples || len(o.bounds) > maxBounds {
		t.Errorf("%d samples, %d bounds", len(o.samples), len(o.bounds))
	}
	if got := o.since(20 * maxSamples); !got.Equal(begin.Add((10*maxSamples - 1) * sampleEvery)) {
		t.Errorf("since %s when that has ended, want the last sample", got)
	}
	for durable := range pglogrepl.LSN(20 * maxSamples) {
		if got := o.upTo(session, durable); got.Valid && got.Time.After(begin.Add(time.Duration(durable)*sampleEvery)) {
			t.Fatalf("since %s goes with position %v, which was durable before", got.Time, durable)
		}
	}
	if len(o.bounds) != 1 {
		t.Errorf("%d bounds when all is durable, want the last", len(o.bounds))
	}
}

func TestSamplesAreOfOneCluster(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_000_000, 0)
	for _, c := range []struct {
		next *webhook.Session
		kept bool
	}{
		{&webhook.Session{SystemID: "1", Timeline: 1}, true},
		{&webhook.Session{SystemID: "2", Timeline: 1}, false},
		{&webhook.Session{SystemID: "1", Timeline: 2}, false},
	} {
		o := &openSince{}
		o.begin(&webhook.Session{SystemID: "1", Timeline: 1})
		o.add(sample{xid: 10, at: at})
		o.begin(c.next)
		if got := o.since(100); got.IsZero() == c.kept {
			t.Errorf("system %s, timeline %d: since %s by a sample of system 1, timeline 1", c.next.SystemID, c.next.Timeline, got)
		}
	}
}

// Each sample uses up a transaction id, which the others see.
func TestIdleWalhooksDoNotKeepEachOtherSampling(t *testing.T) {
	t.Parallel()
	walhooks := make([]openSince, 10) // max_replication_slots is 10
	xid, begin := uint64(1000), time.Unix(1_000_000, 0)
	for minute := range 100 {
		now := begin.Add(time.Duration(minute) * sampleEvery)
		for i := range walhooks {
			if o := &walhooks[i]; o.needsSample(now, xid) {
				o.add(sample{xid: xid, at: now})
				xid++
			}
		}
	}
	if n := xid - 1000; n != 10 {
		t.Errorf("%d ids were used up while nobody wrote, want one for each", n)
	}
}
