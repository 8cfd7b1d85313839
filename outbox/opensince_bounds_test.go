package outbox

import (
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
)

func TestOpenSinceIsBounded(t *testing.T) {
	t.Parallel()
	const open = 10 // a transaction that does not end
	begin := time.Unix(1_000_000, 0)
	session := &Session{}
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
		if got := o.upTo(durable); got.Valid && got.Time.After(begin.Add(time.Duration(durable)*sampleEvery)) {
			t.Fatalf("since %s goes with position %v, which was durable before", got.Time, durable)
		}
	}
	if len(o.bounds) != 1 {
		t.Errorf("%d bounds when all is durable, want the last", len(o.bounds))
	}
	o.add(sample{xid: 5, at: begin}) // a cluster that was restored
	if got := o.since(6); !got.Equal(begin) || len(o.samples) != 1 {
		t.Errorf("since %s of %d samples, want the only one that means something", got, len(o.samples))
	}
}
