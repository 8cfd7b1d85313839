package cdc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// This file is pure: messages of pgoutput, protocol version 1, in; Batches out. It keeps
// none of the bytes that it is given. pglogrepl.Parse would allocate twice for every
// column of every row; a test compares the two.

const (
	outboxTable = "webhook_outbox" // for error texts

	// maxEcho bounds the content of an echo. Ours have about a hundred bytes; anyone may
	// emit a message with our prefix.
	maxEcho = 4 << 10

	// maxInterned bounds each of the two tables of repeated strings (organizations, event
	// types). A full table is emptied.
	maxInterned = 4096
)

// A field is the meaning of a column of the outbox.
type field uint8

const (
	ignored field = iota
	fieldID
	fieldOrganizationID
	fieldEventType
	fieldPayload
	fieldCreatedAt
	fieldEndpointIDs
	fieldCount
)

var fieldNames = [fieldCount]string{
	fieldID:             "id",
	fieldOrganizationID: "organization_id",
	fieldEventType:      "event_type",
	fieldPayload:        "payload",
	fieldCreatedAt:      "created_at",
	fieldEndpointIDs:    "endpoint_ids",
}

// fieldOf finds a column by name, so that columns can be added, dropped and reordered.
func fieldOf(column []byte) field {
	for f := fieldID; f < fieldCount; f++ {
		if string(column) == fieldNames[f] {
			return f
		}
	}
	return ignored
}

// A decoder collects the events of the transaction that it is reading, for one session.
// It recognizes the outbox by its OID: another schema may publish a table of that name.
type decoder struct {
	outbox uint32  // the outbox's OID
	fields []field // the outbox's columns; nil: not described yet

	inTx  bool
	batch webhook.Batch // the next batch; the last one of a transaction that was cut has an event or an echo
	bytes int           // of payloads and endpoint ids in batch

	organizations interned
	types         interned
}

// decode reads one message. It returns a batch, and true, when one is complete.
func (d *decoder) decode(message []byte) (webhook.Batch, bool, error) {
	r := reader{rest: message}
	kind := r.byte()
	switch kind {
	case 'B':
		return d.begin(&r)
	case 'C':
		return d.commit(&r)
	case 'I':
		return d.insert(&r)
	case 'M':
		return d.message(&r)
	case 'R':
		return webhook.Batch{}, false, d.relation(&r)
	case 'U', 'D', 'T', 'Y', 'O': // update, delete, truncate, type, origin
		return webhook.Batch{}, false, nil
	}
	return webhook.Batch{}, false, malformed(fmt.Sprintf("message of unknown kind %q", kind))
}

func (d *decoder) begin(r *reader) (webhook.Batch, bool, error) {
	r.uint64() // the commit record's start: must never be confirmed
	committed := r.time()
	r.uint32() // xid
	if r.short {
		return webhook.Batch{}, false, malformed("Begin is cut short")
	}
	if d.inTx {
		return webhook.Batch{}, false, malformed("Begin inside of a transaction")
	}
	d.inTx = true
	d.bytes = 0
	d.batch = webhook.Batch{CommitTime: committed}
	return webhook.Batch{}, false, nil
}

func (d *decoder) commit(r *reader) (webhook.Batch, bool, error) {
	r.byte()   // flags, none defined
	r.uint64() // the commit record's start
	end := r.uint64()
	committed := r.time()
	if r.short {
		return webhook.Batch{}, false, malformed("Commit is cut short")
	}
	if !d.inTx {
		return webhook.Batch{}, false, malformed("Commit without Begin")
	}
	d.inTx = false
	b := d.batch
	d.batch, d.bytes = webhook.Batch{}, 0
	b.End, b.CommitTime = pglogrepl.LSN(end), committed
	return b, true, nil
}

func (d *decoder) insert(r *reader) (webhook.Batch, bool, error) {
	oid := r.uint32()
	if r.short || r.byte() != 'N' {
		return webhook.Batch{}, false, malformed("Insert is cut short")
	}
	if oid != d.outbox {
		return webhook.Batch{}, false, nil
	}
	if d.fields == nil {
		return webhook.Batch{}, false, malformed("Insert into a relation that was not described")
	}
	if !d.inTx {
		return webhook.Batch{}, false, malformed("Insert outside of a transaction")
	}
	event, err := d.event(r, d.fields)
	if err != nil {
		return webhook.Batch{}, false, err
	}
	return d.add(event)
}

// add adds an event to the batch. If the event no longer fits, add returns the full batch
// and begins the next.
func (d *decoder) add(event outbox.Event) (full webhook.Batch, ok bool, err error) {
	size := len(event.Payload) + len(event.EndpointIDs)*len(uuid.UUID{})
	if n := len(d.batch.Events); n == batchEvents || n > 0 && d.bytes+size > batchBytes {
		full, ok = d.cut(), true
		d.batch.Events = make([]outbox.Event, 0, n)
	}
	d.batch.Events = append(d.batch.Events, event)
	d.bytes += size
	return full, ok, nil
}

