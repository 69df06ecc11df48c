package main

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"testing"
)

func TestPacket(t *testing.T) {
	for _, want := range []packet{
		{source: 40000, destination: 9003, chunk: chunkInit, initiate: 0xdeadbeef},
		{source: 9003, destination: 40000, tag: 0xdeadbeef, chunk: chunkInitAck, initiate: 1},
	} {
		b := want.bytes()
		if got, ok := parse(b); !ok || got != want {
			t.Errorf("parsed %v, %t, want %v", got, ok, want)
		}
		sum := binary.LittleEndian.Uint32(b[8:])
		zeroed := slices.Concat(b[:8], make([]byte, 4), b[12:])
		if c := crc32.Checksum(zeroed, castagnoli); c != sum {
			t.Errorf("checksum %#x, want %#x", sum, c)
		}
		if length := binary.BigEndian.Uint16(b[commonHeader+2:]); int(length) != len(b)-commonHeader {
			t.Errorf("the chunk says that it has %d bytes, it has %d", length, len(b)-commonHeader)
		}
		for n := range b {
			if n < commonHeader+initChunk {
				if _, ok := parse(bytes.Clone(b[:n])); ok {
					t.Errorf("%d bytes are taken for a packet", n)
				}
			}
		}
	}
}

func TestServedPorts(t *testing.T) {
	got := servedPorts([]string{"PATH=/bin", "SERVE_SCTP_PORT_9003=foo", "SERVE_PORT_80=x", "SERVE_SCTP_PORT_99999=foo"})
	if !slices.Equal(got, []uint16{9003}) {
		t.Errorf("got %d, want 9003", got)
	}
}
