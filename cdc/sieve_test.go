package cdc

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// frame is a message of the protocol, as the server sends it.
func frame(kind byte, body []byte) wire { return append(wire{kind}.u32(4+len(body)), body...) }

// xlog is what pgoutput says, in its CopyData.
func xlog(message wire) wire { return frame('d', append(wire("w").u64(1).u64(2).u64(3), message...)) }

var large = strings.Repeat("x", largeFrame)

// sieved is what passes a sieve that knows the outbox by OID 1.
func sieved(t *testing.T, in []byte) []byte {
	t.Helper()
	out, err := io.ReadAll(&sieve{from: bytes.NewReader(in), outbox: 1})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestSieve(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		frame  wire
		passes bool
	}{
		"a small message of others":               {xlog(message(1, "other", "x")), true}, // the decoder passes over it
		"a large message of others":               {xlog(message(1, "other", large)), false},
		"one with our prefix":                     {xlog(message(1, "walhook", large)), false},
		"a large prefix":                          {xlog(message(0, large, "")), false},
		"a large row of ours":                     {xlog(insert(1, large)), true},
		"a large row of another table":            {xlog(insert(2, large)), false},
		"an update of ours, which means nothing":  {xlog(append(wire("U").u32(1), large...)), false},
		"our columns, however many":               {xlog(relation(1, "webhook_outbox", large)), true},
		"another's columns":                       {xlog(relation(2, "webhook_outbox", large)), false},
		"a large CopyData that is no XLogData":    {frame('d', []byte("k"+large)), true},
		"a large message that is not of the copy": {frame('D', []byte(large)), true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before, after := frame('W', []byte("before")), frame('Z', []byte("after"))
			want := slices.Concat(before, after)
			if c.passes {
				want = slices.Concat(before, c.frame, after)
			}
			if got := sieved(t, slices.Concat(before, c.frame, after)); !bytes.Equal(got, want) {
				t.Errorf("%d bytes pass, want %d", len(got), len(want))
			}
		})
	}
	t.Run("before the stream begins everything passes", func(t *testing.T) {
		t.Parallel()
		in := xlog(message(1, "other", large))
		if got, err := io.ReadAll(&sieve{from: bytes.NewReader(in)}); err != nil || !bytes.Equal(got, in) {
			t.Errorf("%d bytes of %d, %v", len(got), len(in), err)
		}
	})
}

// TestSieveHoweverTheBytesCome cuts frames anywhere, with deadlines between.
func TestSieveHoweverTheBytesCome(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var in, want []byte
		for range rapid.IntRange(0, 12).Draw(t, "frames") {
			size := rapid.SampledFrom([]int{0, 1, 30, 5000, largeFrame - 40, largeFrame, 3 * largeFrame}).Draw(t, "size")
			oid := rapid.IntRange(1, 2).Draw(t, "oid")
			f := xlog(insert(oid, strings.Repeat("x", size)))
			in = append(in, f...)
			if len(f)-1 <= largeFrame || oid == 1 { // the length does not count the type
				want = append(want, f...)
			}
		}
		pieces := &pieces{rest: in, random: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))}
		s := &sieve{from: pieces, outbox: 1}
		var got []byte
		for {
			buffer := make([]byte, 1+pieces.random.IntN(20_000))
			n, err := s.Read(buffer)
			got = append(got, buffer[:n]...)
			if err == io.EOF {
				break
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%d bytes pass, want %d", len(got), len(want))
		}
		if s.bytesRead != uint64(len(in)) {
			t.Fatalf("%d bytes came, want %d", s.bytesRead, len(in))
		}
	})
}

// pieces hands on some bytes at a time, and now and then a deadline passes.
type pieces struct {
	rest   []byte
	random *rand.Rand
}

func (p *pieces) Read(b []byte) (int, error) {
	switch {
	case len(p.rest) == 0:
		return 0, io.EOF
	case p.random.IntN(4) == 0:
		return 0, os.ErrDeadlineExceeded
	}
	n := copy(b[:min(len(b), 1+p.random.IntN(40_000))], p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

func TestSieveHandsOnAnError(t *testing.T) {
	t.Parallel()
	want := errors.New("cut")
	f := xlog(insert(1, "x"))
	got, err := io.ReadAll(&sieve{from: io.MultiReader(bytes.NewReader(f), iotest.ErrReader(want)), outbox: 1})
	if !bytes.Equal(got, f) || !errors.Is(err, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func BenchmarkSieve(b *testing.B) {
	f := bytes.Repeat(xlog(insert(1, strings.Repeat("x", 1024))), 1000)
	buffer := make([]byte, 16<<10)
	b.SetBytes(int64(len(f)))
	b.ReportAllocs()
	var s sieve
	for b.Loop() {
		s = sieve{from: bytes.NewReader(f), outbox: 1}
		for {
			if _, err := s.Read(buffer); err != nil {
				break
			}
		}
	}
}
