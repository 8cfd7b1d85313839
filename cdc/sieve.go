package cdc

import (
	"encoding/binary"
	"io"

	"github.com/jackc/pglogrepl"
)

// This file keeps the data of others out of memory. Every role may emit a logical
// message of up to a gigabyte, and a publication FOR ALL TABLES sends everybody's
// rows. pgconn reads each message of the protocol into memory as a whole.

const (
	// largeFrame is the size from which a frame is inspected before it is read. An echo
	// has a hundred bytes, and smaller frames cost little memory.
	largeFrame = 64 << 10

	// sieveBuffer is how much is read ahead: enough for the headers of a frame, and for
	// few system calls.
	sieveBuffer = 32 << 10
)

// A sieve is a reader between the connection, above its encryption, and pgproto3. It
// follows the protocol's frames from the first on, and discards large ones that hold
// nothing of ours as they arrive. A read deadline may interrupt it anywhere; the next
// Read continues there.
type sieve struct {
	from      io.Reader
	outbox    uint32 // the OID of webhook_outbox; 0: not streaming yet, so everything passes
	bytesRead uint64 // discarded bytes included

	buffer     [sieveBuffer]byte
	start, end int // the unread part of buffer
	pass       int // bytes of the present frame still to pass on
	skip       int // or to discard
}

const (
	frameHeader = 1 + 4         // type, and the length with itself
	xlogHeader  = 1 + 8 + 8 + 8 // kind, WAL start, WAL end, server's clock
	rowHeader   = 1 + 4         // pgoutput's kind, and the relation's OID if it is a row
)

// Read implements io.Reader. It blocks only if the buffer has nothing to pass on.
func (s *sieve) Read(p []byte) (int, error) {
	for {
		if n := s.passOn(p); n > 0 || len(p) == 0 {
			return n, nil
		}
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
}

// passOn copies the buffered bytes that pass into p.
func (s *sieve) passOn(p []byte) (n int) {
	for n < len(p) {
		if s.pass == 0 && s.skip == 0 && !s.classify() || s.start == s.end {
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

// classify decides whether the frame that begins passes, and reports whether enough
// of it was read to decide.
func (s *sieve) classify() bool {
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
	if suspect && !mayBeOurs(frame[frameHeader:], s.outbox) {
		s.skip = size
	} else {
		s.pass = size
	}
	return true
}

// mayBeOurs reports whether a large message may matter: a row of the outbox, or the
// description of its columns. A logical message of that size is no echo of ours.
func mayBeOurs(data []byte, outbox uint32) bool {
	if data[0] != pglogrepl.XLogDataByteID {
		return true
	}
	kind, oid := data[xlogHeader], binary.BigEndian.Uint32(data[xlogHeader+1:])
	return (kind == 'I' || kind == 'R') && oid == outbox
}

func (s *sieve) fill() error {
	if s.start > 0 {
		s.end = copy(s.buffer[:], s.buffer[s.start:s.end])
		s.start = 0
	}
	n, err := s.from.Read(s.buffer[s.end:])
	s.end += n
	s.bytesRead += uint64(n)
	if n > 0 {
		return nil // the next Read meets the error again
	}
	return err
}
