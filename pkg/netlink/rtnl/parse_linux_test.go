package rtnl

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The request as the kernel reads it, field by field (little endian, as both of
// the architectures that flock is built for).
func TestSetLinkOnTheWire(t *testing.T) {
	t.Parallel()
	up, group, mode := true, uint32(0x666c6f72), uint8(AddrGenNone)
	m := SetLink(9, LinkChange{Up: &up, Group: &group, AddrGenMode: &mode, IPv4: &IPv4Conf{Forwarding: 1, RPFilter: 1}})
	want := unhex(t, `
		00000000 1300 0100 00000000 00000000   length (set when sent), RTM_SETLINK, NLM_F_REQUEST, sequence, port
		00 00 0000 09000000 01000000 01000000  AF_UNSPEC, type, index 9, IFF_UP of IFF_UP
		0800 1b00 726f6c66                     IFLA_GROUP "flor"
		2800 1a80                              IFLA_AF_SPEC
		 1800 0280                             AF_INET
		  1400 0180                            IFLA_INET_CONF
		   0800 0100 01000000                  forwarding
		   0800 0800 01000000                  rp_filter
		 0c00 0a80                             AF_INET6
		  0500 0800 01 000000                  IFLA_INET6_ADDR_GEN_MODE none`)
	if !bytes.Equal(m.b, want) {
		t.Errorf("request:\n%s\nwant:\n%s", hex.Dump(m.b), hex.Dump(want))
	}
}

// unhex reads the hexadecimal digits at the start of each line, up to a word that
// is none or two spaces after the last.
func unhex(t *testing.T, s string) (b []byte) {
	t.Helper()
	for line := range strings.Lines(s) {
		digits, _, _ := strings.Cut(strings.TrimSpace(line), "  ")
		part, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		b = append(b, part...)
	}
	return b
}

func TestShortBodiesAreErrors(t *testing.T) {
	t.Parallel()
	for _, parse := range []func([]byte) error{
		func(b []byte) error { _, err := parseLink(b); return err },
		func(b []byte) error { _, err := parseAddr(b); return err },
		func(b []byte) error { _, _, err := parseNeigh(b); return err },
		func(b []byte) error { _, _, err := parseRoute(b); return err },
	} {
		if err := parse(make([]byte, 4)); err == nil {
			t.Error("a body shorter than its family header: no error")
		}
	}
}

// No answer, however mangled, makes a reader panic or loop.
func FuzzParse(f *testing.F) {
	for _, m := range []Message{
		NewVeth(VethPair{Name: "a", PeerName: "b"}),
		DelLinkGroup(1),
		getLink("", 1),
	} {
		f.Add([]byte(m.b[unix.SizeofNlMsghdr:]))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		parseLink(body)
		parseAddr(body)
		parseNeigh(body)
		parseRoute(body)
		parseNexthop(body)
	})
}
