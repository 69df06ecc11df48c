package rtnl

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// A Message is one request: header, family header, attributes. Its sequence
// number is the connection's business.
type Message struct {
	// What says for people what the request does; it becomes part of its error.
	What string
	b    netlink.Request
}

var native = binary.NativeEndian

// newMessage makes a request of a type (RTM_…) with its family header.
func newMessage(what string, typ, flags uint16, header []byte) Message {
	b := make(netlink.Request, 0, 256)
	b.Begin(typ, flags, header...)
	return Message{What: what, b: b}
}

func (m *Message) addr(typ uint16, a netip.Addr) { m.b.Bytes(typ, a.AsSlice()) }

// The readers of attributes give the zero value for a wrong length: the kernel
// does not send one, and nothing is decided from it.

func getU8(b []byte) uint8 {
	if len(b) < 1 {
		return 0
	}
	return b[0]
}

func getU32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return native.Uint32(b)
}

func getAddr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

func getMAC(b []byte) (m [6]byte) {
	if len(b) == len(m) {
		copy(m[:], b)
	}
	return m
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// anyOf is the default destination of a family (AF_INET or AF_INET6).
func anyOf(fam uint8) netip.Addr {
	if fam == unix.AF_INET {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
