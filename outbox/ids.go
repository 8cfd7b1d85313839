package outbox

import (
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/google/uuid"
)

// DeliveryID computes the id of the delivery of an event to an endpoint. It is a pure
// function: crash, replay and restore all arrive at the same id, so a receiver can drop
// duplicates. The id is a UUIDv7. Its 48 bits of time are the event's; its 74 other free
// bits are the first of SHA-256(event id ‖ endpoint id). The SQL function
// webhook_delivery_id computes the same.
func DeliveryID(event, endpoint uuid.UUID) uuid.UUID {
	return hashedID([6]byte(event[:6]), event[:], endpoint[:])
}

// OwnEventID computes the id of one of walhook's own events. It is a pure function of
// what the event reports, so that reporting it twice inserts one event. Two reports from
// one millisecond are told apart by their microseconds, as far as timestamptz goes.
func OwnEventID(at time.Time, about uuid.UUID, attempts int) uuid.UUID {
	var millis, micros [8]byte
	binary.BigEndian.PutUint64(millis[:], uint64(at.UnixMilli()))
	binary.BigEndian.PutUint64(micros[:], uint64(at.UnixMicro()))
	var n [4]byte
	binary.BigEndian.PutUint32(n[:], uint32(attempts))
	return hashedID([6]byte(millis[2:]), micros[:], about[:], n[:])
}

// hashedID makes a UUIDv7 from a time and the SHA-256 of the parts.
func hashedID(millis [6]byte, parts ...[]byte) uuid.UUID {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	var id uuid.UUID
	copy(id[:6], millis[:])
	copy(id[6:], sum[:10])
	id[6] = id[6]&0x0f | 0x70 // version 7, RFC 9562 section 5.7
	id[8] = id[8]&0x3f | 0x80 // variant 10
	return id
}

// IDTime returns the time in a UUIDv7, in milliseconds.
func IDTime(id uuid.UUID) time.Time {
	ms := int64(id[0])<<40 | int64(id[1])<<32 | int64(id[2])<<24 | int64(id[3])<<16 | int64(id[4])<<8 | int64(id[5])
	return time.UnixMilli(ms)
}

// maxMillis is the last time that 48 bits hold.
const maxMillis = 1<<48 - 1

// TimeID returns the smallest UUID with the time t: a bound for ranges of ids. A time that no
// id can have, such as the zero time, is before or after all ids.
func TimeID(t time.Time) uuid.UUID {
	ms := min(max(t.UnixMilli(), 0), maxMillis)
	return uuid.UUID{byte(ms >> 40), byte(ms >> 32), byte(ms >> 24), byte(ms >> 16), byte(ms >> 8), byte(ms)}
}
