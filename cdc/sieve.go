package cdc

import (
	"encoding/binary"
	"io"

	"github.com/jackc/pglogrepl"
)

// This file keeps out of memory what is not ours. Every role may emit a logical
// message, of up to a gigabyte, and a publication of all tables carries everybody's
// rows; a message of the protocol is read into memory as a whole before anyone can
// look at it.

const (
	// largeFrame is from how many bytes on a frame is looked at before it is read: an
	// echo has a hundred, and what is smaller is not worth looking at.
	largeFrame = 64 << 10

	// sieveBuffer is how much is read ahead. The connection's own buffer is as large
	// as what it reads.
	sieveBuffer = 32 << 10
)

// A sieve stands between a connection, above its encryption, and what takes the
// protocol's messages apart. It follows their frames from the first on, and throws
// away, as they come, large ones that hold nothing of ours. The connection's
// deadlines count for it too: where one passes it goes on later where it was.
type sieve struct {
	from   io.Reader
	outbox uint32 // the OID of our table; 0: nothing is streamed yet, and everything passes
	came   uint64 // bytes that were read, those that were thrown away included

	buffer     [sieveBuffer]byte
	start, end int // what of it was not handed on
	pass       int // bytes of the present frame that are to be handed on
	skip       int // or thrown away
}

const (
	frameHeader = 1 + 4         // type, and the length with itself
	xlogHeader  = 1 + 8 + 8 + 8 // kind, WAL start, WAL end, server's clock
	rowHeader   = 1 + 4         // pgoutput's kind, and the relation's OID where it is a row
)

// Read is io.Reader's. It waits only while there is nothing to hand on.
func (s *sieve) Read(p []byte) (int, error) {
	for {
		if n := s.handOn(p); n > 0 || len(p) == 0 {
			return n, nil
		}
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
}

// handOn copies what may be handed on of what was read.
func (s *sieve) handOn(p []byte) (n int) {
	for n < len(p) {
		if s.pass == 0 && s.skip == 0 && !s.judge() || s.start == s.end {
			return n
		}
		thrown := min(s.skip, s.end-s.start)
		s.start += thrown
		s.skip -= thrown
		copied := copy(p[n:], s.buffer[s.start:min(s.end, s.start+s.pass)])
		s.start += copied
		s.pass -= copied
		n += copied
	}
	return n
}

// judge decides about the frame that begins, and reports whether enough of it was
// read for that.
func (s *sieve) judge() bool {
	frame := s.buffer[s.start:s.end]
	if len(frame) < frameHeader {
		return false
	}
	length := int(binary.BigEndian.Uint32(frame[1:]))
	suspect := s.outbox != 0 && frame[0] == 'd' && length > largeFrame
	if suspect && len(frame) < frameHeader+xlogHeader+rowHeader {
		return false
	}
	size := 1 + max(length, frameHeader-1)
	if suspect && !ours(frame[frameHeader:], s.outbox) {
		s.skip = size
	} else {
		s.pass = size
	}
	return true
}

// ours says whether a large message may be of use: a row of the outbox, or what its
// columns are. A logical message of that size is no echo.
func ours(data []byte, outbox uint32) bool {
	if data[0] != pglogrepl.XLogDataByteID {
		return true
	}
	kind, oid := data[xlogHeader], binary.BigEndian.Uint32(data[xlogHeader+1:])
	return (kind == 'I' || kind == 'R') && oid == outbox
}

// fill reads more.
func (s *sieve) fill() error {
	if s.start > 0 {
		s.end = copy(s.buffer[:], s.buffer[s.start:s.end])
		s.start = 0
	}
	n, err := s.from.Read(s.buffer[s.end:])
	s.end += n
	s.came += uint64(n)
	if n > 0 {
		return nil // an error comes again
	}
	return err
}
