package cdc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// A wire builds messages as pgoutput sends them.
type wire []byte

func (w wire) byte(b ...byte) wire     { return append(w, b...) }
func (w wire) u16(n int) wire          { return binary.BigEndian.AppendUint16(w, uint16(n)) }
func (w wire) u32(n int) wire          { return binary.BigEndian.AppendUint32(w, uint32(n)) }
func (w wire) u64(n uint64) wire       { return binary.BigEndian.AppendUint64(w, n) }
func (w wire) string(s string) wire    { return append(append(w, s...), 0) }
func (w wire) counted(s string) wire   { return append(w.u32(len(s)), s...) }
func (w wire) time(t time.Time) wire   { return w.u64(uint64(t.UnixMicro() - postgresEpoch)) }
func (w wire) column(name string) wire { return w.byte(0).string(name).u32(25).u32(0xffffffff) }

var (
	committed = time.Date(2026, 11, 23, 10, 0, 0, 123456000, time.UTC)
	aColumns  = []string{"id", "organization_id", "event_type", "payload", "created_at", "endpoint_ids"}
)

const (
	anID     = "019ab000-0000-7000-8000-000000000001"
	endpoint = "0f0f0f0f-1111-4222-8333-444455556666"
	atText   = "2026-11-23 10:00:00.5+00"
)

func begin() wire { return wire("B").u64(90).time(committed).u32(7) }
func commit(end uint64) wire {
	return wire("C").byte(0).u64(90).u64(end).time(committed)
}

func relation(oid int, table string, columns ...string) wire {
	w := wire("R").u32(oid).string("public").string(table).byte('d').u16(len(columns))
	for _, c := range columns {
		w = w.column(c)
	}
	return w
}

// insert has a nil for NULL.
func insert(oid int, values ...any) wire {
	w := wire("I").u32(oid).byte('N').u16(len(values))
	for _, v := range values {
		if s, ok := v.(string); ok {
			w = w.byte('t').counted(s)
		} else {
			w = w.byte('n')
		}
	}
	return w
}

func insertPayload(payload string) wire {
	return insert(1, anID, "org", "a.b", payload, atText, "{"+endpoint+"}")
}

func message(transactional byte, prefix, content string) wire {
	return wire("M").byte(transactional).u64(80).string(prefix).counted(content)
}

// decodeAll returns what comes out of messages, up to the first error.
func decodeAll(messages ...wire) (batches []webhook.Batch, err error) {
	d := decoder{outbox: 1}
	for _, m := range messages {
		b, ok, err := d.decode(m)
		if err != nil {
			return batches, err
		}
		if ok {
			batches = append(batches, b)
		}
	}
	return batches, nil
}