// cut returns the events collected so far, in the middle of a transaction.
func (d *decoder) cut() webhook.Batch {
	b := d.batch
	d.batch = webhook.Batch{CommitTime: b.CommitTime}
	d.bytes = 0
	return b
}

// event decodes the tuple of an Insert.
func (d *decoder) event(r *reader, fields []field) (e outbox.Event, err error) {
	if n := int(r.uint16()); n != len(fields) && !r.short {
		return e, malformed("Insert with another number of columns than its relation")
	}
	for _, f := range fields {
		var value []byte
		kind := r.byte()
		switch kind {
		case 't':
			value = r.next(int(r.uint32()))
		case 'n', 'u':
		default:
			if !r.short {
				return e, malformed(fmt.Sprintf("column of unknown kind %q", kind))
			}
		}
		if r.short {
			return e, malformed("Insert is cut short")
		}
		if f == ignored {
			continue
		}
		if kind != 't' {
			return e, &ColumnError{Column: fieldNames[f], Problem: "is null"}
		}
		if err := d.set(&e, f, value); err != nil {
			return e, err
		}
	}
	if e.CreatedAt.IsZero() { // infinity, or another time that Go or a receiver cannot read
		e.CreatedAt = outbox.IDTime(e.ID).UTC()
	}
	return e, nil
}

// set decodes one value into the event, and copies it.
func (d *decoder) set(e *outbox.Event, f field, value []byte) error {
	ok := true
	switch f {
	case fieldID:
		e.ID, ok = parseUUID(value)
	case fieldOrganizationID:
		e.OrganizationID = d.organizations.string(value)
	case fieldEventType:
		e.Type = d.types.string(value)
	case fieldPayload:
		e.Payload = bytes.Clone(value)
	case fieldCreatedAt:
		e.CreatedAt, ok = parseTimestamp(value)
	case fieldEndpointIDs:
		e.EndpointIDs, ok = parseUUIDs(value)
	}
	if !ok {
		return &ColumnError{Column: fieldNames[f], Problem: fmt.Sprintf("has a value that cannot be read: %.60q", value)}
	}
	return nil
}

// message reads a logical message. One outside a transaction proves nothing about
// earlier commits.
func (d *decoder) message(r *reader) (full webhook.Batch, ok bool, err error) {
	transactional := r.byte() == 1
	r.uint64() // the message's own position
	prefix := r.string()
	content := r.next(int(r.uint32()))
	if r.short {
		return webhook.Batch{}, false, malformed("Message is cut short")
	}
	if !transactional || string(prefix) != webhook.MessagePrefix || len(content) > maxEcho {
		return webhook.Batch{}, false, nil
	}
	if !d.inTx {
		return webhook.Batch{}, false, malformed("transactional Message outside of a transaction")
	}
	if len(d.batch.Echoes) == batchEvents {
		full, ok = d.cut(), true
	}
	d.batch.Echoes = append(d.batch.Echoes, string(content))
	return full, ok, nil
}

// relation reads the columns of a table. The server sends them again after every change.
func (d *decoder) relation(r *reader) error {
	oid := r.uint32()
	r.string() // schema
	r.string() // name
	r.byte()   // replica identity
	n := int(r.uint16())
	if r.short {
		return malformed("Relation is cut short")
	}
	if oid != d.outbox {
		return nil
	}
	fields := make([]field, n)
	var found [fieldCount]bool
	for i := range fields {
		r.byte() // part of the key
		fields[i] = fieldOf(r.string())
		found[fields[i]] = true
		r.next(8) // type and its modifier
		if r.short {
			return malformed("Relation is cut short")
		}
	}
	for f := fieldID; f < fieldCount; f++ {
		if !found[f] {
			return &ColumnError{Column: fieldNames[f], Problem: "is missing"}
		}
	}
	d.fields = fields
	return nil
}

// interned holds repeated strings, so that each is allocated once.
type interned map[string]string

func (t *interned) string(b []byte) string {
	if s, ok := (*t)[string(b)]; ok {
		return s
	}
	if *t == nil || len(*t) >= maxInterned {
		*t = make(interned)
	}
	s := string(b)
	(*t)[s] = s
	return s
}

// A reader parses a message. Reading beyond its end returns zeros and sets short.
type reader struct {
	rest  []byte
	short bool
}

// next returns the next n bytes, without copying them.
func (r *reader) next(n int) []byte {
	if n < 0 || n > len(r.rest) {
		r.rest, r.short = nil, true
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.next(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.next(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.next(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.next(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// time reads microseconds since 2000-01-01.
func (r *reader) time() time.Time {
	return time.UnixMicro(int64(r.uint64()) + postgresEpoch).UTC()
}

// string reads up to a NUL, and skips the NUL.
func (r *reader) string() []byte {
	i := bytes.IndexByte(r.rest, 0)
	if i < 0 {
		r.rest, r.short = nil, true
		return nil
	}
	s := r.next(i)
	r.next(1)
	return s
}