func TestDecode(t *testing.T) {
	t.Parallel()
	event := func(payload string) outbox.Event {
		return outbox.Event{
			ID: uuid.MustParse(anID), OrganizationID: "org", Type: "a.b", Payload: []byte(payload),
			CreatedAt: time.Date(2026, 11, 23, 10, 0, 0, 5e8, time.UTC), EndpointIDs: []uuid.UUID{uuid.MustParse(endpoint)},
		}
	}
	outboxIs1 := relation(1, "webhook_outbox", aColumns...)
	cases := map[string]struct {
		in   []wire
		want []webhook.Batch
	}{
		"an event": {
			[]wire{begin(), outboxIs1, insertPayload(`{}`), commit(100)},
			[]webhook.Batch{{Events: []outbox.Event{event(`{}`)}, End: 100, CommitTime: committed}},
		},
		"a transaction with nothing for us": {
			[]wire{begin(), commit(100)},
			[]webhook.Batch{{End: 100, CommitTime: committed}},
		},
		"the relation is known in the next transaction too": {
			[]wire{begin(), outboxIs1, commit(100), begin(), insertPayload(`1`), commit(200)},
			[]webhook.Batch{{End: 100, CommitTime: committed}, {Events: []outbox.Event{event(`1`)}, End: 200, CommitTime: committed}},
		},
		"columns in another order, with others between": {
			[]wire{
				begin(), relation(1, "webhook_outbox", "x", "endpoint_ids", "payload", "created_at", "shard", "id", "event_type", "organization_id"),
				insert(1, nil, "{"+endpoint+"}", `{}`, atText, "17", anID, "a.b", "org"), commit(100),
			},
			[]webhook.Batch{{Events: []outbox.Event{event(`{}`)}, End: 100, CommitTime: committed}},
		},
		"the columns change between two rows": {
			[]wire{
				begin(), outboxIs1, insertPayload(`1`), relation(1, "webhook_outbox", append(aColumns, "more")...),
				insert(1, anID, "org", "a.b", `2`, atText, "{"+endpoint+"}", "?"), commit(100),
			},
			[]webhook.Batch{{Events: []outbox.Event{event(`1`), event(`2`)}, End: 100, CommitTime: committed}},
		},
		"other tables, updates, deletes, truncates, types and origins are nothing to us": {
			[]wire{
				begin(), wire("O").u64(1).string("origin"), relation(2, "other", "a"), insert(2, "x"), insert(2, nil),
				relation(3, "webhook_outbox", aColumns...), insert(3, anID, "org", "a.b", "{}", atText, "{}"), relation(4, "webhook_outbox", "id"), insert(4, anID),
				wire("Y").u32(9).string("public").string("mood"), wire("U").u32(1), wire("D").u32(1), wire("T").u32(1), commit(100),
			},
			[]webhook.Batch{{End: 100, CommitTime: committed}},
		},
		"echoes": {
			[]wire{begin(), message(1, "walhook", "one"), message(1, "walhook", "two"), message(1, "walhooks", "no"), commit(100)},
			[]webhook.Batch{{Echoes: []string{"one", "two"}, End: 100, CommitTime: committed}},
		},
		"messages outside of a transaction are no echoes": {
			[]wire{message(0, "walhook", "one"), begin(), message(0, "walhook", "two"), commit(100)},
			[]webhook.Batch{{End: 100, CommitTime: committed}},
		},
		"a huge message is no echo": {
			[]wire{begin(), message(1, "walhook", strings.Repeat("x", maxEcho+1)), commit(100)},
			[]webhook.Batch{{End: 100, CommitTime: committed}},
		},
		"a time that Go cannot hold becomes that of the id": {
			[]wire{begin(), outboxIs1, insert(1, anID, "org", "a.b", "{}", "infinity", "{}"), commit(100)},
			[]webhook.Batch{{Events: []outbox.Event{{
				ID: uuid.MustParse(anID), OrganizationID: "org", Type: "a.b", Payload: []byte("{}"),
				CreatedAt: outbox.IDTime(uuid.MustParse(anID)).UTC(),
			}}, End: 100, CommitTime: committed}},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := decodeAll(c.in...)
			if err != nil {
				t.Fatal(err)
			}
			if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", c.want); g != w {
				t.Errorf("got  %s\nwant %s", g, w)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	outboxIs1 := relation(1, "webhook_outbox", aColumns...)
	with := func(i int, value any) wire {
		values := []any{anID, "org", "a.b", "{}", atText, "{}"}
		values[i] = value
		return insert(1, values...)
	}
	cases := map[string]struct {
		in     []wire
		column string // of the ColumnError; empty: a malformed one
	}{
		"no bytes":                         {in: []wire{{}}},
		"an unknown kind":                  {in: []wire{wire("Z")}},
		"Begin in a transaction":           {in: []wire{begin(), begin()}},
		"Commit without Begin":             {in: []wire{commit(1)}},
		"a short Begin":                    {in: []wire{begin()[:20]}},
		"a short Commit":                   {in: []wire{begin(), commit(1)[:25]}},
		"a short Relation":                 {in: []wire{outboxIs1[:len(outboxIs1)-1]}},
		"a short Insert":                   {in: []wire{begin(), outboxIs1, insertPayload("{}")[:40]}},
		"a short Message":                  {in: []wire{begin(), message(1, "walhook", "x")[:15]}},
		"Insert into an unknown relation":  {in: []wire{begin(), insertPayload("{}")}},
		"Insert outside of a transaction":  {in: []wire{outboxIs1, insertPayload("{}")}},
		"too few columns":                  {in: []wire{begin(), outboxIs1, insert(1, anID)}},
		"an echo outside of a transaction": {in: []wire{message(1, "walhook", "x")}},
		"a column of unknown kind":         {in: []wire{begin(), outboxIs1, wire("I").u32(1).byte('N').u16(6).byte('b').counted("x")}},
		"an invalid id":                    {in: []wire{begin(), outboxIs1, with(0, "x")}, column: "id"},
		"a null organization":              {in: []wire{begin(), outboxIs1, with(1, nil)}, column: "organization_id"},
		"a null type":                      {in: []wire{begin(), outboxIs1, with(2, nil)}, column: "event_type"},
		"a null payload":                   {in: []wire{begin(), outboxIs1, with(3, nil)}, column: "payload"},
		"an invalid time":                  {in: []wire{begin(), outboxIs1, with(4, "yesterday")}, column: "created_at"},
		"an invalid array":                 {in: []wire{begin(), outboxIs1, with(5, "{x}")}, column: "endpoint_ids"},
		"a null array":                     {in: []wire{begin(), outboxIs1, with(5, nil)}, column: "endpoint_ids"},
	}
	for i, missing := range aColumns {
		cases["without "+missing] = struct {
			in     []wire
			column string
		}{[]wire{begin(), relation(1, "webhook_outbox", slices.Delete(slices.Clone(aColumns), i, i+1)...)}, missing}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := decodeAll(c.in...)
			column, isColumn := errors.AsType[*ColumnError](err)
			_, isMalformed := errors.AsType[malformed](err)
			switch {
			case c.column == "" && !isMalformed:
				t.Errorf("got %v", err)
			case c.column != "" && (!isColumn || column.Column != c.column || !errors.Is(err, store.ErrNotPrepared)):
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestBatchesAreBounded(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		rows, size int
		ids        int
		want       []int // events a batch
	}{
		"as many as fit":    {rows: batchEvents, size: 10, want: []int{64}},
		"one more":          {rows: batchEvents + 1, size: 10, want: []int{64, 1}},
		"many":              {rows: 3 * batchEvents, size: 10, want: []int{64, 64, 64}},
		"large payloads":    {rows: 5, size: batchBytes / 2, want: []int{2, 2, 1}},
		"larger than all":   {rows: 3, size: batchBytes + 1, want: []int{1, 1, 1}},
		"many endpoint ids": {rows: 3, size: 10, ids: 10_000, want: []int{1, 1, 1}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			messages := []wire{begin(), relation(1, "webhook_outbox", aColumns...)}
			ids := "{" + strings.TrimSuffix(strings.Repeat(endpoint+",", c.ids), ",") + "}"
			for range c.rows {
				messages = append(messages, insert(1, anID, "org", "a.b", strings.Repeat("x", c.size), atText, ids))
			}
			batches, err := decodeAll(append(messages, commit(100))...)
			if err != nil {
				t.Fatal(err)
			}
			var got []int
			for i, b := range batches {
				got = append(got, len(b.Events))
				if last := i == len(batches)-1; (b.End != 0) != last || !b.CommitTime.Equal(committed) {
					t.Errorf("batch %d ends at %s, committed %s", i, b.End, b.CommitTime)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestNothingOfTheMessageIsKept(t *testing.T) {
	t.Parallel()
	d := decoder{outbox: 1}
	var b webhook.Batch
	for _, m := range []wire{begin(), relation(1, "webhook_outbox", aColumns...), insertPayload(`{"a": 1}`), message(1, "walhook", "echo"), commit(1)} {
		var err error
		if b, _, err = d.decode(m); err != nil {
			t.Fatal(err)
		}
		for i := range m {
			m[i] = 0xee
		}
	}
	e := b.Events[0]
	if string(e.Payload) != `{"a": 1}` || e.OrganizationID != "org" || e.Type != "a.b" || b.Echoes[0] != "echo" {
		t.Errorf("got %+v", b)
	}
}

// FuzzDecode holds the decoder against pglogrepl: whatever that can read means
// the same to both, and no bytes make the decoder panic.
func FuzzDecode(f *testing.F) {
	for _, w := range []wire{
		begin(), commit(100), relation(1, "webhook_outbox", aColumns...), relation(2, "other", "a"), insertPayload(`{"a": 1}`),
		insert(1, nil, "x"), message(1, "walhook", "x"), message(0, "", ""), wire("O").u64(1).string("origin"), {},
	} {
		f.Add([]byte(w))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := decoder{outbox: 1, inTx: len(data) > 0 && data[0] != 'B',
			fields: []field{fieldID, fieldOrganizationID, fieldEventType, fieldPayload, fieldCreatedAt, fieldEndpointIDs}}
		b, ok, err := d.decode(data)
		if err != nil {
			return
		}
		switch m := parse(data).(type) {
		case *pglogrepl.CommitMessage:
			if !ok || b.End != m.TransactionEndLSN || !sameTime(b.CommitTime, m.CommitTime) {
				t.Errorf("got %+v, pglogrepl %+v", b, m)
			}
		case *pglogrepl.BeginMessage:
			if !sameTime(d.batch.CommitTime, m.CommitTime) {
				t.Errorf("got %+v, pglogrepl %+v", d.batch, m)
			}
		case *pglogrepl.LogicalDecodingMessage:
			if want := m.Transactional && m.Prefix == "walhook" && len(m.Content) <= maxEcho; (len(d.batch.Echoes) == 1) != want {
				t.Errorf("got %q, pglogrepl %+v", d.batch.Echoes, m)
			} else if want && d.batch.Echoes[0] != string(m.Content) {
				t.Errorf("got %q, pglogrepl %q", d.batch.Echoes, m.Content)
			}
		case *pglogrepl.RelationMessage:
			sameRelation(t, d.fields, m)
		case *pglogrepl.InsertMessage:
			if len(d.batch.Events) == 1 {
				sameEvent(t, &d.batch.Events[0], m.Tuple.Columns)
			}
		}
	})
}

// sameTime leaves out what overflows in pglogrepl, which counts nanoseconds.
func sameTime(got, want time.Time) bool {
	return got.Equal(want) || got.Year() < 1750 || got.Year() > 2250
}

// parse is pglogrepl.Parse, nil where it panics or refuses. It is spared what
// means nothing to us: it believes any length, and would allocate that much.
func parse(data []byte) (m pglogrepl.Message) {
	if !strings.ContainsRune("BCRIM", rune(data[0])) {
		return nil
	}
	defer func() { _ = recover() }()
	m, _ = pglogrepl.Parse(bytes.Clone(data))
	return m
}

func sameRelation(t *testing.T, got []field, want *pglogrepl.RelationMessage) {
	if want.RelationID != 1 {
		return
	}
	if len(got) != len(want.Columns) {
		t.Fatalf("got %d columns, pglogrepl %d", len(got), len(want.Columns))
	}
	for i, f := range got {
		if name := want.Columns[i].Name; fieldNames[f] != name && (f != ignored || slices.Contains(aColumns, name)) {
			t.Errorf("column %d: got %q, pglogrepl %q", i, fieldNames[f], name)
		}
	}
}

func sameEvent(t *testing.T, got *outbox.Event, want []*pglogrepl.TupleDataColumn) {
	text := func(i int) string { return string(want[i].Data) }
	if id, err := uuid.Parse(text(0)); err != nil || got.ID != id {
		t.Errorf("id: got %s, want %s", got.ID, text(0))
	}
	if got.OrganizationID != text(1) || got.Type != text(2) || string(got.Payload) != text(3) {
		t.Errorf("got %+v", got)
	}
	for _, id := range got.EndpointIDs {
		if !strings.Contains(strings.ToLower(text(5)), id.String()) {
			t.Errorf("%s is not in %s", id, text(5))
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, c := range []struct{ size, ids, rows int }{{1024, 2, 1}, {1024, 2, 1000}, {100, 50_000, 1}} {
		b.Run(fmt.Sprintf("payload=%d/endpoints=%d/rows=%d", c.size, c.ids, c.rows), func(b *testing.B) {
			ids := "{" + strings.TrimSuffix(strings.Repeat(endpoint+",", c.ids), ",") + "}"
			row := insert(1, anID, "org", "payment.succeeded", strings.Repeat("x", c.size), atText, ids, "17")
			d := decoder{outbox: 1}
			if _, _, err := d.decode(relation(1, "webhook_outbox", append(aColumns, "shard")...)); err != nil {
				b.Fatal(err)
			}
			first, last := begin(), commit(100)
			must := func(_ webhook.Batch, _ bool, err error) {
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				must(d.decode(first))
				for range c.rows {
					must(d.decode(row))
				}
				must(d.decode(last))
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*c.rows), "ns/event")
		})
	}
}
